"""Particles: sequential Monte Carlo toward exp(score / temperature), by the data estimates of half-made rows."""

from __future__ import annotations

from typing import Any

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import look_times, onward, value
from secondlook.plans.moves import fresh
from secondlook.plans.weights import POTENTIALS, SCHEDULES, SCHEMES, Rule, Weights, log_mean, normalised
from secondlook.types import Plan, Task


def particles(
    task: Task, *, n: int = 8, looks: int = 4, first: float = 0.2, temperature: float = 0.1, potential: str = "difference",
    scheme: str = "systematic", threshold: float = 0.5, look: str = "free", back: float = 0.1, again: bool = True,
    schedule: str = "constant", gamma: float = 0.008, shrink: float = 1.0, forget: bool = False,
) -> Plan:  # fmt: skip
    """Feynman-Kac steering (2501.06848, alg. 1). ``n`` rows go up together; at ``looks`` times, evenly from ``first`` to data, each
    is weighed by exp(potential), and where the effective number is below ``threshold`` times ``n`` rows are resampled; else the
    weights are carried on. A finished row's last potential is what makes all of its potentials sum to its own score over the
    temperature, so that weighted pictures follow the law that is meant, whatever the looks said.

    potential: "current" (the look alone), "difference" (from the last look), "max" (of the looks so far) or "sum" (of them). scheme:
    "multinomial", "systematic", "ssp", or "vasr" (2604.06779, as read from its abstract: rows are chosen by their weight times
    exp(score / temperature), systematically, and carry what is left of their weight). schedule of the inverse temperature:
    "constant"; "increasing" as (1 + gamma)^(100 t) - 1 (2501.05803); "adaptive", so that each look lowers the effective number to the
    threshold and no further; "infinite", all weight on the best (no law, no evidence). shrink: the share of ``n`` that is left on
    the last leg, geometrically (2508.12361). forget: what the released code of 2501.06848 does: weights that lead to no
    resampling are forgotten and the last potential is left out, which misses the law.

    look: "free" for the last step's data estimate, or "paid". Copies differ by the solver's noise; on an ODE they are taken ``back``
    in time by fresh noise, which is no sample of the flow's own law. Begins again with new noises (endless), or where ``again`` is
    False ends and returns the final weights and the logarithm of the evidence's estimate.
    """
    positive(
        "particles",
        n=n,
        looks=looks,
        first=first,
        temperature=temperature,
        threshold=threshold,
        back=back,
        gamma=gamma,
        shrink=shrink,
    )
    _check(first, shrink, potential=(potential, POTENTIALS), scheme=(scheme, SCHEMES), schedule=(schedule, SCHEDULES))
    rule = Rule(potential, scheme, threshold, schedule, gamma, forget)
    times = look_times(task, first, looks)
    while True:
        live, weights = (yield fresh(task, n, stop=times[0], look=look)), Weights.begin(n)
        for i, then in enumerate([*times[1:], 1.0], 1):
            weights = weights.seen(rule, [value(o) / temperature for o in live], times[i - 1])
            count, parents = max(1, round(n * shrink ** (i / len(times)))), list(range(len(live)))
            if count < len(live) or weights.due(rule):
                parents, weights = weights.resampled(rule, task.uniform(len(live)), count)
            elif forget:
                weights = Weights((0.0,) * len(live), weights.rows, weights.evidence, weights.scale)
            how: dict[str, Any] = {"stop": then, **({} if then == 1.0 else {"look": look})}
            live = yield onward(task, live, parents, back, how)
        weights = weights.ended(rule, [value(o) / temperature for o in live])
        if not again:
            evidence = None if schedule == "infinite" else weights.evidence + log_mean(weights.logs)
            return {"weights": normalised(weights.logs), "log_evidence": evidence}


def _check(first: float, shrink: float, **words: tuple[str, tuple[str, ...]]) -> None:
    if first >= 1 or shrink > 1:
        raise ConfigError(
            f"particles: expected first < 1 and shrink at most 1; got first={first!r}, shrink={shrink!r}."
        )
    for name, (given, known) in words.items():
        if given not in known:
            raise ConfigError(f'particles: {name} expects one of {", ".join(known)}; got "{given}".')
