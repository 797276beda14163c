"""One wrapper for the precision that a network is run in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.flow.guidance import Network
from secondlook.flow.path import Kind


@dataclass(frozen=True)
class Autocast:
    """A network called under autocast where ``bf16`` is set; predictions come back as float32."""

    network: Network
    bf16: bool = False

    @property
    def predicts(self) -> Kind:
        return self.network.predicts

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.network.shape)

    def __call__(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        """The prediction [B, *S]."""
        return self.full(x, t, cond)[:, : self.shape[0]]

    def full(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        """The whole head, for solvers that read its variance; the prediction where the network has nothing else."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out: Tensor = getattr(self.network, "full", self.network)(x, t, cond)
        return out.float()
