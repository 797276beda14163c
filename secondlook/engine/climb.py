"""The gradient of a score by the starting noise, and what it costs: first-order search (2501.09732), for the move ``Climb``.

The way from noise to picture is run without a graph, its states kept; then it is walked back, each step drawn again with a graph and
differentiated, so that memory holds one step (gradient checkpointing, 1604.06174). Only the noise is differentiated: weights are left
as they are, with whatever ``requires_grad`` they have, and nothing is accumulated on them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secondlook.cost import BACKWARD
from secondlook.engine.rig import Rig, Times
from secondlook.errors import ConfigError, SecondlookError
from secondlook.flow.estimate import Flow, Meter
from secondlook.flow.grid import EPS, after
from secondlook.types import Condition, Cost, Differentiable, Proposal, State


def refuse_flat(rig: Rig) -> None:
    """ConfigError where the run's scores have no gradient by the noise."""
    if not isinstance(rig.verifier, Differentiable):
        name = getattr(rig.verifier, "name", None)
        raise ConfigError(f'To climb needs a verifier with a method gradient, and {f"{name!r}" if name else "this run"} has none; take '
                          "learned, brightness or sharpness, or a plan that needs no gradient, such as zero_order.")  # fmt: skip
    if rig.pixels is None:
        raise ConfigError("To climb needs a decoder that can be differentiated, and this generator has none (offloaded parts have not); "
                          "take a plan that needs no gradient, such as zero_order.")  # fmt: skip


def way_of(rig: Rig, parent: Proposal, steps: int) -> Times:
    """The grid that a gradient goes through: its own ``steps``, or where they are 0 the parent's."""
    return rig.times_for(steps or parent.steps)


def price(rig: Rig, parent: Proposal, through: str, steps: int) -> Cost:
    """What a gradient costs, seconds excepted: every step forward, all but the last once more, every one back (cost.BACKWARD)."""
    if through == "estimate":
        nfe, evals, again = 1, rig.flow.passes_at(rig.begin), (0, 0)
    else:
        kinds, t, times = [], rig.begin, way_of(rig, parent, steps)
        while t < times[-1] - EPS:
            then = after(times, t, times[-1])
            kinds.append(rig.step_kind(t, then))
            t = then
        nfe, evals = sum(map(len, kinds)), sum(map(sum, kinds))
        again = (nfe - len(kinds[-1]), evals - sum(kinds[-1]))
    whole = 1 + BACKWARD
    return Cost(nfe=whole * nfe + again[0], evals=whole * evals + again[1], backward=evals, verdicts=1, decodes=1)


def gradient(rig: Rig, start: State, parent: Proposal, through: str, steps: int) -> tuple[Tensor, Cost]:
    """The derivative of the score by the starting noise of one row, like its x [1, *S] and on its device, and what it cost. The
    verifier is asked about the parent's condition. Errors as of ``refuse_flat``; SecondlookError where the verifier fails."""
    refuse_flat(rig)
    begin, walk = time.perf_counter(), _Walk(rig, parent.condition)
    state = start.to(rig.device)
    with rig.in_turn(), torch.inference_mode(False):
        ends = walk.glance(state) if through == "estimate" else walk.up(state, way_of(rig, parent, steps))
    slope = _slope(rig, ends.detach(), parent.condition)
    with rig.in_turn(), torch.inference_mode(False):
        found = walk.down(ends, slope)
    cost = Cost(nfe=walk.nfe, evals=walk.evals, backward=walk.backward, verdicts=1, decodes=1)
    return found.to(start.x), cost.with_seconds(time.perf_counter() - begin)


def _slope(rig: Rig, pixels: Tensor, condition: Condition) -> Tensor:
    """The verifier's word on pixels [1, H, W, C]."""
    verifier: Any = rig.verifier
    try:
        found = verifier.gradient(pixels, [condition])
    except SecondlookError:
        raise
    except Exception as error:  # whatever another package's verifier raises
        raise SecondlookError(
            f'The verifier "{verifier.name}" failed with a gradient ({type(error).__name__}: {error}). The run is kept; mend it and resume.'
        ) from error
    if not isinstance(found, Tensor) or found.shape != pixels.shape:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise SecondlookError(
            f'The verifier "{verifier.name}" expects to return a gradient like its samples {list(pixels.shape)}; got {got}.'
        )
    return found.to(pixels)


class _Walk:
    """One row's way to its picture and back."""

    def __init__(self, rig: Rig, condition: Condition):
        self.rig, encoded = rig, rig.encoded(condition)
        self.cond = type(encoded).stack([encoded]) if hasattr(type(encoded), "stack") else encoded
        self.nfe = self.evals = self.backward = 0
        self._states: list[State] = []
        self._until: list[Tensor] = []
        self._first: State | None = None  # of the piece that has a graph

    def glance(self, state: State) -> Tensor:
        """The pixels of the data estimate at the first time, with a graph: [1, H, W, C]."""
        with torch.enable_grad():
            self._first = _tracked(state)
            flow = self._flow()
            data = flow.estimate(self._first.x, self._first.t, self.cond).data
            self._count(flow, back=True)
            return self._pixels(data)

    def up(self, state: State, times: Times) -> Tensor:
        """The pixels at the end of the way, with a graph of the last step: [1, H, W, C]."""
        t = float(state.t)
        while t < times[-1] - EPS:
            then = after(times, t, times[-1])
            self._states.append(state)
            self._until.append(torch.full_like(state.t, then))
            if then < times[-1] - EPS:
                with torch.no_grad():
                    state = self._step(state, self._until[-1])
            t = then
        with torch.enable_grad():
            self._first = _tracked(self._states.pop())
            return self._pixels(self._step(self._first, self._until.pop(), back=True).x)

    def down(self, ends: Tensor, slope: Tensor) -> Tensor:
        """From the derivative by the pixels to that by the starting noise [1, *S]."""
        assert self._first is not None
        outputs, slopes = [ends], [slope]
        while True:
            leaves = _leaves(self._first)
            found = torch.autograd.grad(outputs, list(leaves.values()), slopes, allow_unused=True)
            back = {k: torch.zeros_like(v) if g is None else g for (k, v), g in zip(leaves.items(), found, strict=True)}
            if not self._states:
                return back["x"].detach()
            with torch.enable_grad():
                self._first = _tracked(self._states.pop())
                after_ = _leaves(self._step(self._first, self._until.pop(), back=True))
            known = {k: v for k, v in after_.items() if v.requires_grad}
            outputs, slopes = list(known.values()), [back[k] for k in known]

    def _step(self, state: State, until: Tensor, back: bool = False) -> State:
        flow = self._flow()
        moved = self.rig.solver.step(flow, state, until, self.cond)
        self._count(flow, back)
        return moved

    def _flow(self) -> Flow:
        return Flow(self.rig.flow.network, self.rig.flow.path, self.rig.flow.guide, Meter())

    def _count(self, flow: Flow, back: bool) -> None:
        times = 1 + BACKWARD if back else 1
        self.nfe, self.evals = self.nfe + times * flow.meter.nfe, self.evals + times * flow.meter.evals
        self.backward += flow.meter.evals if back else 0

    def _pixels(self, x: Tensor) -> Tensor:
        assert self.rig.pixels is not None
        return self.rig.pixels(x)


def _leaves(state: State) -> dict[str, Tensor]:
    """What a step hands on to the next: the sample and what a multistep solver carries."""
    carried = {k: v for k, v in (state.carry or {}).items() if v.is_floating_point() and v.dim() > 1}
    return {"x": state.x, **{f"carry {k}": v for k, v in carried.items()}}


def _tracked(state: State) -> State:
    """The state with leaves of a graph of its own. One number a row, as a time that is carried, does not depend on the noise."""

    def leaf(v: Tensor) -> Tensor:
        return v.detach().clone().requires_grad_(v.is_floating_point() and v.dim() > 1)

    carry = None if state.carry is None else {k: leaf(v) for k, v in state.carry.items()}
    return replace(state, x=leaf(state.x), carry=carry, data=None, known=None)
