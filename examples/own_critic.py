"""A critic in words and a plan that reads them: draw, hear what is wrong, draw again until nothing is.

    secondlook draw "two green squares and a white triangle" --world scenes --plan own_critic:reflect \
        --critic own_critic:Counting --out runs/reflect

The critic asks the Scenes world's exact checker, so a run that it steers shows what is possible at most: it is an oracle.
No network was trained for this: a remark only decides whether, and where, to try again.
"""

from collections.abc import Sequence

from torch import Tensor

from secondlook.plans.moves import fresh, near
from secondlook.types import Condition, Plan, Remark, Task
from secondlook.worlds.scenes.checker import judge
from secondlook.worlds.scenes.grammar import parse


class Counting:
    """Says what is first wrong with a picture; nothing where nothing is. score: the share of the prompt that is there."""

    name = "counting (oracle)"
    oracle = True  # it asks the exact checker: a run that it steers is labelled so

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark | None]:
        found: list[Remark | None] = []
        for picture, condition in zip(samples.numpy(), conditions, strict=True):
            verdict = judge(picture, parse(condition.prompt or ""))
            found.append(Remark(verdict.why, sum(verdict.atoms) / len(verdict.atoms)))
        return found


def reflect(task: Task, *, most: int = 20, patience: int = 2, radius: float = 0.5) -> Plan:
    """Keep the try with the fewest faults; look near it ``patience`` times, then afresh; stop when nothing is wrong."""
    [kept] = yield fresh(task, 1, ask="score+remark")
    failures = 0
    for _ in range(most - 1):
        if kept.remark is not None and not kept.remark.text:
            break
        here = (
            near(task, kept, 1, radius, ask="score+remark")
            if failures < patience
            else fresh(task, 1, ask="score+remark")
        )
        [tried] = yield here
        better = worth(tried) > worth(kept)
        kept, failures = (tried, 0) if better else (kept, failures + 1)
    return kept


def worth(outcome) -> float:  # type: ignore[no-untyped-def]
    """How much of the prompt is there; what the critic could not read counts nothing."""
    return -1.0 if outcome.remark is None else outcome.remark.score
