"""Names, where they live and what they are. Literal tables, one row a thing, so that listing costs no import;
`module:attr` reaches other packages."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from secondlook.errors import ConfigError, nearest


class Row(NamedTuple):
    """target: `module:attr`. about: one line for `secondlook list`."""

    target: str
    about: str


PLANS = {
    "random": Row("secondlook.plans.random:random", "best of n fresh noises (2501.09732)"),
    "zero_order": Row("secondlook.plans.zero_order:zero_order", "local search around a pivot noise (2501.09732)"),
    "ascend": Row(
        "secondlook.plans.ascend:ascend",
        "first-order search: the noise follows the gradient of the score (2501.09732, ReNO 2406.04312)",
    ),
    "eps_greedy": Row(
        "secondlook.plans.zero_order:eps_greedy", "local search of which some neighbours are fresh noise (2506.03164)"
    ),
    "trust_region": Row(
        "secondlook.plans.trust_region:trust_region",
        "local search around the best few noises, each as wide as it wins (TRS 2603.14504)",
    ),
    "low_band": Row(
        "secondlook.plans.low_band:low_band", "cross-entropy over the noise's low frequencies (SES 2602.03208)"
    ),
    "mcmc": Row(
        "secondlook.plans.mcmc:mcmc",
        "Markov chains on the noise: slice sampling or Crank-Nicolson (1001.0175, ESS-Flow 2510.05849)",
    ),
    "paths": Row(
        "secondlook.plans.paths:paths", "search over paths: re-noise half-made pictures and keep the best (2501.09732)"
    ),
    "draft": Row(
        "secondlook.plans.draft:draft", "cheap drafts with few steps, the best drawn again in full (2607.04461)"
    ),
    "halving": Row("secondlook.plans.halving:halving", "successive halving on half-made pictures (1502.07943)"),
    "children": Row(
        "secondlook.plans.children:children",
        "one path that splits and goes on with a child (SVDD 2408.08252, CoDe 2502.00968)",
    ),
    "particles": Row(
        "secondlook.plans.particles:particles", "sequential Monte Carlo, Feynman-Kac steering (2501.06848)"
    ),
    "fk": Row("secondlook.plans.steering:fk", "Feynman-Kac steering as published (2501.06848), a setting of particles"),
    "fk_released": Row(
        "secondlook.plans.steering:fk_released",
        "Feynman-Kac steering as its released code does it, for comparison; misses its law",
    ),
    "das": Row("secondlook.plans.steering:das", "tempered particles without the gradient (DAS 2501.05803)"),
    "bfs": Row(
        "secondlook.plans.steering:bfs", "breadth-first search: tempered particles, largest scores, SSP (2505.23614)"
    ),
    "funnel": Row(
        "secondlook.plans.steering:funnel", "particles whose number shrinks on the way, at the same cost (2508.12361)"
    ),
    "svdd": Row("secondlook.plans.children:svdd", "children at every step, the best goes on (SVDD-PM 2408.08252)"),
    "code": Row("secondlook.plans.children:code", "children once a block of steps, the best goes on (CoDe 2502.00968)"),
    "rollover": Row(
        "secondlook.plans.one_path:rollover",
        "one path, children until one beats the best so far, the quota's rest rolls over (RBF 2503.19385)",
    ),
    "threshold": Row(
        "secondlook.plans.one_path:threshold",
        "one path, tries at each step until one scores enough (Verifier-Threshold 2512.08985)",
    ),
    "depth_first": Row(
        "secondlook.plans.depth_first:depth_first",
        "one path that goes back in time where it looks bad (DFS 2505.23614)",
    ),
    "beam": Row("secondlook.plans.beam:beam", "beam search over half-made pictures (2503.02039 with constant widths)"),
    "tree": Row("secondlook.plans.tree:tree", "Monte Carlo tree search by finished pictures' scores (DTS, 2506.20701)"),
    "evosearch": Row(
        "secondlook.plans.evosearch:evosearch",
        "generations at a few places on the path, selected on finished pictures (2505.17618)",
    ),
    "evolve": Row(
        "secondlook.plans.evolve:evolve",
        "the best pictures taken back in time and drawn on, again and again (2505.17618)",
    ),
    "tournament": Row(
        "secondlook.plans.tournament:tournament",
        "fresh noises that a comparer judges in pairs: knock-out or Swiss (2501.13007)",
    ),
    "calibrate": Row(
        "secondlook.plans.calibrate:calibrate",
        "fresh noises looked at at every time of the grid: how early scores can be trusted",
    ),
    "self_supervised": Row(
        "secondlook.plans.self_supervised:self_supervised",
        "best of n by how like each picture is to its own early estimate; reads no prompt (2501.09732)",
    ),
    "reflect": Row(
        "secondlook.plans.reflect:reflect",
        "hear what is wrong, show the model its tries, draw again until nothing is (Reflect-DiT 2503.12271)",
    ),
}
SOLVERS = {
    "euler": Row("secondlook.solvers.ode:Euler", "first-order ODE, one evaluation a step"),
    "heun": Row("secondlook.solvers.ode:Heun", "second-order ODE, two evaluations a step"),
    "rk4": Row("secondlook.solvers.ode:RK4", "fourth-order ODE, four evaluations a step"),
    "dopri5": Row("secondlook.solvers.adaptive:Dopri5",
                  "adaptive ODE, the step chosen for each row alone; for sample, not for searches (its cost is not known before)"),
    "sde": Row("secondlook.solvers.sde:EulerMaruyama", "Euler-Maruyama on SiT's SDE, one evaluation a step"),
    "sde_heun": Row("secondlook.solvers.sde:StochasticHeun", "stochastic Heun on SiT's SDE, two evaluations a step"),
    "glass": Row("secondlook.solvers.glass:Glass",
                 "transitions that keep the flow's law, drawn by an inner ODE (GLASS 2509.25170); inner=2 evaluations a step"),
    "renoise": Row("secondlook.solvers.glass:Renoise",
                   "fresh noise on the data estimate, as diffusers' stochastic_sampling and FlowCPS (2509.05952); misses the flow's law"),
    "ddim": Row("secondlook.solvers.ddpm:DDIM",
                "DDIM (2010.02502): exponential first-order step; eta from 0 (no noise) to 1 (ancestral), one evaluation a step"),
    "ddpm": Row("secondlook.solvers.ddpm:Ancestral",
                "DDPM's ancestral steps (2006.11239), variance learned, small or large, one evaluation a step"),
    "dpmpp": Row("secondlook.solvers.dpm:DPMpp",
                 "DPM-Solver++ (2211.01095): second-order multistep, one evaluation a step; eta from 0 (ODE) to 1 (SDE)"),
}  # fmt: skip
VERIFIERS = {
    "learned": Row("secondlook.verify.builtin:learned", "the shipped verifier of the world scenes: a network that reads picture and prompt; guides"),
    "detector": Row("secondlook.verify.builtin:detector",
                    "scenes: a network detects objects, fixed rules hold them against the prompt; guides"),
    "weak": Row("secondlook.verify.builtin:weak", "scenes: an early checkpoint of the verifier, for studies of verifier hacking"),
    "judge": Row("secondlook.verify.builtin:judge",
                 "the shipped held-out judge: a network of another kind, taught with other pictures, never used for selection"),
    "oracle": Row("secondlook.verify.builtin:oracle", "the world's exact checker; as a guide it is labelled so: a bound for plans that choose among finished pictures"),
    "oracle_is": Row("secondlook.verify.by_features:oracle_is",
                     "digits, glyphs: the class's probability under the network that measures sets; labelled so where it guides"),
    "brightness": Row("secondlook.verify.measures:Brightness", "mean luma, 0 to 1; knows nothing of the prompt: for trying things out"),
    "sharpness": Row("secondlook.verify.measures:Sharpness", "spread of the luma's Laplacian; knows nothing of the prompt: for trying things out"),
    "compressibility": Row("secondlook.verify.measures:Compressibility",
                           "minus the JPEG's kilobytes, sign=-1: plus (2305.13301); knows nothing of the prompt: for trying things out"),
    # Of published weights: what is read, the licence of the weights as their authors state it, what is downloaded (docs/judges.md).
    "clip": Row("secondlook.eyes.clip:clip", "CLIPScore (2104.08718): reads picture and prompt; CLIP ViT-L/14, MIT, 1.7 GB"),
    "siglip": Row("secondlook.eyes.clip:siglip", "SigLIP 2 (2502.14786): reads picture and prompt; so400m at 384 px, Apache-2.0, 4.5 GB"),
    "pickscore": Row("secondlook.eyes.clip:pickscore", "people's choices (2305.01569): reads picture and prompt; CLIP-H, MIT, 3.9 GB"),
    "hpsv2": Row("secondlook.eyes.clip:hpsv2", "people's rankings, HPS v2.1 (2306.09341): reads picture and prompt; CLIP-H, Apache-2.0, 2.0 GB"),
    "imagereward": Row("secondlook.eyes.imagereward:imagereward",
                       "people's ratings (2304.05977): reads picture and prompt together; BLIP, Apache-2.0, 1.8 GB"),
    "aesthetic": Row("secondlook.eyes.heads:aesthetic",
                     "LAION's aesthetic predictor v2: reads the picture alone; Apache-2.0, 4 MB on clip's 1.7 GB"),
    "geneval": Row("secondlook.eyes.fields:geneval",
                   "GenEval's yes or no for prompts of its own file: a detector, and a CLIP for colours (2310.11513)"),
    "geneval2": Row("secondlook.eyes.fields:geneval2",
                    "GenEval 2's means over its questions, asked of a judge that answers them (2512.16853)"),
    "objects": Row("secondlook.eyes.objects:objects",
                   "counts, colours and places by a detector: reads prompts of GenEval's kinds (2310.11513); OWLv2, Apache-2.0, 0.6 GB, and clip's 1.7 GB"),
    "classes": Row("secondlook.eyes.classes:classes",
                   "log probability of the class asked for: reads picture and class; DINOv2 with an ImageNet head, Apache-2.0, 0.35 GB"),
    "imagenet": Row("secondlook.eyes.imagenet:imagenet",
                    "log probability of the class asked for, without transformers: imagenet(weights='FILE') of MobileNetV2 or EfficientNet-Lite0"),
    "rank": Row("secondlook.eyes.ensemble:rank", "several verifiers with each one's number; the selector rank_mean decides (2501.09732): "
                "rank(of='pickscore, clip, aesthetic')"),
    "mean": Row("secondlook.eyes.ensemble:mean", "the mean z-score of several verifiers: mean(of='pickscore, clip')"),
    "min": Row("secondlook.eyes.ensemble:least", "the smallest z-score of several verifiers: min(of='pickscore, clip')"),
}  # fmt: skip
SELECTORS = {
    "best": Row("secondlook.engine.select:Best", "the highest score of each prompt"),
    "accepted": Row(
        "secondlook.engine.select:Accepted", "the first picture whose score reaches a threshold, else the best"
    ),
    "last": Row("secondlook.engine.select:Last", "the last picture that each prompt's plan finished"),
    "rank_mean": Row(
        "secondlook.engine.select:RankMean", "the best mean rank in the score and the verifier's components"
    ),
    "diverse": Row("secondlook.engine.select:Diverse", "pictures of each prompt that are good and differ"),
    "greedy_fid": Row(
        "secondlook.engine.select:GreedyFID", "one picture a prompt so that all of them are near a reference (FID)"
    ),
}
CRITICS = {  # of the world scenes
    "learned": Row("secondlook.critics.scenes:learned", "scenes: a network looks, decides and writes what is wrong; weights=FILE: another's"),
    "detector": Row("secondlook.critics.scenes:detector", "scenes: what the shipped verifier's network detects, put into words by fixed rules"),
    "oracle": Row("secondlook.critics.scenes:oracle", "scenes: what the exact checker sees, put into words; labelled so"),
}  # fmt: skip
COMPARERS = {
    "similarity": Row(
        "secondlook.verify.by_features:similarity",
        "how alike two pictures are, by features (digits, glyphs) or pixels: (1 + cosine) / 2",
    ),
    "dino": Row(
        "secondlook.eyes.compare:dino",
        "how alike two pictures are to DINOv2 (2304.07193): (1 + cosine) / 2; Apache-2.0, 0.35 GB",
    ),
    "clip": Row(
        "secondlook.eyes.compare:clip", "how alike two pictures are to CLIP ViT-L/14: (1 + cosine) / 2; MIT, 1.7 GB"
    ),
    "learned": Row("secondlook.verify.compare:learned", "scenes: the shipped verifier's logits, by their difference"),
    "by_score": Row(
        "secondlook.verify.compare:by_score",
        "the scores of any verifier, by their difference: by_score(verifier='sharpness', scale=1.0)",
    ),
}
WORLDS = {  # what can be drawn in; each row's backend says all else of a world
    "scenes": Row("secondlook.backends.scenes:Scenes", "text-to-image: coloured shapes, counts and relations, 64 x 64"),
    "digits": Row(
        "secondlook.backends.digits:Digits",
        "classes 0 to 9: handwritten digits, 8 x 8, real data; a stand-in for ImageNet",
    ),
    "glyphs": Row(
        "secondlook.backends.glyphs:Glyphs",
        "32 classes: one coloured shape, 32 x 32, unlimited data; a stand-in for ImageNet",
    ),
}
_DATA = Path(__file__).parent / "data"
_WEIGHTS = {
    **{name: f"{name}-base.safetensors" for name in WORLDS},
    "scenes-tuned": "scenes-tuned.safetensors",
    "scenes-edit": "scenes-edit.safetensors",
}
MODELS = {name: file for name, file in _WEIGHTS.items() if (_DATA / file).is_file()}  # shipped weights, by name
MODELS_ABOUT = {
    "scenes-tuned": "scenes, trained on with hard prompts",
    "scenes-edit": "scenes, trained to mend: it is shown its last try and a remark on it, for reflect",
}
PIPELINES = {  # what --model takes from diffusers, and the adapters that take it
    "sana": "SanaPipeline (SANA 1.0 and 1.5): flow, DPM-Solver++ or Euler",
    "flux": "FluxPipeline (FLUX.1 dev and schnell): flow, packed latents, distilled and true guidance",
    "sd3": "StableDiffusion3Pipeline (SD3 and 3.5): flow, three text encoders",
    "pixart": "PixArtSigmaPipeline, PixArtAlphaPipeline: noise prediction, learned variance",
    "sdxl": "StableDiffusionXLPipeline: U-Net, noise or v-prediction, size conditions",
    "dit": "DiTPipeline: classes, noise prediction, learned variance",
    "sit": "SiT weights files with --vae: classes, any path and prediction",
}
TABLES: dict[str, dict[str, Row]] = {
    "plan": PLANS, "solver": SOLVERS, "verifier": VERIFIERS, "selector": SELECTORS, "critic": CRITICS, "comparer": COMPARERS, "world": WORLDS,
}  # fmt: skip


def listing(what: str) -> list[tuple[str, str]]:
    """Names and what they are, for `secondlook list WHAT`; ConfigError for another word."""
    shown = {f"{kind}s": kind for kind in TABLES}
    if what in shown:
        rows = TABLES[shown[what]]
        return [
            (name, (f"{row.about}: {written(name)}" if what == "plans" else row.about)) for name, row in rows.items()
        ]
    if what == "models":
        return [
            (name, MODELS_ABOUT.get(name) or f"the shipped transformer of the world {name}: {WORLDS[name].about}")
            for name in MODELS
        ]
    if what == "pipelines":
        return list(PIPELINES.items())
    raise ConfigError(f'There is nothing called "{what}" to list; {nearest(what, [*shown, "models", "pipelines"])}')


def resolve(kind: str, name: str) -> Any:
    """The object behind a name of TABLES[kind], or behind `module:attr`."""
    table = TABLES[kind]
    target = table[name].target if name in table else name
    if ":" not in target:
        known = nearest(name, table) if table else "write package.module:attribute."
        raise ConfigError(f'There is no {kind} "{name}"; {known}')
    module, attr = target.split(":", 1)
    try:
        found = getattr(importlib.import_module(module), attr)
    except AttributeError:
        raise ConfigError(f'The module "{module}" has no "{attr}" (asked for as {kind} "{name}").') from None
    except Exception as error:  # whatever another package's top level raises
        raise ConfigError(f'The {kind} "{name}" cannot be imported: {type(error).__name__}: {error}.') from None
    if not _makes(kind, found):
        raise ConfigError(f'"{name}" is not a {kind}: expected {_EXPECTED[kind]}.')
    return found


_CALLED = "a class with __call__, or a function annotated to return one"
_EXPECTED = {
    "plan": "a generator function of a task", "verifier": _CALLED, "critic": _CALLED, "comparer": _CALLED, "selector": _CALLED,
    "solver": "a class with a method step, or a function annotated to return one", "world": "a class",
}  # fmt: skip


def _makes(kind: str, target: Any) -> bool:
    """Whether a target declares itself as this kind, so that a call-string cannot call just anything (os:system)."""
    if kind == "plan":
        return inspect.isgeneratorfunction(target)
    made = target
    if inspect.isfunction(target):
        try:
            made = get_type_hints(target).get("return")
        except (NameError, TypeError):
            return False
    if kind == "world":
        return inspect.isclass(made)
    method = "step" if kind == "solver" else "__call__"
    return inspect.isclass(made) and inspect.isfunction(getattr(made, method, None))


def written(plan: str) -> str:
    """A plan's call-string with its defaults: `random(n=20)`."""
    parameters = list(inspect.signature(resolve("plan", plan)).parameters.values())[1:]
    return f"{plan}({', '.join(f'{p.name}={p.default!r}' for p in parameters)})"
