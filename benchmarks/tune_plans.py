"""Plan options at equal cost on scenes-dev: how the first defaults were chosen (20 steps a sample). Writes nothing but a table.

python benchmarks/tune_plans.py --samples 8 --each 20 "random(n=8)" "zero_order(radius=0.5)" "paths(width=3)"
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from secondlook import api
from secondlook.bench.scenes import lines
from secondlook.bench.stats import interval, macro

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+")
    parser.add_argument("--samples", type=int, default=8, help="samples' worth of evaluations a prompt")
    parser.add_argument("--each", type=int, default=20, help="prompts of each task")
    parser.add_argument("--verifier", default="learned")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    prompts, tasks = lines("scenes-dev", args.each)
    for plan in args.plans:
        with tempfile.TemporaryDirectory() as folder:
            found = api.draw(prompts, plan, Path(folder) / "run", nfe=args.samples * STEPS, steps=STEPS,
                             verifier=args.verifier, seed=args.seed)  # fmt: skip
        checker = np.array([r.verdicts["checker"] for r in found])
        low, high = interval(checker, tasks)
        print(f"{plan:<64} checker {macro(checker, tasks):.3f} ({low:.3f} to {high:.3f})  "
              f"judge {np.mean([r.verdicts['judge'] for r in found]):.3f}  "
              f"verifier {np.mean([r.score for r in found]):.3f}  "
              f"evals {np.mean([r.spent.evals for r in found]):.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
