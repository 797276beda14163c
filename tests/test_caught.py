"""Faults that the tests once let through, each made impossible to miss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import secondlook
from examples.own_backend import Blobs, Tints
from secondlook.api import tasks_of
from secondlook.backends.find import find
from secondlook.engine.derive import Derivation
from secondlook.engine.record import Record
from secondlook.engine.rig import guidance
from secondlook.engine.store import Store
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Linear
from secondlook.models.text import TextSiT
from secondlook.moves import Clone, Fresh, Move, Near, Resume, Rewind
from secondlook.noise import Key, normal
from secondlook.report.prompt import chart_key
from secondlook.settings import Settings
from secondlook.solvers.adaptive import Dopri5
from secondlook.solvers.sde import EulerMaruyama
from secondlook.types import Condition, Proposal, State
from secondlook.verify import builtin, learned
from secondlook.worlds.scenes.checker import FOREGROUND, MAX_COLOR_DISTANCE, check
from secondlook.worlds.scenes.grammar import parse
from secondlook.worlds.scenes.render import Thing, render
from tests.helpers import tiny_rig
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
    guide = builtin.detector()
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


def test_every_bit_of_a_seed_reaches_the_tasks() -> None:
    keys = set()
    for seed in (5, 5 + 2**32, 5 + 2**40, 5 + 2**62):
        s = Settings(["a red circle"], seed=seed)
        keys.add(tasks_of(s, find(None, s), (0.0, 1.0))[0].key)
    assert len(keys) == 4


def test_a_clone_has_a_key_of_its_own_and_all_else_of_its_parent() -> None:
    parent = State(
        torch.randn(1, 3), torch.full((1,), 0.5), (Key.root(0),), torch.full((1,), 7), carry={"last": torch.ones(1, 3)}
    )

    class Of:
        def state(self, number: int) -> State:
            assert number == 4
            return parent

    made = Clone(4, Key.root(9)).state(Of())  # type: ignore[arg-type]
    assert made.keys == (Key.root(9),)
    assert made == replace(parent, keys=made.keys)
    assert made.carry is not None
    assert torch.equal(made.carry["last"], torch.ones(1, 3))


def half_way(network: TextSiT) -> State:
    """A row with all that a row can have: several steps behind it, a memory, and what a look at it saw."""
    seen = torch.full((1, *network.shape), 0.25)
    made = State(normal([Key.root(3)], network.shape), torch.full((1,), 0.6), (Key.root(2),), torch.full((1,), 7), seen)
    return replace(made, carry={"data": seen, "t": torch.full((1,), 0.4)}, known=seen)


def derived(network: TextSiT, move: Move, *moves: Move, state: State | None = None) -> State:
    """The state of ``move``, whose ancestors' moves are ``moves`` and whose parent ended in ``state``."""
    proposals = [Proposal(m, Condition("a red circle")) for m in moves]

    def state_of(number: int) -> State:
        assert (number, state is not None) == (4, True)
        return state  # type: ignore[return-value]

    return move.state(Derivation(tiny_rig(network), proposals.__getitem__, state_of))


def test_a_row_that_goes_on_is_its_parent_whole(network: TextSiT) -> None:
    parent = half_way(network)
    assert derived(network, Resume(4), state=parent) == parent


def test_a_row_taken_back_begins_anew_under_its_own_key(network: TextSiT) -> None:
    """Nothing of the steps behind it stays: neither their count, nor a multistep solver's memory, nor what was seen there. Two
    that go back to the same time differ by their keys alone, in the noise that takes them back and in that of their steps."""
    parent = half_way(network)
    made, other = (derived(network, Rewind(4, 0.2, Key.root(n)), state=parent) for n in (8, 9))
    assert made.keys == (Key.root(8),)
    assert made.step.tolist() == [0]
    assert made.t.tolist() == pytest.approx([0.2])
    assert (made.carry, made.data, made.known) == (None, None, None)
    assert not torch.equal(made.x, other.x)
    again = derived(network, Rewind(4, 0.2, Key.root(8)), state=replace(parent, keys=(Key.root(5),)))
    assert torch.equal(made.x, again.x)  # the parent's key has no say in it


def test_a_neighbour_is_near_its_parents_noise_and_keeps_its_key(network: TextSiT) -> None:
    """So that an SDE draws the same noise in its steps: the neighbour differs in its start alone."""
    root, first, second = Key.root(1), Key.root(2), Key.root(3)
    start = tiny_rig(network).start(root)
    near = derived(network, Near(0, first, 0.6), Fresh(root))
    nearer = derived(network, Near(1, second, 0.6), Fresh(root), Near(0, first, 0.6))
    for one, other in ((near, start), (nearer, near)):
        cosine = torch.cosine_similarity(one.x.flatten(), other.x.flatten(), dim=0)
        assert float(cosine) == pytest.approx(0.8, abs=1e-4)  # the sine is 0.6
        assert float(one.x.norm()) == pytest.approx(float(start.x.norm()), rel=1e-5)
        assert one.keys == start.keys == (root,)
        assert one.t.tolist() == start.t.tolist()
        assert one.step.tolist() == [0]
    assert not torch.equal(near.x, nearer.x)
    assert torch.equal(derived(network, Near(0, first, 0.6), Fresh(root)).x, near.x)
    assert not torch.equal(derived(network, Near(0, second, 0.6), Fresh(root)).x, near.x)


def test_new_noise_is_its_keys_alone(network: TextSiT) -> None:
    one, two = (derived(network, Fresh(Key.root(n))) for n in (1, 2))
    assert (one.keys, two.keys) == ((Key.root(1),), (Key.root(2),))
    assert (one.step.tolist(), one.t.tolist()) == ([0], [0.0])
    assert not torch.equal(one.x, two.x)
    assert torch.equal(derived(network, Fresh(Key.root(1))).x, one.x)


def test_dopri5_grows_its_step_by_the_fifth_root_of_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.9 norm^(-1/5) of the last step, the controller of a method whose error is of the fifth order (Hairer, Norsett, Wanner,
    Solving Ordinary Differential Equations I, II.4)."""
    sizes: list[float] = []
    solver = Dopri5(rtol=0.0, atol=1.0, end="step")

    def attempt(
        self: object, flow: Flow, x: Tensor, t: Tensor, h: Tensor, slope: Tensor, cond: object
    ) -> tuple[Tensor, ...]:
        sizes.append(float(h))
        return x, torch.full_like(x, 0.1), slope, x  # the norm of the error is 0.1

    monkeypatch.setattr(Dopri5, "_attempt", attempt)
    monkeypatch.setattr(Dopri5, "_first_step", lambda self, flow, x, t, *rest: torch.full_like(t, 1e-3))
    state = State(torch.zeros(1, 3, 8, 8), torch.zeros(1), (Key.root(0),), torch.zeros(1, dtype=torch.long))
    solver.step(Flow(Blobs(), Linear()), state, torch.ones(1), Tints(torch.zeros(1, 3)))
    assert sizes[1] / sizes[0] == pytest.approx(0.9 * 0.1**-0.2)
    assert sizes[2] / sizes[1] == pytest.approx(0.9 * 0.1**-0.2)


def test_every_public_name_is_there() -> None:
    assert all(getattr(secondlook, name) for name in secondlook.__all__)


def test_weights_that_no_digest_of_the_backend_holds_are_told_apart_by_their_own() -> None:
    """Whatever a verifier that ships is called, another network under its name is another verifier."""
    from secondlook.backends.judges import Judges
    from secondlook.verify import builtin

    for made in (builtin.detector, builtin.weak):
        verifier = made()
        [before] = Judges(verifier=verifier).digests().values()
        other = made()
        with torch.no_grad():
            next(other.network.parameters()).add_(1e-3)  # type: ignore[attr-defined]
        assert Judges(verifier=other).digests() != {"verifier's settings": before}
    assert not Judges(verifier=builtin.learned()).digests()  # the backend's digests hold its weights
