"""Faults that the tests once let through, each made impossible to miss."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import secondlook
from secondlook.engine.record import Record
from secondlook.engine.rig import guidance
from secondlook.engine.store import Store
from secondlook.flow.path import Linear
from secondlook.models.text import TextSiT
from secondlook.noise import Key
from secondlook.report.prompt import chart_key
from secondlook.settings import Settings
from secondlook.solvers.adaptive import Dopri5
from secondlook.solvers.sde import EulerMaruyama
from secondlook.types import Condition
from secondlook.verify import builtin, learned
from secondlook.worlds.scenes.checker import FOREGROUND, MAX_COLOR_DISTANCE, check
from secondlook.worlds.scenes.grammar import parse
from secondlook.worlds.scenes.render import Thing, render
from tests.test_solve import exact_state, flow_on


def test_guidance_puts_the_null_condition_behind_the_wanted_one(network: TextSiT) -> None:
    with torch.inference_mode():
        wanted, null = network.encode(["a red circle"]), network.encode([None])
        guide = guidance(2.5, null)
        both = guide.join(wanted, 1)  # type: ignore[attr-defined]
        x, t = torch.randn(1, *network.shape), torch.full((1,), 0.3)
        apart = network(x, t, wanted), network(x, t, null)
        together = network(torch.cat([x, x]), torch.cat([t, t]), both)
        assert not torch.allclose(apart[0], apart[1], atol=1e-4)
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            guide(network, x, t, wanted), apart[1] + 2.5 * (apart[0] - apart[1]), rtol=1e-4, atol=1e-4
        )


def test_the_judge_is_another_network_than_the_verifier() -> None:
    guide, judge = builtin.learned(), builtin.judge()
    assert isinstance(guide, learned.LearnedVerifier)
    assert isinstance(judge, learned.LearnedVerifier)
    assert guide.name != judge.name
    assert type(guide.network) is not type(judge.network)


def test_the_verifiers_rules_move_its_score_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = builtin.learned()
    assert isinstance(guide, learned.LearnedVerifier)
    picture = torch.from_numpy(render([[Thing("circle", "red", 32.0, 32.0, 9.0)]]))
    found = {}
    for right in (True, False):
        monkeypatch.setattr(learned, "judge", lambda seen, prompt, right=right: SimpleNamespace(right=right))
        found[right] = float(guide.logits(picture, [Condition("a red circle")]))
    assert found[True] - found[False] == pytest.approx(2 * learned.AGREE)
    assert learned.AGREE > 1


def away(color: tuple[int, int, int], distance: float) -> tuple[int, int, int]:
    """A colour so far from another, along grey."""
    step = distance / 3**0.5
    return tuple(round(c + step) for c in color)  # type: ignore[return-value]


def test_the_checkers_distances_are_those_of_the_specification() -> None:
    assert (FOREGROUND, MAX_COLOR_DISTANCE) == (57.0, 64.0)
    picture = render([[Thing("circle", "red", 32.0, 32.0, 9.0)]])
    prompt = [parse("a red circle")]
    assert check(picture, prompt).all()
    faint = picture.copy()  # specks a little farther from the ground than 57 are seen, a little nearer are not
    faint[0, 2:8, 2:8] = away((30, 30, 34), 64)
    assert not check(faint, prompt).any()
    faint[0, 2:8, 2:8] = away((30, 30, 34), 50)
    assert check(faint, prompt).all()
    dull = picture.copy()  # a red that lies farther than 64 from every colour of the palette is none of them
    dull[0][(picture[0] == (220, 40, 40)).all(-1)] = (185, 85, 85)
    assert not check(dull, [parse("a circle")]).any()


def test_a_budget_in_seconds_ends_a_run(tmp_path: Path) -> None:
    secondlook.draw("7", "random(n=3000)", tmp_path / "run", world="digits", steps=10, seconds=0.3)
    record = Record.read(Store.open(tmp_path / "run"))
    assert len(record.outcomes) < 3000
    assert record.ended[0]["out_of_budget"]


def test_the_log_is_synced_to_the_disk(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", {"prompts": ["a"]})
    store = Store.open(tmp_path / "run")
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_every_bit_of_a_seed_counts() -> None:
    seeds = [5, 5 + 2**32, 5 + 2**40, 5 + 2**62]
    assert len({Key.root(Settings(seed=s).seed) for s in seeds}) == 4


def test_a_steps_diffusion_is_bounded_by_a_fifth_of_its_inverse() -> None:
    flow, t = flow_on(Linear()), torch.full((3,), 1e-3)
    for size in (0.1, 0.02):
        w = EulerMaruyama().w(flow, t, torch.full((3,), size))
        assert torch.allclose(
            w, torch.full_like(w, 0.2 / size)
        )  # the bound is in force near noise, where w_KL is infinite


def test_the_adaptive_solvers_steps_grow_with_the_fifth_root_of_the_tolerance() -> None:
    state = exact_state(Linear(), 0.05, 8)
    tried = []
    for tolerance in (1e-4, 1e-7):
        solver = Dopri5(rtol=tolerance, atol=tolerance, end="step")
        moved = solver.step(flow_on(Linear()), state, torch.full_like(state.t, 0.95), None)
        tried.append(float(moved.step.double().mean()))
    assert 2.5 < tried[1] / tried[0] < 6.5  # 1000 ** 0.2 = 4


def test_a_judges_name_is_not_markup_in_the_charts_key() -> None:
    run = SimpleNamespace(
        apart=False,
        judges=["<b>odd</b>"],
        drawn={"score": "score", "<b>odd</b>": "judge"},
        measures=["score", "<b>odd</b>"],
        verifier="learned",
    )
    key = chart_key(run, True)  # type: ignore[arg-type]
    assert "<b>odd" not in key
    assert "&lt;b&gt;odd" in key
