"""Budgets and what was spent of them: a ledger for each task below one for the run. A proposal is priced before it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from secondlook.errors import BudgetError, ConfigError, nearest
from secondlook.types import UNITS, Cost

_NANO = 10**9


class Budget:
    """Limits by unit (types.UNITS); what is not named, or None, has no limit."""

    def __init__(self, **limits: Any):
        for name, value in limits.items():
            if name not in UNITS:
                raise ConfigError(f'There is no budget in "{name}"; {nearest(name, UNITS)}')
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ConfigError(f"A budget must be a number; got {name} = {value!r}.")
            if not value > 0:
                raise ConfigError(f"A budget must be above 0; got {name} = {value}.")
        self.limits: dict[str, float] = {k: v for k, v in limits.items() if v is not None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self.limits == other.limits

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.limits.items())))

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{k}={v:g}' for k, v in self.limits.items())})"

    @property
    def endless(self) -> bool:
        return not self.limits

    @property
    def seconds(self) -> float | None:
        return self.limits.get("seconds")

    def covers(self, cost: Cost) -> bool:
        """Whether ``cost`` in all is within every limit."""
        return all(getattr(cost, k) <= v for k, v in self.limits.items())

    def refuse_less_than(self, sample: Cost, what: str = "One sample") -> None:
        """ConfigError where not even the first sample (or whatever is needed to get one) can be paid."""
        for name, limit in self.limits.items():
            price = getattr(sample, name)
            if name != "seconds" and limit < price:
                raise BudgetError(
                    f"{what} costs {price} {name} here; the budget of {limit:g} {name} buys none. Raise it."
                )


class Ledger:
    """``spent`` is charged, ``held`` is promised to work under way. What is held or charged here counts in ``above`` too."""

    def __init__(self, budget: Budget, above: Ledger | None = None):
        self.budget, self.above = budget, above
        self.held = Cost()
        self._spent = Cost()
        self._nanos = 0  # whole numbers add up to the same sum in any order, which a resumed run needs

    @property
    def spent(self) -> Cost:
        return self._spent.with_seconds(self._nanos / _NANO)

    def affords(self, price: Cost) -> bool:
        own = self.budget.covers(self.spent + self.held + price)
        return own and (self.above is None or self.above.affords(price))

    def hold(self, price: Cost) -> None:
        self.held = self.held + price
        if self.above is not None:
            self.above.hold(price)

    def charge(self, price: Cost, cost: Cost) -> None:
        """Turn a promise of ``price`` into the ``cost`` really incurred."""
        self.held = self.held - price
        self._spent = self._spent + cost.with_seconds(0.0)
        self._nanos += round(cost.seconds * _NANO)
        if self.above is not None:
            self.above.charge(price, cost)

    def left(self) -> dict[str, float]:
        """What is neither spent nor promised, by unit; infinity where nothing limits it."""
        taken = self.spent + self.held
        own = {u: self.budget.limits.get(u, math.inf) - getattr(taken, u) for u in UNITS}
        if self.above is None:
            return own
        over = self.above.left()
        return {u: min(own[u], over[u]) for u in UNITS}


def share(total: Ledger, begun: Mapping[int, Ledger], waiting: int) -> Budget:
    """The budget of the next of ``waiting`` tasks: an equal share of what the run has left once the tasks that were begun
    have all of theirs. What easy prompts leave therefore goes to later ones."""
    limits = {}
    for unit, limit in total.budget.limits.items():
        spent = getattr(total.spent, unit)
        promised = sum(
            b.budget.limits[unit] - getattr(b.spent, unit) for b in begun.values() if unit in b.budget.limits
        )
        part = (limit - spent - promised) / max(1, waiting)
        limits[unit] = part if unit == "seconds" else math.floor(part + 1e-9)
    return Budget(**{k: max(v, 1e-9) for k, v in limits.items()})
