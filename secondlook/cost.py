"""What work costs. Light to import: the command line reads its budget flags from here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

# What a backward pass through the network is charged as, in forward passes, as evaluations and network passes alike. What is done
# twice, as steps that are drawn again to be differentiated, is charged twice besides. 2 is the usual count, of a layer's two products
# where weights are trained too; by the noise alone a backward pass of the Scenes network took 1.3 forward ones (one CPU thread, 1
# and 4 rows), so that a search by gradient is not flattered.
BACKWARD = 2


def _unit(label: str, about: str, *, budget: bool = True, zero: float = 0) -> Any:
    return field(default=zero, metadata={"label": label, "about": about, "budget": budget})


@dataclass(frozen=True)
class Cost:
    """What work costs: the one table of units. Budgets, flags, ledgers, the log and the report's labels are read from its
    fields; ``label`` is a unit's name in reports, ``about`` says what it counts, ``budget`` whether it can be limited."""

    nfe: int = _unit("NFE", "solver evaluations")
    evals: int = _unit("network evaluations", "network passes (guidance takes two for each evaluation)")
    verdicts: int = _unit("verdicts", "pictures shown to the verifier")
    remarks: int = _unit("remarks", "pictures shown to the critic")
    comparisons: int = _unit("comparisons", "pairs of pictures shown to the comparer")
    backward: int = _unit("backward passes", "backward passes through the network")
    decodes: int = _unit("decodes", "pictures decoded", budget=False)
    seconds: float = _unit("seconds", "seconds of work", zero=0.0)

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{u: getattr(self, u) + getattr(other, u) for u in COST_UNITS})

    def __neg__(self) -> Cost:
        return Cost(**{u: -getattr(self, u) for u in COST_UNITS})

    def __sub__(self, other: Cost) -> Cost:
        return self + -other

    def with_seconds(self, seconds: float) -> Cost:
        return replace(self, seconds=seconds)

    def as_dict(self) -> dict[str, float]:
        """Units that are not zero."""
        return {u: v for u in COST_UNITS if (v := getattr(self, u))}


COST_UNITS: tuple[str, ...] = tuple(f.name for f in fields(Cost))
UNITS: tuple[str, ...] = tuple(f.name for f in fields(Cost) if f.metadata["budget"])  # those that a budget can limit
ABOUT_UNITS: dict[str, str] = {f.name: f.metadata["about"] for f in fields(Cost)}
UNIT_LABELS: dict[str, str] = {f.name: f.metadata["label"] for f in fields(Cost)}
