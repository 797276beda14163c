"""Small, fast stand-ins: a random network, deterministic verifiers, a rig and a driver on a temporary store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.engine.driver import Driver
from secondlook.engine.ledger import Budget
from secondlook.engine.record import Record, number_out
from secondlook.engine.rig import Rig, build_flow
from secondlook.engine.store import Store
from secondlook.flow.grid import grid
from secondlook.flow.path import Linear
from secondlook.models.text import TextSiT, TextSiTConfig
from secondlook.noise import Key
from secondlook.settings import make_named, make_plan
from secondlook.types import Condition, Cost, Remark, Task, Verifier
from secondlook.worlds.scenes.grammar import WORDS
from secondlook.worlds.scenes.world import Scenes

PROMPTS = (
    "a red circle",
    "three squares",
    "a blue cross and a green triangle",
    "a square left of a cross",
    "a white square",
)
STEPS = 4


class Brightness:
    """Mean brightness in [0, 1]: a verifier that is cheap, exact and the same on every machine."""

    name = "brightness"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return samples.double().flatten(1).mean(1) / 255

    def gradient(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return torch.full_like(samples, 1 / samples[0].numel())


class Redness:
    """Mean of the red channel less the others'."""

    name = "redness"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        means = samples.double().flatten(1, 2).mean(1) / 255
        return means[:, 0] - means[:, 1:].mean(1)


class Brighter:
    """Compares by brightness."""

    name = "brighter"

    def __call__(self, first: Tensor, second: Tensor, conditions: Sequence[Condition]) -> Tensor:
        one, other = (Brightness()(pictures, conditions) for pictures in (first, second))
        return torch.sigmoid(20 * (one - other))


class Failing:
    """Brightness that raises on the calls (counted from 1) for which ``fails`` says so."""

    name = "failing"

    def __init__(self, fails: Callable[[int], bool]):
        self.fails, self.calls = fails, 0

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.calls += 1
        if self.fails(self.calls):
            raise RuntimeError("the verifier's lamp went out")
        return Brightness()(samples, conditions)


def brightness() -> Verifier:
    return Brightness()


def tiny_network(seed: int = 0) -> TextSiT:
    """A random network whose output depends on picture, time and prompt (a new one's last layers are zero)."""
    torch.manual_seed(seed)
    config = TextSiTConfig(words=WORDS, width=32, depth=1, heads=2, text_width=32, text_depth=1, bottleneck=32)
    network = TextSiT(config)
    zeroed = [p for p in network.parameters() if not p.any()]
    for p in zeroed:
        torch.nn.init.normal_(p, std=0.2)
    return network.requires_grad_(False).eval()


class Grumbler:
    """A critic that is never content, least of all with dark pictures."""

    name = "grumbler"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark | None]:
        dark = samples.float().flatten(1).mean(1) < 118
        return [Remark("too dark; too dull" if d else "too dull") for d in dark]


class Heedless:
    """Encodes prompts for a network that reads no tries, and takes them all the same."""

    reads_context = True

    def __init__(self, network: TextSiT):
        self.network = network

    def __call__(self, condition: Condition | None, pictures: Sequence[Any] = ()) -> Any:
        return self.network.encode([None if condition is None else condition.prompt])


def tiny_rig(
    network: TextSiT,
    *,
    rows: int = 4,
    guidance: float = 2.5,
    solver: str = "euler",
    bf16: bool = False,
    verifier: Verifier | None = None,
) -> Rig:
    with torch.inference_mode():
        null = network.encode([None])
    flow = build_flow(network, Linear(), guidance, null, bf16)  # type: ignore[arg-type]
    return Rig(
        flow,
        make_named("solver", solver),
        grid(STEPS, 3.0),
        Heedless(network),
        Scenes().decode,
        verifier or Brightness(),
        {"redness": Redness()},
        rows=rows,
        grids=lambda n: grid(n, 3.0),
        critic=Grumbler(),
        comparer=Brighter(),
        pixels=lambda x: ((x.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1),
    )


def tasks(prompts: Sequence[str] = PROMPTS[:1], seed: int = 0) -> list[Task]:
    root = Key.root(seed)
    return [Task(i, Condition(p), root.child("task", i), grid(STEPS, 3.0)) for i, p in enumerate(prompts)]


def open_or_create(folder: Path, prompts: Sequence[str], plan: str) -> Store:
    if (folder / "run.sqlite").exists():
        return Store.open(folder)
    return Store.create(folder, {"prompts": list(prompts), "plan": plan})


def drive(
    folder: Path,
    rig: Rig,
    plan: str | Callable[[Task], object],
    *,
    prompts: Sequence[str] = PROMPTS[:1],
    given: Sequence[Task] | None = None,
    total: Budget | None = None,
    window: int | None = None,
    patience: float = 60.0,
    progress: Callable[[Driver], None] | None = None,
    **limits: float | None,
) -> Record:
    """Run a plan to its end on a store in ``folder`` (made, or gone on with) and read the log back."""
    make = make_plan(plan) if isinstance(plan, str) else plan
    store = open_or_create(folder, prompts, str(plan))
    budget = Budget(**limits)  # type: ignore[arg-type]
    with store.writing():
        some = list(given) if given is not None else tasks(prompts)
        Driver(some, make, rig, budget, store, total=total, window=window, patience=patience).run(progress)  # type: ignore[arg-type]
    return Record.read(store)


def judged(task: int, number: int, said: dict[str, float]) -> tuple[str, int, None, dict[str, object]]:
    """What held-out judges said of an outcome, as a line of the log."""
    return ("judged", task, None, {"outcome": number, "said": {k: number_out(v) for k, v in said.items()}})


def spent(record: Record) -> dict[int, Cost]:
    """What each task cost, without its seconds: those never repeat."""
    return {i: record.spent(i).with_seconds(0.0) for i in sorted(record.tasks)}


def essence(record: Record) -> dict[int, tuple[object, ...]]:
    """All of a record that must not depend on when, how often or in whose company a run was made."""
    return {
        i: (
            o.proposal,
            str(o.score),
            tuple(sorted(record.said(i).items())),
            record.digests[i],
            record.costs[i].with_seconds(0.0),
        )
        for i, o in sorted(record.outcomes.items())
    }


def always_failing() -> Failing:
    return Failing(lambda n: True)
