"""What of a prompt its encoders do not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secondlook.notes import note

HEAD = 40  # letters of a prompt by which a note names it


def shorten(text: str, most: int = 300) -> str:
    """At most so many letters, with a word on how many more there are."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most} letters more)"


def room(tokenizer: Any, limit: int) -> int:
    """Tokens of a prompt's own that a tokenizer leaves in ``limit``."""
    return limit - len(tokenizer("", add_special_tokens=True).input_ids)


def unread(tokenizer: Any, text: str, most: int) -> tuple[int, str]:
    """How many tokens ``text`` has, and its part behind the first ``most`` of them."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
    ids, most = found["input_ids"], max(0, most)
    if len(ids) <= most:
        return len(ids), ""
    return len(ids), text[found["offset_mapping"][most][0] :] if fast else tokenizer.decode(ids[most:])


def note_cuts(prompt: str, readers: Mapping[str, tuple[Any, int]]) -> None:
    """One note on a prompt that is too long for some of ``readers``: tokenizers and the tokens that they leave it, by name."""
    cut: dict[tuple[int, int, str], list[str]] = {}
    whole = []
    for name, (tokenizer, most) in readers.items():
        count, rest = unread(tokenizer, prompt, most)
        if rest:
            cut.setdefault((count, most, rest), []).append(name)
        else:
            whole.append(name)
    if not cut:
        return
    said = [f'{" and ".join(names)} take{"s" * (len(names) == 1)} {most} of its {count} tokens and do{"es" * (len(names) == 1)} not see "…{shorten(rest)}"'
            for (count, most, rest), names in cut.items()]  # fmt: skip
    others = f"; {' and '.join(whole)} read{'s' * (len(whole) == 1)} all of it" if whole else ""
    head = prompt if len(prompt) <= HEAD else f"{prompt[:HEAD]}…"
    note(f'The prompt "{head}" is long: {"; ".join(said)}{others}.')
