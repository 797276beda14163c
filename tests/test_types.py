"""State as a value: rows out, rows together."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from secondlook.moves import Fresh
from secondlook.noise import Key
from secondlook.types import COST_UNITS, Condition, Cost, Outcome, Proposal, State, Task


def make(rows: int, data: bool = True, seed: int = 0) -> State:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, 3, generator=g, dtype=torch.float64)
    keys = tuple(Key.root(seed).child(i) for i in range(rows))
    t, step = torch.linspace(0, 0.9, rows, dtype=torch.float64), torch.arange(rows)
    return State(x, t, keys, step, 2 * x if data else None)


def assert_same(a: State, b: State) -> None:
    assert a.keys == b.keys
    assert (a.data is None) == (b.data is None)
    for one, other in ((a.x, b.x), (a.t, b.t), (a.step, b.step), (a.data, b.data)):
        if one is not None and other is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@pytest.mark.parametrize("data", [True, False])
def test_stacking_all_rows_gives_the_state_back(data: bool) -> None:
    state = make(5, data)
    assert_same(State.stack([state.rows([i]) for i in range(5)]), state)
    assert_same(State.stack([state.rows([0, 1]), state.rows([2, 3, 4])]), state)


def test_rows_follow_the_order_asked_for_and_may_repeat() -> None:
    state = make(4)
    picked = state.rows([3, 1, 3])
    assert len(picked) == 3
    assert picked.keys == (state.keys[3], state.keys[1], state.keys[3])
    assert picked.step.tolist() == [3, 1, 3]
    for at, i in enumerate([3, 1, 3]):
        assert torch.equal(picked.x[at], state.x[i])
        assert picked.t[at] == state.t[i]
        assert picked.data is not None
        assert torch.equal(picked.data[at], 2 * state.x[i])


def test_rows_are_copies() -> None:
    state = make(3)
    picked = state.rows([0, 1, 2])
    picked.x.zero_()
    assert state.x.abs().min() > 0


def test_stack_keeps_states_in_order() -> None:
    a, b = make(2, seed=1), make(3, seed=2)
    both = State.stack([a, b])
    assert_same(both.rows([0, 1]), a)
    assert_same(both.rows([2, 3, 4]), b)


def test_missing_data_counts_as_zeros_beside_a_row_that_has_it() -> None:
    fresh, begun = make(2, data=False), make(1)
    both = State.stack([fresh, begun])
    assert both.data is not None
    assert both.data[:2].abs().max() == 0
    assert begun.data is not None
    assert torch.equal(both.data[2:], begun.data)


def carrying(rows: int, seed: int = 0, **more: torch.Tensor) -> State:
    state = make(rows, seed=seed)
    return replace(state, carry={"data": 3 * state.x, "t": state.t - 0.1, **more})


def test_what_is_carried_goes_with_its_rows() -> None:
    state = carrying(4, count=torch.arange(4))
    picked = state.rows([3, 1, 3])
    assert state.carry is not None
    assert picked.carry is not None
    for name, value in state.carry.items():
        assert torch.equal(picked.carry[name], value[[3, 1, 3]])
    both = State.stack([state.rows([2]), state.rows([0, 1])])
    assert both.carry is not None
    assert list(both.carry) == ["data", "t", "count"]
    assert both.carry["count"].tolist() == [2, 0, 1]
    assert State.stack([make(2), make(1)]).carry is None
    assert make(2).rows([1]).carry is None


def test_rows_without_a_carry_have_nan_beside_rows_with_one() -> None:
    one, two = carrying(2), replace(make(3, seed=1), carry={"slope": torch.ones(3, 4, dtype=torch.float32)})
    both = State.stack([make(1), one, two])
    assert one.carry is not None
    assert both.carry is not None
    assert {name: tuple(v.shape) for name, v in both.carry.items()} == {"data": (6, 2, 3), "t": (6,), "slope": (6, 4)}
    assert both.carry["slope"].dtype == torch.float32
    for name, there in (("data", [1, 2]), ("t", [1, 2]), ("slope", [3, 4, 5])):
        blank = [i for i in range(6) if i not in there]
        assert both.carry[name][there].isfinite().all()
        assert both.carry[name][blank].isnan().all()
    assert torch.equal(both.carry["t"][1:3], one.carry["t"])
    with pytest.raises(ValueError, match=r'"count" is carried as torch.int64, and some rows lack it'):
        State.stack([carrying(1, count=torch.arange(1)), one])


def test_no_rows_and_no_states() -> None:
    assert len(make(3).rows([])) == 0
    with pytest.raises(ValueError, match="at least one"):
        State.stack([])


def test_state_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        make(1).x = torch.zeros(1)  # type: ignore[misc]


def test_costs_add_up() -> None:
    one, ten = (Cost(**{u: k * (i + 1) for i, u in enumerate(COST_UNITS)}) for k in (1, 10))
    assert one + ten == Cost(**{u: 11 * (i + 1) for i, u in enumerate(COST_UNITS)})
    assert one + ten - ten == one
    assert one.with_seconds(0.5) == Cost(**{**one.as_dict(), "seconds": 0.5})


def test_a_task_hands_out_the_same_keys_again_but_never_one_twice() -> None:
    first, again = (Task(0, Condition("a"), Key.root(1)) for _ in range(2))
    keys = [first.next_key() for _ in range(20)]
    assert len(set(keys)) == 20
    assert keys == [again.next_key() for _ in range(20)]


def test_an_outcome_is_finished_at_time_one() -> None:
    done, half = (Outcome(0, Proposal(Fresh(Key(0)), Condition(), stop), 0.0) for stop in (1.0, 0.5))
    assert done.finished
    assert not half.finished
