"""The base model without search: checker score on a prompt set, several samples a prompt.

    python -m secondlook.bench.base --split scenes-dev --samples 20 --results docs/results/base.json

Also the sweep that chose guidance and steps: `--guidance 3 --steps 20 --shift 3`, one command a setting.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import secondlook
from secondlook.api import build_rig, tasks_of
from secondlook.backends.scenes import Scenes
from secondlook.bench.stats import interval, macro
from secondlook.disk.versions import commit
from secondlook.settings import Settings
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.prompts import prompt_set


def draw(split: str, every: int, s: Settings, samples: range) -> np.ndarray:
    """Whether the checker finds each prompt's samples of these numbers right: float64 [prompts, len(samples)]."""
    prompts = prompt_set(split)[::every]
    backend = Scenes(s.model)
    rig = build_rig(s, backend)
    tasks = tasks_of(s, backend, rig.times)
    columns = []
    for k in samples:
        pictures = rig.finish([rig.start(t.key.child("draw", k)) for t in tasks], [t.condition for t in tasks])
        columns.append(check(pictures, prompts).astype(float))
        print(f"sample {k}: mean {columns[-1].mean():.3f}", file=sys.stderr, flush=True)
    return np.stack(columns, 1)


def score(args: argparse.Namespace) -> dict[str, object]:
    """Draw, check, and average: shares by task, macro and per-prompt means with 95 % intervals over prompts."""
    prompts = prompt_set(args.split)[:: args.every]
    s = Settings([p.text for p in prompts], model=args.model, steps=args.steps, guidance=args.guidance,
                 shift=args.shift, seed=args.seed, threads=None if args.workers == 1 else 1)  # fmt: skip
    s = s.filled(Scenes(s.model).usual(s))
    begin = time.perf_counter()
    jobs = [(args.split, args.every, s, range(w, args.samples, args.workers)) for w in range(args.workers)]
    if args.workers == 1:
        parts = [draw(*jobs[0])]
    else:
        with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
            parts = [f.result() for f in [pool.submit(draw, *job) for job in jobs]]
    right = np.concatenate(parts, 1)
    seconds = time.perf_counter() - begin
    tags, mean = [p.tag for p in prompts], right.mean(1)
    if "hard" in args.split:
        tags = [f"{p.atoms} atoms" for p in prompts]
    names = np.asarray(tags)
    held = np.array([p.held_out for p in prompts])
    return {
        "command": f"python -m secondlook.bench.base --split {args.split} --samples {args.samples} --every {args.every} "
        f"--guidance {args.guidance} --steps {args.steps} --shift {args.shift} --seed {args.seed}",
        "version": secondlook.__version__,
        "commit": commit(),
        "prompts": len(prompts),
        "by_task": {t: round(float(mean[names == t].mean()), 3) for t in dict.fromkeys(tags)},
        "macro": round(macro(mean, tags), 3),
        "macro_95": [round(v, 3) for v in interval(mean, tags)],
        "per_prompt": round(float(mean.mean()), 3),
        "held_out": round(float(mean[held].mean()), 3) if held.any() else None,
        "best_of_all": round(macro(right.max(1), tags), 3),
        "seconds": round(seconds, 1),
        "bf16": s.bf16,
        "rows": s.rows,
        "threads": s.threads,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="scenes-dev")
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--every", type=int, default=1, help="take each EVERY-th prompt")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--guidance", type=float, default=Scenes.defaults["guidance"])
    parser.add_argument("--steps", type=int, default=Scenes.defaults["steps"])
    parser.add_argument("--shift", type=float, default=Scenes.defaults["shift"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--results", help="a JSON file to write")
    args = parser.parse_args()
    text = json.dumps(score(args), indent=1)
    if args.results:
        Path(args.results).write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
