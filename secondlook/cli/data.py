"""Commands about data, weights and scores: encode, import, evaluate, prompts, list."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from secondlook import registry
from secondlook.disk.team import Team
from secondlook.errors import ConfigError, nearest

Args = argparse.Namespace
IMPORTS = {  # layouts that need no options
    "inception": "secondlook.metrics.inception:import_inception",
    "classifier": "secondlook.eyes.imagenet:import_classifier",
}
METRICS = {
    "fid": ("fid",), "sfid": ("sfid",), "is": ("inception_score", "inception_score_std"), "pr": ("precision", "recall"),
    "dc": ("density", "coverage"),
}  # fmt: skip


def within(name: str, value: int | None, most: int) -> None:
    if value is not None and not 1 <= value <= most:
        raise ConfigError(f"--{name} must be from 1 to {most}; got {value}.")


def encode(args: Args) -> int:
    from secondlook.train.encoding import PER_PART, Encoding
    from secondlook.train.encoding import encode as run

    within("size", args.size, 8192)
    within("part", args.part, 10**6)
    job = Encoding(
        Path(args.folder), args.vae, args.size, Path(args.out), args.mirrored, args.float32, args.part or PER_PART
    )
    print(f"{run(job, args.device)} pictures encoded in {args.out}")
    return 0


def import_weights(args: Args) -> int:
    if args.layout in IMPORTS:
        module, attribute = IMPORTS[args.layout].split(":")
        lines: list[str] = getattr(import_module(module), attribute)(Path(args.file), Path(args.out))
        print("\n".join(lines))
        return 0
    from secondlook.models.importing import Import, run

    job = Import(args.layout, Path(args.file), Path(args.out), args.weights, args.narrow, args.heads, args.predicts,
                 args.path, args.reversed_time, args.null)  # fmt: skip
    print("\n".join(run(job)))
    return 0


def evaluate(args: Args) -> int:
    from secondlook.metrics.features import Evaluation, Reference, show
    from secondlook.metrics.world import SelectedFeatures, features_of

    wanted = args.metrics.split(",")
    unknown = [m for m in wanted if m not in METRICS]
    if unknown:
        raise ConfigError(f'There is no metric "{unknown[0]}"; {nearest(unknown[0], METRICS)}')
    within("rows", args.rows, 4096)
    for file in (args.samples, args.reference):
        if not Path(file).is_file():
            raise ConfigError(f'There is no file "{file}"; give an .npz.')
    if args.out and (Path(args.out).is_dir() or not Path(args.out).resolve().parent.is_dir()):
        raise ConfigError(f'--out expects a file in an existing folder, for the scores as JSON; got "{args.out}".')
    singles = bool({"pr", "dc"} & set(wanted))
    evaluation = Evaluation(
        SelectedFeatures(features_of(args.features, Team.here().device(args.device)), set(wanted)), args.rows or 64
    )
    try:  # statistics alone, where they are enough: a reference's pictures take long to look at
        held = evaluation.reference(args.reference) if singles else Reference.load(args.reference)
    except ConfigError:
        held = evaluation.reference(args.reference)
    report = evaluation.report(args.samples, held if singles else replace(held, features=None))
    scores = {key: getattr(report, key) for metric in wanted for key in METRICS[metric]}
    for key, value in scores.items():
        print(f"{key.replace('_', ' '):<20}{show(value)}")
    if "is" in wanted and report.inception_score is None:
        print("The Inception score is not available with these weights: they have no last layer, so no classes.")
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


def prompts(args: Args) -> int:
    from secondlook.worlds.scenes.prompts import SETS, prompt_set

    if args.set not in SETS:
        raise ConfigError(f'There is no prompt set "{args.set}"; {nearest(args.set, SETS)}')
    for prompt in prompt_set(args.set):
        print(json.dumps(prompt.metadata()))
    return 0


def show(args: Args) -> int:
    """`secondlook list WHAT`."""
    for name, about in registry.listing(args.what):
        print(f"{name:<16}{about}")
    return 0
