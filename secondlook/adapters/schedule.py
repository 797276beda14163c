"""A diffusers scheduler read as a path, a grid of times and a solver of ours. Its counters and its ``step`` are not used.

Flow schedulers' sigma is 1 - t of the linear path. Noise-prediction schedulers' ``alphas_cumprod`` make a discrete path; those
that scale their samples (Euler's sigma is sigma / alpha) differ from it by that scaling alone, and Euler's step there is DDIM's
(2010.02502, sec. 4.3: both are exact where the data estimate does not change).
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.discrete import Discrete
from secondlook.flow.grid import EPS, grid
from secondlook.flow.path import Coefs, Linear, Path
from secondlook.notes import note

LEAST = 2.0**-40  # of alphas_cumprod: schedules rescaled to end in pure noise have a 0 there
SCALED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler",
          "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")  # these scale their samples by 1 / alpha  # fmt: skip
MOST = 4096  # batches of times whose coefficients are kept
REFUSED = ("EDM", "LCM", "Consistency", "TCD", "Cosine", "SCM", "VQDiffusion", "Amused", "RePaint")


@dataclass(frozen=True)
class Kept(Discrete):
    """A discrete path that keeps what it worked out. A search's rows stand at the grid's few times over and over, and each step
    asks for them several times; working them out again takes a CPU up to a millisecond a step, while the GPU waits. Kept by
    whole batches of times, so that the bits are those of ``Discrete``."""

    kept: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def exact(self, t: Tensor) -> Tensor:
        found: Tensor = self._keep("exact", super().exact, t)
        return found

    def coefs(self, t: Tensor) -> Coefs:
        found: Coefs = self._keep("coefs", super().coefs, t)
        return found

    def _keep(self, name: str, make: Callable[[Tensor], Any], t: Tensor) -> Any:
        if t.device.type != "cpu" or t.requires_grad:
            return make(t)
        key = (name, t.dtype, tuple(t.tolist()))
        if key not in self.kept:
            if len(self.kept) >= MOST:
                self.kept.clear()
            with torch.inference_mode(False):
                self.kept[key] = make(t.clone())
        return self.kept[key]


@dataclass(frozen=True)
class Schedule:
    """path; solver: a call-string; times: the grid, from where fresh noise is put to 1; levels: what the network is shown at
    each of them but the last, in the scheduler's own units; scale: what fresh noise is multiplied by; predicts: the
    scheduler's word for the network's output."""

    path: Path
    solver: str
    times: tuple[float, ...]
    levels: tuple[float, ...]
    scale: float = 1.0
    predicts: str = "epsilon"
    units: float = 1000.0

    def level(self, t: Tensor) -> Tensor:
        """What the network is shown at times [B], float32 [B]: the scheduler's number on the grid (some round theirs), the
        path's elsewhere."""
        times, levels = self._table
        gap, at = (t.double()[:, None] - times).abs().min(1)
        near = gap <= EPS
        if bool(near.all()):
            return levels[at].float()
        level = self.path.index(t) if isinstance(self.path, Discrete) else (1 - t.double()) * self.units
        return torch.where(near, levels[at], level.double()).float()

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        """times but the last, and levels; float64."""
        with torch.inference_mode(False):  # kept, and perhaps first asked for by a sampler
            return torch.tensor(self.times[:-1], dtype=torch.float64), torch.tensor(self.levels, dtype=torch.float64)


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler belongs to a rectified flow."""
    c = scheduler.config
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or bool(c.get("use_flow_sigmas"))
        or c.get("prediction_type") == "flow_prediction"
    )


def in_force(scheduler: Any) -> dict[str, Any]:
    """What a scheduler goes by beside its configuration: numbers set on the object (``set_shift``), and its table of noise."""
    found: dict[str, Any] = {}
    if hasattr(scheduler, "_shift"):
        found["shift"] = float(scheduler._shift)
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is not None:
        found["alphas_cumprod"] = hashlib.sha256(torch.as_tensor(table).double().cpu().numpy().tobytes()).hexdigest()[
            :16
        ]
    return found


class Schedules:
    """What a pipeline's scheduler does in so many steps, read again only where something of it changed. A few are kept: a run
    asks for its own number of steps and for the usual one in turn."""

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._read: OrderedDict[Any, Schedule] = OrderedDict()

    def __call__(
        self, scheduler: Any, steps: int, shift: float | None, timing: Callable[[int], Mapping[str, Any]]
    ) -> Schedule:
        config = str(sorted(scheduler.config.items(), key=str))
        asked = (type(scheduler), config, str(in_force(scheduler)), steps, shift)
        if asked not in self._read:
            self._read[asked] = read(scheduler, steps, shift, timing(steps))
        self._read.move_to_end(asked)
        while len(self._read) > self.most:
            self._read.popitem(last=False)
        return self._read[asked]


def read(scheduler: Any, steps: int, shift: float | None = None, timing: Mapping[str, Any] | None = None) -> Schedule:
    """What ``scheduler`` does in ``steps`` steps. shift: this project's grid of that time shift instead, for flows. timing: what
    the pipeline gives ``set_timesteps`` besides. ConfigError for schedulers that mean something else."""
    name = type(scheduler).__name__
    refusal = ConfigError(f"The scheduler {name} has no counterpart here. Give the pipeline another before loading it, such as "
                          "pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config).")  # fmt: skip
    flow, noise = is_flow(scheduler), hasattr(scheduler, "alphas_cumprod")
    mixed = flow and noise and not scheduler.config.get("use_flow_sigmas")  # a flow's prediction on a noise schedule
    if any(r in name for r in REFUSED) or "Inverse" in name or not (flow or noise) or mixed:
        raise refusal
    fresh = copy.deepcopy(scheduler)
    odd = [
        w
        for w, usual in (("interpolation_type", "linear"), ("timestep_type", "discrete"))
        if scheduler.config.get(w, usual) != usual
    ]
    if odd:
        raise ConfigError(
            f'The {name} is set to {odd[0]} "{scheduler.config[odd[0]]}", which has no counterpart here; set another scheduler on the pipeline.'
        )
    given = dict(timing or {})
    try:
        fresh.set_timesteps(**given) if "sigmas" in given else fresh.set_timesteps(steps, **given)
    except Exception as error:  # each scheduler's own kinds
        raise ConfigError(f"{name} refuses {steps} steps here ({error}); choose others, or another one.") from None
    sigmas = getattr(fresh, "sigmas", None)
    if flow and (sigmas is None or float(torch.as_tensor(sigmas).max()) > 1 + EPS):
        raise refusal
    made = _flow(fresh, steps, shift) if flow else _discrete(fresh, steps, shift)
    if len(made.levels) < steps or made.times[0] < -EPS:
        raise ConfigError(f"{name} has not as many times as {steps} steps want; choose fewer.")
    if not all(a < b for a, b in pairwise(made.times)):
        raise ConfigError(
            f"{name} gives {steps} steps whose times do not rise; choose fewer steps, or another scheduler."
        )
    return made


def _flow(scheduler: Any, steps: int, shift: float | None) -> Schedule:
    units = float(scheduler.config.get("num_train_timesteps", 1000))
    if shift is not None:
        times = list(grid(steps, shift))
        levels = [(1 - t) * units for t in times[:-1]]
    else:
        sigmas, levels = _distinct(scheduler.sigmas, scheduler.timesteps)
        if len(scheduler.sigmas) > len(levels) and float(scheduler.sigmas[-1]) > 0:
            note(f"{type(scheduler).__name__} is set to stop before clean data; secondlook goes on to it.")
        times = [*(1 - s for s in sigmas), 1.0]
    return Schedule(Linear(), solver_of(scheduler), tuple(times), tuple(levels), predicts="flow", units=units)


def _discrete(scheduler: Any, steps: int, shift: float | None) -> Schedule:
    if shift is not None:
        raise ConfigError(
            "--shift moves the times of flow models; this pipeline's scheduler has discrete steps. Leave it out."
        )
    c = scheduler.config
    abar = [max(LEAST, a) for a in scheduler.alphas_cumprod.double().tolist()]
    stops_early = c.get("final_sigmas_type") == "sigma_min" or (
        type(scheduler).__name__ == "DDIMScheduler" and not c.get("set_alpha_to_one", True)
    )
    path = Kept(tuple(abar), final=abar[0] if stops_early else 1.0)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and len(sigmas) == len(scheduler.timesteps) + 1:
        ratios, levels = _distinct(sigmas, scheduler.timesteps)
        times = _times(path, levels, ratios)
    else:
        levels = _falling([float(t) for t in scheduler.timesteps])
        times = path.time(torch.tensor(levels, dtype=torch.float64)).tolist()
    scale = 1.0
    if type(scheduler).__name__ in SCALED and sigmas is not None:
        scale = float(scheduler.init_noise_sigma) / (1 + float(sigmas[0]) ** 2) ** 0.5
    predicts = str(c.get("prediction_type", "epsilon"))
    if c.get("clip_sample") or c.get("thresholding"):
        note("The scheduler clips its estimate of the data (clip_sample or thresholding); secondlook does not.")
    return Schedule(
        path,
        solver_of(scheduler, stops_early and steps < 15),
        (*times, 1.0),
        tuple(levels),
        scale,
        predicts,
        float(path.steps),
    )


def _distinct(sigmas: Tensor, levels: Tensor) -> tuple[list[float], list[float]]:
    """Each sigma but the one that is reached last, with its level. Second-order schedulers list those of inner stages again, the
    level of the sigma itself last; two sigmas near each other may share a level, for levels are rounded."""
    pairs = [(float(s), float(t)) for s, t in zip(sigmas, levels, strict=False)]
    kept = [a for a, b in zip(pairs, [*pairs[1:], (-1.0, 0.0)], strict=True) if a[0] != b[0]]
    return [s for s, _ in kept], [t for _, t in kept]


def _falling(levels: Sequence[float]) -> list[float]:
    """Each level once, noisiest first: some schedulers name inner stages too."""
    return sorted(set(levels), reverse=True)


def _times(path: Discrete, levels: Sequence[float], sigmas: Sequence[float]) -> list[float]:
    """The times of a scheduler's sigmas (over alpha): their levels' where that is the same, else where the path has them."""
    times = path.time(torch.tensor(levels, dtype=torch.float64))
    c, wanted = path.coefs(times), torch.tensor(sigmas, dtype=torch.float64)
    same = ((c.sigma / c.alpha - wanted).abs() <= 1e-5 * wanted).tolist()
    return [t if s else float(path.time_of(w[None])) for t, s, w in zip(times.tolist(), same, wanted, strict=True)]


def solver_of(scheduler: Any, short: bool = False) -> str:
    """The solver of ours that makes this scheduler's steps, as a call-string; the nearest one, with a note, where none does. short:
    fewer than 15 steps that end before clean data, whose last one DPM-Solver++ makes at first order."""
    name, c = type(scheduler).__name__, scheduler.config
    same = {
        "FlowMatchEulerDiscreteScheduler": "euler",
        "FlowMatchHeunDiscreteScheduler": "heun",
        "DDIMScheduler": "ddim",
        "EulerDiscreteScheduler": "ddim",
        "EulerAncestralDiscreteScheduler": "ddim(eta=1.0)",
    }
    if name in same and not c.get("stochastic_sampling"):
        return same[name]
    if name == "DDPMScheduler":
        variance = {"fixed_small": "small", "fixed_large": "large", "learned_range": "learned"}.get(c.variance_type)
        return f'ddpm(variance="{variance}")' if variance else "ddpm"
    kinds = ("dpmsolver++", "sde-dpmsolver++")
    if name == "DPMSolverMultistepScheduler" and c.algorithm_type in kinds and c.solver_order <= 2:
        eta = ", eta=1.0" if c.algorithm_type.startswith("sde") else ""
        last = ", lower_order_final=True" if short and c.lower_order_final else ""
        return f'dpmpp(order={c.solver_order}, kind="{c.solver_type}"{eta}{last})'
    note(f"{name} as it is set has no exact counterpart here; drawing with dpmpp(order=2) at its times instead.")
    return "dpmpp(order=2)"
