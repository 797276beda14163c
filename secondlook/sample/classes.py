"""Sampling of class-conditional networks: SiT's ODEs and SDEs, DiT's discrete steps, guided or not, for a contact sheet or
for the 50,000 pictures of an evaluation.

Sample i of a run has noise and label keyed by (seed, i), so that neither batches nor processes decide what it becomes
(beyond rounding, which moves dopri5's steps: there by no more than its tolerance). Defaults are the paper's: its time intervals, even steps, an SDE's last step of 0.04 (2401.08740, app. D).
Guidance is on all channels unless told otherwise; the paper's own numbers guide the first three of four latent channels.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

import secondlook
from secondlook.adapters.vae import VAE, load_vae, to_bytes
from secondlook.calls import bind, parse_call
from secondlook.errors import ConfigError, SecondlookError, nearest
from secondlook.flow.autocast import Autocast
from secondlook.flow.discrete import Discrete, respaced, with_path
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import spread
from secondlook.flow.guidance import AutoGuidance, ClassifierFree, Guide, Plain
from secondlook.flow.interval import LAST_STEP, PRESETS, interval
from secondlook.models.checkpoint import locate
from secondlook.models.official import is_own, load_sit
from secondlook.models.sit import Labels, SiT
from secondlook.noise import Key, integers, normal, uniform
from secondlook.registry import MODELS, resolve
from secondlook.sample.npz import Spent
from secondlook.settings import make_named
from secondlook.solvers.adaptive import Dopri5
from secondlook.solvers.ode import Solver, integrate
from secondlook.types import State

WORLDS = {"digits": "secondlook.worlds.digits:Digits", "glyphs": "secondlook.worlds.glyphs:Glyphs"}
STEPS = {
    "euler": 250,
    "heun": 125,
    "rk4": 63,
    "dopri5": 1,
}  # others: 250; about 250 evaluations a sample, the paper's cost


@dataclass(frozen=True)
class Asked:
    """What is sampled; all of it decides the pictures. Times are this project's, 1 is data.

    model, weak: a shipped name, a weights file or a folder with one. vae: a diffusers autoencoder's folder or hub id. labels:
    "random" (uniform), "balanced" (every run of as many samples as there are classes holds each once) or a class. steps: None
    for about 250 evaluations. guidance: the scale of classifier-free guidance, channels: how many it guides (None: all),
    when: the interval of times for either guidance. weak_scale: of autoguidance by ``weak``. preset, eps: of the time
    interval. last_step: of an SDE that ends at data, 0 for none; None for the paper's.
    """

    model: str
    count: int = 16
    seed: int = 0
    labels: str = "random"
    world: str | None = None
    vae: str | None = None
    solver: str = "heun"
    steps: int | None = None
    shift: float = 1.0
    guidance: float = 1.0
    channels: int | None = None
    when: tuple[float, float] | None = None
    weak: str | None = None
    weak_scale: float = 2.0
    preset: str = "paper"
    eps: float | None = None
    last_step: float | None = None
    bf16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name, value, least, most in (("count", self.count, 1, 10**8), ("steps", self.steps, 1, 10_000),
                                         ("seed", self.seed, 0, 2**63), ("cfg-channels", self.channels, 1, 4096)):  # fmt: skip
            if value is not None and not least <= value <= most:
                raise ConfigError(f"--{name} must be from {least} to {most}; got {value}.")
        for name, scale in (("guidance", self.guidance), ("weak-scale", self.weak_scale)):
            if not 0 <= scale < 1e3:
                raise ConfigError(f"--{name} must be a number from 0 to 1000 (1: none); got {scale}.")
        if not 0 < self.shift <= 1e3:
            raise ConfigError(f"--shift must be above 0 and at most 1000; got {self.shift}.")
        if self.when is not None and not 0 <= self.when[0] < self.when[1] <= 1:
            raise ConfigError(
                f"--cfg-interval wants two times, 0 <= LOW < HIGH <= 1 (1 is data); got {self.when[0]} {self.when[1]}."
            )
        if self.last_step is not None and not 0 <= self.last_step < 1:
            raise ConfigError(f"--last-step must be from 0 (none) to below 1; got {self.last_step}.")
        if self.eps is not None and not 0 <= self.eps < 0.5:
            raise ConfigError(f"--eps must be from 0 to below 0.5; got {self.eps}.")
        if self.preset not in PRESETS:
            raise ConfigError(f'There is no preset "{self.preset}" of time intervals; {nearest(self.preset, PRESETS)}')
        if self.world is not None and self.world not in WORLDS:
            raise ConfigError(f'There is no class-conditional world "{self.world}"; {nearest(self.world, WORLDS)}')
        if self.weak is not None and self.guidance != 1.0:
            raise ConfigError("--weak is a guidance of its own (--weak-scale); leave --cfg at 1 with it.")
        if self.world is not None and self.vae is not None:
            raise ConfigError("Either --world or --vae decodes; give one of them.")


def find(model: str) -> File:
    """The weights file behind a shipped name, a path or a folder with one."""
    folder = File(model)
    if model in WORLDS and model not in MODELS and not folder.exists():
        raise ConfigError(f'This release ships no weights for "{model}"; train them with `secondlook train {model} --out DIR`, '
                          "and give them with --model DIR.")  # fmt: skip
    if not folder.is_dir():
        return locate(model)
    files = sorted(folder.glob("*.safetensors"))
    chosen = [f for f in files if f.name == "weights.safetensors"] or files
    if len(chosen) != 1:
        raise ConfigError(
            f'The folder "{model}" holds {len(chosen)} weights files (*.safetensors); name the one you mean.'
        )
    return chosen[0]


def world_in(model: str, file: File) -> str | None:
    """The world that a model was trained in, where its name or its file says one."""
    if model in WORLDS:
        return model
    if not is_own(file):
        return None
    with safe_open(file, "pt") as opened:
        try:
            facts = json.loads((opened.metadata() or {}).get("facts", "{}"))
        except ValueError:
            return None
    said = [facts.get(k) for k in ("world", "data")] if isinstance(facts, dict) else []  # training leaves both
    return next((name for name in said if name in WORLDS), None)


def sha256(file: File) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@dataclass
class Sampler:
    """Everything that turns sample numbers into pictures. network, weak: on ``device``, frozen. rows: the batch."""

    asked: Asked
    network: SiT
    weak: SiT | None
    decode: Callable[[Tensor], Tensor]
    vae: VAE | None
    device: torch.device
    rows: int
    digests: dict[str, str]
    solver: Solver = field(init=False)

    def __post_init__(self) -> None:
        self.solver = make_named("solver", self.asked.solver)
        shown, self.path = with_path(self.network)
        self.strong = Autocast(shown, self.asked.bf16)
        self._refuse_misfits()
        self.times = self._times()
        self.labels = labels_of(self.asked, self.network.config.classes)

    def _refuse_misfits(self) -> None:
        c, a = self.network.config, self.asked
        if a.guidance != 1.0 and not c.null:
            raise ConfigError(
                "This model was trained without a null class, so it cannot be guided; use --cfg 1, or --weak."
            )
        if a.channels is not None and a.channels > c.channels:
            raise ConfigError(f"--cfg-channels must be at most {c.channels}, this model's; got {a.channels}.")
        if self.weak is not None:
            w = self.weak.config
            for name in ("side", "channels", "classes", "path", "predicts"):
                if getattr(w, name) != getattr(c, name):
                    raise ConfigError(
                        f"--weak wants a model of the same task: its {name} is {getattr(w, name)}, not {getattr(c, name)}."
                    )
        if self.vae is not None and self.vae.channels != c.channels:
            raise ConfigError(
                f"The autoencoder's latents have {self.vae.channels} channels, the model's {c.channels}; give its own."
            )
        if self.vae is None and self.asked.world is None and c.channels not in (1, 3):
            raise ConfigError(
                f"This model samples latents of {c.channels} channels: give the autoencoder that decodes them, --vae DIR."
            )

    def _times(self) -> tuple[float, ...]:
        """The grid; its number of steps counts an SDE's last one."""
        a, name = self.asked, parse_call(self.asked.solver, "solver").name
        steps = a.steps or STEPS.get(name, 250)
        if isinstance(self.path, Discrete) and name in ("ddpm", "ddim", "dpmpp") and a.shift == 1.0 and a.eps is None:
            return respaced(steps)
        kind = self.network.config.predicts
        if not isinstance(self.solver, Dopri5) and name in ("sde", "sde_heun"):
            last = LAST_STEP if a.last_step is None else a.last_step
            if last and steps < 2:
                raise ConfigError(f"An SDE with a last step of {last} wants at least two --steps; got {steps}.")
            span = interval(self.network.config.path, kind, "sde", preset=a.preset, last=last, eps=a.eps)
            return spread(span.start, span.end, steps - (last > 0), a.shift, last)
        if a.last_step is not None:
            raise ConfigError(f"--last-step is for sde and sde_heun; got it with {name}.")
        if isinstance(self.solver, Dopri5) and a.shift != 1.0:
            raise ConfigError(f"--shift wants a solver of given steps, and dopri5 chooses its own; got --shift {a.shift:g}. "
                              "Leave it out, or take another solver, such as heun.")  # fmt: skip
        span = interval(self.network.config.path, kind, "ode", preset=a.preset, eps=a.eps)
        return spread(span.start, span.end, 1 if isinstance(self.solver, Dopri5) else steps, a.shift)

    def settings(self) -> dict[str, Any]:
        """Plain values that decide the pictures, files by their contents."""
        a = self.asked
        call = parse_call(a.solver, "solver")
        options = dict(sorted(bind(call, resolve("solver", call.name)).items()))
        if isinstance(options.get("losses"), str):
            options["losses"] = sha256(File(options["losses"]))
        return {
            "version": secondlook.__version__, **self.digests, "count": a.count, "seed": a.seed, "labels": str(a.labels),
            "solver": call.name, "solver's options": options, "times": [len(self.times) - 1, self.times[0], self.times[-1]],
            "shift": a.shift, "guidance": a.guidance, "guided channels": a.channels, "guidance interval": a.when,
            "weak scale": a.weak_scale if a.weak else None, "interval": a.preset, "eps": a.eps,
            "last step": a.last_step, "bf16": a.bf16, "world": a.world,
        }  # fmt: skip

    def _flow(self) -> Flow:
        weak = None if self.weak is None else Autocast(with_path(self.weak)[0], self.asked.bf16)
        return Flow(self.strong, self.path, self._guide(weak))

    def _guide(self, weak: Autocast | None) -> Guide:
        a, classes = self.asked, self.network.config.classes
        if weak is not None:
            return AutoGuidance(a.weak_scale, weak, a.when)
        if a.guidance == 1.0:
            return Plain()

        def null(rows: int) -> Labels:
            return Labels(torch.full((rows,), classes, device=self.device))

        return ClassifierFree(a.guidance, lambda cond, rows: Labels.stack([cond, null(rows)]), null, a.channels, a.when)

    def draw(self, index: Sequence[int]) -> tuple[np.ndarray, Spent]:
        """Pictures uint8 [n, H, W, C] of the samples numbered, and their cost. SecondlookError where one is not finite."""
        pictures, spent = [], Spent()
        for start in range(0, len(index), self.rows):
            x, cost = self._batch(index[start : start + self.rows])
            pictures.append(self.decode(x).cpu().numpy())
            spent = spent + cost
        return np.concatenate(pictures), spent

    @torch.inference_mode()
    def _batch(self, index: Sequence[int]) -> tuple[Tensor, Spent]:
        n, flow = len(index), self._flow()
        keys = tuple(Key.root(self.asked.seed).child("sample", int(i)) for i in index)
        x = normal([k.child("start") for k in keys], self.network.shape).to(self.device)
        t = torch.full((n,), self.times[0], device=self.device)
        labels = Labels(torch.from_numpy(self.labels[list(index)]).to(self.device))
        state = State(x, t, keys, torch.zeros(n, dtype=torch.long))  # steps are counted on the CPU: they name keys
        state = integrate(flow, self.solver, state, self.times, labels)
        if not bool(state.x.isfinite().all()):
            raise SecondlookError("A sample is not finite. Choose another solver or --eps, or --interval official.")
        if isinstance(self.solver, Dopri5):  # each row's own evaluations; the batch's are those of its slowest row
            own = int((6 * state.step + 2).sum()) + n * (self.solver.end == "estimate" and self.times[-1] >= 1)
            return state.x, Spent(own, round(own * flow.meter.evals / flow.meter.nfe))
        return state.x, Spent(n * flow.meter.nfe, n * flow.meter.evals)


def labels_of(asked: Asked, classes: int) -> np.ndarray:
    """int64 [count]; label i is a function of the seed and i alone, so that fewer samples are the first of more."""
    root = Key.root(asked.seed).child("labels")
    if asked.labels == "random":
        return (uniform(root, asked.count) * classes).astype(np.int64)
    if asked.labels == "balanced":
        rounds = range(math.ceil(asked.count / classes))
        return np.concatenate([np.argsort(integers(root.child(r), classes), kind="stable") for r in rounds])[
            : asked.count
        ]
    return np.full(asked.count, class_of(asked, classes), np.int64)


def class_of(asked: Asked, classes: int) -> int:
    names = [] if asked.world is None else [str(n) for n in world_of(asked.world).classes]
    if asked.labels in names:
        return names.index(asked.labels)
    if not (asked.labels.isdecimal() and int(asked.labels) < classes):
        more = f"; {nearest(asked.labels, names)}" if names else "."
        raise ConfigError(
            f'Labels are "random", "balanced" or a class from 0 to {classes - 1}; got "{asked.labels}"{more}'
        )
    return int(asked.labels)


def world_of(name: str) -> Any:
    module, attr = WORLDS[name].split(":")
    return getattr(importlib.import_module(module), attr)()


def build(asked: Asked, device: torch.device, rows: int | None = None) -> Sampler:
    """A sampler, its weights read; ConfigError for what does not go together. rows: 64 on a GPU, else 16."""
    make_named("solver", asked.solver)
    files = {"model": find(asked.model), **({"weak": find(asked.weak)} if asked.weak else {})}
    networks = {name: load_sit(file).to(device) for name, file in files.items()}
    digests = {name: sha256(file) for name, file in files.items()}
    if asked.compile:
        for network in networks.values():
            network.full = torch.compile(network.full)  # type: ignore[method-assign]
    vae: VAE | None = None
    decode: Callable[[Tensor], Tensor] = to_bytes
    if asked.world is not None:
        world = world_of(asked.world)
        if tuple(world.shape) != networks["model"].shape:
            raise ConfigError(
                f'The world "{asked.world}" has samples {list(world.shape)}, the model {list(networks["model"].shape)}.'
            )
        decode = world.decode
    elif asked.vae is not None:
        vae = load_vae(asked.vae, device)
        decode, digests["vae"] = vae.decode, vae.digest
    return Sampler(asked, networks["model"], networks.get("weak"), decode, vae, device,
                   rows or (64 if device.type != "cpu" else 16), digests)  # fmt: skip
