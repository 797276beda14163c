"""`secondlook import`: official weights of SiT, REPA and DiT into this project's own file, once, with what was found in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secondlook.disk.digests import file_digest
from secondlook.errors import ConfigError, nearest
from secondlook.flow.path import KINDS, PATHS, Kind
from secondlook.models import checkpoint
from secondlook.models.official import Layout, from_state_dict, is_own, layout, read
from secondlook.models.sit import SiT

DIALECTS: dict[str, tuple[Kind, str]] = {"sit": ("velocity", "linear"), "dit": ("noise", "discrete")}


@dataclass(frozen=True)
class Import:
    """What to read, and what its shapes do not say. which: "ema" or "model" of a training checkpoint. predicts, path: None for
    the dialect's (SiT's released models: velocity on the linear path; DiT's: noise on discrete steps). reversed_time: None
    to tell by REPA's projectors. heads: None for the named sizes'."""

    dialect: str
    source: Path
    out: Path
    which: str = "ema"
    narrow: bool = False
    heads: int | None = None
    predicts: str | None = None
    path: str | None = None
    reversed_time: bool | None = None
    null: bool = True


def resolved(job: Import) -> tuple[Kind, str]:
    """Prediction and path; ConfigError for what does not exist or does not go together."""
    if job.dialect not in DIALECTS:
        raise ConfigError(f'There is no weights layout "{job.dialect}"; {nearest(job.dialect, DIALECTS)}')
    usual = DIALECTS[job.dialect]
    path = job.path or usual[1]
    predicts = job.predicts or ("noise" if path == "discrete" else usual[0])
    for name, value, known in (("predicts", predicts, KINDS), ("path", path, (*PATHS, "discrete")),
                               ("weights", job.which, ("ema", "model"))):  # fmt: skip
        if value not in known:
            raise ConfigError(f'--{name} expects one of {", ".join(known)}; got "{value}".')
    if job.heads is not None and job.heads < 1:
        raise ConfigError(f"--heads must be at least 1; got {job.heads}.")
    if path == "discrete" and job.narrow:
        raise ConfigError(
            "On discrete steps the head's second half is its variance, which sampling reads: leave --narrow out."
        )
    return next(k for k in KINDS if k == predicts), path


def run(job: Import) -> list[str]:
    """Write ``out/weights.safetensors``; returns lines that say what was found. ConfigError or DamagedError for what is not
    understood, before anything is written."""
    predicts, path = resolved(job)
    target = job.out / "weights.safetensors"
    if target.exists() or (job.out.exists() and not job.out.is_dir()):
        raise ConfigError(f'"{target if job.out.is_dir() else job.out}" exists already; choose another --out.')
    if job.source.is_file() and is_own(job.source):
        raise ConfigError(f'"{job.source}" is this project\'s own file already; sample from it with --model.')
    found = read(job.source, job.which)
    form = layout(found.state)
    with torch.no_grad():
        network = from_state_dict(
            found.state, heads=job.heads, null=job.null, reversed_time=job.reversed_time, narrow=job.narrow,
            predicts=predicts, path=path,
        )  # fmt: skip
    facts: dict[str, Any] = {
        "source": job.source.name, "sha256": file_digest(job.source), "part": found.which, "head": form.out,
        "name": form.name(network.config.heads),
    }  # fmt: skip
    job.out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(network, target, network.describe(), facts)
    return [*described(form, network, found.which), f"weights: {target}"]


def described(form: Layout, network: SiT, which: str) -> list[str]:
    """What was found, for a person."""
    c = network.config
    head = f"head: {form.out} channels for {form.channels}"
    if form.out > form.channels and c.path == "discrete":
        head += ", the others its variance"
    elif form.out > form.channels:
        head += ", the others dead weight" + ("" if c.variance else ", dropped")
    told = " (told by its projectors, left out)" if form.repa else ""
    time = f"time: 0 is data in these weights{told}; turned here" if c.reversed_time else "time: 1 is data"
    if c.path == "discrete":
        time = "time: the number of a discrete step, 0 the cleanest"
    return [
        f"{form.name(c.heads)}: {sum(v.numel() for v in network.state_dict().values()):,} numbers ({which} of the file)",
        f"samples: {c.channels} x {c.side} x {c.side}, patches of {c.patch}; {c.classes} classes"
        + (" and a null one" if c.null else ""),
        head,
        f"{time}; predicts {c.predicts} on the {c.path} path",
    ]
