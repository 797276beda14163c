"""Rows in as many as memory holds: half as many after each failure, said once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.errors import SecondlookError
from secondlook.notes import note

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")
SMALLER = ("Draw smaller (--height, --width), load the pipeline in a smaller dtype, or use pipe.enable_model_cpu_offload() or "
           "pipe.vae.enable_tiling().")  # fmt: skip


def no_memory(error: BaseException) -> bool:
    """Whether an error says that a device's, or the machine's, memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)


@contextmanager
def fits(what: str, instead: str) -> Iterator[None]:
    """SecondlookError where memory does not hold ``what``; instead: what a person can do."""
    try:
        yield
    except Exception as error:
        if not no_memory(error):
            raise
        raise SecondlookError(f"Memory does not hold {what}. {instead} Nothing recorded is lost.") from None


@dataclass
class Chunks:
    """How many rows ``what`` takes at once. ``most`` falls where memory does not suffice, and stays there."""

    what: str
    most: int | None = None

    def run(self, make: Callable[[slice], Tensor], rows: int) -> Tensor:
        """``make`` of all rows in slices, concatenated. SecondlookError where memory holds not even one row."""
        parts: list[Tensor] = []
        done = 0
        while done < rows:
            size = min(self.most or rows, rows - done)
            part = self._tried(make, slice(done, done + size))
            if part is None:  # the failed rows again, fewer at once; what is done stays
                self._halve(size)
                continue
            parts.append(part)
            done += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _tried(self, make: Callable[[slice], Tensor], at: slice) -> Tensor | None:
        """None where memory did not hold these rows; with the error go the tensors that its traceback holds."""
        try:
            return make(at)
        except Exception as error:
            if not no_memory(error):
                raise
            return None

    def _halve(self, size: int) -> None:
        if size == 1:
            raise SecondlookError(
                f"Memory does not hold {self.what} for one picture. {SMALLER} Nothing recorded is lost."
            )
        self.most = size // 2
        note(f"Memory did not hold {self.what} for {size} rows at once; going on with {self.most}.")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
