"""A plan that minds its own budget: draws afresh while it can, and keeps enough back for one last ring around the best.

    secondlook draw "a red circle and a blue square" --plan 'own_frugal_plan:frugal(ring=4)' --nfe 400 --out runs/frugal

Run it from this folder, or put the file on PYTHONPATH.
"""

from secondlook.calls import positive
from secondlook.plans.moves import best, fresh, near
from secondlook.types import Plan, Task


def frugal(task: Task, *, ring: int = 4, radius: float = 0.5, most: int = 100) -> Plan:
    """Fresh noises one by one; when no more than ``ring`` samples are left of the budget, all of them go near the best. Without
    a budget it stops after ``most`` fresh ones."""
    positive("frugal", ring=ring, radius=radius, most=most)
    tried = list((yield fresh(task, 1)))
    last = near(task, tried[0], ring, radius)  # made to be priced; the real ring is around the best
    while len(tried) < most and task.affords(tried[0].proposal, *last):  # another fresh one, and the ring after it
        tried += yield fresh(task, 1)
    pivot = best(tried)
    wanted = near(task, pivot, ring, radius)
    while wanted and not task.affords(*wanted):
        wanted.pop()
    if wanted:
        tried += yield wanted
    return {"winner": best(tried), "fresh": len(tried) - len(wanted)}
