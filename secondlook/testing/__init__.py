"""For tests of what others add: contracts to inherit, one for each kind of thing, and a plan's engine on paper.

Subclass a contract in a test file as ``TestMine``, give it the thing under test, and pytest runs what every such thing must do.
"""

from secondlook.testing.contracts import (
    ComparerContract,
    CriticContract,
    PlanContract,
    SelectorContract,
    VerifierContract,
)
from secondlook.testing.simulate import Simulation, simulate

__all__ = [
    "AdapterContract", "BackendContract", "ComparerContract", "CriticContract", "PlanContract", "SelectorContract", "Simulation", "SolverContract",
    "VerifierContract", "ours", "parity", "simulate", "start_noise", "theirs",
]  # fmt: skip


def __getattr__(name: str) -> object:
    # These need optional packages, or are heavy: on first use.
    if name in ("AdapterContract", "ours", "parity", "start_noise", "theirs"):
        from secondlook.testing import adapters

        return getattr(adapters, name)
    if name == "BackendContract":
        from secondlook.testing.backends import BackendContract

        return BackendContract
    if name == "SolverContract":
        from secondlook.solvers.contract import SolverContract

        return SolverContract
    raise AttributeError(f"module 'secondlook.testing' has no attribute {name!r}")
