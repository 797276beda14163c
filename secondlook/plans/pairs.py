"""What pairs of pictures say of all of them: strengths, and how steady the comparer is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from secondlook.plans.moves import best, compare
from secondlook.types import Outcome, Proposal, Task

Pair = tuple[int, int]  # numbers of two outcomes


@dataclass
class Table:
    """Shares of the first of each pair, in the order compared. ``flips``: of the pairs judged in both orders, how often the two named
    different winners; ``both``: how many pairs that were."""

    shares: dict[Pair, float] = field(default_factory=dict)
    flips: int = 0
    both: int = 0

    def put(self, pair: Pair, answers: Sequence[float | None]) -> None:
        """The answers on a pair: the share of the first where it was shown first, then the share of the second where that was."""
        known = [a if i == 0 else 1 - a for i, a in enumerate(answers) if a is not None and not math.isnan(a)]
        if len(known) == 2:
            self.both += 1
            self.flips += (known[0] - 0.5) * (known[1] - 0.5) < 0
        if known:
            self.shares[pair] = sum(known) / len(known)

    def met(self, one: Outcome, other: Outcome) -> bool:
        return (one.id, other.id) in self.shares or (other.id, one.id) in self.shares

    def better(self, one: Outcome, other: Outcome) -> Outcome:
        """The winner of a pair; the better scored where it was even, or nobody could say."""
        share = self.shares.get((one.id, other.id), 0.5)
        return best((one, other)) if share == 0.5 else one if share > 0.5 else other

    def points(self, one: Outcome) -> float:
        """The shares that it has won."""
        return sum(s if one.id == a else 1 - s for (a, b), s in self.shares.items() if one.id in (a, b))

    def told(self) -> dict[str, float | int | None]:
        """For the log: pairs with an answer, and the share of them whose winner depends on the order they are shown in."""
        return {"pairs": len(self.shares), "flip_rate": self.flips / self.both if self.both else None}


def asked(task: Task, one: Outcome, other: Outcome, orders: int) -> list[Proposal]:
    """The comparisons of one pair: in one order, or in both."""
    return [compare(task, one, other), compare(task, other, one)][:orders]


def strengths(
    shares: Mapping[Pair, float], players: Sequence[int], prior: float = 0.5, rounds: int = 200
) -> dict[int, float]:
    """Bradley and Terry's strengths (Biometrika 1952), as logits of mean 0: the chance of i over j is sigmoid(s_i - s_j). Fitted by
    Hunter's MM algorithm (Annals of Statistics 2004, sec. 3) to shares in [0, 1] of the first of each pair. ``prior``: drawn games,
    counted in pairs, of everyone against a player of mean strength, so that one who won all has a finite strength too."""
    won = dict.fromkeys(players, prior / 2)
    for (a, b), share in shares.items():
        won[a] += share
        won[b] += 1 - share
    w = dict.fromkeys(players, 1.0)
    for _ in range(rounds):
        met = {p: prior / (w[p] + 1) for p in players}
        for a, b in shares:
            met[a] += 1 / (w[a] + w[b])
            met[b] += 1 / (w[a] + w[b])
        w = {p: won[p] / met[p] for p in players}
    logs = {p: math.log(v) for p, v in w.items()}
    middle = sum(logs.values()) / max(1, len(logs))
    return {p: v - middle for p, v in logs.items()}
