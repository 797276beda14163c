"""Ten lines: search for a picture, look at what it cost, keep the best."""

import sys

import secondlook

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/first-search"
[result] = secondlook.draw("a red circle left of a blue square", "zero_order(neighbours=4)", folder, nfe=200)
print(
    f"score {result.plain_score:.3f} -> {result.score:.3f}, verdicts {result.verdicts}, {result.spent.evals} evaluations"
)
result.save(f"{folder}/best.png")
