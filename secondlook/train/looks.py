"""Looks at a class-conditional network in training: a contact sheet, and how many of its samples an exact checker passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.flow.discrete import with_path
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import spread
from secondlook.flow.interval import interval
from secondlook.models.sit import Labels, SiT
from secondlook.noise import Key, normal
from secondlook.solvers.ode import Heun, integrate
from secondlook.types import State

Decode = Callable[[Tensor], Tensor]


def sampled(network: SiT, labels: Tensor, steps: int = 20, name: str = "look") -> Tensor:
    """x [N, *S] on the CPU for labels int64 [N], without guidance: ``steps`` Heun steps from keyed noise, the same at
    every look."""
    c = network.config
    device = next(network.parameters()).device
    span = interval(c.path, c.predicts, "ode")
    times = spread(span.start, span.end, steps, last=1.0 - span.end)
    keys = tuple(Key.root(0).child(name, i) for i in range(len(labels)))
    zeros = torch.zeros(len(labels), dtype=torch.long)
    state = State(
        normal(keys, network.shape).to(device), torch.full((len(labels),), times[0], device=device), keys, zeros
    )
    flow = Flow(*with_path(network))
    return integrate(flow, Heun(), state, times, Labels(labels.to(device))).x.cpu()


def sheet(decode: Decode, rows: int = 10, columns: int = 6) -> Callable[[Any], Image.Image]:
    """A maker of contact sheets: up to ``rows`` classes, evenly chosen, a row each. decode: x [N, *S] to uint8 pictures
    [N, H, W, 1 or 3]."""

    def make(network: SiT) -> Image.Image:
        from secondlook.disk.sheets import contact_sheet

        count = network.config.classes
        chosen = torch.linspace(0, count - 1, min(rows, count)).round().long()
        pictures = decode(sampled(network, chosen.repeat_interleave(columns))).numpy()
        pictures = np.repeat(pictures, 3, axis=3) if pictures.shape[3] == 1 else pictures
        return contact_sheet(pictures, zoom=max(1, 64 // pictures.shape[2]), columns=columns)

    return make


def right(
    decode: Decode, check: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int = 128
) -> Callable[[Any], Mapping[str, float]]:
    """A counter of the share of samples that are of their class by ``check``: (pictures, labels [N]) to bool [N]."""

    def share(network: SiT) -> Mapping[str, float]:
        labels = torch.arange(count) % network.config.classes
        pictures = decode(sampled(network, labels, name="right")).numpy()
        return {"right": float(np.mean(check(pictures, labels.numpy())))}

    return share
