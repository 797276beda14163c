"""Where a user's own noise stands for the first that a plan draws: by the seed of a torch.Generator, or as latents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.disk.atomic import write_array
from secondlook.engine.rig import Rig
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, DamagedError
from secondlook.settings import Settings
from secondlook.types import Task

LATENTS = "latents.npy"


def given_noise(s: Settings, rig: Rig, count: int, latents: Any = None) -> Tensor | None:
    """The noise [count, *S] that ``s.seeds`` or ``latents`` name for ``count`` prompts; None where neither does. One seed, or one row of
    latents, is every prompt's. ConfigError for another number or shape."""
    if latents is not None and s.seeds is not None:
        raise ConfigError("Both seeds and latents say where to begin; give one of them.")
    if s.seeds is not None:
        if len(s.seeds) not in (1, count):
            raise ConfigError(f"--seeds expects one seed, or one for each of {count} prompts; got {len(s.seeds)}.")
        rows = torch.cat([drawn(rig, seed) for seed in s.seeds])
    elif latents is not None:
        rows = _read(latents, rig.shape, count)
    else:
        return None
    return rows.expand(count, *rig.shape) if len(rows) == 1 else rows


def drawn(rig: Rig, seed: int) -> Tensor:
    """Noise [1, *S] as a diffusers pipeline draws it for one picture with ``generator=torch.Generator().manual_seed(seed)``: on the
    CPU, in the pipeline's dtype."""
    dtype = getattr(getattr(rig.flow.network, "adapter", None), "dtype", torch.float32)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, *rig.shape), generator=generator, dtype=dtype).float()


def _read(latents: Any, shape: Sequence[int], count: int) -> Tensor:
    want = f"latents are numbers of shape {list(shape)}, or [{count}, {', '.join(map(str, shape))}] for {count} prompts"
    if not isinstance(latents, (Tensor, np.ndarray)):
        raise ConfigError(f"{want}; got {type(latents).__name__}.")
    rows = torch.as_tensor(latents).detach().cpu()
    if (
        rows.is_complex()
        or list(rows.shape[-len(shape) :]) != list(shape)
        or rows.dim() not in (len(shape), len(shape) + 1)
    ):
        raise ConfigError(f"{want}; got {list(rows.shape)}.")
    rows = rows.float().reshape(-1, *shape)
    if len(rows) not in (1, count):
        raise ConfigError(f"{want}; got {len(rows)} rows.")
    if not bool(rows.isfinite().all()):
        raise ConfigError("The latents hold numbers that are not finite.")
    return rows.clone()


def begin_from(rig: Rig, tasks: Sequence[Task], noise: Tensor | None) -> None:
    """Let each task's first draw begin from its row of ``noise`` [tasks, *S] (None: from its key)."""
    rig.given = {} if noise is None else {task.first_key(): row for task, row in zip(tasks, noise, strict=True)}


def digest(noise: Tensor) -> str:
    """Of latents, for a run's configuration."""
    return hashlib.sha256(str(list(noise.shape)).encode() + noise.contiguous().numpy().tobytes()).hexdigest()


def save(store: Store, noise: Tensor) -> None:
    """Keep latents beside the log, for a run that goes on."""
    write_array(store.folder / LATENTS, noise.contiguous().numpy())


def begin_again(store: Store, s: Settings, rig: Rig, tasks: Sequence[Task]) -> None:
    """The same beginning as when the run was first drawn. DamagedError where its latents are gone or changed."""
    noise = (
        given_noise(s, rig, len(tasks))
        if "latents" not in store.config
        else _kept(store.folder / LATENTS, store.config)
    )
    begin_from(rig, tasks, noise)


def _kept(path: Path, config: dict[str, Any]) -> Tensor:
    try:
        noise = torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise DamagedError(
            f"The latents {path} cannot be read ({error}). Restore them from a copy, or draw again."
        ) from None
    if digest(noise) != config["latents"]:
        raise DamagedError(
            f"The latents {path} are not those that the run began with. Restore them from a copy, or draw again."
        )
    return noise
