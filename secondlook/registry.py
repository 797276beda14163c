"""Names and where they live. Literal tables, so that listing costs no import; `module:attr` reaches other packages."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, get_type_hints

from secondlook.errors import ConfigError, nearest

PLANS = {
    "random": "secondlook.plans.random:random",
    "zero_order": "secondlook.plans.zero_order:zero_order",
    "paths": "secondlook.plans.paths:paths",
}
SOLVERS = {
    "euler": "secondlook.solvers.ode:Euler",
    "heun": "secondlook.solvers.ode:Heun",
    "rk4": "secondlook.solvers.ode:RK4",
    "dopri5": "secondlook.solvers.adaptive:Dopri5",
    "sde": "secondlook.solvers.sde:EulerMaruyama",
    "sde_heun": "secondlook.solvers.sde:StochasticHeun",
    "ddim": "secondlook.solvers.ddpm:DDIM",
    "ddpm": "secondlook.solvers.ddpm:Ancestral",
    "dpmpp": "secondlook.solvers.dpm:DPMpp",
}
VERIFIERS = {
    "learned": "secondlook.verify.builtin:learned",
    "judge": "secondlook.verify.builtin:judge",
    "oracle": "secondlook.verify.builtin:oracle",
    "brightness": "secondlook.verify.measures:Brightness",
    "sharpness": "secondlook.verify.measures:Sharpness",
    "compressibility": "secondlook.verify.measures:Compressibility",
}
WORLDS = {
    "scenes": "secondlook.worlds.scenes.world:Scenes",
    "digits": "secondlook.worlds.digits:Digits",
    "glyphs": "secondlook.worlds.glyphs:Glyphs",
    "mixture": "secondlook.worlds.mixture:Mixture",
}
_DATA = Path(__file__).parent / "data"
MODELS = {"scenes": "scenes-base.safetensors",
          **{n: f"{n}-base.safetensors" for n in ("digits", "glyphs") if (_DATA / f"{n}-base.safetensors").is_file()}}  # fmt: skip
ABOUT = {
    "random": "best of n fresh noises (2501.09732)",
    "zero_order": "local search around a pivot noise (2501.09732)",
    "paths": "search over paths: re-noise half-made pictures and keep the best (2501.09732)",
    "euler": "first-order ODE, one evaluation a step",
    "heun": "second-order ODE, two evaluations a step",
    "rk4": "fourth-order ODE, four evaluations a step",
    "dopri5": "adaptive ODE, the step chosen for each row alone; for sample, not for searches (its cost is not known before)",
    "sde": "Euler-Maruyama on SiT's SDE, one evaluation a step",
    "sde_heun": "stochastic Heun on SiT's SDE, two evaluations a step",
    "ddim": "DDIM (2010.02502): exponential first-order step; eta from 0 (no noise) to 1 (ancestral), one evaluation a step",
    "ddpm": "DDPM's ancestral steps (2006.11239), variance learned, small or large, one evaluation a step",
    "dpmpp": "DPM-Solver++ (2211.01095): second-order multistep, one evaluation a step; eta from 0 (ODE) to 1 (SDE)",
    "learned": "the shipped verifier: a network's findings, held against the prompt's rules; guides",
    "judge": "the shipped second network, of the same kind: judges what others guided",
    "oracle": "the world's exact checker; as a guide it gives an upper bound, and is labelled so",
    "brightness": "mean luma, 0 to 1; knows nothing of the prompt: for trying things out",
    "sharpness": "spread of the luma's Laplacian; knows nothing of the prompt: for trying things out",
    # The list pads names to twelve letters, and this one is longer.
    "compressibility": "minus the JPEG's kilobytes, sign=-1: plus (2305.13301); knows nothing of the prompt: for trying things out",
    "scenes": "text-to-image: coloured shapes, counts and relations, 64 x 64",
    "digits": "classes 0 to 9: handwritten digits, 8 x 8, real data; a stand-in for ImageNet",
    "glyphs": "32 classes: one coloured shape, 32 x 32, unlimited data; a stand-in for ImageNet",
    "mixture": "an exact Gaussian mixture, for tests",
}
ABOUT_MODELS = {
    "scenes": "the shipped text-to-image transformer of the Scenes world",
    "digits": "the shipped class-conditional transformer of the Digits world",
    "glyphs": "the shipped class-conditional transformer of the Glyphs world",
}
PIPELINES = {  # what `draw --model` takes from diffusers, and the adapters that take it
    "sana": "SanaPipeline (SANA 1.0 and 1.5): flow, DPM-Solver++ or Euler",
    "flux": "FluxPipeline (FLUX.1 dev and schnell): flow, packed latents, distilled and true guidance",
    "sd3": "StableDiffusion3Pipeline (SD3 and 3.5): flow, three text encoders",
    "pixart": "PixArtSigmaPipeline, PixArtAlphaPipeline: noise prediction, learned variance",
    "sdxl": "StableDiffusionXLPipeline: U-Net, noise or v-prediction, size conditions",
    "dit": "DiTPipeline: classes, noise prediction, learned variance",
    "sit": "SiT weights files with --vae: classes, any path and prediction",
}
DEFAULTS: dict[str, Any] = {"steps": 20, "guidance": 2.5, "shift": 3.0}  # chosen on scenes-dev: docs/results/sweep.md
WORLD_DEFAULTS: dict[str, dict[str, Any]] = {
    "scenes": DEFAULTS,
    "digits": {"steps": 20, "guidance": 1.5, "shift": 1.0},
    "glyphs": {"steps": 20, "guidance": 1.5, "shift": 2.0},
}
TABLES = {"plan": PLANS, "solver": SOLVERS, "verifier": VERIFIERS, "world": WORLDS}


def resolve(kind: str, name: str) -> Any:
    """The object behind a name of TABLES[kind], or behind `module:attr`."""
    table = TABLES[kind]
    target = table.get(name, name)
    if ":" not in target:
        raise ConfigError(f'There is no {kind} "{name}"; {nearest(name, table)}')
    module, attr = target.split(":", 1)
    try:
        found = getattr(importlib.import_module(module), attr)
    except AttributeError:
        raise ConfigError(f'The module "{module}" has no "{attr}" (asked for as {kind} "{name}").') from None
    except Exception as error:  # whatever another package's top level raises
        raise ConfigError(f'The {kind} "{name}" cannot be imported: {type(error).__name__}: {error}.') from None
    if not _makes(kind, found):
        raise ConfigError(f'"{name}" is no {kind}: wanted {_WANTED[kind]}.')
    return found


_WANTED = {
    "plan": "a generator function of a task",
    "verifier": "a class with __call__, or a function annotated to return one",
    "solver": "a class with a method step, or a function annotated to return one",
    "world": "a class",
}


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
    method = {"verifier": "__call__", "solver": "step"}[kind]
    return inspect.isclass(made) and inspect.isfunction(getattr(made, method, None))


def written(plan: str) -> str:
    """A plan's call-string with its defaults: `random(n=20)`."""
    parameters = list(inspect.signature(resolve("plan", plan)).parameters.values())[1:]
    return f"{plan}({', '.join(f'{p.name}={p.default!r}' for p in parameters)})"
