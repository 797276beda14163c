"""Prompts as tokens, and a bounded memory of what networks made of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from secondlook.adapters.logs import CUT, hushed
from secondlook.adapters.truncation import note_cuts, room

KEPT = 512  # prompts whose encoding is remembered
T = TypeVar("T")


class Memory(Generic[T]):
    """What was made of the last ``KEPT`` texts."""

    def __init__(self, most: int = KEPT):
        self.most, self._known = most, OrderedDict[str, T]()

    def get(self, text: str, make: Callable[[str], T]) -> T:
        if text not in self._known:
            self._known[text] = make(text)
            while len(self._known) > self.most:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        return self._known[text]

    def __len__(self) -> int:
        return len(self._known)


class Words:
    """A tokenizer that gives at most ``most`` tokens, and says once of each prompt what of it is not read.

    full: fill up to ``most`` tokens, for networks that were trained so (SigLIP, ImageReward); others read a prompt as long as it is.
    small: in small letters, as SigLIP 2 was trained (its saved tokenizer leaves that to the caller).
    """

    def __init__(self, tokenizer: Any, most: int, name: str, full: bool = False, small: bool = False):
        limit = getattr(tokenizer, "model_max_length", most)
        self.tokenizer, self.most, self.name, self.full, self.small = (
            tokenizer,
            min(most, int(limit)),
            name,
            full,
            small,
        )

    def __call__(self, text: str) -> dict[str, Tensor]:
        """Token ids and mask, int64 [1, L] each."""
        text = text.lower() if self.small else text
        with hushed(*CUT):
            note_cuts(text, {self.name: (self.tokenizer, room(self.tokenizer, self.most))})
            found = self.tokenizer(
                text,
                truncation=True,
                max_length=self.most,
                padding="max_length" if self.full else False,
                return_tensors="pt",
            )
        ids = found["input_ids"]
        return {"input_ids": ids, "attention_mask": found.get("attention_mask", torch.ones_like(ids))}
