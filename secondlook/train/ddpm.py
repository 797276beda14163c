"""Training of DiT (2212.09748): noise prediction at discrete steps and, by the head's further channels, its variance.

The loss is the hybrid of 2102.09672, sec. 3.1, L_simple + 0.001 L_vlb with L_vlb the sum over T steps, in bits a dimension; a
term is drawn uniformly, so its share is T / 1000 of the bound at the drawn step: the weight of DiT's own 1000 steps is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as Folder
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.discrete import Discrete
from secondlook.flow.estimate import loss_weight
from secondlook.flow.path import mix
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.solvers.ddpm import Bridge, learned_log
from secondlook.solvers.ode import rows_of
from secondlook.train.classes import Data, local_rows, named
from secondlook.train.loop import ByRows, Rows, TrainConfig, Trainer

_HALF_BIN = 1 / 255  # of 256 levels spread over [-1, 1]
_EDGE = 0.999  # beyond it data is at the first or last level, whose bin is open


class Whole(SiT):
    """A SiT whose forward pass gives all channels of the head, so that what is wrapped around it (compilation, data parallelism)
    carries the variance too. The same weights by the same names; ``secondlook.solvers.ddpm.Indexed`` makes it a network of times."""

    def forward(self, x: Tensor, t: Tensor, cond: Labels) -> Tensor:
        """x [N, C, H, W], t [N] the number of the discrete step: [N, C or 2 C, H, W]."""
        return self.full(x, t, cond)


class Bound:
    """The variational bound's term at a step of ``path``; ``share`` is its weight in the loss."""

    def __init__(self, path: Discrete):
        steps = torch.arange(path.steps)
        bridge = Bridge.of(path, path.time(steps), path.time(steps - 1))
        c = path.coefs(path.time(steps))
        # at step 0 the posterior has no variance; its neighbour's stands in, as in 2102.09672's code
        small = torch.cat([bridge.small[1:2], bridge.small[1:]])
        gap = bridge.alpha * bridge.large / (c.sigma * c.alpha)  # of the means, for noises that differ by 1
        self.table = torch.stack([small, bridge.large, gap])  # [3, T] float64
        self.share = path.steps / 1000

    def __call__(self, data: Tensor, noise: Tensor, index: Tensor, guess: Tensor, v: Tensor) -> Tensor:
        """Bits a dimension, [N]; a gradient reaches v alone.

        data, noise: [N, *S], what was mixed at steps ``index`` int64 [N]. guess: the predicted noise. v: the head's
        further channels. At steps above 0 the divergence of the model's step from the posterior that knows the data (2006.11239,
        eq. 5), at step 0 the negative log-likelihood of the data at 256 levels of [-1, 1] (its eq. 13).
        """
        small, large, gap = self.table.to(index.device)[:, index]
        log_var = learned_log(small, large, v)
        off = rows_of(gap, noise) * (guess.detach() - noise)  # the posterior's mean minus the model's
        ratio = rows_of(small.log(), v) - log_var
        nats = 0.5 * (ratio.exp() - 1 - ratio + off.square() * (-log_var).exp())
        nats = torch.where(rows_of(index, v) == 0, level_nats(data, off, log_var), nats)
        return nats.flatten(1).mean(1) / math.log(2)


def level_nats(data: Tensor, off: Tensor, log_var: Tensor) -> Tensor:
    """-log of the mass that a normal law gives to the data's bin: [N, *S]. off: data minus the law's mean."""
    scale = (-0.5 * log_var).exp()
    upper, lower = (off + _HALF_BIN) * scale, (off - _HALF_BIN) * scale
    ndtr, log_ndtr = torch.special.ndtr, torch.special.log_ndtr
    inside = (ndtr(upper) - ndtr(lower)).clamp_min(1e-12).log()
    return -torch.where(data < -_EDGE, log_ndtr(upper), torch.where(data > _EDGE, log_ndtr(-lower), inside))


def losses(bound: Bound, data: Tensor, noise: Tensor, index: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The squared error of the noise and the weighed bound (zero for a head without variance channels), each [N].

    out: [N, C or 2 C, ...], the head's channels for ``data`` [N, C, ...] mixed with ``noise`` at steps ``index`` [N].
    """
    guess, v = out.float().split([data.shape[1], out.shape[1] - data.shape[1]], 1)
    error = (guess - noise).square().flatten(1).mean(1)
    if v.shape[1] == 0:
        return error, torch.zeros_like(error)
    return error, bound(data, noise, index, guess, v) * bound.share


def trainer(
    folder: Folder,
    config: TrainConfig,
    sit: SiTConfig,
    data: Data,
    dropout: float = 0.1,
    path: Discrete | None = None,
    **more: Any,
) -> Trainer:
    """A trainer of a DiT, resuming what ``folder`` holds.

    sit: its sizes; what DiT fixes is set here: noise prediction on the discrete path, step numbers as times. ``variance`` True
    learns the variance too. dropout: the share of labels replaced by the null one. path: None for DDPM's 1000 steps. The
    trained module is shown step numbers: sample with ``Indexed(job.ema.module, path)``.
    """
    if not 0 <= dropout <= 1:
        raise ConfigError(f"A share of dropped labels lies in 0 to 1; got {dropout}.")
    path = path or Discrete()
    torch.manual_seed(config.seed)
    module = Whole(replace(sit, predicts="noise", path=path.name, time_scale=1.0, reversed_time=False))
    bound = Bound(path)

    def draw(step: int, generator: torch.Generator, rows: slice) -> tuple[Tensor, ...]:
        x, label = local_rows(data, config.seed, step, config.batch, rows)
        if sit.null:
            dropped = (torch.rand(config.batch, generator=generator) < dropout)[rows]
            label = torch.where(dropped, torch.full_like(label, sit.classes), label)
        index = torch.randint(0, path.steps, (config.batch,), generator=generator)[rows]
        noise = torch.randn(config.batch, *x.shape[1:], generator=generator)[rows]
        return x, label, index, noise

    def loss(forward: Callable[..., Tensor], x: Tensor, label: Tensor, index: Tensor, noise: Tensor) -> Rows:
        t = path.time(index)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bf16):
            out = forward(mix(path, x, noise, t), index.to(x), Labels(label))
        error, share = losses(bound, x, noise, index, out)
        velocity = error.detach() * loss_weight(path, "noise", "velocity", t).to(error)
        return Rows(error + share, t, velocity)

    about = {
        "data": named(data),
        "network": module.describe(),
        "abar": list(path.abar),
        "dropout": dropout,
        **more.pop("about", {}),
    }
    return Trainer(module, ByRows(draw, loss), config, folder, about=about, **more)
