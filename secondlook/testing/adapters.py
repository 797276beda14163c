"""What every adapter must do, as checks that an adapter's test calls: parity with the pipeline's own call, first of all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from secondlook.adapters.base import Adapter
from secondlook.api import draw, replay_outcome
from secondlook.engine.rig import guidance as guide
from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.noise import Key
from secondlook.settings import make_named
from secondlook.types import State


def ours(held: Adapter, prompt: str, noise: Tensor, steps: int, guidance: float, solver: str | None = None) -> Tensor:
    """Pictures [B, H, W, 3] in [0, 1] of one prompt from ``noise`` [B, *S], by the scheduler's counterpart here."""
    schedule = held.schedule(steps)
    stepper = make_named("solver", solver or schedule.solver)
    scale = held.scale(guidance)
    rows = len(noise)
    with torch.inference_mode():
        null = held.encode(None) if scale != 1.0 else None
        cond = held.encode(held.condition(prompt)).rows([0] * rows)
        flow = Flow(held.network(schedule, guidance), schedule.path, guide(scale, null))
        keys = tuple(Key.root(i) for i in range(rows))
        start = torch.full((rows,), schedule.times[0])
        state = State(noise * schedule.scale, start, keys, torch.zeros(rows, dtype=torch.long))
        for t in schedule.times[1:]:
            state = stepper.step(flow, state, torch.full((rows,), t), cond)
    return held.pictures(state.x)


def theirs(held: Adapter, prompt: str, noise: Tensor, seed: int, steps: int, guidance: float, **call: Any) -> Tensor:
    """The same by ``pipe(...)``: ``noise`` must be ``start_noise(held, rows, seed)``, which pipelines that take no latents draw
    themselves from ``seed``."""
    pipe = held.pipe
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "np", **call}
    if held.family == "dit":
        label = held.condition(prompt).label
        if len(noise) != 1:
            raise ConfigError("DiTPipeline draws its own noise; compare one row at a time.")
        found = pipe(class_labels=[label], generator=torch.Generator().manual_seed(seed), **settings).images
    else:
        latents = noise if not hasattr(pipe, "_pack_latents") else pipe._pack_latents(noise, *noise.shape)
        settings |= {"height": held.height, "width": held.width, "latents": latents}
        found = pipe(prompt=[prompt] * len(noise), **settings).images
    return torch.as_tensor(found)


def start_noise(held: Adapter, rows: int, seed: int) -> Tensor:
    """[B, *S], as torch's generator of ``seed`` draws it."""
    return torch.randn((rows, *held.shape), generator=torch.Generator().manual_seed(seed))


def parity(held: Adapter, prompt: str, *, steps: int = 6, guidance: float | None = None, rows: int = 1, seed: int = 0,
           solver: str | None = None, **call: Any) -> float:  # fmt: skip
    """The largest difference in any channel of any pixel, both in [0, 1], between our picture and ``pipe(...)``'s from the same
    noise by the pipeline's own solver. ``call``: further arguments of the pipeline."""
    scale = held.usual()["guidance"] if guidance is None else guidance
    noise = start_noise(held, rows, seed)
    mine = ours(held, prompt, noise, steps, scale, solver)
    its = theirs(held, prompt, noise, seed, steps, scale, **call)
    if mine.shape != its.shape:
        raise ConfigError(f"The pipeline's pictures have shape {list(its.shape)}, ours {list(mine.shape)}.")
    return float((mine - its).abs().max())


class AdapterContract:
    """Tests that an adapter inherits: subclass it in a test file as ``TestMine`` and give ``held``. prompts: two that the pipeline
    tells apart. call: arguments that make ``pipe(...)`` do no more than the adapter does (no resolution binning, say)."""

    prompts: tuple[str, str] = ("a red cat", "two blue dogs on a ball")
    call: ClassVar[dict[str, Any]] = {}
    limit = 1e-4  # of pixels in [0, 1], float32

    def held(self) -> Adapter:
        """The adapter, on a small pipeline in float32 on the CPU."""
        raise AssertionError("AdapterContract expects held(): return secondlook.load(pipe).")

    def theirs(self, held: Adapter, noise: Tensor, steps: int, guidance: float) -> Tensor:
        """The pipeline's own pictures [B, H, W, 3] in [0, 1] of the first prompt from ``noise`` = start_noise(held, rows, 0)."""
        return theirs(held, self.prompts[0], noise, 0, steps, guidance, **self.call)

    def test_pictures_are_the_pipelines_own(self) -> None:
        held = self.held()
        noise, scale = start_noise(held, 1, 0), held.usual()["guidance"]
        for steps in (2, 6, 20):
            mine, its = ours(held, self.prompts[0], noise, steps, scale), self.theirs(held, noise, steps, scale)
            assert mine.shape == its.shape
            assert float((mine - its).abs().max()) < self.limit

    def test_parity_can_fail(self) -> None:
        """Another prompt, another guidance and other noise all show."""
        held = self.held()
        noise, scale = start_noise(held, 1, 0), held.usual()["guidance"]
        mine = ours(held, self.prompts[0], noise, 6, scale)
        others = [
            ours(held, self.prompts[1], noise, 6, scale),
            ours(held, self.prompts[0], start_noise(held, 1, 1), 6, scale),
        ]
        if scale != 1.0:
            others.append(ours(held, self.prompts[0], noise, 6, 1.0))
        assert all(float((mine - o).abs().max()) > self.limit for o in others)

    def test_rows_do_not_depend_on_company(self) -> None:
        held = self.held()
        noise, scale = start_noise(held, 3, 2), held.usual()["guidance"]
        together = ours(held, self.prompts[0], noise, 4, scale)
        alone = torch.cat([ours(held, self.prompts[0], noise[i : i + 1], 4, scale) for i in range(3)])
        assert float((together - alone).abs().max()) < self.limit

    def test_searches_draw_and_replay(self, tmp_path: Path) -> None:
        """Every built-in plan, with the pipeline's solver and with an SDE; replays are bit for bit where batches are padded."""
        held = self.held()
        for i, plan in enumerate(("random(n=3)", "zero_order(neighbours=2)", "paths(n=2, width=2)")):
            for solver in (held.solver(), "sde"):
                out = tmp_path / f"{i}-{solver[:4]}"
                [found] = draw(list(self.prompts[:1]), plan, out, nfe=48, model=held, steps=4, solver=solver, rows=3, pad=True,
                               verifier="brightness")  # fmt: skip
                assert math.isfinite(found.score)
                assert replay_outcome(out, found.outcome, model=held).same
