"""Best of n on FLUX.1 with a verifier of one's own: python examples/flux_search.py [FOLDER_OR_HUB_ID] [--out DIR]

FLUX's guidance is distilled: the network is shown it, and a step costs one pass. The text encoders (10 GB) leave the GPU once
the prompt is encoded, which happens once and not once a picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import secondlook
from secondlook.types import Condition


class Standout:
    """How far a picture's middle is from the whole in mean colour: [B], 0 to about 1. Put your own taste here: an aesthetic
    model, a CLIP score (``conditions[i].prompt`` is the text), anything that gives a number for a picture."""

    name = "standout"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        x = samples.double() / 255  # from uint8 [B, H, W, 3]
        h, w = x.shape[1] // 4, x.shape[2] // 4
        return (x[:, h:-h, w:-w].mean((1, 2)) - x.mean((1, 2))).norm(dim=1)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="black-forest-labs/FLUX.1-dev")
parser.add_argument("--prompt", default="a photo of a red ball on a blue cube")
parser.add_argument("--out", type=Path, default=Path("runs/flux"))
parser.add_argument("-n", type=int, default=8, help="pictures to choose from")
parser.add_argument("--size", type=int, help="of pictures, in pixels (default: the pipeline's own, 1024)")
parser.add_argument("--steps", type=int, help="default: the pipeline's own, 28")
a = parser.parse_args()

model = secondlook.load(a.model, height=a.size, width=a.size, free_text=True)  # in bfloat16 where there is a GPU
print(model)
[result] = secondlook.draw(
    a.prompt, f"random(n={a.n})", a.out, model=model, verifier=Standout(), guidance=3.5, steps=a.steps, rows=4
)
spent = result.spent
print(
    f"standout {result.plain_score:.4f} -> {result.score:.4f} for {spent.evals} network passes, {spent.seconds:.1f} s"
)
result.save(a.out / "best.png")
print(f"{a.out / 'best.png'}, {secondlook.write_report(a.out)}")
