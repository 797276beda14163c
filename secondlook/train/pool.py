"""Training items made beforehand by several processes and held on the training's device, so that a step waits for no picture.

What a pool holds is a function of its maker, seed and size, whatever the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import DamagedError, ShapeError
from secondlook.train.loop import ByRows, Rows

PART = 256  # items that one call of a maker makes

# (seed, part, count) to columns, each of which has ``count`` rows. Importable, so that another process can call it.
Maker = Callable[[str, int, int], Mapping[str, np.ndarray]]


@dataclass
class Pool:
    """Columns of equal length. ``at`` gives rows of all of them."""

    columns: dict[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if len(set(lengths.values())) != 1:
            raise ShapeError(f"A pool's columns have one length; got {lengths}.")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def at(self, index: Tensor) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.columns, path)

    @staticmethod
    def load(path: Path) -> Pool:
        """DamagedError for a file that holds none."""
        try:
            return Pool(torch.load(path, weights_only=True))
        except Exception as error:
            raise DamagedError(f"The items {path} cannot be read ({error}); make them again.") from None

    def to(self, device: torch.device | str) -> Pool:
        return Pool({name: column.to(device) for name, column in self.columns.items()})


def make_pool(maker: Maker, seed: str, count: int, workers: int = 1) -> Pool:
    """``count`` items of a maker, in parts of ``PART``."""
    sizes = [min(PART, count - start) for start in range(0, count, PART)]
    asked = [(seed, part, size) for part, size in enumerate(sizes)]
    if workers <= 1:
        parts = [dict(maker(*a)) for a in asked]
    else:
        with team(workers) as processes:
            parts = []
            for done in processes.map(_call, [(maker, *a) for a in asked], chunksize=4):
                parts.append(done)
                if len(parts) % 200 == 0:
                    print(f"{len(parts) * PART} of {count}", file=sys.stderr, flush=True)
    return Pool({name: torch.from_numpy(np.concatenate([p[name] for p in parts])) for name in parts[0]})


_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def team(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each; NumPy's libraries would have one for every core in each of them. They read the environment as
    they are loaded."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin) as found:
            yield found
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin() -> None:
    torch.set_num_threads(1)


def _call(asked: tuple[Any, ...]) -> dict[str, np.ndarray]:
    maker, *rest = asked
    return dict(maker(*rest))


# (forward, items, generator on their device) to the loss by rows
PoolLoss = Callable[[Callable[..., Any], dict[str, Tensor], torch.Generator], Rows]


def over(pool: Pool, batch: int, loss: PoolLoss) -> ByRows:
    """A loss over items drawn at random, with replacement. What is random in ``loss`` is drawn on the device, from a generator
    of the step and the slice: unlike elsewhere, another number of micro-batches or processes is another training."""
    some = next(iter(pool.columns.values()))

    def draw(step: int, generator: torch.Generator, rows: slice) -> tuple[Tensor, ...]:
        index = torch.randint(len(pool), (batch,), generator=generator)
        seeds = torch.randint(2**62, (batch,), generator=generator)
        return index[rows], seeds[rows]

    def of_rows(forward: Callable[..., Any], index: Tensor, seeds: Tensor) -> Rows:
        generator = torch.Generator(some.device).manual_seed(int(seeds[0]))
        return loss(forward, pool.at(index.to(some.device)), generator)

    return ByRows(draw, of_rows)
