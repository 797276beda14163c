"""`secondlook encode`: a folder of pictures into latents, once, for training to read at every epoch.

What is kept is the posterior, mean and standard deviation, of each picture and of its mirror image, so that every epoch can
draw from it again as the released SiT code does with the autoencoder in its training loop.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import secondlook
from secondlook.adapters.vae import VAE, load_vae
from secondlook.disk.atomic import write_array, write_whole
from secondlook.disk.shards import Shards
from secondlook.disk.team import Team
from secondlook.errors import ConfigError, SecondlookError
from secondlook.worlds.folder import INDEX, Images, as_input

PER_PART = 2048


@dataclass(frozen=True)
class Encoding:
    """What is encoded, and how: pictures of ``size`` pixels from ``source``, mirrored ones too, stored as float16 or float32."""

    source: Path
    vae: str
    size: int
    out: Path
    mirrored: bool = True
    whole: bool = False
    per: int = PER_PART


def encode(job: Encoding, device: str | None = None) -> int:
    """Make or finish the latents in ``job.out``; returns how many pictures there are. Stopped, it goes on where it was;
    several processes (torchrun) share it."""
    if job.per < 1:
        raise ConfigError(f"A part expects at least one picture; got {job.per}.")
    team = Team.here()
    if (job.out / INDEX).exists() and not (job.out / "settings.json").exists():
        raise ConfigError(f'"{job.out}" holds latents that something else made; choose another --out.')
    where = team.device(device)
    data = Images(job.source, job.size, flip=False)
    vae = load_vae(job.vae, where)
    if job.size % vae.factor:
        raise ConfigError(f"--size must divide by {vae.factor}, this autoencoder's; got {job.size}.")
    side = job.size // vae.factor
    settings = {
        "version": secondlook.__version__, "size": job.size, "count": len(data), "pictures": data.digest,
        "vae": vae.digest, "scale": vae.scale, "shift": vae.shift, "shape": [vae.channels, side, side],
        "mirrored": job.mirrored, "dtype": "float32" if job.whole else "float16", "per part": job.per,
    }  # fmt: skip
    # whole and finished: a damaged part may be deleted and made again
    parts = Shards(
        job.out, settings, -(-len(data) // job.per), lambda: (job.out / INDEX).exists() and not parts.missing()
    )
    todo = parts.begin(team)
    for done, number in enumerate(todo):
        _write_part(parts, number, data, vae, job)
        print(f"\rpart {done + 1} of {len(todo)}", end="", file=sys.stderr, flush=True)
    if todo:
        print(file=sys.stderr)
    if team.first and not (job.out / INDEX).exists():
        parts.wait()
        write_array(job.out / "labels.npy", data.labels.numpy())
        about = {**settings, "names": data.names, "vae name": job.vae}
        write_whole(job.out / INDEX, json.dumps(about, indent=1).encode())
    return len(data)


def _write_part(parts: Shards, number: int, data: Images, vae: VAE, job: Encoding) -> None:
    """[n, 1 or 2 (mirrored), 2 (mean, std), C, h, w]."""
    first, last = number * job.per, min((number + 1) * job.per, len(data))
    rows = []
    for start in range(first, last, vae.chunk):
        x = as_input(data.pictures(range(start, min(start + vae.chunk, last))))
        views = [x, x.flip(-1)] if job.mirrored else [x]
        rows.append(torch.stack([torch.stack(vae.moments(v), 1) for v in views], 1).cpu())
    found = torch.cat(rows).numpy().astype(np.float32 if job.whole else np.float16)
    if not np.isfinite(found).all():
        hint = "the autoencoder's own" if job.whole else "too large for float16; give --float32"
        raise SecondlookError(f"Part {number} of the latents holds numbers that are not finite: {hint}.")
    write_array(parts.path(number), found)
