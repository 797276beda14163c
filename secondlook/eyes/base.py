"""What the judges of this room have in common: pictures in batches, each row's number its own.

A network is called with ``batch`` rows each time, the last ones black where fewer are left: a matrix product may round
differently at another batch size, and a row's score must not depend on its company. On the CPU, where batches gain little, the
batch is one row unless another is named; elsewhere it is ``BATCH``. Batches of different sizes agree to about 1e-6 of a score.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.eyes.load import Held
from secondlook.eyes.pixels import Prepare, check
from secondlook.types import Condition

BATCH = 8  # rows of a network's call on an accelerator


class Eye(ABC):
    """A ``types.Verifier`` over a network of ``transformers``: uint8 [B, H, W, 3] and conditions to [B] float64, NaN where a
    condition lacks what it reads. batch: rows of a call, 0 for the usual; offload: the network waits on the CPU between calls.

    ``network`` and ``made`` are what a run's record sees of it: weights, and what decides its numbers besides.
    """

    inline = True

    def __init__(self, name: str, held: Held, prepare: Prepare, *, batch: int = 0, offload: bool = False):
        if isinstance(batch, bool) or not 0 <= batch <= 4096:
            raise ConfigError(f"{name}: batch is from 1 to 4096, or 0 for the usual; got {batch!r}.")
        self.name, self.network = name, held.network
        self.made: dict[str, Any] = {"pixels": dict(prepare.facts)}
        self._use = Use(held, prepare, batch, offload)

    def beside(self, device: torch.device | None) -> None:
        """Told where the generator works, before the first picture."""
        self._use.held.near = device

    def reads(self, condition: Condition) -> bool:
        """Whether a condition has what this one needs."""
        return condition.prompt is not None

    @abstractmethod
    def judge(self, pixels: Tensor, conditions: Sequence[Condition], device: torch.device) -> np.ndarray:
        """Prepared pictures [n, 3, h, w] on ``device``, with as many conditions or fewer: [len(conditions)] float64."""

    @torch.inference_mode()
    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        check(self.name, samples)
        if len(samples) != len(conditions):
            raise ShapeError(
                f"{len(samples)} pictures came with {len(conditions)} conditions; give one for each picture."
            )
        out = torch.full((len(samples),), torch.nan, dtype=torch.float64)
        rows = [i for i, c in enumerate(conditions) if self.reads(c)]
        if not rows:
            return out
        with self._use.held.on(self._use.offload) as device:
            for some, pixels in self._use.batches(samples, rows, device):
                out[some] = torch.from_numpy(
                    np.asarray(self.judge(pixels, [conditions[i] for i in some], device), dtype=np.float64)
                )
        return out


class Use:
    """How a network is used. A run that goes on may use it otherwise, so its record does not look in here."""

    def __init__(self, held: Held, prepare: Prepare, batch: int, offload: bool):
        self.held, self.prepare, self.batch, self.offload = held, prepare, batch, offload

    def batches(self, samples: Tensor, rows: Sequence[int], device: torch.device) -> Iterator[tuple[list[int], Tensor]]:
        """The given rows, some at a time, with their prepared pixels [batch, 3, h, w] in the network's dtype."""
        size = self.batch or (1 if device.type == "cpu" else BATCH)
        dtype = next(self.held.network.parameters()).dtype
        for start in range(0, len(rows), size):
            some = list(rows[start : start + size])
            pixels = self.prepare(samples[some].to(device)).to(dtype)
            yield some, torch.cat([pixels, pixels.new_zeros(size - len(some), *pixels.shape[1:])])


def unit(features: Tensor) -> np.ndarray:
    """Rows [n, D] brought to length 1, float64 on the CPU; zero rows become NaN."""
    rows = features.cpu().double().numpy()
    with np.errstate(invalid="ignore"):
        return np.stack([row / np.sqrt(np.sum(row * row)) for row in rows])
