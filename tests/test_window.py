"""Many prompts: what is held does not grow with them, budgets are shared, and a stopped run ends as one that was not."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from secondlook.engine.driver import Driver
from secondlook.engine.ledger import Budget
from secondlook.engine.record import Record
from secondlook.engine.states import States
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.models.text import TextSiT
from secondlook.plans.moves import fresh
from secondlook.registry import PLANS
from secondlook.settings import make_plan
from secondlook.types import Condition, Plan, Task
from tests.helpers import PROMPTS, STEPS, drive, essence, tasks, tiny_rig


class Held:
    """What a run holds at its fullest, seen between two ticks."""

    def __init__(self) -> None:
        self.most = {"runs": 0, "queue": 0, "encodings": 0, "states": 0, "files": 0}

    def __call__(self, driver: Driver) -> None:
        now = {
            "runs": len(driver.runs), "queue": len(driver.queue), "encodings": len(driver.rig._encoded), "states": len(driver.states._held),
            "files": len(list((driver.store.folder / "states").iterdir())),
        }  # fmt: skip
        self.most = {k: max(v, now[k]) for k, v in self.most.items()}


def held(network: TextSiT, folder: Path, prompts: int) -> dict[str, int]:
    names = [p for _, p in zip(range(prompts), itertools.cycle(PROMPTS), strict=False)]
    store, seen = Store.create(folder, {"prompts": names, "plan": "paths"}), Held()
    rig = tiny_rig(network, rows=4)
    with store.writing():
        some = tasks(names)
        Driver(some, make_plan("paths(n=2, width=2)"), rig, Budget(nfe=30), store, window=6).run(seen)
    assert Record.read(store).done
    assert not any(t.means for t in some)  # the plans had copies: tasks hold nothing of their runs
    return seen.most


def test_what_a_run_holds_does_not_grow_with_its_prompts(network: TextSiT, tmp_path: Path) -> None:
    few, many = held(network, tmp_path / "few", 12), held(network, tmp_path / "many", 48)
    assert few["runs"] == many["runs"] == 6
    for name in ("queue", "encodings", "states", "files"):
        assert many[name] <= few[name] * 1.25 + 4, name


def test_nor_does_it_where_no_window_is_named(network: TextSiT, tmp_path: Path) -> None:
    most = []
    for prompts in (10, 30):
        seen = Held()
        drive(tmp_path / str(prompts), tiny_rig(network, rows=2), "random(n=1)", prompts=["a red circle"] * prompts,
              progress=seen)  # fmt: skip
        most.append(seen.most["runs"])
    assert most[0] == most[1] < 10


@pytest.mark.parametrize("window", [1, 2, 7])
def test_the_window_changes_nothing_but_the_order(network: TextSiT, tmp_path: Path, window: int) -> None:
    wide = drive(tmp_path / "wide", tiny_rig(network), "zero_order(neighbours=2)", prompts=PROMPTS, nfe=24, window=99)
    slim = drive(
        tmp_path / "slim", tiny_rig(network), "zero_order(neighbours=2)", prompts=PROMPTS, nfe=24, window=window
    )
    assert essence(slim) == essence(wide)


def test_states_beyond_the_limit_wait_on_the_disk_and_come_back_the_same(network: TextSiT, tmp_path: Path) -> None:
    from secondlook.noise import Key

    store = Store.create(tmp_path / "run", {"prompts": ["a"]})
    rig, states = tiny_rig(network), States(store, limit=100_000)
    made = [rig.start(Key.root(i)) for i in range(8)]
    for i, state in enumerate(made):
        states.keep(i, state, half_made=False)
    assert len(states._held) < 8
    for i, state in enumerate(made):
        found = states.find(i)
        assert found is not None
        assert found.x.equal(state.x)
        assert found.keys == state.keys
    states.drop(0)
    assert states.find(0) is None


# ---- budgets over prompts ----------------------------------------------------------------------------------------------


def early(task: Task) -> Plan:
    """The first prompts need one picture, the others take all that they are given."""
    yield fresh(task, 1)
    while task.index >= 2:
        yield fresh(task, 1)


def test_what_easy_prompts_leave_goes_to_later_ones(network: TextSiT, tmp_path: Path) -> None:
    total = 40 * STEPS
    record = drive(tmp_path / "run", tiny_rig(network), early, prompts=PROMPTS[:4], total=Budget(nfe=total), window=1)
    spent = [record.spent(i).nfe for i in range(4)]
    assert spent[:2] == [STEPS, STEPS]
    assert spent[2] == spent[3] == 19 * STEPS
    assert sum(spent) <= total
    assert [record.began[i]["limits"]["nfe"] for i in range(4)] == [40, 52, 76, 76]


def test_a_shared_budget_admits_the_same_when_the_run_is_resumed(network: TextSiT, tmp_path: Path) -> None:
    from tests.test_engine import stop_after

    whole = drive(tmp_path / "whole", tiny_rig(network), early, prompts=PROMPTS[:4], total=Budget(nfe=100), window=2)
    for calls in (1, 3, 5):
        folder = tmp_path / f"cut-{calls}"
        stop_after(folder, network, early, calls, prompts=PROMPTS[:4], total=Budget(nfe=100), window=2)
        again = drive(folder, tiny_rig(network), early, prompts=PROMPTS[:4], total=Budget(nfe=100), window=2)
        assert again.done
        assert sum(again.spent(i).nfe for i in range(4)) <= 100
        kept = {n: e for n, e in essence(again).items() if n in essence(whole)}
        assert kept == {n: essence(whole)[n] for n in kept}


@pytest.mark.parametrize(("own", "pool"), [(8, 120), (100, 24)])
def test_a_prompt_spends_no_more_than_its_own_budget_and_its_share(
    network: TextSiT, tmp_path: Path, own: int, pool: int
) -> None:
    record = drive(
        tmp_path / "run", tiny_rig(network), "random(n=50)", prompts=PROMPTS[:3], total=Budget(nfe=pool), nfe=own
    )
    assert [record.spent(i).nfe for i in range(3)] == [8, 8, 8]


def test_what_a_prompt_was_given_at_its_beginning_is_what_it_has_when_resumed(network: TextSiT, tmp_path: Path) -> None:
    """Although by then more is known of what the first prompt left."""
    from tests.test_engine import stop_after

    def first_is_easy(task: Task) -> Plan:
        yield fresh(task, 1)
        while task.index:
            yield fresh(task, 1)

    folder = tmp_path / "run"
    stop_after(folder, network, first_is_easy, 3, prompts=PROMPTS[:4], total=Budget(nfe=100), window=2)
    before = Record.read(Store.open(folder)).began
    assert [before[i]["limits"]["nfe"] for i in range(3)] == [25, 25, 35]
    again = drive(folder, tiny_rig(network), first_is_easy, prompts=PROMPTS[:4], total=Budget(nfe=100), window=2)
    assert {i: again.began[i] for i in before} == before
    assert [again.spent(i).nfe for i in range(3)] == [4, 24, 32]


def test_prompts_that_ended_before_a_run_was_stopped_have_had_their_part_of_the_total(
    network: TextSiT, tmp_path: Path
) -> None:
    from tests.test_engine import stop_after

    folder, plan = tmp_path / "run", "random(n=50)"
    stop_after(folder, network, plan, 3, prompts=PROMPTS[:3], total=Budget(nfe=60), window=1)
    before = Record.read(Store.open(folder))
    assert (list(before.ended), list(before.began)) == ([0], [0, 1])
    again = drive(folder, tiny_rig(network), plan, prompts=PROMPTS[:3], total=Budget(nfe=60), window=1)
    assert [again.spent(i).nfe for i in range(3)] == [20, 20, 20]


def test_an_unsearched_picture_that_was_not_yet_drawn_is_drawn_when_resumed(network: TextSiT, tmp_path: Path) -> None:
    from tests.test_engine import stop_after

    def another(task: Task) -> Plan:
        yield fresh(task, 2)[1:]

    stop_after(tmp_path / "run", network, another, 1)
    before = Record.read(Store.open(tmp_path / "run"))
    assert (list(before.ended), list(before.baselines)) == ([0], [])
    record = drive(tmp_path / "run", tiny_rig(network), another)
    assert record.base_digests[0] == drive(tmp_path / "plain", tiny_rig(network), "random(n=1)").digests[0]


def test_a_plan_is_told_the_same_of_its_budget_when_it_is_replayed(network: TextSiT, tmp_path: Path) -> None:
    from tests.test_engine import stop_after

    told: list[list[float]] = []

    def listening(task: Task) -> Plan:
        heard: list[float] = []
        told.append(heard)
        for _ in range(4):
            heard.append(task.remaining()["nfe"])
            heard.append(task.remaining()["seconds"])
            yield fresh(task, 2)

    stop_after(tmp_path / "run", network, listening, 2, nfe=100, seconds=1e6)
    first = told[-1][:]
    drive(tmp_path / "run", tiny_rig(network), listening, nfe=100, seconds=1e6)
    assert told[-1][: len(first)] == first
    assert len(told[-1]) == 8
    assert told[-1][::2] == [100, 100 - 2 * STEPS, 100 - 4 * STEPS, 100 - 6 * STEPS]


def test_a_total_too_small_for_its_prompts_is_refused() -> None:
    from secondlook.runs.carry import budget_each
    from secondlook.settings import Settings

    with pytest.raises(ConfigError, match="less than 1 for each of 50 prompts"):
        budget_each(Settings(total={"nfe": 40}), 50)


# ---- killed on two threads ---------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch
from pathlib import Path
from tests.helpers import *
torch.set_num_threads(2)
network = tiny_network()
rig = tiny_rig(network, rows=3, solver=sys.argv[3])
drive(Path(sys.argv[1]), rig, sys.argv[2], prompts=PROMPTS[:3], nfe=60)
"""


SOON = (
    "random",
    "zero_order",
    "paths",
    "halving",
    "particles",
    "evolve",
    "tree",
    "reflect",
)  # one of each kind; six processes each


@pytest.mark.parametrize("plan", [pytest.param(p, marks=() if p in SOON else pytest.mark.slow) for p in PLANS])
def test_every_plan_killed_at_random_on_two_threads_ends_in_the_same_bits(tmp_path: Path, plan: str) -> None:
    def process(folder: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), plan, "sde"], cwd=Path(__file__).parents[1])

    assert process(tmp_path / "whole").wait() == 0
    rng, folder, killed = random.Random(plan), tmp_path / "killed", 0
    for _ in range(4):
        running = process(folder)
        while running.poll() is None and not (folder / "run.sqlite").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.25))
        running.kill()
        killed += running.wait() != 0
    assert killed
    assert process(folder).wait() == 0
    one, two = (Record.read(Store.open(tmp_path / name)) for name in ("whole", "killed"))
    assert essence(two) == essence(one)
    assert two.ended == one.ended


# ---- threads that end with the run -------------------------------------------------------------------------------------


def ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("secondlook-")]


def test_no_thread_outlives_its_run(network: TextSiT, tmp_path: Path) -> None:
    rig = tiny_rig(network)
    rig.judges = {"one": Slow(0.0), "two": Slow(0.0)}
    drive(tmp_path / "run", rig, "random(n=4)", nfe=40)
    assert ours() == []


def test_a_call_under_way_when_a_run_is_broken_off_is_waited_for(network: TextSiT, tmp_path: Path) -> None:
    """Left in a library's code, it would abort the process at its end."""
    slow = Slow(0.3)

    def broken_off(driver: Driver) -> None:
        if slow.busy:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(tmp_path / "run", tiny_rig(network, verifier=slow), "random(n=4)", nfe=40, progress=broken_off)
    assert slow.asked
    assert not slow.busy
    assert ours() == []


class Slow:
    """A verifier that takes its time, and says whether it is at work."""

    name = "slow"

    def __init__(self, seconds: float):
        self.seconds, self.busy, self.asked = seconds, False, 0

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.busy, self.asked = True, self.asked + 1
        time.sleep(self.seconds)
        self.busy = False
        return torch.zeros(len(samples), dtype=torch.float64)
