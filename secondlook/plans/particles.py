"""Particles: sequential Monte Carlo toward exp(score / temperature), by the data estimates of half-made rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import clone, fresh, on_grid, resume, rewind
from secondlook.plans.weights import SCHEMES, Row, effective, log_mean, normalised, resample
from secondlook.types import Outcome, Plan, Proposal, Task

POTENTIALS = ("difference", "max", "sum")


def particles(
    task: Task, *, n: int = 8, looks: int = 4, first: float = 0.2, temperature: float = 0.1, potential: str = "difference",
    scheme: str = "systematic", threshold: float = 0.5, look: str = "free", back: float = 0.1, again: bool = True,
) -> Plan:  # fmt: skip
    """Feynman-Kac steering (2501.06848, alg. 1). ``n`` rows go up together; at ``looks`` times, evenly from ``first`` to data, each
    is weighed by exp(potential), and where the effective number is below ``threshold`` times ``n`` rows are resampled; else the
    weights are carried on. A finished row's last potential is what makes all of its potentials sum to its own score over the
    temperature, so that weighted pictures follow the law that is meant, whatever the looks said.

    potential: "difference" (from the last look), "max" (of the looks so far) or "sum" (of them). scheme: "multinomial",
    "systematic" or "ssp". look: "free" for the last step's data estimate, or "paid". Copies differ by the solver's noise; on an
    ODE they are taken ``back`` in time by fresh noise, which is no sample of the flow's own law. Begins again with new noises
    (endless), or where ``again`` is False ends and returns the final weights and the logarithm of the evidence's estimate.
    """
    positive("particles", n=n, looks=looks, first=first, temperature=temperature, threshold=threshold, back=back)
    if first >= 1 or potential not in POTENTIALS or scheme not in SCHEMES:
        raise ConfigError(f'particles: expected first < 1, potential among {", ".join(POTENTIALS)} and scheme among '
                          f'{", ".join(SCHEMES)}; got {first!r}, "{potential}", "{scheme}".')  # fmt: skip
    times = sorted({on_grid(task, first + (1 - first) * i / looks) for i in range(looks)})
    while True:
        live, logs, evidence = (yield fresh(task, n, stop=times[0], look=look)), [0.0] * n, 0.0
        rows = [Row()] * n
        for then in [*times[1:], 1.0]:
            told = [row.seen(potential, _value(o) / temperature) for row, o in zip(rows, live, strict=True)]
            logs = [w + increment for w, (_, increment) in zip(logs, told, strict=True)]
            rows, parents = [row for row, _ in told], list(range(n))
            if effective(normalised(logs)) < threshold * n:
                parents = resample(normalised(logs), scheme, task.uniform(n))
                evidence, logs = evidence + log_mean(logs), [0.0] * n
            rows = [rows[p] for p in parents]
            live = yield _onward(task, live, parents, back, {"stop": then, **({} if then == 1.0 else {"look": look})})
        logs = [w + _value(o) / temperature - row.given for w, o, row in zip(logs, live, rows, strict=True)]
        if not again:
            return {"weights": normalised(logs), "log_evidence": evidence + log_mean(logs)}


def _value(outcome: Outcome) -> float:
    """A score that weights can use; what could not be judged weighs as little as can be."""
    score = outcome.score
    if score is None or math.isnan(score):
        return -1e6
    return max(-1e6, min(1e6, score))


def _onward(
    task: Task, live: Sequence[Outcome], parents: list[int], back: float, how: dict[str, Any]
) -> list[Proposal]:
    """The first of each parent's copies goes on as it is, the others under other noise."""
    found: list[Proposal] = []
    for i, p in enumerate(parents):
        row = live[p]
        if p not in parents[:i]:
            found.append(resume(task, row, **how))
        elif task.stochastic:
            found += clone(task, row, 1, **how)
        else:
            found += rewind(task, row, 1, max(0.0, row.proposal.stop - back), **how)
    return found
