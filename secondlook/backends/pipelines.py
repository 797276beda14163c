"""Searches on generators from outside: a pipeline that is held ready, as the settings and the rig of a run.

Settings name such a run's world "diffusers": free prompts (or a pipeline's classes), no exact checker, no verifier of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secondlook import settings as conf
from secondlook.calls import bind, parse_call
from secondlook.engine.rig import Rig, guidance
from secondlook.errors import ConfigError, nearest
from secondlook.flow.estimate import Flow
from secondlook.notes import note
from secondlook.registry import MODELS, resolve
from secondlook.settings import PIPELINE, Settings
from secondlook.types import Verifier

if TYPE_CHECKING:
    from secondlook.adapters.base import Adapter

OPTIONS = ("height", "width", "negative", "tokens", "true_guidance", "free_text", "lora", "offload", "dtype", "device", "adapter",
           "vae")  # fmt: skip
GUIDES = ("sharpness", "brightness", "compressibility")  # what needs no download; the first guides where none is named
ROWS = 8
MOST_STEPS = 10_000  # as in Settings, which come after a schedule was asked for


def hold(model: Any, options: dict[str, Any], world: str | None = None) -> Adapter | None:
    """The adapter that a run's ``model`` asks for, or None for the built-in worlds' own. ``options`` loses those of pipelines;
    ConfigError where they are given without one, or those of the built-in worlds with one."""
    given = {k: options.pop(k) for k in OPTIONS if options.get(k) is not None}
    for name in ("lora", "vae"):  # recorded so that a run goes on from any folder
        if name in given and Path(str(given[name])).exists():
            given[name] = str(Path(str(given[name])).resolve())
    if isinstance(model, Path):
        model = options["model"] = str(model)
    if (model is None or isinstance(model, str)) and not meant(model, given.get("vae")):
        _refuse_no_pipeline(model, given, world)
        return None
    if world not in (None, PIPELINE):
        raise ConfigError(f'The world "{world}" has models of its own; leave --world out to draw with a pipeline.')
    if options.get("bf16"):
        raise ConfigError(
            "--bf16 belongs to the built-in worlds; a pipeline runs in the dtype it was loaded in: --dtype bfloat16."
        )
    refuse_guide(options.get("verifier"))
    if (steps := options.get("steps")) is not None and not (isinstance(steps, int) and 1 <= steps <= MOST_STEPS):
        raise ConfigError(
            f"--steps must be a whole number from 1 to {MOST_STEPS}; got {steps}."
        )  # a schedule has as many numbers
    from secondlook.adapters.base import Adapter
    from secondlook.adapters.load import load

    if isinstance(model, Adapter):
        if given:
            raise ConfigError(f"This model is loaded already; give {next(iter(given))} to secondlook.load.")
        return model
    return load(model, **given)


def _refuse_no_pipeline(model: str | None, given: dict[str, Any], world: str | None) -> None:
    """ConfigError for what is asked of a pipeline where ``model`` means none."""
    if given:
        name = next(iter(given)).replace("_", "-")
        raise ConfigError(f'--{name} belongs to pipelines; "{model or world or "scenes"}" is none. Give --model FOLDER or a '
                          "hub id (SiT weights: with --vae).")  # fmt: skip
    if world == PIPELINE:
        raise ConfigError("Which pipeline? Give --model FOLDER or a hub id; --world is then needless.")
    if model is not None and model not in MODELS and Path(model).is_file():
        _refuse_foreign(Path(model))
    if model is not None and model not in MODELS and not Path(model).is_file():
        raise ConfigError(f'There is no model "{model}": it is neither a file nor a shipped model, nor the folder or hub id (OWNER/NAME) '
                          f"of a pipeline; {nearest(model, MODELS)}")  # fmt: skip


_PART = ("down_blocks.", "transformer_blocks.", "single_transformer_blocks.", "text_model.", "decoder.")
_ONE_FILE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "double_blocks.", "joint_blocks.")


def _refuse_foreign(file: Path) -> None:
    """ConfigError for weights files of others, which nothing here can draw with alone."""
    from safetensors import SafetensorError, safe_open

    from secondlook.models.official import is_own

    if file.suffix in (".ckpt", ".pt", ".pth"):
        raise ConfigError(f'"{file}" cannot be drawn with alone. SiT weights: give --vae FOLDER_OR_ID. A checkpoint of a whole '
                          "pipeline: load it with diffusers' from_single_file, and save it as a folder with save_pretrained.")  # fmt: skip
    if file.suffix != ".safetensors" or is_own(file):
        return
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
    except (SafetensorError, OSError):
        return  # whoever reads it says what is wrong with it
    if {"x_embedder.proj.weight", "final_layer.linear.weight"} <= names:
        raise ConfigError(
            f'"{file}" holds SiT or DiT weights: give the autoencoder that decodes their latents, --vae FOLDER_OR_ID.'
        )
    if any(n.startswith(_PART) for n in names):
        raise ConfigError(f'"{file}" is one part of a pipeline; name the folder that holds its model_index.json.')
    if any(n.startswith(_ONE_FILE) for n in names):
        raise ConfigError(f'"{file}" is a checkpoint in one file. Load it with diffusers in Python, pipe = '
                      "StableDiffusionXLPipeline.from_single_file(...) or its like, and give it to secondlook.draw(model=pipe), or "
                      "save it as a folder with pipe.save_pretrained.")  # fmt: skip


def refuse_guide(name: Any) -> None:
    """ConfigError for the verifiers of the built-in worlds."""
    if name in ("learned", "judge", "oracle"):
        raise ConfigError(f'"{name}" belongs to the built-in worlds. A pipeline is guided by {", ".join(GUIDES)}, or by your own: '
                          "package.module:attribute.")  # fmt: skip


def meant(model: str | None, vae: str | None = None) -> bool:
    """Whether a model's name means a generator from outside: a folder, a hub id, or any weights with an autoencoder."""
    if model is None or model in MODELS:
        return False
    path = Path(model)
    return (
        vae is not None
        or path.is_dir()
        or ("/" in model and path.suffix not in (".safetensors", ".pt", ".pth", ".ckpt"))
    )


def usual(held: Adapter, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` of a run with what was left open filled in from the pipeline."""
    of_pipeline = held.usual()
    filled = {
        "steps": of_pipeline["steps"],
        "guidance": of_pipeline["guidance"],
        "rows": ROWS,
        "bf16": False,
        **options,
    }
    if "solver" not in options:
        filled["solver"] = held.schedule(filled["steps"], filled.get("shift")).solver
    if "verifier" not in options:
        note(f"No verifier was named, so {GUIDES[0]} guides: it needs no download and knows nothing of the prompt. Name yours "
             "with --verifier module:attr (verifier=... in Python).")  # fmt: skip
        filled["verifier"] = GUIDES[0]
    return {**filled, "world": PIPELINE, "model": held.name, "pipeline": held.describe()}


def again(s: Settings, model: Any = None) -> Adapter:
    """The adapter of a recorded run: ``model`` where one is held, else loaded as it was. ConfigError where it is not the same."""
    from secondlook.adapters.load import load

    recorded = s.pipeline
    if model is None:
        if not s.model:
            raise ConfigError("This run was drawn with a pipeline object that came from no folder; give it again: "
                              "secondlook.resume(out, model=pipe).")  # fmt: skip
        held = load(s.model, **{k: recorded[k] for k in OPTIONS if recorded.get(k) is not None and k != "device"})
    elif _is_held(model):
        held = model
    else:
        named = OPTIONS if isinstance(model, (str, Path)) else (*OPTIONS[:6], "adapter")  # an object has the rest on it
        held = load(model, **{k: recorded[k] for k in named if recorded.get(k) is not None and k != "device"})
    now = held.describe()
    flat = {**recorded, **recorded.get("settings", {})}
    now = {**now, **now["settings"]}
    for key, had in flat.items():
        if now.get(key) != had and key not in ("device", "free_text", "offload", "settings"):
            raise ConfigError(f"This run was drawn with {key.replace('_', ' ')} {had}, the model now has {now.get(key)}; load it "
                              "as it was.")  # fmt: skip
    return held


def _is_held(model: Any) -> bool:
    from secondlook.adapters.base import Adapter

    return isinstance(model, Adapter)


def rig_of(s: Settings, held: Adapter, verifier: Verifier | None) -> Rig:
    """The rig of a pipeline's run. Without ``verifier`` it has no judges either."""
    schedule = held.schedule(s.steps, s.shift)
    scale = held.scale(s.guidance)
    with torch.no_grad():
        null = held.encode(None) if scale != 1.0 else None
    flow = Flow(held.network(schedule, s.guidance), schedule.path, guidance(scale, null))
    judges: dict[str, Verifier] = {}
    if verifier is not None:
        judges = {n: conf.make_named("verifier", n) for n in GUIDES if n != verifier.name}
    pad = held.compiled() if s.pad is None else s.pad
    solver = conf.make_named("solver", s.solver)
    decode = singly(held.decode) if pad else held.decode
    return Rig(flow, solver, schedule.times, held.encode, decode, verifier, judges, s.rows or ROWS, pad, schedule.scale)


def singly(decode: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A decoder asked one row at a time, so that a picture's bits do not depend on company there either."""
    return lambda x: torch.cat([decode(row) for row in x.split(1)])


def prepared(rig: Rig, held: Adapter, conditions: list[Any]) -> None:
    """Encode all prompts before the first step, so that text encoders may leave the device."""
    for condition in conditions:
        rig.encoded(condition)
    held.settle()


def named(verifier: Any) -> tuple[str, Verifier | None]:
    """A verifier's call-string as it is, or the name under which a run records an object."""
    if isinstance(verifier, str):
        call = parse_call(verifier, "verifier")
        bind(call, resolve("verifier", call.name))  # a slip shows before a pipeline is loaded
        return verifier, None
    name = getattr(verifier, "name", None)
    if inspect.isclass(verifier) or not callable(verifier) or not isinstance(name, str):
        raise ConfigError("A verifier is a call-string, or an object with a name that is called with samples and conditions "
                          f"(docs/extending.md); got {verifier if inspect.isclass(verifier) else type(verifier).__name__}.")  # fmt: skip
    return f"object:{name}", verifier
