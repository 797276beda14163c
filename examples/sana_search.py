"""A minute of search for each prompt on SANA: python examples/sana_search.py [FOLDER_OR_HUB_ID] [--seconds S] [--out DIR]

Zero-order search climbs from a noise to better ones near it. The clock is the budget, each prompt has its own, and rows of all
prompts share the network's batches. Interrupted? ``secondlook.resume(out)`` goes on where it stopped.
"""

import argparse
from pathlib import Path

import secondlook

PROMPTS = [
    "a red fox in the snow, golden hour",
    "two cats and a dog on a blue ball",
    "a lighthouse in a storm, oil on canvas",
]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="Efficient-Large-Model/Sana_1600M_1024px_diffusers")
parser.add_argument("--seconds", type=float, default=60.0, help="for each prompt")
parser.add_argument("--verifier", default="sharpness", help="a built-in one, or your own: package.module:attribute")
parser.add_argument("--out", type=Path, default=Path("runs/sana"))
parser.add_argument("--steps", type=int, help="default: the pipeline's own, 20")
a = parser.parse_args()

model = secondlook.load(a.model)  # bfloat16 on a GPU
results = secondlook.draw(
    PROMPTS,
    "zero_order(neighbours=4)",
    a.out,
    model=model,
    verifier=a.verifier,
    seconds=a.seconds,
    steps=a.steps,
    rows=8,
)
for i, result in enumerate(results):
    spent = result.spent
    print(f"{result.prompt}: {a.verifier} {result.plain_score:.4f} -> {result.score:.4f}; {spent.verdicts} pictures, "
          f"{spent.evals} network passes, {spent.seconds:.1f} s")  # fmt: skip
    result.save(a.out / f"best-{i}.png")
max(results, key=lambda r: r.score - r.plain_score).save(a.out / "best.png")  # what the search improved most
print(secondlook.write_report(a.out))
