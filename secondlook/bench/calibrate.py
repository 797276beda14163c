"""`secondlook calibrate`: how well scores on the way foretell finished ones, prompt by prompt, and where a halving may cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from secondlook.bench.probe import RIGHT
from secondlook.bench.stats import interval
from secondlook.engine.record import Record, or_nan
from secondlook.engine.store import Store
from secondlook.settings import make_named
from secondlook.train.auc import auc

SHARES = (0.5, 0.25)
Place = tuple[float, str]  # a time and how it was looked at


@dataclass
class Found:
    """times: of the grid before data. early: by time and look, the scores of each prompt's rows; final: of the finished pictures; right:
    what ``by`` says of those (None: nobody could tell). Lists over prompts of [rows], NaN where there is no score. step, last:
    evaluations of a step and of the last one; reuses: whether a paid look is the first of them."""

    times: tuple[float, ...]
    step: int = 1
    last: int = 1
    reuses: bool = True
    final: list[np.ndarray] = field(default_factory=list)
    early: dict[Place, list[np.ndarray]] = field(default_factory=dict)
    right: list[np.ndarray] | None = None
    by: str = ""

    @property
    def whole(self) -> int:
        """Evaluations of a row from noise to data."""
        return len(self.times) * self.step + self.last

    def spent(self, place: Place) -> int:
        """Evaluations of a row up to a look, with it where it is paid."""
        return (self.times.index(place[0]) + 1) * self.step + (place[1] == "paid")

    def left(self, place: Place) -> int:
        """Evaluations from there to data."""
        return self.whole - self.spent(place) + (place[1] == "paid" and not self.reuses)


def read(store: Store) -> Found:
    """What a run of the plan ``calibrate`` holds; prompts whose budget ended before two pictures are left out."""
    record, tasks = Record.read(store), len(store.config["prompts"])
    said = {name for numbers in record.judged.values() for name in numbers}
    by = next((n for n in ("checker", "judge") if n in said), "")
    looks = {(o.proposal.stop, o.proposal.look) for o in record.outcomes.values() if not o.finished}
    solver = make_named("solver", str(store.config.get("solver") or "euler"))
    found = Found(tuple(sorted({t for t, _ in looks})), solver.evals(last=False), solver.evals(last=True),
                  bool(getattr(solver, "reuses", False)), by=by)  # fmt: skip
    found.early = {place: [] for place in sorted(looks)}
    right: list[np.ndarray] = []
    for task in range(tasks):
        done = [o for o in record.of(task) if o.finished]
        if len(done) < 2:
            continue
        found.final.append(np.array([or_nan(o.score) for o in done]))
        right.append(np.array([record.said(o.id).get(by, math.nan) for o in done]))
        rows = [_way(record, o.id) for o in done]
        for place, values in found.early.items():
            values.append(np.array([row.get(place, math.nan) for row in rows]))
    found.right = right if by else None
    return found


def _way(record: Record, number: int) -> dict[Place, float]:
    """What was scored on the way to a finished picture."""
    seen: dict[Place, float] = {}
    while parents := record.outcomes[number].proposal.move.parents:
        number = parents[0]
        outcome = record.outcomes[number]
        seen[outcome.proposal.stop, outcome.proposal.look] = or_nan(outcome.score)
    return seen


def spearman(early: np.ndarray, final: np.ndarray) -> float:
    """The rank correlation of the rows that have both; NaN where one of the two says the same of all."""
    known = ~(np.isnan(early) | np.isnan(final))
    one, other = rankdata(early[known]), rankdata(final[known])
    if known.sum() < 3 or not one.std() or not other.std():
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def survives(early: np.ndarray, final: np.ndarray, share: float) -> float:
    """Whether a best finished row is among the best ``share`` of the rows by the early score, as halving cuts them: 1 or 0."""
    known = np.where(np.isnan(final), -math.inf, final)
    order = np.argsort(-np.where(np.isnan(early), -math.inf, early), kind="stable")  # the first of equals stays
    kept = order[: max(1, round(share * len(order)))]
    return float((known[kept] == known.max()).any())


def _right(early: np.ndarray, told: np.ndarray) -> float:
    known = ~(np.isnan(early) | np.isnan(told))
    return auc(early[known], told[known] >= RIGHT)


def mean(values: Sequence[float]) -> dict[str, Any] | None:
    """The mean over prompts with its 95 % interval, and of how many prompts."""
    known = np.array([v for v in values if not math.isnan(v)])
    if not len(known):
        return None
    low, high = interval(known, ["all"] * len(known), 2000)
    return {"mean": float(known.mean()), "interval": (low, high), "prompts": len(known)}


def summary(found: Found, keep: float = 0.9) -> dict[str, Any]:
    """All numbers: a row for each time and look, the finished score last; and the cut that is recommended. keep: the least share of final
    winners that it may keep."""
    rows = []
    for (t, look), early in found.early.items():
        pairs = list(zip(early, found.final, strict=True))
        row: dict[str, Any] = {"t": t, "look": look, "spent": found.spent((t, look)), "left": found.left((t, look))}
        row["spearman"] = mean([spearman(*p) for p in pairs])
        row["auc"] = _auc(early, found.right)
        row["kept"] = {share: mean([survives(*p, share) for p in pairs]) for share in SHARES}
        rows.append(row)
    return {"prompts": len(found.final), "draws": max((len(f) for f in found.final), default=0), "steps": len(found.times) + 1, "evaluations": found.whole, "by": found.by or None,
            "rows": rows, "final_auc": _auc(found.final, found.right), "keep": keep, "cut": cut(rows, found.whole, keep)}  # fmt: skip


def _auc(early: Sequence[np.ndarray], right: Sequence[np.ndarray] | None) -> dict[str, Any] | None:
    return None if right is None else mean([_right(e, r) for e, r in zip(early, right, strict=True)])


def cut(rows: Sequence[Mapping[str, Any]], whole: int, keep: float) -> dict[str, Any] | None:
    """The cheapest single cut that keeps ``keep`` of the final winners: evaluations for each row begun, the paid look being the first of
    what goes on. None where no cut does, or none is cheaper than finishing all."""
    found = []
    for row in rows:
        for share in SHARES:
            kept, cost = row["kept"][share], row["spent"] + share * row["left"]
            if kept is not None and kept["mean"] >= keep and cost < whole:
                found.append((cost, -kept["mean"], row["look"] != "free", row["t"], share, row["look"]))
    if not found:
        return None
    cost, kept, _, t, share, look = min(found)
    call = f"halving(first={t:.3g}, share={share:g}, looks=1, look='{look}')"
    return {
        "call": call,
        "t": t,
        "share": share,
        "look": look,
        "kept": -kept,
        "evaluations": cost,
        "more": whole / cost,
    }


def told(s: Mapping[str, Any]) -> list[str]:
    """As a table and a sentence."""
    judge = f"AUC against the {s['by']}" if s["by"] else ""
    head = [
        "t",
        "look",
        "evaluations",
        "Spearman (95 %)",
        *([judge] if judge else []),
        *(f"winners kept by the best {v:g}" for v in SHARES),
    ]
    lines = [f"{s['prompts']} prompts, {s['draws']} draws each, {s['steps']} steps. Means over prompts, with 95 % intervals.", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]  # fmt: skip
    for row in s["rows"]:
        cells = [f"{row['t']:.3f}", row["look"], str(row["spent"]), _cell(row["spearman"]), *([_cell(row["auc"])] if judge else []),
                 *(_cell(row["kept"][v]) for v in SHARES)]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    last = [
        "1",
        "finished",
        str(s["evaluations"]),
        "1",
        *([_cell(s["final_auc"])] if judge else []),
        *("1" for _ in SHARES),
    ]
    lines += ["| " + " | ".join(last) + " |", ""]
    best = s["cut"]
    if best is None:
        lines.append(
            f"No cut keeps {s['keep']:.0%} of the final winners and saves anything: early scores are not safe here. Take random."
        )
    else:
        lines.append(f"Recommended: {best['call']}")
        lines.append(f"It kept {best['kept']:.0%} of the final winners at {best['evaluations']:.3g} of {s['evaluations']} evaluations a row begun, which "
                     f"begins {best['more']:.2f} times as many rows for the same evaluations.")  # fmt: skip
    return lines


def _cell(value: Mapping[str, Any] | None) -> str:
    return "–" if value is None else f"{value['mean']:.2f} ({value['interval'][0]:.2f} to {value['interval'][1]:.2f})"
