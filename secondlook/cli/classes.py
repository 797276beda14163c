"""What the commands about class-conditional models do: sample without a prompt, encode, evaluate, import."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.disk.team import Team
from secondlook.errors import ConfigError, nearest
from secondlook.registry import MODELS

Args = argparse.Namespace
# Options of `sample` that a prompt does not take.
CLASS_ONLY = ("world", "cls", "labels", "vae", "cfg_channels", "cfg_interval", "weak", "weak_scale", "interval", "eps",
              "last_step", "compile", "device", "part")  # fmt: skip
METRICS = {
    "fid": ("fid",), "sfid": ("sfid",), "is": ("inception_score", "inception_score_std"), "pr": ("precision", "recall"),
    "dc": ("density", "coverage"),
}  # fmt: skip


def sample(args: Args) -> int:
    """Class-conditional samples: a contact sheet (.png), or as many as an evaluation wants (.npz)."""
    from secondlook.disk.sheets import contact_sheet
    from secondlook.sample import classes as generate
    from secondlook.sample.npz import PER_PART, produce

    out = Path(args.out)
    kind = out.suffix.lower()
    if kind not in (".png", ".npz") or not out.resolve().parent.is_dir():
        raise ConfigError(f'--out wants a .png or .npz file in an existing folder; got "{out}".')
    _within("rows", args.rows, 4096)
    _within("threads", args.threads, 1024)
    _within("part", args.part, 10**6)
    asked = _asked(args, "balanced" if kind == ".png" else "random")
    team = Team.here()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = team.device(args.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as the released code samples
    sampler = generate.build(asked, device, args.rows)
    if kind == ".png":
        if team.world > 1:
            raise ConfigError("A contact sheet is drawn by one process; give --out FILE.npz for several.")
        pictures, spent = sampler.draw(range(asked.count))
        zoom = max(1, 96 // pictures.shape[1])
        contact_sheet(np.repeat(pictures, 3, -1) if pictures.shape[-1] == 1 else pictures, zoom=zoom).save(out)
        print(
            f"{out}: {spent.nfe / asked.count:.4g} evaluations a sample, {spent.passes / asked.count:.4g} network passes"
        )
        return 0
    facts = produce(
        out, sampler.settings(), sampler.labels, sampler.draw, per=args.part or PER_PART, team=team, quiet=args.quiet
    )
    if facts is not None:
        print(f"{out}: {asked.count} pictures, {facts['nfe per sample']:.4g} evaluations a sample, "
              f"{facts['network passes per sample']:.4g} network passes")  # fmt: skip
    return 0


def _within(name: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise ConfigError(f"--{name} must be from 1 to {most}; got {value}.")


def _asked(args: Args, labels: str) -> Any:
    """The options as generate.Asked; what was not given keeps its default."""
    from secondlook.sample.classes import Asked, find, world_in

    if args.labels is not None and args.cls is not None:
        raise ConfigError("--class and --labels say the same; give one of them.")
    model = args.model or args.world
    if model is None:
        raise ConfigError("Give a prompt in quotes, or a class-conditional model: --model FILE or --world digits.")
    if model in MODELS and model not in ("digits", "glyphs"):
        raise ConfigError(f'The model "{model}" draws prompts; give one in quotes, or another --model.')
    given = {
        "solver": args.solver, "steps": args.steps, "shift": args.shift, "guidance": args.guidance, "weak": args.weak,
        "weak_scale": args.weak_scale, "preset": args.interval, "eps": args.eps, "last_step": args.last_step,
        "vae": args.vae, "world": args.world, "bf16": args.bf16, "compile": args.compile, "when": args.cfg_interval and tuple(args.cfg_interval),
        "labels": args.cls or args.labels or labels,
    }  # fmt: skip
    channels = _channels(args.cfg_channels)
    if args.weak_scale is not None and args.weak is None:
        raise ConfigError("--weak-scale wants --weak WEIGHTS.")
    asked = Asked(
        model, count=args.count, seed=args.seed, channels=channels, **{k: v for k, v in given.items() if v is not None}
    )
    if asked.guidance == 1.0 and (channels is not None or (asked.when is not None and asked.weak is None)):
        raise ConfigError("--cfg-channels and --cfg-interval want a guidance: --cfg SCALE.")
    if asked.world is None and asked.vae is None:
        return replace(asked, world=world_in(model, find(model)))
    return asked


def _channels(text: str | None) -> int | None:
    if text in (None, "all"):
        return None
    if not str(text).isdecimal() or int(str(text)) < 1:
        raise ConfigError(f'--cfg-channels wants "all" or how many, such as 3; got "{text}".')
    return int(str(text))


def encode(args: Args) -> int:
    from secondlook.train.encoding import PER_PART, Encoding
    from secondlook.train.encoding import encode as run

    _within("size", args.size, 8192)
    _within("part", args.part, 10**6)
    job = Encoding(
        Path(args.folder), args.vae, args.size, Path(args.out), args.mirrored, args.float32, args.part or PER_PART
    )
    print(f"{run(job, args.device)} pictures encoded in {args.out}")
    return 0


def import_weights(args: Args) -> int:
    from secondlook.models.importing import Import, run

    job = Import(args.layout, Path(args.file), Path(args.out), args.weights, args.narrow, args.heads, args.predicts,
                 args.path, args.reversed_time, args.null)  # fmt: skip
    print("\n".join(run(job)))
    return 0


class Only:
    """Features without what no asked metric reads, so that neither their cost nor their demands arise."""

    def __init__(self, inner: Any, wanted: set[str]):
        self.inner, self.wanted, self.name = inner, wanted, inner.name

    def __call__(self, pictures: Tensor) -> Any:
        found = self.inner(pictures)
        return replace(found, spatial=found.spatial if "sfid" in self.wanted else None,
                       logits=found.logits if "is" in self.wanted else None)  # fmt: skip


class WorldFeatures:
    """The shipped feature network of a world, in the form that evaluation takes."""

    def __init__(self, world: str):
        from secondlook.verify.classify import features

        self.name, self.inner = f"{world}-features", features(world)

    def __call__(self, pictures: Tensor) -> Any:
        from secondlook.metrics.features import Extracted

        pool, logits = self.inner(pictures)
        return Extracted(pool, None, logits)


def features_of(text: str, device: torch.device) -> Any:
    """`inception=FILE`, `digits` or `glyphs`; ConfigError for another."""
    name, _, file = text.partition("=")
    if name == "inception" and file:
        from secondlook.metrics.inception import Inception

        return Inception.load(file, device)
    if text in ("digits", "glyphs"):
        return WorldFeatures(text)
    if name == "inception":
        raise ConfigError("The Inception network's weights are not shipped: --features inception=FILE.")
    raise ConfigError(f'There are no features "{text}"; {nearest(text, ("inception=FILE", "digits", "glyphs"))}')


def evaluate(args: Args) -> int:
    from secondlook.metrics.features import Evaluation, Reference, show

    wanted = args.metrics.split(",")
    unknown = [m for m in wanted if m not in METRICS]
    if unknown:
        raise ConfigError(f'There is no metric "{unknown[0]}"; {nearest(unknown[0], METRICS)}')
    _within("rows", args.rows, 4096)
    for file in (args.samples, args.reference):
        if not Path(file).is_file():
            raise ConfigError(f'There is no file "{file}"; give an .npz.')
    if args.out and (Path(args.out).is_dir() or not Path(args.out).resolve().parent.is_dir()):
        raise ConfigError(f'--out wants a file in an existing folder, for the scores as JSON; got "{args.out}".')
    singles = bool({"pr", "dc"} & set(wanted))
    evaluation = Evaluation(
        Only(features_of(args.features, Team.here().device(args.device)), set(wanted)), args.rows or 64
    )
    try:  # statistics alone, where they are enough: a reference's pictures take long to look at
        held = evaluation.reference(args.reference) if singles else Reference.load(args.reference)
    except ConfigError:
        held = evaluation.reference(args.reference)
    report = evaluation.report(args.samples, held if singles else replace(held, features=None))
    scores = {key: getattr(report, key) for metric in wanted for key in METRICS[metric]}
    for key, value in scores.items():
        print(f"{key.replace('_', ' '):<20}{show(value)}")
    print(report.text.splitlines()[-1])
    if args.out:
        about = {
            "samples": args.samples,
            "reference": args.reference,
            "features": report.features,
            "pictures": report.pictures,
        }
        Path(args.out).write_text(json.dumps({**about, **scores}, indent=1) + "\n")
    return 0
