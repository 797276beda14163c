"""What every adapter must do, as checks that an adapter's test calls: parity with the pipeline's own call, first of all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secondlook.adapters.base import Adapter
from secondlook.engine.rig import guidance as guide
from secondlook.errors import ConfigError
from secondlook.flow import Flow
from secondlook.noise import Key
from secondlook.settings import make_named
from secondlook.types import State


def ours(held: Adapter, prompt: str, noise: Tensor, steps: int, guidance: float, solver: str | None = None) -> Tensor:
    """Pictures [B, H, W, 3] in [0, 1] of one prompt from ``noise`` [B, *S], by the scheduler's counterpart here."""
    schedule = held.schedule(steps)
    stepper = make_named("solver", solver or schedule.solver)
    scale = held.options.true_guidance if held.distilled else guidance
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
