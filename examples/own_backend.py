"""A network of your own under everything that draws: one object, a backend, for `model=`.

    python examples/own_backend.py RUN

Blobs is no trained network, it blurs and tints; replace it, its encoding and its decoder by yours. The tests of a backend are
inherited: ``class TestMine(secondlook.testing.BackendContract)`` with ``made()``, as tests/test_backends.py does for this one.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

import secondlook
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.path import Linear
from secondlook.settings import Settings, make_named
from secondlook.types import Condition, Verifier


class Blobs:
    """(x [B, 3, 8, 8], t [B], encoding) -> a prediction of the clean sample; t = 1 is data."""

    predicts, shape = "data", (3, 8, 8)

    def __call__(self, x: Tensor, t: Tensor, cond: Tints) -> Tensor:
        return torch.tanh(torch.nn.functional.avg_pool2d(x, 3, 1, 1) * 2 + cond.tint[:, :, None, None])


class Tints:
    """Encodings: a colour a row."""

    def __init__(self, tint: Tensor):
        self.tint = tint

    def rows(self, index: Any) -> Tints:
        return Tints(self.tint[list(index)])

    @staticmethod
    def stack(items: list[Tints]) -> Tints:
        return Tints(torch.cat([i.tint for i in items]))


def encode(condition: Condition | None) -> Tints:
    text = "" if condition is None else condition.prompt or ""
    return Tints(torch.tensor([[text.count(c) / 4 for c in "rgb"]]))


def decode(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class OwnBackend:
    """What ``draw``, ``sample``, ``resume`` and ``replay`` ask of whoever draws."""

    name, takes = "blobs", frozenset[str]()

    def condition(self, text: str) -> Condition:
        # A request as a condition; ConfigError for what cannot be asked for.
        if not text.strip():
            raise ConfigError("Ask for something.")
        return Condition(text)

    def usual(self, s: Settings) -> dict[str, Any]:
        # What a run needs and was not given.
        return {"world": self.name, "steps": 5, "solver": "euler", "rows": 4, "verifier": "brightness", "threads": 1}

    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        solver = make_named("solver", str(s.solver))
        return Rig(Flow(Blobs(), Linear()), solver, grid(int(s.steps or 1)), encode, decode, guide, rows=s.rows or 4)

    def verifier(self, name: str) -> Verifier | None:
        # A verifier of the backend's own by name; those of `secondlook list verifiers` need nothing here.
        return None

    def exact(self, verifier: Verifier | None) -> bool:
        # Whether a verifier is an exact checker; a search that it guides is labelled oracle.
        return False

    def digests(self) -> dict[str, str]:
        # Of everything that decides a picture besides the settings: weights, most of all.
        return {"model": "blobs 1"}

    def describe(self) -> dict[str, Any]:
        # Plain values that the record should hold beside the settings.
        return {}

    def session(self) -> AbstractContextManager[Any]:
        # Entered while a run works: give back here what you borrow.
        return nullcontext()

    def metadata(self, prompt: str) -> dict[str, Any]:
        # A line of GenEval's metadata.
        return {"prompt": prompt}


if __name__ == "__main__":
    [found] = secondlook.draw("red and green", "zero_order(neighbours=4)", sys.argv[1], model=OwnBackend(), nfe=200)
    print(f"{found.plain_score:.3f} -> {found.score:.3f}; the report: {secondlook.write_report(sys.argv[1])}")
