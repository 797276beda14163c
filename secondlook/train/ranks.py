"""Where a training runs: its device, and its place among the processes that share every batch.

Several processes are started by `torchrun --nproc_per_node N -m secondlook train ...` (or by `accelerate launch` on
GPUs) and wired by the optional package accelerate, which nothing else needs. Each takes a slice of the same keyed batch,
so that how many there are changes a training by rounding only.
"""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.disk.team import usable
from secondlook.errors import ConfigError, MissingExtra


@dataclass(frozen=True)
class Place:
    """One process of ``world``, numbered ``rank``, and its device."""

    device: torch.device
    rank: int = 0
    world: int = 1
    accelerator: Any = None

    @staticmethod
    def find(device: str | None, shared: bool) -> Place:
        """From the environment that a launcher set and the device asked for (None: CUDA where there is one, else the
        CPU). shared: whether the loss can be computed by slices, on any device; one that cannot is kept to one process,
        and to the CPU unless told otherwise. ConfigError for a device that is not there."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world > 1 and not shared:
            raise ConfigError(f"This training runs in one process; {world} were started.")
        if world > 1:
            return _among(device)
        return Place(usable(device or ("cuda" if shared and torch.cuda.is_available() else "cpu")))

    @property
    def first(self) -> bool:
        """Whether this is the one process that writes."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's rows of a batch of ``count``."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, with gradients averaged over the processes in every backward pass outside ``alone``."""
        if self.accelerator is None:
            return module
        with warnings.catch_warnings():  # torch 2.13 calls the option deprecated; older releases know no other
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            wrapped: nn.Module = self.accelerator.prepare_model(module)
        return wrapped

    def alone(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """A context for the passes of one micro-batch: gradients are exchanged after the last only."""
        return nullcontext() if self.accelerator is None or last else self.accelerator.no_sync(wrapped)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return values if self.accelerator is None else self.accelerator.reduce(values.clone(), "sum")

    def close(self) -> None:
        """Leave the other processes; nothing is exchanged after it."""
        if self.accelerator is not None:
            self.accelerator.end_training()


def _among(device: str | None) -> Place:
    """This process's place, by accelerate; MissingExtra where that is not installed."""
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError:
        raise MissingExtra(
            "Training in several processes needs accelerate: pip install 'secondlook[train]', or start one process."
        ) from None
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f'With several processes a device is "cpu" or "cuda", each taking its own; got "{device}".')
    wire = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    use_cpu = device == "cpu" or not torch.cuda.is_available()
    found = Accelerator(cpu=use_cpu, mixed_precision="no", kwargs_handlers=[wire])
    return Place(found.device, found.process_index, found.num_processes, found)
