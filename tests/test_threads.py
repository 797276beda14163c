"""Who computes in which thread, and how many threads PyTorch has meanwhile."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook.backends.pipelines import _apart
from secondlook.cli.app import busy
from secondlook.engine.rig import Work
from secondlook.engine.workers import Inline, Worker
from secondlook.eyes.fields import GenEval, GenEval2
from secondlook.models.text import TextSiT
from secondlook.models.threads import one_thread, threads
from secondlook.noise import Key, normal
from secondlook.registry import VERIFIERS, WORLDS, resolve
from secondlook.settings import make_named
from secondlook.solvers.step_noise import Ahead, ahead, step_keys
from secondlook.types import Condition, State
from tests.helpers import drive, tiny_rig


class Where:
    """A verifier that notes which thread asks it."""

    name = "where"

    def __init__(self, inline: bool):
        self.inline, self.seen = inline, set[str]()

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        self.seen.add(threading.current_thread().name)
        return samples.flatten(1).double().mean(1)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("inline", [False, True])
def test_only_inline_judges_of_a_network_on_the_cpu_are_asked_in_its_thread(
    network: TextSiT, tmp_path: Path, beside: bool, inline: bool
) -> None:
    rig, guide, judge = tiny_rig(network), Where(inline), Where(inline)
    rig.beside, rig.verifier, rig.judges = beside, guide, {"held": judge}
    decoding = set()
    decode = rig.decode
    rig.decode = lambda x: (decoding.add(threading.current_thread().name), decode(x))[1]
    drive(tmp_path / "run", rig, "random(n=4)")
    here = threading.current_thread().name
    alone = inline and not beside
    assert guide.seen == {here if alone else "secondlook-verifier"}
    assert judge.seen == {here if alone else "secondlook-judge-held"}
    assert decoding == {"secondlook-decoder" if beside else here}


def test_where_judges_work_changes_nothing_that_is_logged(network: TextSiT, tmp_path: Path) -> None:
    from tests.helpers import essence

    found = []
    for beside in (False, True):
        rig = tiny_rig(network, verifier=Where(True))
        rig.beside = beside
        found.append(essence(drive(tmp_path / str(beside), rig, "zero_order(neighbours=3)", nfe=60)))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", list(VERIFIERS))
def test_every_shipped_verifier_is_inline(name: str, request: pytest.FixtureRequest) -> None:
    text = {"oracle_is": "oracle_is(world='digits')"}.get(name, name)
    if ".eyes.fields:" in VERIFIERS[name].target:  # these need a benchmark's file
        assert all(made.inline for made in (GenEval, GenEval2))
        return
    if ".eyes.ensemble:" in VERIFIERS[name].target:
        text = f"{name}(of='brightness, sharpness')"
    elif ".eyes." in VERIFIERS[name].target:
        text = request.getfixturevalue("eyes")[name]
    assert make_named("verifier", text).inline


@pytest.mark.parametrize("world", list(WORLDS))
def test_every_shipped_judge_is_inline(world: str) -> None:
    judges = resolve("world", world)().judges()
    assert judges
    assert all(getattr(j, "inline", False) for j in judges.values())


def test_threads_are_as_they_were_behind_even_where_two_ask_for_one_at_once() -> None:
    before, both = torch.get_num_threads(), threading.Barrier(2)
    with threads(2):

        def judge() -> None:
            both.wait()
            for _ in range(200):
                with one_thread():
                    assert torch.get_num_threads() == 1

        others = [threading.Thread(target=judge) for _ in range(2)]
        for other in others:
            other.start()
        for other in others:
            other.join()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


def test_a_network_is_not_run_while_the_threads_are_changed(network: TextSiT) -> None:
    """Its last bits depend on their number."""
    holding, released = threading.Event(), []

    def judge() -> None:
        with one_thread():
            holding.set()
            time.sleep(0.2)
            released.append(True)

    rig = tiny_rig(network)
    work = Work(rig.start(Key.root(0)), (rig.times[1],), (Condition("a red circle"),))
    for act in (lambda: rig.step(work), lambda: rig.estimate(work), lambda: rig.encoded(Condition("a blue circle"))):
        holding.clear()
        released.clear()
        other = threading.Thread(target=judge)
        other.start()
        holding.wait()
        act()
        assert released
        other.join()


@pytest.mark.parametrize(
    ("said", "cores", "found"),
    [
        ("0.9 0.9 0.9 1/80 7", 2, False),
        ("0.0 0.0 0.0 2/80 7", 2, True),
        ("0.0 0.0 0.0 2/80 7", 64, False),
        ("?", 2, False),
    ],
)
def test_a_machine_is_busy_where_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, cores: int, found: bool
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    (tmp_path / "loadavg").write_text(said)
    assert busy(str(tmp_path / "loadavg")) is found
    assert not busy(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("device", "hooked", "found"),
    [("cpu", None, False), ("cuda", None, True), ("cuda", "module", False), ("cuda", "vae", False)],
)
def test_an_offloaded_pipeline_decodes_in_its_networks_thread(device: str, hooked: str | None, found: bool) -> None:
    """Offloading's hooks move the network away when the decoder is called, and would do so while it runs."""
    module, vae = SimpleNamespace(), SimpleNamespace()
    if hooked:
        {"module": module, "vae": vae}[hooked]._hf_hook = object()
    held = SimpleNamespace(device=torch.device(device), module=module, pipe=SimpleNamespace(vae=vae))
    assert _apart(held) is found


# ---- calls beside the network ------------------------------------------------------------------------------------------


class Calls:
    """A worker, what its calls were answered, and calls that hang until they are let go."""

    def __init__(self, patience: float | None = None):
        self.worker, self.answers, self.made = Worker("test", patience), list[Any](), list[str]()
        self.go, self.hanging = threading.Event(), threading.Event()

    def do(self, name: str, hang: bool = False) -> None:
        def make() -> str:
            self.made.append(name)
            if hang:
                self.hanging.set()
                self.go.wait(10)
            return name

        self.worker.do(make, lambda found, seconds: self.answers.append(found))

    def until(self, count: int) -> None:
        """Wait for so many answers; check meanwhile, as the engine does."""
        end = time.monotonic() + 5
        while len(self.answers) < count and time.monotonic() < end:
            self.worker.check()
            time.sleep(0.002)

    def said(self) -> list[str]:
        return [str(a) for a in self.answers]


def ended(before: set[threading.Thread]) -> bool:
    """Whether all threads that began since have ended, or do so soon."""
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    return set(threading.enumerate()) <= before


def test_a_fresh_thread_goes_on_behind_a_call_that_hangs_and_its_late_answer_is_not_taken() -> None:
    before, calls = set(threading.enumerate()), Calls(patience=0.05)
    calls.do("first", hang=True)
    calls.do("second")
    calls.do("third")
    calls.until(3)
    assert calls.said() == ["no answer in 0.05 seconds", "second", "third"]
    assert calls.worker.waiting == 0
    calls.go.set()  # and now the first one answers
    end = time.monotonic() + 5
    while len(set(threading.enumerate()) - before) > 1 and time.monotonic() < end:
        time.sleep(0.002)
    calls.do("fourth")
    calls.until(4)
    assert calls.said()[3:] == ["fourth"]
    calls.worker.close()
    assert ended(before)
    assert calls.worker.waiting == 0


def test_a_call_in_good_time_is_not_given_up() -> None:
    calls = Calls(patience=60)
    calls.do("first", hang=True)
    calls.hanging.wait(5)
    for _ in range(3):
        calls.worker.check()
    calls.go.set()
    calls.until(1)
    calls.worker.close()
    assert calls.said() == ["first"]


def test_a_call_waits_until_its_answer_has_been_handed_on() -> None:
    """Whoever waits for the last held-out judge waits for the line that its answer puts into the log."""
    worker, seen = Worker("test"), list[int]()
    worker.do(lambda: None, lambda found, seconds: (time.sleep(0.05), seen.append(worker.waiting))[1])
    while worker.waiting:
        time.sleep(0.001)
    worker.close()
    assert seen == [1]


def test_calls_that_wait_when_a_worker_is_closed_are_never_made() -> None:
    """A run that is broken off does not go on asking, and perhaps paying, a judge."""
    before, calls = set(threading.enumerate()), Calls()
    calls.do("first", hang=True)
    for name in ("second", "third"):
        calls.do(name)
    calls.hanging.wait(5)
    calls.worker.close()
    calls.go.set()
    calls.worker.join(5)
    assert ended(before)
    assert calls.made == calls.said() == ["first"]


def test_calls_behind_one_that_was_given_up_are_dropped_too() -> None:
    before, calls = set(threading.enumerate()), Calls(patience=0.05)
    calls.do("first", hang=True)
    calls.do("second", hang=True)
    calls.do("third")
    calls.until(1)
    while len(calls.made) < 2:
        time.sleep(0.002)
    calls.worker.close()
    calls.go.set()
    assert ended(before)
    assert calls.made == ["first", "second"]


def test_a_worker_can_be_closed_while_its_thread_takes_the_last_call() -> None:
    class Raced(queue.SimpleQueue):  # type: ignore[type-arg]
        """A queue whose last call is taken by the worker's thread just before another asks for it."""

        def get_nowait(self) -> None:
            super().get_nowait()
            raise queue.Empty

    before, calls = set(threading.enumerate()), Calls()
    calls.worker._calls = Raced()
    calls.do("first", hang=True)
    calls.hanging.wait(5)
    calls.do("second")
    calls.worker.close()
    calls.go.set()
    assert ended(before)
    assert calls.said() == ["first"]


# ---- noise drawn ahead -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["sde", "sde_heun", "ddpm", "dpmpp(eta=1.0)", "ddim(eta=1.0)"])
def test_noise_that_is_drawn_ahead_has_the_same_bits_and_is_drawn_once(
    network: TextSiT, tmp_path: Path, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secondlook.solvers import step_noise
    from tests.helpers import essence

    where: list[str] = []

    def counted(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
        where.append(threading.current_thread().name)
        return normal(keys, shape)

    found = []
    for beside in (False, True):
        rig = tiny_rig(network, solver=solver)
        if beside:
            rig.beside = True
            rig.solver, rig._ahead = ahead(rig.solver)
            assert rig._ahead is not None
            rig._ahead.source = counted
        found.append(essence(drive(tmp_path / str(beside), rig, "random(n=3)")))
    assert found[0] == found[1]
    assert where
    assert set(where) == {"secondlook-noise"}
    assert isinstance(pickle.loads(pickle.dumps(step_noise.Ahead())), step_noise.Ahead)


def test_noise_drawn_ahead_fails_where_it_is_asked_for() -> None:
    def never(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
        raise RuntimeError("no noise")

    source = Ahead(never)
    state = State(torch.zeros(1, 3), torch.zeros(1), (Key.root(0),), torch.zeros(1, dtype=torch.long))
    source.begin(state)
    with pytest.raises(RuntimeError, match="no noise"):
        source(step_keys(state), (3,))


def test_rigs_on_the_cpu_and_solvers_without_noise_draw_nothing_ahead(network: TextSiT) -> None:
    assert tiny_rig(network, solver="sde")._ahead is None
    assert ahead(make_named("solver", "euler"))[1] is None
    rig = replace(tiny_rig(network, solver="sde"), device=torch.device("meta"), beside=None)
    assert rig._ahead is not None


def test_the_command_line_keeps_buffers_unless_the_environment_says_otherwise() -> None:
    """A buffer given back and asked for again costs no new pages: told by the count of page faults."""
    code = (
        "import resource, torch\nfrom secondlook.models.allocator import keep_buffers\n"
        "print(keep_buffers())\ntorch.set_num_threads(1)\n"
        "def fill():\n    [torch.ones(1_000_000) for _ in range(20)]\n"
        "fill()\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): fill()\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    usual = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    said = {}
    for name, more in (("usual", {}), ("own", {"MALLOC_TRIM_THRESHOLD_": "65536"})):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**usual, **more})
        said[name] = done.stdout.split()
    assert said["own"][0] == "False"
    if said["usual"][0] == "False":
        pytest.skip("this C library has no mallopt")
    assert 3 * int(said["usual"][1]) < int(said["own"][1]), said


def test_a_judge_that_calls_exit_has_failed_and_ends_nothing() -> None:
    found: list[object] = []

    def leaves() -> None:
        raise SystemExit(3)

    Inline().do(leaves, lambda answer, seconds: found.append(answer))
    worker = Worker("leaver")
    heard = threading.Event()
    worker.do(leaves, lambda answer, seconds: (found.append(answer), heard.set()))
    assert heard.wait(10)
    worker.close()
    worker.join(5)
    assert [str(f) for f in found] == ["it called exit(3)"] * 2
