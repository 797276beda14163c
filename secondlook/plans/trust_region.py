"""Trust regions around the best starting noises: each widens while it wins and narrows while it does not."""

from __future__ import annotations

from dataclasses import dataclass

from secondlook.calls import positive
from secondlook.errors import ConfigError
from secondlook.plans.moves import best, fresh, near, top
from secondlook.types import Plan, Task


@dataclass
class Region:
    """``length``: sine of the angle to its neighbours; wins and failures are counted in a row."""

    length: float
    wins: int = 0
    failures: int = 0

    def told(self, won: bool, successes: int, patience: int, factor: float, most: float) -> None:
        """After a round: whether one of its neighbours beat its centre."""
        self.wins, self.failures = (self.wins + 1, 0) if won else (0, self.failures + 1)
        if self.wins >= successes:
            self.length, self.wins = min(most, self.length * factor), 0
        if self.failures >= patience:
            self.length, self.failures = self.length / factor, 0


def trust_region(
    task: Task, *, n: int = 8, regions: int = 2, each: int = 2, length: float = 0.8, factor: float = 1.5, successes: int = 3,
    failures: int = 3, least: float = 0.05, most: float = 1.0,
) -> Plan:  # fmt: skip
    """Draw ``n`` noises; then, round after round, ``each`` neighbours around the ``regions`` best of all so far. A region's length grows
    by ``factor`` after ``successes`` rounds in a row that beat its centre and shrinks by it after ``failures`` that do not. Below
    ``least`` it has collapsed: its centre is parked and it begins again with fresh noise. Ref: trust-region search, 2603.14504
    (after TuRBO, 1910.01739), whose 80 first draws and 15 regions with 20 tries a round are scaled to budgets of some dozen pictures.

    Regions lie on the noise's shell: a neighbour is turned by asin(length), its norm kept. In many dimensions all of a ball is at
    its rim, so that no neighbour lies nearer. The paper's are boxes, of which a part of the coordinates is moved; they add variance
    (side 0.8 with half of them moved lengthens the noise by 1 % and turns it by asin(0.16)), and lengths go up to 1.6. Endless.
    """
    positive(
        "trust_region",
        n=n,
        regions=regions,
        each=each,
        length=length,
        successes=successes,
        failures=failures,
        least=least,
        most=most,
    )
    if regions > n or factor <= 1 or not least <= length <= most <= 1:
        raise ConfigError(f"trust_region: expected regions <= n, factor > 1 and least <= length <= most <= 1; got regions={regions!r}, n={n!r}, "
                          f"factor={factor!r}, least={least!r}, length={length!r}, most={most!r}.")  # fmt: skip
    known, around = list((yield fresh(task, n))), [Region(length) for _ in range(regions)]
    while True:
        centres = top(known, regions)
        parked = [c for c, region in zip(centres, around, strict=True) if region.length < least]
        tries = yield [
            p
            for centre, region in zip(centres, around, strict=True)
            for p in (fresh(task, each) if region.length < least else near(task, centre, each, region.length))
        ]
        for i, region in enumerate(around):
            own = tries[i * each : (i + 1) * each]
            if region.length < least:
                around[i] = Region(length)
            else:
                region.told(best([centres[i], *own]) is not centres[i], successes, failures, factor, most)
        known = [*(o for o in known if o not in parked), *tries]
