"""Time grids: the times a solver stops at, from 0 (noise) to 1 (data)."""

from __future__ import annotations

import math

from secondlook.errors import ConfigError

EPS = 1e-6  # two times nearer than this are one: rows carry float32 times, whose rounding near 1 is 6e-8


def grid(steps: int, shift: float = 1.0) -> tuple[float, ...]:
    """``steps + 1`` times. ``shift`` > 1 spends more of them near noise: t = u / (u + shift (1 - u)) for uniform u.

    This is the resolution-dependent shift of SD3 (2403.03206, eq. 23) on an axis where 1 is data. Large flat objects
    in pixel space are decided early, so the Scenes model samples with shift 3.
    """
    if steps < 1:
        raise ConfigError(f"A grid needs at least one step; got {steps}.")
    if not 0 < shift < math.inf:
        raise ConfigError(f"A grid's shift must be positive and finite; got {shift}.")
    times = [i / steps for i in range(steps + 1)]
    return tuple(u / (u + shift * (1 - u)) for u in times)


def spread(start: float, end: float, steps: int, shift: float = 1.0, last: float = 0.0) -> tuple[float, ...]:
    """``steps`` steps from ``start`` to ``end``, and one more of size ``last`` where that is above 0 (SiT's SDE sampler:
    even steps to 0.96, then one of 0.04; 2401.08740, app. D)."""
    if not start < end:
        raise ConfigError(f"A grid expects its start before its end; got {start} and {end}.")
    times = tuple(start + (end - start) * u for u in grid(steps, shift))
    return (*times[:-1], end, *([end + last] if last > 0 else []))


def after(times: tuple[float, ...], t: float, stop: float = 1.0) -> float:
    """The next time of the grid after ``t``, or ``stop`` where that comes first."""
    later = (g for g in times if g > t + EPS)
    return min(next(later, 1.0), stop)


def steps_between(times: tuple[float, ...], t: float, stop: float) -> int:
    """How many solver steps lead from ``t`` to ``stop``."""
    count = 0
    while t < stop - EPS:
        t = after(times, t, stop)
        count += 1
    return count
