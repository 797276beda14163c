"""Monte Carlo tree search over half-made states: where a state led, as far as its pictures tell, decides where the next is drawn."""

from __future__ import annotations

import math
from dataclasses import replace

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.legs import affords, branch, branch_times, value
from secondlook.plans.moves import fresh, resume
from secondlook.plans.nodes import Node
from secondlook.plans.weights import draw, log_mean
from secondlook.types import Plan, Proposal, Task

BACKUPS = ("max", "soft")


def tree(
    task: Task, *, backup: str = "max", levels: int = 4, first: float = 0.2, temperature: float = 0.1, explore: float = 0.1,
    width: float = 2.0, power: float = 0.5, back: float = 0.1,
) -> Plan:  # fmt: skip
    """Diffusion tree sampling and search (2506.20701): each turn goes down the tree from noise, adds a child where a node has fewer than
    ``width`` visits^``power``, draws it to the end, and backs up the picture's score; looks on the way are not asked for.

    backup "max" (search, DTS*): a node is worth its best picture and children are chosen by worth + ``explore`` sqrt(log visits /
    visits of the child) (UCT). "soft" (sampling, DTS): temperature times log mean exp(worth / temperature) over children, chosen by
    exp(worth / temperature); in the limit pictures follow the tilted law. Nodes stand at ``levels`` times, evenly from
    ``first``, the paper's at every step; its constants vary by task, these are for scores from 0 to 1. Children differ by the
    solver's noise; on an ODE they are taken ``back`` in time. Endless.
    """
    positive("tree", levels=levels, first=first, temperature=temperature, width=width, power=power, back=back)
    if first >= 1 or backup not in BACKUPS or explore < 0 or power > 1:
        raise ConfigError(f'tree: expected backup among {", ".join(BACKUPS)}, first < 1, power at most 1 and explore at least 0; got '
                          f'"{backup}", {first!r}, {power!r}, {explore!r}.')  # fmt: skip
    times, root = [*branch_times(task, first, levels), 1.0], Node()
    while True:
        path = [root]
        while path[-1].children and not path[-1].widens(width, power):
            path.append(_chosen(task, path[-1], backup, temperature, explore))
        while not path[-1].finished:
            work = _child(task, path[-1], times[len(path) - 1], back)
            if not affords(task, replace(work, stop=1.0, ask="score")):
                return
            [outcome] = yield [work]
            path.append(Node(outcome))
            path[-2].children.append(path[-1])
        for node in reversed(path):
            node.visits += 1
            worths = [child.worth for child in node.children]
            if node.outcome is not None and node.finished:
                node.worth = value(node.outcome)
            else:
                node.worth = (
                    max(worths) if backup == "max" else temperature * log_mean([w / temperature for w in worths])
                )


def _chosen(task: Task, node: Node, backup: str, temperature: float, explore: float) -> Node:
    if backup == "soft":
        return node.children[draw([c.worth / temperature for c in node.children], task.uniform(1)[0])]
    return max(node.children, key=lambda c: c.worth + explore * math.sqrt(math.log(node.visits) / c.visits))


def _child(task: Task, node: Node, stop: float, back: float) -> Proposal:
    """A node's first child is the node going on as it is, the others branch; the root's are new noise."""
    how = {"stop": stop, "ask": "score" if stop == 1.0 else "nothing"}
    if node.outcome is None:
        return fresh(task, 1, **how)[0]
    return branch(task, node.outcome, 1, back, **how)[0] if node.children else resume(task, node.outcome, **how)
