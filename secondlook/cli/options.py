"""The command line's flags for a run's settings, made from their table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from secondlook.settings import GROUPS, OPTIONS, budget_units, flag


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expects a whole number, got {text!r}") from None


def real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expects a number, got {text!r}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"expects a finite number, got {text!r}")
    return value


def add_settings(p: argparse.ArgumentParser, groups: Sequence[str]) -> None:
    """Flags for the options of these groups, in the table's order."""
    p.set_defaults(groups=tuple(groups))
    for group in groups:
        box = p.add_argument_group(GROUPS[group])  # type: ignore[index]
        if group == "budget":
            for unit, about in budget_units().items():
                box.add_argument(f"--{unit}", type=real if unit == "seconds" else whole, help=about)
            for unit in budget_units():
                box.add_argument(f"--total-{unit}", type=real if unit == "seconds" else whole, help=argparse.SUPPRESS)
            continue
        for row in [r for r in OPTIONS.values() if r.metadata["group"] == group]:
            box.add_argument(flag(row.name), *row.metadata["flags"], dest=row.name, **_how(row))


def _how(row: Any) -> dict[str, Any]:
    facts = row.metadata
    kind = facts["kind"]
    found: dict[str, Any] = {"help": facts["about"].replace("%", "%%"), "default": None}
    if kind == "yes":
        return {**found, "action": argparse.BooleanOptionalAction}
    if kind == "times":
        return {**found, "type": real, "nargs": 2, "metavar": ("LOW", "HIGH")}
    found["type"] = {"whole": whole, "number": real}.get(kind, str)
    return {**found, **({} if facts["metavar"] is None else {"metavar": facts["metavar"]})}


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were typed, by name, with budgets."""
    groups = getattr(args, "groups", tuple(GROUPS))  # a command may have a flag of its own by an option's name
    names = [
        *(n for n, row in OPTIONS.items() if row.metadata["group"] in groups),
        *budget_units(),
        *(f"total_{u}" for u in budget_units()),
    ]
    found = {n: v for n in names if (v := getattr(args, n, None)) is not None}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def compare_flags(p: argparse.ArgumentParser) -> None:
    """What `secondlook compare` takes."""
    p.add_argument("first", metavar="DIR1")
    p.add_argument("second", metavar="DIR2")
    p.add_argument("--out", metavar="FILE.html", help="also write a page with both runs' pictures")
    p.add_argument("--json", metavar="FILE", help="also write all numbers")
