"""Cross-entropy search over the low frequencies of the starting noise."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import blend, fresh, top
from secondlook.types import Plan, Task


def low_band(task: Task, *, n: int = 10, elites: int = 5, band: int = 16, generations: int = 10) -> Plan:
    """Draw ``n`` noises; then, generation after generation, ``n`` whose low band lies about the mean of the ``elites`` best so far. Ref:
    spectral evolution search, 2602.03208 (cross-entropy over the Haar approximation at level 4, which is cells of ``band`` = 16 numbers a
    side; population 10, 5 elites). Shapes that ``band`` does not divide are searched whole.

    The paper estimates mean and variance from the elites. Five of them say little, their variance collapses and the noise's norm drifts.
    Here the mean is scaled to their norms, and the share s of fresh noise is what the estimate would be on average if scores meant nothing:
    k noises of share s have the variance s^2 among them and their mean has 1 - s^2 + s^2 / k, so that of 1 + s^2 / k in all s^2 is fresh
    in the next generation: 1 / s^2 grows by 1 / k, from 1. The paper's high band is one for all; here each draw has its own, so that no
    unlucky one is kept. After ``generations`` it begins again with new noises. Endless.
    """
    positive("low_band", n=n, elites=elites, band=band, generations=generations)
    if elites > n:
        raise ConfigError(f"low_band: elites must be at most n; got elites={elites!r}, n={n!r}.")
    while True:
        known = top((yield fresh(task, n)), elites)
        for generation in range(1, generations + 1):
            share = (1 + generation / elites) ** -0.5
            known = top([*known, *(yield blend(task, known, n, share, band))], elites)
