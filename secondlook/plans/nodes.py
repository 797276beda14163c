"""Nodes of a tree of half-made states."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from secondlook.types import Outcome


@dataclass
class Node:
    """A state, with the nodes that were drawn from it. worth: what is known of the pictures it leads to."""

    outcome: Outcome | None = None
    children: list[Node] = field(default_factory=list)
    visits: int = 0
    worth: float = -math.inf

    @property
    def finished(self) -> bool:
        return self.outcome is not None and self.outcome.finished

    def widens(self, width: float, power: float) -> bool:
        """Progressive widening: whether another child is due, by the number of visits; always where children are pictures."""
        return self.children[0].finished or len(self.children) < width * self.visits**power
