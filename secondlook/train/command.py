"""`secondlook train WORLD --out DIR`: base models, verifiers and judges; the same command again goes on exactly.

Several GPUs: `torchrun --nproc_per_node N -m secondlook train digits --out DIR`, with the extra [train] installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from secondlook.errors import ConfigError, nearest
from secondlook.models.checkpoint import save
from secondlook.models.text import TextSiT
from secondlook.train.loop import Tick, TrainConfig, Trainer

CLASSIFIERS = tuple(f"{world}-{role}" for world in ("digits", "glyphs") for role in ("verifier", "judge", "features"))
WORLDS = ("scenes", "scenes-verifier", "scenes-judge", "digits", "glyphs", *CLASSIFIERS)
# Options by kind of training; all are None where not given.
_LOOP = ("steps", "batch", "seed", "bf16", "compile", "hold")
_BUILD = ("width", "depth", "heads", "pool", "hard", "workers")
OPTIONS = {
    "scenes": (*_LOOP, "predicts", "lr", "muon_lr", "optimizer", "warmup", "ema", "save_every", "log_every", *_BUILD, "device"),
    "judges": ("steps", "batch", "seed", "samples", "bf16", "compile"),
    "classifiers": ("steps", "seed"),
    "classes": (*_LOOP, "predicts", "model", "path", "weight", "times", "interval", "eps", "dropout", "lr", "muon_lr",
                "decay", "optimizer", "warmup", "ema", "clip", "accumulate", "checkpointing", "device", "look_every",
                "log_every", "save_every", "tensorboard", "data", "size"),
}  # fmt: skip
OF_CONFIG = ("steps", "batch", "seed", "bf16", "compile", "hold", "lr", "muon_lr", "decay", "optimizer", "warmup", "ema",
             "clip", "accumulate", "checkpointing", "device", "look_every", "log_every", "save_every", "tensorboard")  # fmt: skip
OF_RECIPE = ("weight", "times", "interval", "eps", "dropout")
LOOK = ("a circle", "three squares", "a circle left of a square", "a red cross and a blue triangle",
        "a green circle above a white square", "two yellow crosses and a purple circle", "a red square",
        "a triangle and a square")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    world = args.world.partition(":")[0]
    if world not in (*WORLDS, "folder"):
        known = (*WORLDS, "folder:PATH")
        raise ConfigError(f'There is no training of "{args.world}"; {nearest(args.world, known)}')
    kind = {"scenes": "scenes", "scenes-verifier": "judges", "scenes-judge": "judges"}.get(
        world, "classifiers" if world in CLASSIFIERS else "classes"
    )
    _refuse(args, world, OPTIONS[kind])
    if args.compile and not any(shutil.which(c) for c in ("g++", "c++", "clang++")):
        raise ConfigError("--compile needs a C++ compiler; install g++ or leave the option out.")
    if kind == "classes":
        return _classes(args, world)
    if kind == "classifiers":
        from secondlook.train.classifiers import train_classifier

        name, role = world.rsplit("-", 1)
        path = train_classifier(name, role, Path(args.out), args.seed or 0, args.steps)
        print(json.dumps({"weights": str(path)}))
        return 0
    usual: dict[str, Any] = {"steps": 3000, "batch": 128, "seed": 0, "hold": 0.4, "predicts": "data", "bf16": True}
    for name, value in {**usual, "compile": False}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if kind == "judges":
        from secondlook.train.verifier import train_command

        return train_command(args)
    return _base(args)


def _refuse(args: argparse.Namespace, world: str, options: tuple[str, ...]) -> None:
    """ConfigError for an option that this training does not take, or a number that none takes."""
    for name in sorted({o for some in OPTIONS.values() for o in some}):
        if getattr(args, name) is not None and name not in options:
            flags = ", ".join(f"--{o.replace('_', '-')}" for o in options)
            raise ConfigError(f"`train {world}` takes no --{name.replace('_', '-')}; it takes {flags}.")
    for name in ("steps", "batch", "pool", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} must be at least 1; got {value}.")
    if args.seed is not None and not 0 <= args.seed < 2**31:
        raise ConfigError(f"--seed must be from 0 to {2**31 - 1}; got {args.seed}.")


def _base(args: argparse.Namespace) -> int:
    from secondlook.train.scenes import Build, trainer

    if args.predicts not in ("data", "velocity", "noise"):
        raise ConfigError(f'--predicts expects data, velocity or noise; got "{args.predicts}".')
    if args.device and not args.pool:
        raise ConfigError("--device goes with --pool: without one every step makes its pictures on the CPU.")
    if args.hard is not None and not (args.pool and 0 <= args.hard <= 1):
        raise ConfigError(f"--hard goes with --pool and lies in 0 to 1; got {args.hard}.")
    folder = Path(args.out)
    asked = {k: getattr(args, k) for k in OF_CONFIG if k in OPTIONS["scenes"] and getattr(args, k) is not None}
    build = Build(**{k: getattr(args, k) for k in _BUILD if getattr(args, k) is not None})
    if args.pool and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    config = TrainConfig(**asked)
    job = trainer(folder, config, args.predicts, build)
    code = stopped(job, _pictured(job, reported(job.run(), config)))
    if code:
        return code
    module = job.ema.module.cpu()
    assert isinstance(module, TextSiT)
    facts = facts_of(job)
    save(module, folder / "weights.safetensors", module.describe(), facts)
    print(json.dumps({"weights": str(folder / "weights.safetensors"), **facts}))
    return 0


def _pictured(job: Trainer, ticks: Iterable[Tick], every: int = 500) -> Iterable[Tick]:
    """The ticks, with a sheet of samples in the training's folder now and then and at the end."""
    for tick in ticks:
        if tick.step % every == 0 or tick.step == job.config.steps:
            Image.fromarray(look(job)).save(job.folder / f"samples-{tick.step:06d}.png")
        yield tick


def _classes(args: argparse.Namespace, world: str) -> int:
    from secondlook.models.sit import SiT
    from secondlook.train import presets
    from secondlook.train.classes import trainer

    data = _data(args, world)
    preset = presets.PRESETS[world]
    predicts = args.predicts or preset.predicts
    classes = data.classes if isinstance(data.classes, int) else len(data.classes)
    path = args.path or ("discrete" if (args.model or "").startswith("DiT-") else preset.path)
    if path == "discrete":
        predicts = _of_discrete(args)
    sit = presets.network(args.model or preset.model, tuple(data.shape), classes, predicts, path)
    recipe = presets.recipe(preset, predicts, **{k: getattr(args, k) for k in OF_RECIPE})
    if recipe.dropout == 0:  # no null class is learnt, so that nothing can be guided by an untrained one
        sit = replace(sit, null=False)
    config = presets.training(preset, **{k: getattr(args, k) for k in OF_CONFIG})
    folder = Path(args.out)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, as the released code trains
    looks = presets.looks(world, data, sit, recipe, config)
    if path == "discrete":
        from secondlook.train import ddpm

        job = ddpm.trainer(folder, config, sit, data, recipe.dropout, looks=looks)
    else:
        job = trainer(folder, config, sit, data, recipe, looks=looks)
    code = stopped(job, reported(job.run(), config, job.place.first))
    if code:
        return code
    if job.place.first:
        module, facts = job.ema.module, {"world": world, **facts_of(job)}
        assert isinstance(module, SiT)
        table = job.by_time.table()
        save(module, folder / "weights.safetensors", module.describe(), {**facts, **job.about, "loss_by_time": table})
        print(json.dumps({"weights": str(folder / "weights.safetensors"), **facts}))
    job.place.close()
    return 0


def stopped(job: Trainer, ticks: Iterable[Tick]) -> int:
    """Run to the end (0), or to the first Ctrl-C: the step under way is finished, the state saved, and 130 returned. A
    second Ctrl-C stops at once."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    own = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, note) if own else None
    try:
        for tick in ticks:
            if asked and tick.step < job.config.steps:
                job.save()
                if job.place.first:
                    print(
                        f"secondlook: stopped after step {tick.step}; the same command goes on from there.",
                        file=sys.stderr,
                    )
                return 130
    finally:
        if own:
            signal.signal(signal.SIGINT, before)
    return 0


def _of_discrete(args: argparse.Namespace) -> str:
    """DiT's prediction; ConfigError for options that its training has no use for."""
    for name in ("weight", "times", "interval", "eps"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} has no meaning on discrete steps: DiT's loss and its steps are fixed.")
    if args.predicts not in (None, "noise"):
        raise ConfigError(f'On discrete steps a network predicts noise; got --predicts "{args.predicts}".')
    return "noise"


def _data(args: argparse.Namespace, world: str) -> Any:
    """The training's data: a world's own, or what a folder holds."""
    path = args.world.partition(":")[2] or args.data
    if world != "folder":
        if path or args.size is not None:
            raise ConfigError(f"`train {world}` makes its own data; --data and --size go with `train folder:PATH`.")
        from secondlook.worlds.digits import Digits
        from secondlook.worlds.glyphs import Glyphs

        return Digits() if world == "digits" else Glyphs()
    if not path:
        raise ConfigError("Say which folder: secondlook train folder:PATH --out DIR.")
    from secondlook.worlds.folder import open_data

    return open_data(path, args.size)


def reported(ticks: Iterable[Tick], config: TrainConfig, loud: bool = True) -> Iterable[Tick]:
    """The ticks, with a line on standard error after every fifty of them."""
    losses: list[float] = []
    for tick in ticks:
        losses.append(tick.loss)
        if tick.step % 50 == 0 and loud:
            pace = tick.seconds / tick.step
            print(f"step {tick.step}/{config.steps}  loss {sum(losses) / len(losses):.4f}  "
                  f"{config.batch / pace:.0f} pictures/s  {(config.steps - tick.step) * pace / 60:.0f} min left",
                  file=sys.stderr, flush=True)  # fmt: skip
            losses = []
        yield tick


def facts_of(job: Trainer) -> dict[str, Any]:
    """What is said of a training beside its weights."""
    c = job.config
    facts: dict[str, Any] = {"steps": job.step, "batch": c.batch, "pictures": job.step * c.batch, "seed": c.seed,
             "seconds": round(job.seconds), "threads": torch.get_num_threads()}  # fmt: skip
    if job.place.device.type != "cpu":
        facts["device"] = job.place.device.type
    return facts if job.place.world == 1 else {**facts, "processes": job.place.world}


def look(job: Trainer, each: int = 4) -> np.ndarray:
    """A sheet of samples from the averaged weights, a row a prompt of LOOK: uint8 [H, W, 3]."""
    from secondlook.disk.sheets import contact_sheet
    from secondlook.engine.rig import Rig, build_flow
    from secondlook.flow.grid import grid
    from secondlook.flow.path import Linear
    from secondlook.noise import Key
    from secondlook.solvers.ode import Euler
    from secondlook.types import Condition
    from secondlook.worlds.scenes.world import Scenes

    network = job.ema.module
    assert isinstance(network, TextSiT)
    with torch.inference_mode():
        flow = build_flow(network, Linear(), float(Scenes.usual["guidance"]), network.encode([None]), job.config.bf16)  # type: ignore[arg-type]
    times = grid(int(Scenes.usual["steps"]), Scenes.usual["shift"])
    rig = Rig(flow, Euler(), times, lambda c: network.encode([c.prompt if c else None]), lambda x: Scenes().decode(x).cpu(), None,
              device=network.text.place.device)  # fmt: skip
    asked = [Condition(p) for p in LOOK for _ in range(each)]
    states = [rig.start(Key.root(0).child("look", i)) for i in range(len(asked))]
    return np.asarray(contact_sheet(rig.finish(states, asked), columns=each))
