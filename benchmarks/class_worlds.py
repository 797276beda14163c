"""The shipped class-conditional models, measured: python benchmarks/class_worlds.py --out docs/results/classes.json

For Digits and Glyphs, without and with guidance: Frechet distance in the world's feature network and the scores beside it, the share
that the judge (and, in Glyphs, the exact checker) finds right, and, in Digits, whose training pictures are few, how near samples lie to
them. Then best of 8 under the guiding classifier, seen by the judge and the checker, which did not guide.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook import api
from secondlook.backends.find import find
from secondlook.disk.versions import commit
from secondlook.metrics import Evaluation, memorisation
from secondlook.metrics.world import WorldFeatures
from secondlook.sample.draws import sampler
from secondlook.settings import Settings
from secondlook.types import Condition
from secondlook.verify import classify
from secondlook.worlds import glyphs
from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import Glyphs

HALF = math.log(0.5)


def real(world: str) -> tuple[Tensor, Tensor]:
    """Pictures to compare with and pictures of the same law that nothing saw."""
    if world == "digits":
        return Digits().train()[0], Digits().test()[0]
    return Glyphs().pictures(2**40, 0, 2000)[0], Glyphs().pictures(2**40, 1, 2000)[0]


def scores(world: str, pictures: Tensor, labels: Tensor) -> dict[str, Any]:
    mixed = torch.randperm(
        len(labels), generator=torch.Generator().manual_seed(0)
    )  # the Inception score's splits are of neighbours
    pictures, labels = pictures[mixed], labels[mixed]
    reference, held_out = real(world)
    report = Evaluation(WorldFeatures(world)).report([pictures], [reference])
    verdicts = classify.judge(world)(pictures, [Condition(label=int(i)) for i in labels])
    found: dict[str, Any] = {
        k: getattr(report, k) for k in ("fid", "inception_score", "precision", "recall", "density", "coverage")
    }
    found["judge right"] = float((verdicts > HALF).double().mean())
    if world == "glyphs":
        found["checker right"] = float(glyphs.check(pictures.numpy(), labels.numpy()).mean())
    else:
        near = memorisation(reference, held_out, pictures)
        found["memorised share"], found["distance ratio"] = near.share, near.ratio
    return found


def plain(world: str, guidance: float, each: int, seed: int) -> dict[str, Any]:
    """``each`` samples a class, Euler steps as the world's defaults have them."""
    classes = len(classify.world_of(world).classes)
    s = Settings([str(i) for i in range(classes)], world=world, guidance=guidance, seed=seed, rows=128, bf16=False)
    backend = find(None, s)
    made = sampler(s.filled(backend.usual(s)), backend, each)
    pictures = torch.from_numpy(made.draw_plain(range(made.count))[0]).contiguous()
    return scores(world, pictures, torch.arange(classes).repeat_interleave(each))


def search(world: str, each: int, seed: int) -> dict[str, Any]:
    """Best of 8 under the guiding classifier against the first of the 8, same noises, no guidance of the flow."""
    classes = len(classify.world_of(world).classes)
    asked = [str(i) for i in range(classes) for _ in range(each)]
    with tempfile.TemporaryDirectory() as folder:
        found = api.draw(asked, "random(n=8)", Path(folder) / "run", world=world, guidance=1.0, seed=seed)
    judged = [
        np.array([v["judge"] > 0.5 for v in vs])
        for vs in ([r.plain_verdicts for r in found], [r.verdicts for r in found])
    ]
    out: dict[str, Any] = {"searches": len(found), "judge right": [float(j.mean()) for j in judged]}
    out["judge mean p"] = [
        float(np.mean([v["judge"] for v in vs]))
        for vs in ([r.plain_verdicts for r in found], [r.verdicts for r in found])
    ]
    if world == "glyphs":
        out["checker right"] = [
            float(np.mean([r.plain_verdicts["checker"] for r in found])),
            float(np.mean([r.verdicts["checker"] for r in found])),
        ]
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", type=int, help="samples a class (default: 100 of digits, 32 of glyphs)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"commit": commit(), "seed": args.seed, "command": "python benchmarks/class_worlds.py"}
    for world, each in (("digits", 100), ("glyphs", 32)):
        each = args.each or each
        reference, held_out = real(world)
        result[world] = {
            "samples": each * len(classify.world_of(world).classes),
            "reference": len(reference),
            "held-out real pictures": {
                "count": len(held_out),
                "fid": Evaluation(WorldFeatures(world)).report([held_out], [reference]).fid,
            },
            "plain": {str(g): plain(world, g, each, args.seed) for g in (1.0, 1.5, 2.5)},
            "best of 8": search(world, 20 if world == "digits" else 6, args.seed),
        }
        print(json.dumps({world: result[world]}, indent=1), flush=True)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
