"""`secondlook train WORLD --out DIR`: the base model, the verifier or the judge, with exact resume."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from secondlook.errors import ConfigError, nearest
from secondlook.models.checkpoint import save
from secondlook.models.text import TextSiT
from secondlook.train.loop import TrainConfig, Trainer

WORLDS = ("scenes", "scenes-verifier", "scenes-judge")
LOOK = ("a circle", "three squares", "a circle left of a square", "a red cross and a blue triangle",
        "a green circle above a white square", "two yellow crosses and a purple circle", "a red square",
        "a triangle and a square")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.world not in WORLDS:
        raise ConfigError(f'There is no training of "{args.world}"; {nearest(args.world, WORLDS)}')
    for name in ("steps", "batch"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1; got {getattr(args, name)}.")
    if args.compile and not any(shutil.which(c) for c in ("g++", "c++", "clang++")):
        raise ConfigError("--compile needs a C++ compiler; install g++ or leave the option out.")
    if args.world != "scenes":
        from secondlook.train.verifier import train_command

        return train_command(args)
    return _base(args)


def _base(args: argparse.Namespace) -> int:
    from secondlook.train.scenes import trainer

    if args.predicts not in ("data", "velocity", "noise"):
        raise ConfigError(f'--predicts wants data, velocity or noise; got "{args.predicts}".')
    folder = Path(args.out)
    config = TrainConfig(steps=args.steps, batch=args.batch, hold=args.hold, seed=args.seed, bf16=args.bf16,
                         compile=args.compile)  # fmt: skip
    job = trainer(folder, config, args.predicts)
    total = 0.0
    for tick in job.run():
        total += tick.loss
        if tick.step % 50 == 0:
            pace = tick.seconds / tick.step
            print(f"step {tick.step}/{args.steps}  loss {total / 50:.4f}  {args.batch / pace:.0f} pictures/s  "
                  f"{(args.steps - tick.step) * pace / 60:.0f} min left", file=sys.stderr, flush=True)  # fmt: skip
            total = 0.0
        if tick.step % 500 == 0 or tick.step == args.steps:
            Image.fromarray(look(job)).save(folder / f"samples-{tick.step:06d}.png")
    module = job.ema.module
    assert isinstance(module, TextSiT)
    facts = {"steps": job.step, "batch": args.batch, "pictures": job.step * args.batch, "seed": args.seed,
             "seconds": round(job.seconds), "threads": torch.get_num_threads()}  # fmt: skip
    save(module, folder / "weights.safetensors", module.describe(), facts)
    print(json.dumps({"weights": str(folder / "weights.safetensors"), **facts}))
    return 0


def look(job: Trainer, each: int = 4) -> np.ndarray:
    """A sheet of samples from the averaged weights, a row a prompt of LOOK: uint8 [H, W, 3]."""
    from secondlook.engine.rig import Rig, build_flow
    from secondlook.grid import grid
    from secondlook.noise import Key
    from secondlook.path import Linear
    from secondlook.registry import DEFAULTS
    from secondlook.sampling import contact_sheet, run_all
    from secondlook.solve import Euler
    from secondlook.types import Condition
    from secondlook.worlds.scenes.world import Scenes

    network = job.ema.module
    assert isinstance(network, TextSiT)
    with torch.inference_mode():
        flow = build_flow(network, Linear(), DEFAULTS["guidance"], network.encode([None]), job.config.bf16)  # type: ignore[arg-type]
    times = grid(DEFAULTS["steps"], DEFAULTS["shift"])
    rig = Rig(flow, Euler(), times, lambda c: network.encode([c.prompt if c else None]), Scenes().decode, None)
    asked = [Condition(p) for p in LOOK for _ in range(each)]
    states = [rig.start(Key.root(0).child("look", i)) for i in range(len(asked))]
    return np.asarray(contact_sheet(run_all(rig, states, asked), columns=each))
