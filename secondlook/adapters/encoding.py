"""What an adapter is given: its options, and what its network is told of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """What a network is told of its rows: tensors [B, ...] by name, on the network's device."""

    parts: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def rows(self, index: Sequence[int] | slice) -> Encoded:
        """The rows named, in that order."""
        at = index if isinstance(index, slice) else torch.as_tensor(list(index), dtype=torch.long)
        return Encoded({k: v[at] for k, v in self.parts.items()})

    @staticmethod
    def stack(items: Sequence[Encoded]) -> Encoded:
        return Encoded({k: torch.cat([i.parts[k] for i in items]) for k in items[0].parts})


@dataclass(frozen=True)
class Options:
    """How a pipeline is used. height, width: of pictures, in pixels. negative: what guidance leads away from. tokens: the most
    tokens of a long prompt's encoder. true_guidance: FLUX's classifier-free scale beside its distilled one. free_text: text
    encoders go to the CPU once the prompts are encoded. lora: a file, folder or hub id of LoRA weights, and offload: parts wait
    on the CPU for their turn, both for pipelines that are loaded by name. None: the pipeline's own."""

    height: int | None = None
    width: int | None = None
    negative: str | None = None
    tokens: int | None = None
    true_guidance: float = 1.0
    free_text: bool = False
    lora: str | None = None
    offload: bool = False


USUAL = Options()
