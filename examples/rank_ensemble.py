"""Several judges choose together: python examples/rank_ensemble.py [--model FOLDER_OR_HUB_ID] [--of JUDGES] [--out DIR]

Each judge is fooled in a way of its own: PickScore likes what people click on, CLIP what the words name, the aesthetic predictor what
looks like a poster. A picture that all of them rank high is seldom one that fools them. ``rank`` hands over each one's number, and the
selector rank_mean takes the best mean rank (the verifier ensemble of 2501.09732). What a judge that had no part says, stands beside it.
"""

import argparse
from pathlib import Path

import secondlook
from secondlook.engine.record import Record
from secondlook.engine.store import Store

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="Efficient-Large-Model/Sana_1600M_1024px_diffusers")
parser.add_argument("--prompt", default="two cats and a dog on a blue ball")
parser.add_argument(
    "--of",
    default="pickscore, clip, aesthetic",
    help="verifiers, separated by commas, each with its options in brackets",
)
parser.add_argument("--n", type=int, default=16, help="pictures to choose from")
parser.add_argument("--out", type=Path, default=Path("runs/ranked"))
parser.add_argument("--steps", type=int)
a = parser.parse_args()

model = secondlook.load(a.model)
[result] = secondlook.draw(
    a.prompt, f"random(n={a.n})", a.out, model=model, verifier=f"rank(of={a.of!r})", steps=a.steps
)
result.save(a.out / "best.png")

outcomes = {o.id: o for o in Record.read(Store.open(a.out)).of(0)}
numbers = {name: {i: o.components[name] for i, o in outcomes.items()} for name in outcomes[result.outcome].components}
places = {name: sorted(some, key=lambda i, some=some: -some[i]) for name, some in numbers.items()}
said = [
    f"{name} {numbers[name][result.outcome]:.4g} (place {places[name].index(result.outcome) + 1})" for name in numbers
]
print(f"Outcome {result.outcome} is chosen: {', '.join(said)}")
for name in numbers:
    alone = places[name][0]
    print(f"{name} alone takes outcome {alone}:", ", ".join(f"{n} {some[alone]:.4g}" for n, some in numbers.items()))
