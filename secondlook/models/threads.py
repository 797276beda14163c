"""How many threads PyTorch computes with on the CPU, and who may change that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The number of threads is the whole process's, and a network's last bits depend on it. So whoever changes it for a moment and
# whoever runs a network or a decoder hold this in turn.
TURN = threading.RLock()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """PyTorch's threads set inside, and as they were behind. None: as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads share out a batch at places that depend on its rows' positions, and vector loops round differently there."""
    with TURN, threads(1):
        yield
