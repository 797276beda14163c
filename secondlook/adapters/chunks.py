"""Rows in as many as memory holds: half as many after each failure, said once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.errors import SecondlookError
from secondlook.notes import note

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc")


def no_memory(error: BaseException) -> bool:
    """Whether an error says that a device's, or the machine's, memory is used up."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error).lower() for s in _SIGNS)


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
            try:
                parts.append(make(slice(done, done + size)))
            except Exception as error:
                if not no_memory(error):
                    raise
                self._halve(size)
                continue  # the failed rows again, fewer at once; what is done stays
            done += size
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _halve(self, size: int) -> None:
        if size == 1:
            raise SecondlookError(
                f"Memory does not hold {self.what} for one picture. Draw smaller (--height, --width), load the pipeline in a "
                "smaller dtype, or use pipe.enable_model_cpu_offload() or pipe.vae.enable_tiling(). Nothing recorded is lost."
            )
        self.most = size // 2
        note(f"Memory did not hold {self.what} for {size} rows at once; going on with {self.most}.")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
