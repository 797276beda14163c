"""This process's place among those that share the work, and the device it works on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from secondlook.errors import ConfigError


@dataclass(frozen=True)
class Team:
    """This process's place among those that share the work; ``local`` is its number on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @staticmethod
    def here() -> Team:
        """As the environment says; alone where it says nothing."""
        try:
            rank, world, local = (int(os.environ.get(k, d)) for k, d in
                                  (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers ({error}); unset them.") from None
        if not 0 <= rank < world:
            raise ConfigError(f"RANK must be from 0 to WORLD_SIZE - 1; got {rank} of {world}.")
        return Team(rank, world, local)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, asked: str | None) -> torch.device:
        """The device asked for, or this process's own GPU, or the CPU; ConfigError for one that is not there."""
        if asked is None:
            asked = f"cuda:{self.local % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        return usable(asked)


def usable(name: str) -> torch.device:
    """The device of that name; ConfigError for one that is not there."""
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except Exception as error:  # torch raises half a dozen kinds
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f'The device "{name}" cannot be used here ({reason}); leave the option out, or write cpu.'
        ) from None
    return found
