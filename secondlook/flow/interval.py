"""Where on a path to train and to sample: the ends at which a prediction or a diffusion is not defined are left out.

Two presets. ``paper``: 2401.08740, table 10, its times turned so that 1 is data. ``official``: what the released code
does where it does what it means to; numbers that must agree with that code need it. In both an ``eps`` that is given is
kept, whatever the path and the prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secondlook.errors import ConfigError, nearest
from secondlook.flow.path import Kind

Use = Literal["train", "ode", "sde"]
PRESETS = ("paper", "official")
LAST_STEP = 0.04  # 2401.08740, app. D


@dataclass(frozen=True)
class Interval:
    """Times from ``start`` (toward noise, t = 0) to ``end`` (toward data, t = 1)."""

    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise ConfigError(f"An interval expects 0 <= start < end <= 1; got {self.start} and {self.end}.")


# The paper's table has scores run to data itself; there sigma times the gradient is 0 times infinity, hence 1e-5 here.
# It is about sampling; in training a velocity weight at 1e-5 would be 1e10, so 1e-3 there too, as in the released code.
# (path is VP, prediction has a pole at one end) by use: (eps at noise, eps at data)
_PAPER = {
    "train": {"vp": (0.0, 1e-5), "velocity": (0.0, 0.0), "other": (1e-3, 1e-3)},
    "ode": {"vp": (0.0, 1e-5), "velocity": (0.0, 0.0), "other": (1e-5, 1e-5)},
    "sde": {"vp": (0.0, 1e-3), "velocity": (0.0, 0.0), "other": (1e-3, 1e-3)},
}
_OFFICIAL = {
    "train": {"vp": (0.0, 1e-5), "velocity": (0.0, 0.0), "other": (1e-3, 1e-3)},
    "ode": {"vp": (0.0, 1e-3), "velocity": (0.0, 0.0), "other": (1e-3, 1e-3)},
    "sde": {"vp": (0.0, 1e-3), "velocity": (0.0, 0.0), "other": (1e-3, 1e-3)},
}


def interval(
    path: str,
    predicts: Kind,
    use: Use,
    *,
    preset: str = "paper",
    last: float = 0.0,
    eps: float | tuple[float, float] | None = None,
) -> Interval:
    """The interval for a path's name, a prediction and a use.

    ``last`` is the size of an SDE's last step, which ends at data: the interval then ends where that step begins. ``eps``
    (one number, or one for noise and one for data) overrides the preset's. Data prediction is defined at both ends: it
    trains and samples on all of [0, 1].
    """
    if preset not in PRESETS:
        raise ConfigError(f'There is no preset "{preset}" of time intervals; {nearest(preset, PRESETS)}')
    table = (_PAPER if preset == "paper" else _OFFICIAL)[use]
    if predicts == "data":
        low, high = 0.0, 0.0
    else:
        low, high = table["vp" if path in ("vp", "discrete") else "velocity" if predicts == "velocity" else "other"]
    if eps is not None:
        low, high = eps if isinstance(eps, tuple) else (eps, eps)
    return Interval(low, 1.0 - (last if last > 0 else high))
