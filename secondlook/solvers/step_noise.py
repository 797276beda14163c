"""The noise of stochastic steps: a function of each row's key and of the steps it has taken, drawn when it is asked for or
before."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from secondlook.noise import Key, NoiseSource, normal
from secondlook.types import State


def step_keys(state: State) -> list[Key]:
    """The key of each row's next step."""
    return [k.child("step", int(n)) for k, n in zip(state.keys, state.step.tolist(), strict=True)]


def draw_noise(source: NoiseSource, state: State) -> Tensor:
    """The noise of each row's next step, [B, *S], where the rows are."""
    return source(step_keys(state), state.x.shape[1:]).to(state.x)


class Ahead:
    """A noise source that draws a step's noise in a thread while the network, on another device, is at work. What is asked for
    and was not begun is drawn then, so it gives the same bits either way."""

    def __init__(self, source: NoiseSource = normal):
        self.source = source
        self._begun: tuple[list[Key], tuple[int, ...]] | None = None
        self._thread: threading.Thread | None = None
        self._found: Tensor | None = None

    def begin(self, state: State) -> None:
        """Draw the noise of the next step of these rows."""
        self._drop()
        keys, shape = step_keys(state), tuple(state.x.shape[1:])

        def draw() -> None:
            with suppress(Exception):  # the step then draws it itself, and says why
                self._found = self.source(keys, shape)

        self._begun, self._thread = (keys, shape), threading.Thread(target=draw, name="secondlook-noise")
        self._thread.start()

    def __call__(self, keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
        if self._begun == (list(keys), tuple(shape)) and self._thread is not None:
            self._thread.join()
            found = self._found
            self._drop()
            if found is not None:
                return found
        return self.source(keys, shape)

    def _drop(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._begun = self._thread = self._found = None

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_begun": None, "_thread": None, "_found": None}


def ahead(solver: Any) -> tuple[Any, Ahead | None]:
    """The solver with its keyed noise drawn ahead, where it draws any."""
    if not solver.random or getattr(solver, "source", None) is not normal:
        return solver, None
    source = Ahead()
    return replace(solver, source=source), source
