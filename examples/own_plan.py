"""A plan of one's own: `secondlook draw "..." --plan "examples.own_plan:narrowing(width=4)" --out DIR`."""

from secondlook.plans.moves import best, fresh, near
from secondlook.types import Plan, Task


def narrowing(task: Task, *, width: int = 4, radius: float = 0.6) -> Plan:
    """Begin with the best of ``width`` noises; search around the best so far, ever closer. Endless."""
    pivot = best((yield fresh(task, width)))
    while True:
        pivot = best([pivot, *(yield near(task, pivot, width, radius))])
        radius = max(0.1, 0.8 * radius)
