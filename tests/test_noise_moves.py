"""Moves that begin from noise: their laws, chains of them, and the log."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from secondlook.engine.derive import Derivation, blend, low_band, mix
from secondlook.errors import ConfigError, DamagedError
from secondlook.flow.path import Linear
from secondlook.moves import Blend, Fresh, Move, Near, NoiseMove, Rewind, Turn
from secondlook.noise import Key, normal
from secondlook.plans import moves
from secondlook.testing import simulate
from secondlook.types import Condition, Outcome, Proposal, State
from tests.helpers import tasks

HERE = Condition("a red circle")


def source(shape: tuple[int, ...], given: list[Move] | None = None, scale: float = 1.0) -> Derivation:
    """What moves ask, over noise of a shape and the moves of earlier outcomes."""

    def start(key: Key) -> State:
        return State(
            normal([key.child("start")], shape) * scale, torch.zeros(1), (key,), torch.zeros(1, dtype=torch.long)
        )

    rig = SimpleNamespace(begin=0.0, shape=shape, scale=scale, start=start, flow=SimpleNamespace(path=Linear()))
    return Derivation(rig, lambda n: Proposal((given or [])[n], HERE), lambda n: start(Key(n)))  # type: ignore[arg-type]


# ---- laws ------------------------------------------------------------------------------------------------------------


def standard(x: Tensor, rows: int) -> None:
    """x [rows, numbers]: mean 0, covariance 1, and norms that vary as a normal vector's, within five standard errors."""
    count = x.shape[1]
    error = 5 / rows**0.5
    assert x.mean(0).abs().max() < error
    assert (x.T @ x / rows - torch.eye(count)).abs().max() < error * 2**0.5
    squares = x.square().sum(1)
    assert float(squares.mean()) == pytest.approx(count, rel=error)
    assert float(squares.var()) == pytest.approx(2 * count, rel=0.15)


@pytest.mark.parametrize("angle", [0.1, 1.0, 2.5, -0.7])
def test_a_turn_keeps_the_normal_law_and_has_the_cosine_of_its_angle(angle: float) -> None:
    rows = 8000
    x, w = normal([Key(1)], (rows, 6))[0], normal([Key(2)], (rows, 6))[0]
    turned = mix(x, w, angle)
    standard(turned, rows)
    assert float((x * turned).mean()) == pytest.approx(math.cos(angle), abs=0.04)


def test_a_turn_keeps_the_scale_of_a_schedule_that_begins_beyond_1() -> None:
    given: list[Move] = [Fresh(Key(1))]
    move = Turn(0, Key(2), 1.2)
    plain, scaled = (move.state(source((4, 8, 8), given, scale)) for scale in (1.0, 14.0))
    assert torch.allclose(scaled.x, 14 * plain.x, rtol=1e-5, atol=1e-4)
    other = Blend((0,), Key(2), 0.5, 4)
    plain, scaled = (other.state(source((4, 8, 8), given, scale)) for scale in (1.0, 14.0))
    assert torch.allclose(scaled.x, 14 * plain.x, rtol=1e-5, atol=1e-4)


def test_angles_of_one_key_are_points_of_one_ellipse() -> None:
    given: list[Move] = [Fresh(Key(1))]
    at = [Turn(0, Key(2), angle).state(source((2, 4, 4), given)) for angle in (0.0, 0.5, math.pi / 2, 2 * math.pi)]
    assert torch.equal(at[0].x, source((2, 4, 4)).start(Key(1)).x)
    assert torch.allclose(at[3].x, at[0].x, atol=1e-6)
    assert torch.allclose(at[1].x, math.cos(0.5) * at[0].x + math.sin(0.5) * at[2].x, atol=1e-6)
    assert {s.keys for s in at} == {(Key(1),)}


def test_the_low_band_is_a_projection_of_cells() -> None:
    x = normal([Key(1), Key(2)], (3, 16, 8))
    low = low_band(x, 4)
    assert torch.allclose(low_band(low, 4), low, atol=1e-6)
    assert float((low * (x - low)).sum()) == pytest.approx(0.0, abs=1e-3)
    assert torch.allclose(low[1, 2, 4:8, 0:4], x[1, 2, 4:8, 0:4].mean(), atol=1e-6)
    assert len(low[0].unique()) == 3 * 4 * 2


@pytest.mark.parametrize("shape", [(5,), (7, 4), (3, 6, 8), (1, 10, 4)])
def test_shapes_that_a_band_does_not_divide_are_blended_whole(shape: tuple[int, ...]) -> None:
    x, w = normal([Key(1)], shape)[0], normal([Key(2)], shape)[0]
    assert torch.equal(low_band(x, 4), x)
    assert torch.allclose(blend([x], [1.0], w, 0.6, 4), 0.8 * x + 0.6 * w, atol=1e-6)


def test_a_blend_of_independent_parents_is_standard_in_mean_and_covariance_and_its_high_band_is_its_own() -> None:
    rows, weights, share = 4000, [1.0, 2.0, 0.5], 0.6
    noise = normal([Key(n) for n in range(4 * rows)], (1, 4, 4)).view(4, rows, 1, 4, 4)
    made = torch.stack([blend(list(noise[:3, i]), weights, noise[3, i], share, 2) for i in range(rows)])
    flat = made.view(rows, 16)
    error = 5 / rows**0.5
    assert flat.mean(0).abs().max() < error
    assert (flat.T @ flat / rows - torch.eye(16)).abs().max() < error * 2**0.5
    low, own, parents = low_band(made, 2), low_band(noise[3], 2), [low_band(p, 2) for p in noise[:3]]
    assert torch.allclose(made - low, noise[3] - own, atol=1e-5)
    assert float((low * own).mean() * 4) == pytest.approx(share, abs=0.05)
    for w, parent in zip(weights, parents, strict=True):  # each is there by its weight
        there = float((low * parent).mean() * 4)
        assert there == pytest.approx(0.8 * w / math.hypot(*weights), abs=0.06)


def test_one_parent_is_kept_and_no_share_of_it_is_fresh_noise() -> None:
    x, w = normal([Key(1)], (3, 8, 8))[0], normal([Key(2)], (3, 8, 8))[0]
    assert torch.allclose(low_band(blend([x], [3.0], w, 0.0, 4), 4), low_band(x, 4), atol=1e-6)
    assert torch.allclose(blend([x], [1.0], w, 1.0, 4), w, atol=1e-6)
    assert torch.allclose(blend([x, -x], [1.0, 1.0], w, 0.0, 4), w - low_band(w, 4), atol=1e-6)  # nothing in common


def test_parents_with_ancestors_in_common_do_not_make_the_norm_grow() -> None:
    """Where a sum divided by the root of its weights' squares would double it."""
    x = normal([Key(1)], (3, 32, 32))[0]
    kin = [blend([x], [1.0], w, 0.5, 8) for w in normal([Key(n) for n in range(2, 7)], (3, 32, 32))]
    low = low_band(blend(kin, [1.0] * 5, x, 0.0, 8), 8)
    mean = sum(float(low_band(k, 8).square().sum()) for k in kin) / 5
    assert float(low.square().sum()) == pytest.approx(mean, rel=1e-5)
    assert float(torch.stack(kin).sum(0).div(5**0.5).square().sum()) > 1.2 * mean  # the sum's


# ---- chains ----------------------------------------------------------------------------------------------------------


def long(depth: int) -> list[Move]:
    """Moves of every kind in turn, each of the one before; blends of the two before."""
    root = Key.root(0)
    made: list[Move] = [Fresh(root.child(0)), Fresh(root.child(1))]
    for n in range(2, depth):
        key = root.child(n)
        made.append(
            [Near(n - 1, key, 0.3), Turn(n - 1, key, 0.4), Blend((n - 1, n - 2), key, 0.5, 4, (2.0, 1.0))][n % 3]
        )
    return made


def test_chains_of_every_kind_may_be_deeper_than_the_interpreters_stack() -> None:
    given = long(2000)
    last = given[-1].state(source((1, 8, 8), given))
    assert last.x.isfinite().all()
    assert 0.5 < float(last.x.std()) < 1.5


def test_a_chain_is_its_moves_one_after_the_other() -> None:
    given = long(12)
    where = source((1, 8, 8), given)
    states: list[State] = []
    for move in given:
        assert isinstance(move, NoiseMove)
        states.append(move.begun(where, [states[n] for n in move.parents]))
        assert torch.equal(move.state(where).x, states[-1].x)
        assert move.state(where).keys == states[-1].keys
    assert states[5].keys == (Key.root(0).child(5),)  # a blend's own
    assert states[7].keys == states[6].keys == states[5].keys  # neighbours and turns have their pivot's


def test_a_log_of_circles_is_refused() -> None:
    given: list[Move] = [Fresh(Key(1)), Turn(2, Key(2), 0.1), Near(1, Key(3), 0.1)]
    with pytest.raises(DamagedError, match="its own ancestor"):
        Turn(2, Key(4), 0.1).state(source((4,), given))


def test_moves_come_back_from_the_log_as_they_were() -> None:
    for move in (Turn(3, Key(5), -0.25), Blend((3, 1), Key(5), 0.5, 16), Blend((7,), Key(5), 1.0, 2, (2.5,))):
        again = Move.from_dict(json.loads(json.dumps(move.to_dict())))
        assert again == move
        assert hash(again) == hash(move)
        assert again.parents == move.parents
        assert again.begins(0.02, 1.0) == 0.02


@pytest.mark.parametrize(("make", "said"), [
    (lambda: Turn(0, Key(1), math.nan), "finite number of radians"),
    (lambda: Turn(0, Key(1), "wide"), "angle must be a number"),  # type: ignore[arg-type]
    (lambda: Blend((), Key(1), 0.5, 4), "one or more earlier outcomes"),
    (lambda: Blend((1, 1), Key(1), 0.5, 4), "each once"),
    (lambda: Blend((1.5,), Key(1), 0.5, 4), "of must be a whole number"),  # type: ignore[arg-type]
    (lambda: Blend((1, 2), Key(1), 0.5, 4, (1.0,)), "one for each parent"),
    (lambda: Blend((1, 2), Key(1), 0.5, 4, (1.0, 0.0)), "above 0"),
    (lambda: Blend((1, 2), Key(1), 1.5, 4), "share must be from 0 to 1"),
    (lambda: Blend((1, 2), Key(1), 0.5, 0), "number of pixels, at least 1"),
    (lambda: Blend((1, 2), Key(1), 0.5, 4.0), "band must be a whole number"),  # type: ignore[arg-type]
])  # fmt: skip
def test_moves_refuse(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_every_parent_must_have_begun_from_noise() -> None:
    [task] = tasks()
    noise = Outcome(0, Proposal(Fresh(Key(0)), task.condition), 0.0)
    stopped = Outcome(1, Proposal(Rewind(0, 0.1, Key(0)), task.condition), 0.0)
    for make in (
        lambda: moves.turn(task, stopped, Key(1), 0.3),
        lambda: moves.blend(task, [noise, stopped], 1, 0.5, 4),
    ):
        with pytest.raises(ConfigError, match='began from noise; got a "rewind"'):
            make()

    def plan(of: tuple[int, ...]) -> object:
        first = yield [Proposal(Fresh(Key(1)), HERE)]
        second = yield [Proposal(Rewind(first[0].id, 0.1, Key(2)), HERE)]
        yield [Proposal(Blend((*(o.id for o in (first[0], second[0])[: len(of)]),), Key(3), 0.5, 4), HERE)]

    assert len(simulate(lambda task: plan((0,))).outcomes) == 3  # type: ignore[arg-type, return-value]
    with pytest.raises(ConfigError, match="blend expects an outcome that began from noise"):
        simulate(lambda task: plan((0, 1)))  # type: ignore[arg-type, return-value]
