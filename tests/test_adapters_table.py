"""Every pipeline under every plan and kind of solver: drawn, replayed, resumed. `--write-adapters-table` writes what was seen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secondlook
from secondlook.adapters import tiny
from secondlook.adapters.base import Adapter
from secondlook.api import draw, replay_outcome, resume
from secondlook.disk.versions import commit
from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.registry import PLANS, SOLVERS
from tests.helpers import essence, spent
from tests.test_adapters_parity import CASES, LOAD, OTHERS, STOCHASTIC, Case, Seen

pytest.importorskip("diffusers", reason="needs secondlook[hub]: diffusers is missing")
pytest.importorskip("transformers", reason="needs secondlook[hub]: transformers is missing")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2

FAMILIES = tuple(tiny.PIPELINES)
SEARCHES = {"random(n=2)": None, "zero_order(neighbours=1)": 12,  # with budgets in nfe
            "paths(n=2, width=1, rounds=1, start=0.4, back=0.2, ahead=0.3)": 16, "draft(n=2, keep=1, steps=2)": 12,
            "reflect(n=3, answer='redraw')": 12, "halving(n=2, looks=1)": 12, "children(m=2, splits=2)": 12, "particles(n=2, looks=2)": 12,
            "tournament(n=3)": 12, "calibrate(n=2)": 8, "eps_greedy(neighbours=2)": 12, "trust_region(n=2, regions=1, each=1)": 12,
            "low_band(n=2, elites=2)": 16, "self_supervised(n=4)": 16, "mcmc(chains=1)": 12}  # fmt: skip
SEARCHES |= {"fk(n=2, looks=1)": 12, "fk_released(n=2, looks=1)": 12, "das(n=2)": 12, "bfs(n=2, looks=1)": 12, "funnel(n=2, looks=1)": 12,
             "svdd(m=2)": 24, "code(m=2, blocks=2)": 12, "rollover(noises=2, evaluations=12)": 12, "threshold(tries=2)": 12,
             "depth_first(tries=2, looks=1)": 12, "beam(width=1, branching=2, looks=1)": 12, "tree(levels=1)": 12}  # fmt: skip
SEARCHES |= {f"{name}()": 100 for name in PLANS if not any(plan.startswith(f"{name}(") for plan in SEARCHES)}
KINDS = ("ODE", "SDE")
EVERYWHERE = 3  # plans
DONE = ("draw", "replay", "resume")
NAMES = (
    "euler",
    "heun",
    "rk4",
    "ddim",
    "ddim(eta=1.0)",
    "ddpm",
    "dpmpp",
    "dpmpp(eta=1.0)",
    "sde",
    "sde_heun",
    "glass",
    "renoise",
)
STEPS, LEVELS = (
    4,
    3,
)  # LEVELS: of 255, by which a picture drawn in other company may differ where batches are not padded
DOC = Path(__file__).parents[1] / "docs" / "results" / "adapters.md"
COMMAND = "python -m pytest tests/test_adapters_table.py tests/test_adapters_parity.py --write-adapters-table"
TICK, LATER = "✓", "·"


@cache
def held(family: str) -> Adapter:
    """A tiny pipeline under the scheduler that it comes with, loaded once."""
    return secondlook.load(tiny.make(family), **LOAD.get(family, {}))


def prompts(family: str) -> list[str]:
    return ["0", "1"] if family == "dit" else ["a red cube", "two blue dog"]


def options(family: str, kind: str, plan: str, pad: bool) -> dict[str, Any]:
    """Three rows for four pictures: one of them has to wait, and no batch is like the one before."""
    solver = held(family).solver() if kind == "ODE" else "sde"
    return {"model": held(family), "steps": STEPS, "solver": solver, "rows": 3, "pad": pad, "nfe": SEARCHES[plan],
            "verifier": "brightness", "critic": "tests.helpers:Grumbler", "comparer": "by_score(verifier='brightness')"}  # fmt: skip


class Stop(Exception):
    """What a run is stopped with."""


class Stopper:
    """A progress that counts the solver's steps, and stops a run after ``at`` of them."""

    def __init__(self, at: float = math.inf):
        self.at, self.steps = at, 0

    def __call__(self, driver: Driver) -> None:
        self.steps += 1
        if self.steps >= self.at and driver.drawn:  # something is reported: judging goes on beside the steps
            raise Stop


def read(out: Path) -> Record:
    return Record.read(Store.open(out))


def gaps(out: Path, family: str) -> list[int]:
    """The largest difference of each picture of a run from its replay, in levels; -1 where they are the same."""
    shown = [i for i, digest in read(out).digests.items() if digest is not None]
    assert shown
    found = [replay_outcome(out, i, model=held(family)) for i in shown]
    return [-1 if f.same else f.difference for f in found]


# ---- searches -------------------------------------------------------------------------------------------------------


def crossed() -> list[Any]:
    """Every family with every plan and kind of solver. The first plans meet every family in the fast tests, each other one family,
    by turns; the rest are slow."""
    return [
        pytest.param(f, p, k, marks=() if fast(f, p, k) else pytest.mark.slow)
        for f in FAMILIES
        for p in SEARCHES
        for k in KINDS
    ]


def fast(family: str, plan: str, kind: str) -> bool:
    at = [*SEARCHES].index(plan)
    return at < EVERYWHERE or (at + KINDS.index(kind)) % len(FAMILIES) == FAMILIES.index(family)


@pytest.mark.parametrize(("family", "plan", "kind"), crossed())
def test_a_search_draws_replays_and_resumes(
    family: str, plan: str, kind: str, tmp_path: Path, adapters_seen: Seen
) -> None:
    done: list[str] = []
    adapters_seen["search", family, plan, kind] = done
    whole, broken, given = tmp_path / "whole", tmp_path / "broken", options(family, kind, plan, pad=True)
    count = Stopper()
    for found in draw(prompts(family), plan, whole, progress=count, **given):
        assert math.isfinite(found.score) or plan.startswith("self_supervised(")  # whose pictures nobody scores
        assert all(map(math.isfinite, found.verdicts.values()))
        assert found.picture.shape == (32, 32, 3)
        assert found.picture.std() > 5
    record = read(whole)
    assert record.done
    done.append("draw")

    assert set(gaps(whole, family)) == {-1}
    done.append("replay")

    with pytest.raises(Stop):
        draw(prompts(family), plan, broken, progress=Stopper(count.steps // 2 + 1), **given)
    assert 0 < len(read(broken).outcomes) < len(record.outcomes)
    resume(broken, model=held(family))
    again = read(broken)
    assert again.done
    assert essence(again) == essence(record)  # moves, scores, verdicts, digests and costs
    assert spent(again) == spent(record)
    done.append("resume")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_padding_a_replay_is_within_a_few_levels(
    family: str, kind: str, tmp_path: Path, adapters_seen: Seen
) -> None:
    draw(prompts(family), "random(n=2)", tmp_path / "run", **options(family, kind, "random(n=2)", pad=False))
    found = max(0, *gaps(tmp_path / "run", family))
    adapters_seen["unpadded", family, kind] = found
    assert found <= LEVELS


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_solver_draws(family: str, solver: str, tmp_path: Path, adapters_seen: Seen) -> None:
    adapters_seen["solver", family, solver] = []
    [found] = draw(prompts(family)[0], "random(n=1)", tmp_path / "run", model=held(family), steps=STEPS, solver=solver,
                   rows=1, verifier="brightness")  # fmt: skip
    assert math.isfinite(found.score)
    assert found.picture.std() > 5
    assert float(np.mean((found.picture == 0) | (found.picture == 255))) < 0.5
    assert found.spent.nfe == {"heun": 7, "sde_heun": 7, "rk4": 13, "glass": 2 * STEPS}.get(solver, STEPS)
    adapters_seen["solver", family, solver].append("draw")


def test_no_solver_is_left_out() -> None:
    assert {n.split("(")[0] for n in NAMES} == set(SOLVERS) - {"dopri5"}
    with pytest.raises(ConfigError, match="dopri5"):
        draw("1", "random(n=1)", model=held("dit"), steps=STEPS, solver="dopri5", verifier="brightness")


def test_paths_may_stop_before_the_schedule_begins(tmp_path: Path) -> None:
    """Four steps of a thousand begin at time 0.25; looks and rewinds before it are of the noise as it is put there."""
    out, plan = tmp_path / "run", "paths(n=2, width=2, start=0.1, back=0.1, ahead=0.1, rounds=2)"
    assert held("dit").schedule(STEPS).times[0] > 0.24
    draw(prompts("dit"), plan, out, model=held("dit"), steps=STEPS, rows=3, pad=True, nfe=40, verifier="brightness")
    assert set(gaps(out, "dit")) == {-1}


# ---- the table ------------------------------------------------------------------------------------------------------


def label(plan: str, kind: str) -> str:
    return f"{plan.split('(')[0]}, {kind}"


def expected() -> dict[str, tuple[list[str], list[str]]]:
    """By heading: the rows and the columns of each table."""
    numbers = sorted({n for c in (*CASES, *STOCHASTIC) for n in c.steps})
    return {
        "Searches": ([label(p, k) for p in SEARCHES for k in KINDS], [*FAMILIES]),
        "Replays without padding": ([*FAMILIES], [*KINDS]),
        "Other solvers": ([*FAMILIES], [*NAMES]),
        "Parity": ([*map(str, (*CASES, *STOCHASTIC))], [f"{n} steps" if n > 1 else "1 step" for n in numbers]),
        "Not the same": ([*map(str, OTHERS)], ["steps", "difference", "why"]),
    }


def ticks(done: list[str], wanted: tuple[str, ...]) -> str:
    return " ".join(TICK if w in done else f"{w} failed" for w in wanted[: len(done) + 1])


def searched(seen: Mapping[tuple[Any, ...], Any], family: str, plan: str, kind: str) -> str:
    """A dot where the cell is one of the slow tests' and they did not run."""
    if not fast(family, plan, kind) and ("search", family, plan, kind) not in seen:
        return LATER
    return ticks(seen["search", family, plan, kind], DONE)


def cells(seen: Mapping[tuple[Any, ...], Any]) -> dict[str, dict[tuple[str, str], str]]:
    """Every cell of every table; KeyError where it was not tested."""

    def of(case: Case, n: int) -> str:
        return f"{seen['parity', str(case), n]:.1e}" if n in case.steps else "-"

    columns = sorted({n for c in (*CASES, *STOCHASTIC) for n in c.steps})
    names = expected()["Parity"][1]
    return {
        "Searches": {(label(p, k), f): searched(seen, f, p, k) for f in FAMILIES for p in SEARCHES for k in KINDS},
        "Replays without padding": {(f, k): str(seen["unpadded", f, k]) for f in FAMILIES for k in KINDS},
        "Other solvers": {(f, n): ticks(seen["solver", f, n], DONE[:1]) for f in FAMILIES for n in NAMES},
        "Parity": {(str(c), name): of(c, n) for c in (*CASES, *STOCHASTIC) for n, name in zip(columns, names, strict=True)},
        "Not the same": {(str(c), k): v for c in OTHERS for k, v in (
            ("steps", str(c.steps[0])), ("difference", f"{seen['others', str(c), c.steps[0]]:.1e}"), ("why", c.why))},
    }  # fmt: skip


def lines(heading: str, found: Mapping[tuple[str, str], str]) -> list[str]:
    rows, columns = expected()[heading]
    first = {"Searches": "plan", "Parity": "pipeline, scheduler", "Not the same": "pipeline, scheduler"}.get(
        heading, "pipeline"
    )
    return [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|",
            *(f"| {r} | {' | '.join(found[r, c] for c in columns)} |" for r in rows)]  # fmt: skip


SAID = {
    "Searches": f"Ticks: drawn to finite scores and pictures; every finished outcome replayed bit for bit; the run stopped in the\n"
    f"middle and resumed to the same outcomes, digests and costs. {STEPS} steps, two prompts, batches padded to three rows. ODE: the\n"
    "solver of the pipeline's own scheduler. SDE: `sde`. A dot: left to the slow tests. Plans: " + "; ".join(
        f"`{p}`" + (f" within {n} NFE" if n else "") for p, n in SEARCHES.items()) + ".",
    "Replays without padding": "The largest difference of a channel of a pixel, of 255 levels, from the picture as it was drawn in a batch\n"
    f"with others (`random(n=2)`; {LEVELS} are allowed, 0 is every bit the same).",
    "Other solvers": f"A tick: a finite picture in {STEPS} steps, at the price that the solver names.",
    "Parity": "The largest difference in any channel of any pixel, in [0, 1], of our picture from `pipe(...)`'s from the same start noise (for\n"
    "stochastic schedulers: and the same noise at each step), in float32. The tests allow 1e-4, and 5e-6 to nearly all.",
    "Not the same": "Schedulers that are followed only nearly; the tests hold the difference below 0.05.",
}  # fmt: skip


def write(seen: Mapping[tuple[Any, ...], Any]) -> None:
    """docs/results/adapters.md, from what the tests of both files saw."""
    try:
        found = cells(seen)
    except KeyError as error:
        raise pytest.UsageError(f"{DOC.name} was not written: {error} was not tested. Run {COMMAND}") from None
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "diffusers", "transformers"))
    text = [
        "# Adapters", "", "Tiny pipelines with random weights (`secondlook.adapters.tiny`) through every plan, and against the "
        "pipelines' own calls.", "", f"`{COMMAND}`: commit {commit()}, {versions}.", "",
    ]  # fmt: skip
    for heading, said in SAID.items():
        text += [f"## {heading}", "", said, "", *lines(heading, found[heading]), ""]
    DOC.write_text("\n".join(text).rstrip() + "\n", "utf-8")


def tables(text: str) -> dict[str, dict[tuple[str, str], str]]:
    """The tables of a page: cells by heading, row and column."""
    found: dict[str, dict[tuple[str, str], str]] = {}
    for part in text.split("\n## ")[1:]:
        rows = [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
        head, body = rows[0], rows[2:]
        found[part.splitlines()[0]] = {(r[0], c): v for r in body for c, v in zip(head[1:], r[1:], strict=True)}
    return found


def test_the_committed_table_lists_every_cell(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--write-adapters-table"):
        pytest.skip("it is being written")
    text = DOC.read_text("utf-8")
    found = tables(text)
    for heading, (rows, columns) in expected().items():
        missing = {(r, c) for r in rows for c in columns} ^ set(found[heading])
        assert not missing, f"{heading}: {sorted(missing)[:4]}; run {COMMAND}"
    soon = {(label(p, k), f) for f in FAMILIES for p in SEARCHES for k in KINDS if fast(f, p, k)}
    assert {found["Searches"][cell] for cell in soon} == {" ".join([TICK] * 3)}
    assert set(found["Searches"].values()) <= {" ".join([TICK] * 3), LATER}
    assert set(found["Other solvers"].values()) == {TICK}
    assert all(int(v) <= LEVELS for v in found["Replays without padding"].values())
    numbers = [float(v) for v in found["Parity"].values() if v != "-"]
    assert len(numbers) == sum(len(c.steps) for c in (*CASES, *STOCHASTIC))
    assert max(numbers) < 1e-4
    assert COMMAND in text
    assert re.search(r"commit [0-9a-f]{10}\+?, torch [\d.]+\S*, diffusers [\d.]+, transformers [\d.]+", text)
