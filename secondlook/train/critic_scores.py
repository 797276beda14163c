"""How good critics are: their verdicts, their sentences and their clauses against the checker's, on samples of the base model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from secondlook.critics.scenes import Learned, detector
from secondlook.models.writer import load_writer
from secondlook.train.auc import auc, within
from secondlook.train.samples import Samples
from secondlook.types import Condition, Critic, Remark
from secondlook.worlds.scenes.checker import detect_batch
from secondlook.worlds.scenes.grammar import Prompt
from secondlook.worlds.scenes.remarks import COUNTS, KINDS, MOST_CLAUSES, faults

HARD = 3  # atoms from which a compound prompt counts as hard


def kind_of(clause: str) -> str | None:
    """Which of ``KINDS`` a clause is, by its words; None for what is no whole clause."""
    words = clause.replace(",", " ,").split()
    ends = {"is of no known color": "colorless", "none of the shapes": "shapeless", "specks lie about": "specks",
            "that was not asked for": "extra", "that were not asked for": "extra"}  # fmt: skip
    for end, kind in ends.items():
        if clause.endswith(end):
            return kind
    if clause.endswith("asked for") and words[:1] == ["there"] and "," in words[:-1]:
        have, asked = words[2], words[words.index(",") + 1]
        if have in (*COUNTS, "many") and asked in COUNTS:
            return "missing" if have != "many" and COUNTS.index(have) < COUNTS.index(asked) else "count"
    if words[:1] == ["the"] and "not" in words:
        placed = {"left", "right", "above", "below"} & set(words[words.index("not") :])
        return "relation" if placed else "color"
    return None


def subsets(prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """Which rows are counted together."""
    held = np.array([p.held_out for p in prompts])
    hard = np.array([p.tag == "compound" and p.atoms >= HARD for p in prompts])
    return {"all": np.ones(len(held), bool), "trained": ~held, "held_out": held, "hard": hard}


def table(said: Sequence[Remark | None], samples: Samples) -> dict[str, Any]:
    """For each of ``subsets``: verdicts, sentences, clauses."""
    prompts = samples.prompts
    true = [faults(seen, p) for seen, p in zip(detect_batch(samples.pictures), prompts, strict=True)]
    rows = list(zip(said, true, samples.texts, strict=True))
    return {
        name: _row([row for row, a in zip(rows, at, strict=True) if a])
        for name, at in subsets(prompts).items()
        if at.any()
    }


def _row(rows: list[tuple[Remark | None, list[tuple[str, str]], str]]) -> dict[str, Any]:
    """verdict: share of pictures whose verdict is the checker's (no remark: a wrong verdict). missed: of the wrong ones, those
    called right; blamed: of the right ones, those not called right. sentence: of the wrong ones, those whose remark is word for word the
    checker's; of_those_seen: the same among wrong ones called wrong. first_clause: of the wrong ones, those whose first clause is
    true."""
    right = np.array([not true for _, true, _ in rows])
    calls = np.array([r is not None and r.text == "" for r, _, _ in rows])
    unread = np.array([r is None for r, _, _ in rows])
    scores = np.array([np.nan if r is None else r.score for r, _, _ in rows])
    known = ~np.isnan(scores)
    texts = [t for (_, _, t), k in zip(rows, known, strict=True) if k]
    exact = np.array([r is not None and r.text == _sentence(true) for r, true, _ in rows])
    first = np.array([r is not None and r.text.split("; ")[0] in {c for _, c in true} for r, true, _ in rows])
    seen = ~right & ~calls & ~unread
    return {
        "samples": len(rows), "right": _mean(right), "verdict": _mean((calls == right) & ~unread), "missed": _mean(calls[~right]),
        "blamed": _mean(~calls[right]), "auc": round(auc(scores[known], right[known]), 4),
        "auc_within_prompt": round(within(scores[known], right[known], texts)[0], 4) if known.any() else float("nan"),
        "sentence": _mean(exact[~right]), "of_those_seen": _mean(exact[seen]), "first_clause": _mean(first[~right]),
        "unreadable": int(unread.sum()), "clauses": _clauses([(r, true) for r, true, _ in rows]),
    }  # fmt: skip


def _sentence(true: Sequence[tuple[str, str]]) -> str:
    return "; ".join(clause for _, clause in true[:MOST_CLAUSES])


def _mean(values: np.ndarray) -> float:
    return round(float(values.mean()), 4) if len(values) else float("nan")


def _clauses(rows: Sequence[tuple[Remark | None, Sequence[tuple[str, str]]]]) -> dict[str, Any]:
    """By kind: how many clauses were said and the share of them that is true; how many the checker says and the share of them that was
    said. "other": what was said and is no clause."""
    said, hit, due, met = (dict.fromkeys((*KINDS, "other"), 0) for _ in range(4))
    for remark, true in rows:
        clauses = [] if remark is None or not remark.text else remark.text.split("; ")
        truths = {clause for _, clause in true}
        for clause in clauses:
            kind = kind_of(clause) or "other"
            said[kind] += 1
            hit[kind] += clause in truths
        for kind, clause in true[:MOST_CLAUSES]:
            due[kind] += 1
            met[kind] += clause in clauses
    return {
        kind: {"said": said[kind], "precision": _share(hit[kind], said[kind]), "true": due[kind],
               "recall": _share(met[kind], due[kind])}
        for kind in said if said[kind] or due[kind]
    }  # fmt: skip


def _share(some: int, of: int) -> float:
    return round(some / of, 4) if of else float("nan")


def remarks_of(critic: Critic, samples: Samples) -> list[Remark | None]:
    """What a critic says of samples."""
    return list(critic(torch.from_numpy(samples.pictures), [Condition(prompt=t) for t in samples.texts]))


def results(weights: Path, samples: Samples) -> dict[str, Any]:
    """The critic in a weights file, beside the shipped detector: its training's facts, what a picture costs, and ``table``."""
    critics: Mapping[str, Critic] = {"learned": Learned(load_writer(weights)), "detector": detector()}
    out: dict[str, Any] = {}
    for name, critic in critics.items():
        start = time.perf_counter()
        said = remarks_of(critic, samples)
        seconds = time.perf_counter() - start
        out[name] = {"milliseconds_a_picture": round(1e3 * seconds / len(samples), 2), **table(said, samples)}
    with safe_open(weights, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
    return {"facts": facts, "megabytes": round(weights.stat().st_size / 1e6, 2), **out}
