"""A pipeline's network in the form that a flow takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secondlook.adapters.encoding import Encoded
from secondlook.adapters.schedule import Schedule
from secondlook.flow.path import KINDS, Kind

if TYPE_CHECKING:
    from secondlook.adapters.base import Adapter


@dataclass
class Network:
    """A pipeline's network as ``flow.Network``. A flow's output is noise - data and this project's velocity data - noise, so
    its sign is turned; v-prediction (2202.00512) is turned into the data that it implies, which is well known at every time."""

    adapter: Adapter
    schedule: Schedule
    guidance: float = 1.0
    predicts: Kind = field(init=False)

    def __post_init__(self) -> None:
        kinds: dict[str, Kind] = {"flow": "velocity", "sample": "data", "v_prediction": "data", **{k: k for k in KINDS}}
        self.predicts = kinds.get(self.schedule.predicts, "noise")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.adapter.shape

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.full(x, t, cond)[:, : x.shape[1]]

    def full(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """With the variance channels of heads that have them."""
        if self.adapter.distilled:
            scale = torch.full((len(x),), self.guidance, device=self.adapter.device)
            cond = Encoded({**cond.parts, "guidance": scale})
        out = self.adapter.outputs(x, self.schedule.level(t), cond)
        if self.schedule.predicts == "flow":
            return -out
        if self.schedule.predicts != "v_prediction":
            return out
        c = self.schedule.path.coefs(t).like(x)
        return torch.cat([c.alpha * x - c.sigma * out[:, : x.shape[1]], out[:, x.shape[1] :]], 1)
