"""Path search on a pipeline as you have set it up: python examples/sdxl_search.py [FOLDER_OR_HUB_ID] [--lora L] [--out DIR]

The scheduler and the LoRA that you gave the pipeline are those that the search uses: DPM-Solver++ at Karras' times here. Path
search runs a few noises a part of the way, takes each back with fresh noise, and goes on with the best of what it then sees.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

import secondlook

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", default="stabilityai/stable-diffusion-xl-base-1.0")
parser.add_argument("--prompt", default="a photo of a red cat on a blue cube")
parser.add_argument("--negative", default="blurry, low contrast")
parser.add_argument("--lora", help="a folder, file or hub id")
parser.add_argument("--out", type=Path, default=Path("runs/sdxl"))
parser.add_argument("--steps", type=int, default=25)
parser.add_argument("--samples", type=int, default=12, help="the budget, in pictures' worth of steps")
a = parser.parse_args()

gpu = torch.cuda.is_available()
pipe = DiffusionPipeline.from_pretrained(a.model, dtype=torch.bfloat16 if gpu else torch.float32)
pipe.to("cuda" if gpu else "cpu")
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
if a.lora:
    pipe.load_lora_weights(a.lora)

model = secondlook.load(pipe, negative=a.negative)  # the object itself, as it is
[result] = secondlook.draw(
    a.prompt,
    "paths(n=4, width=2, start=0.3, back=0.2, ahead=0.3)",
    a.out,
    model=model,
    verifier="sharpness",
    nfe=a.samples * a.steps,
    steps=a.steps,
    rows=8,
)
spent = result.spent
print(f"{model.solver()}: sharpness {result.plain_score:.4f} -> {result.score:.4f} for {spent.nfe} of "
      f"{a.samples * a.steps} evaluations ({spent.evals} network passes), {spent.seconds:.1f} s")  # fmt: skip
result.save(a.out / "best.png")
print(f"{a.out / 'best.png'}, {secondlook.write_report(a.out)}")
