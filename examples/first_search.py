"""Ten lines: search for a picture, look at what it cost, keep the best."""

import sys

import secondlook

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/first-search"
found = secondlook.draw(
    "a red circle left of a blue square", "evolve()", folder, evals=320, steps=3, cfg_interval=(0, 0.3)
)
[result] = found
print(
    f"score {result.plain_score:.3f} -> {result.score:.3f}, verdicts {result.verdicts}, {result.spent.evals} evaluations"
)
result.save(f"{folder}/winner.png")
