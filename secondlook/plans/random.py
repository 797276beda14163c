"""Random search, or best of n."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.plans.moves import fresh
from secondlook.types import Plan, Task


def random(task: Task, *, n: int = 20) -> Plan:
    """Draw ``n`` fresh noises; the engine keeps the best. Ref: 2501.09732, sec. 3.2 (random search)."""
    positive("random", n=n)
    yield fresh(task, n)
