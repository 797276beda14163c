"""The page's script: comfort only. Everything is there without it."""

SCRIPT = """
"use strict";
(() => {
  const peek = document.createElement("aside");
  peek.id = "peek"; peek.hidden = true; peek.setAttribute("aria-hidden", "true");
  document.body.append(peek);
  let lit = [];
  const hide = () => { peek.hidden = true; lit.forEach(e => e.classList.remove("lit")); lit = []; };
  const show = target => {
    const id = target.dataset.o;
    hide();
    lit = [...document.querySelectorAll(`[data-o="${id}"]`)];
    lit.forEach(e => e.classList.add("lit"));
    const card = document.getElementById("o" + id), image = card && card.querySelector("img");
    const blank = card && card.querySelector("[aria-label]");
    peek.replaceChildren();
    if (image) { const copy = image.cloneNode(); copy.loading = "eager"; copy.alt = ""; peek.append(copy); }
    const list = document.createElement("ul");
    for (const line of (image ? image.alt : blank ? blank.getAttribute("aria-label") : "").split("; ")) {
      const item = document.createElement("li"); item.textContent = line; list.append(item);
    }
    peek.append(list); peek.hidden = false;
  };
  document.querySelectorAll("circle title").forEach(t => t.remove());
  document.addEventListener("pointerover", e => {
    if (e.pointerType === "touch") return;
    const target = e.target.closest("[data-o]");
    if (target) show(target); else if (!peek.hidden) hide();
  });
  document.addEventListener("click", e => {
    const target = e.target.closest("[data-o]");
    if (target) show(target); else hide();
  });
  document.addEventListener("keydown", e => { if (e.key === "Escape") hide(); });
  const open = () => {
    const at = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (!at) return;
    for (let d = at.closest("details"); d; d = d.parentElement.closest("details")) d.open = true;
    at.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
  document.querySelectorAll("[data-fold]").forEach(b => {
    b.hidden = false;
    b.addEventListener("click", () => {
      const all = [...document.querySelectorAll("details.prompt")], on = all.some(d => !d.open);
      all.forEach(d => { d.open = on; });
      b.textContent = on ? "Fold all details" : "Unfold all details";
    });
  });
  document.querySelectorAll("[data-copy]").forEach(b => {
    if (!navigator.clipboard) return;
    b.hidden = false;
    b.addEventListener("click", async () => {
      try { await navigator.clipboard.writeText(b.previousElementSibling.textContent); b.textContent = "Copied"; }
      catch { b.textContent = "Press Ctrl+C"; getSelection().selectAllChildren(b.previousElementSibling); }
      setTimeout(() => { b.textContent = "Copy"; }, 1600);
    });
  });
})();
"""
