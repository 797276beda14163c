"""The states that outcomes of the tasks under way ended in: in memory, the oldest on disk once there are many."""

from __future__ import annotations

from collections import OrderedDict

from secondlook.engine.store import Store
from secondlook.types import State

LIMIT = 256 * 2**20  # bytes held in memory


class States:
    """Kept until their task has ended. Half-made ones are also written down, since a resumed run would have to make them
    again; finished ones only where memory is short."""

    def __init__(self, store: Store, limit: int = LIMIT):
        self.store, self.limit = store, limit
        self._held: OrderedDict[int, State] = OrderedDict()
        self._bytes = 0

    def keep(self, number: int, state: State, half_made: bool) -> None:
        if half_made:
            self.store.save_state(number, state)
        self._put(number, state)

    def find(self, number: int) -> State | None:
        """The state of an outcome, or None where it was lost."""
        if number in self._held:
            self._held.move_to_end(number)
            return self._held[number]
        state = self.store.state(number)
        if state is not None:
            self._put(number, state)
        return state

    def drop(self, number: int) -> None:
        """No move starts from it any more."""
        state = self._held.pop(number, None)
        self._bytes -= 0 if state is None else _size(state)
        self.store.drop_state(number)

    def _put(self, number: int, state: State) -> None:
        if number in self._held:
            return
        self._held[number] = state
        self._bytes += _size(state)
        while self._bytes > self.limit and len(self._held) > 1:
            old, gone = self._held.popitem(last=False)
            self._bytes -= _size(gone)
            if not self.store.state_path(old).exists():
                self.store.save_state(old, gone)


def _size(state: State) -> int:
    tensors = (state.x, state.data, state.known, *(state.carry or {}).values())
    return sum(v.numel() * v.element_size() for v in tensors if v is not None)
