"""Budgets and what was spent of them. One ledger a task; a proposal is priced before it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from secondlook.errors import ConfigError
from secondlook.types import Cost


@dataclass(frozen=True)
class Budget:
    """Limits for each prompt; None is no limit. Units as in types.Cost."""

    nfe: int | None = None
    evals: int | None = None
    verdicts: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ConfigError(f"A budget must be above 0; got {name} = {value}.")

    @property
    def endless(self) -> bool:
        return all(v is None for v in asdict(self).values())

    def covers(self, cost: Cost) -> bool:
        """Whether ``cost`` in all is within every limit."""
        limits = asdict(self)
        return all(limits[k] is None or getattr(cost, k) <= limits[k] for k in limits)

    def refuse_less_than(self, sample: Cost, what: str = "One sample") -> None:
        """ConfigError where not even the first sample (or whatever is needed to get one) can be paid."""
        for name, limit in asdict(self).items():
            price = getattr(sample, name)
            if limit is not None and name != "seconds" and limit < price:
                raise ConfigError(
                    f"{what} costs {price} {name} here; the budget of {limit} {name} buys none. Raise it."
                )


@dataclass
class Ledger:
    """``spent`` is charged, ``held`` is promised to work under way."""

    budget: Budget
    spent: Cost = field(default_factory=Cost)
    held: Cost = field(default_factory=Cost)

    def affords(self, price: Cost) -> bool:
        return self.budget.covers(self.spent + self.held + price)

    def hold(self, price: Cost) -> None:
        self.held = self.held + price

    def charge(self, price: Cost, cost: Cost) -> None:
        """Turn a promise of ``price`` into the ``cost`` really incurred."""
        minus = Cost(-price.nfe, -price.evals, -price.verdicts, -price.decodes, -price.seconds)
        self.held = self.held + minus
        self.spent = self.spent + cost
