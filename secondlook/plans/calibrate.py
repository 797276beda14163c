"""How early a score can be trusted: rows that are looked at wherever the grid allows it."""

from __future__ import annotations

from secondlook.calls import positive
from secondlook.plans.moves import fresh, resume
from secondlook.types import Plan, Task


def calibrate(task: Task, *, n: int = 12) -> Plan:
    """Draw ``n`` fresh noises, and score each at every time of the grid before data: by the last step's estimate (look="free"), then
    by the network's word there (look="paid", the first evaluation of what goes on); then finish and score it. Evaluations are those
    of plain draws where the solver reuses the paid look; verdicts are two a time and one at the end. What halving and its kin decide
    by (1502.07943), beside what they would have got. `secondlook calibrate` reads it. Ends by itself.
    """
    positive("calibrate", n=n)
    live = None
    for t in [t for t in task.grid[1:] if t < 1]:
        steps = (
            fresh(task, n, stop=t, look="free")
            if live is None
            else [resume(task, o, stop=t, look="free") for o in live]
        )
        live = yield steps
        live = yield [resume(task, o, stop=t, look="paid") for o in live]
    yield fresh(task, n) if live is None else [resume(task, o) for o in live]
