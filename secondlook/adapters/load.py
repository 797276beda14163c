"""From a pipeline, a folder, a hub id or official SiT weights to an adapter."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from secondlook.adapters.base import Adapter, Options
from secondlook.adapters.chunks import fits
from secondlook.adapters.logs import caught, quiet
from secondlook.disk.given import as_path
from secondlook.errors import ConfigError, MissingExtra, SecondlookError, nearest
from secondlook.notes import note

ADAPTERS = {
    "SanaPipeline": "secondlook.adapters.sana:Sana",
    "FluxPipeline": "secondlook.adapters.flux:Flux",
    "StableDiffusion3Pipeline": "secondlook.adapters.sd3:SD3",
    "PixArtSigmaPipeline": "secondlook.adapters.pixart:PixArt",
    "PixArtAlphaPipeline": "secondlook.adapters.pixart:PixArt",
    "DiTPipeline": "secondlook.adapters.dit:DiT",
    "StableDiffusionXLPipeline": "secondlook.adapters.sdxl:SDXL",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
PAGE = "docs/adapters.md"
MISFIT = r"(\S+) \| MISMATCH"  # of transformers' report on loading


def load(model: Any, *, dtype: Any = None, device: Any = None, adapter: Any = None,
         vae: str | None = None, **options: Any) -> Adapter:  # fmt: skip
    """Hold a generator ready for ``draw(model=...)``.

    model: a diffusers pipeline object, used as it is; or the folder or hub id of one, loaded in ``dtype`` (float32, bfloat16
    or float16; bfloat16 on a GPU) onto ``device``; or a file of SiT weights with ``vae``, the folder or hub id of an
    autoencoder. adapter: ``module:attr`` of a class for pipelines that this package does not know. options: see
    ``given.Options``. torch's own dtypes and devices, and the adapter's class, are taken too. Raises ConfigError or MissingExtra, in one sentence.
    """
    chosen = _options(options)
    dtype = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    device = None if device is None else str(device)
    if isinstance(model, Adapter):
        raise ConfigError("This model is loaded already; give it to draw(model=...).")
    if not isinstance(model, (str, Path)):
        if dtype or device or vae or chosen.lora or chosen.offload:
            raise ConfigError("A pipeline object keeps its own dtype, device, autoencoder, LoRA and offloading; change them on the "
                              "object, as diffusers has it.")  # fmt: skip
        return _hold(model, adapter, chosen)
    as_path(model, "A model")
    if vae is not None and Path(model).is_dir() and not (Path(model) / "model_index.json").exists():
        from secondlook.models.find import weights_file

        model = weights_file(str(model))  # a folder that training or import wrote
    if Path(model).suffix in WEIGHTS:
        from secondlook.adapters.sit import load_weights

        return load_weights(Path(model), vae, chosen, dtype, _device(device))
    if vae is not None:
        raise ConfigError("--vae belongs to SiT weights; a pipeline brings its own autoencoder.")
    return _from_folder(str(model), dtype, device, adapter, chosen)


def _options(given: dict[str, Any]) -> Options:
    known = [f.name for f in fields(Options)]
    for name in given:
        if name not in known:
            raise ConfigError(f'A pipeline has no option "{name}" here; {nearest(name, known)}')
    made = Options(**given)
    for name in ("height", "width", "tokens"):
        value = getattr(made, name)
        if value is not None and not (isinstance(value, int) and 1 <= value <= 16384):
            raise ConfigError(f"{name} must be a whole number from 1 to 16384; got {value!r}.")
    if made.negative is not None and not isinstance(made.negative, str):
        raise ConfigError(f"negative must be a text; got {made.negative!r}.")
    if not (isinstance(made.true_guidance, (int, float)) and 0 <= made.true_guidance < 1e3):
        raise ConfigError(f"true_guidance must be from 0 to 1000 (1: none); got {made.true_guidance!r}.")
    return made


def _hold(pipe: Any, adapter: Any, options: Options) -> Adapter:
    kind = _class_of(type(pipe), adapter)
    if kind.pipelines and not any(c.__name__ in kind.pipelines for c in type(pipe).__mro__):
        raise ConfigError(
            f"The adapter {kind.__qualname__} is for {', '.join(kind.pipelines)}; this is a {type(pipe).__name__}."
        )
    try:
        return kind(pipe, options)
    except (AttributeError, KeyError, TypeError) as error:
        if adapter is None:
            raise
        raise ConfigError(
            f"The adapter {kind.__qualname__} cannot hold this {type(pipe).__name__} ({error}); is it made for it?"
        ) from None


def _class_of(kind: type, adapter: Any) -> type[Adapter]:
    """The adapter for a pipeline's class, or for the nearest class that it was derived from."""
    target = adapter
    if adapter is None:
        target = next((ADAPTERS[c.__name__] for c in kind.__mro__ if c.__name__ in ADAPTERS), None)
        if target is None:
            raise ConfigError(_unknown(kind.__name__))
    found = target
    if isinstance(target, str):
        module, _, attr = target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attr)
        except Exception as error:  # whatever another package's top level raises
            raise ConfigError(f'The adapter "{target}" cannot be imported ({error}); wanted module:attr.') from None
    if not (inspect.isclass(found) and issubclass(found, Adapter)) or inspect.isabstract(found):
        raise ConfigError(
            f'"{target}" is not an adapter: expected a class derived from secondlook.adapters.base.Adapter.'
        )
    return found


def _unknown(name: str) -> str:
    return (f"There is no adapter for {name}; there are ones for {', '.join(ADAPTERS)}. Writing one takes one file: see "
            f"{PAGE}, and name it with --adapter module:attr (adapter=... in Python).")  # fmt: skip


def _from_folder(name: str, dtype: str | None, device: str | None, adapter: Any, options: Options) -> Adapter:
    folder = Path(name)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f'There is no dtype "{dtype}" here; {nearest(dtype, DTYPES)}')
    if folder.exists():
        _refuse_no_pipeline(folder, adapter)
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f'There is no folder "{name}", and it is no hub id either (OWNER/NAME).')
    try:
        import transformers  # noqa: F401
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtra(
            f"Pipelines need diffusers and transformers ({error}): pip install 'secondlook[hub]'"
        ) from None
    place = _device(device)
    kind = DTYPES[dtype] if dtype else (torch.float32 if place.type == "cpu" else torch.bfloat16)
    less = "Load it in a smaller dtype (--dtype bfloat16), or take a smaller one."
    lines: list[str] = []
    try:
        with quiet(), caught() as lines, fits("this pipeline", less):
            pipe = DiffusionPipeline.from_pretrained(name, **{_dtype_word(): kind})
            _wear(pipe, options.lora)
            _place(pipe, place, options.offload)
    except SecondlookError:
        raise
    except Exception as error:  # the hub's, the network's and the file format's own kinds
        raise ConfigError(_why(name, error, lines)) from None
    for model, keys in _lacking(lines):
        note(f'The {model} of "{name}" lacks {keys}, and chance stands in their place, so its pictures will be wrong. Copy or '
             "download it again.")  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():  # ours alone: nobody trains it
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    return _hold(pipe, adapter, options)


def _wear(pipe: Any, lora: str | None) -> None:
    """Load LoRA weights: a .safetensors file, or a folder or hub id of them."""
    if lora is None:
        return
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"LoRA weights need peft ({error}): pip install peft") from None
    file = Path(lora)
    try:
        pipe.load_lora_weights(*([str(file.parent)] if file.is_file() else [lora]),
                               **({"weight_name": file.name} if file.is_file() else {}))  # fmt: skip
        if not pipe.get_list_adapters():
            raise ValueError("none of its weights belongs to this pipeline")
    except Exception as error:  # diffusers', peft's and the hub's own kinds
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 240, placeholder="…")
        raise ConfigError(f'"{lora}" cannot be loaded as LoRA weights of this {type(pipe).__name__} ({reason}). Expected: a '
                          ".safetensors file made for it, or a folder or hub id with one.") from None  # fmt: skip


def _place(pipe: Any, place: torch.device, offload: bool) -> None:
    if not offload:
        pipe.to(place)
    elif place.type == "cpu":
        raise ConfigError(
            "Offloading moves parts between a GPU and the CPU, and there is no GPU here; leave --offload out."
        )
    else:
        pipe.enable_model_cpu_offload(device=place)


def _why(name: str, error: Exception, lines: Sequence[str]) -> str:
    """Why a pipeline could not be loaded, and what to do; what was logged on the way often says more than the error."""
    fetched = [line.partition("trying to fetch ")[2].partition(": ")[2] for line in lines if "trying to fetch " in line]
    broken = [f"{path} is damaged" for path in sorted(Path(name).rglob("*.safetensors")) if not _opens(path)]
    lacking = [f"The {model} lacks {keys}" for model, keys in _lacking(lines)]
    unfit = [f"{key} has another shape than config.json says" for line in lines for key in re.findall(MISFIT, line)]
    reason = next(iter((*broken, *lacking, *unfit, *fetched)), f"{type(error).__name__}: {error}".partition(". If ")[0])
    reason = textwrap.shorten(reason, 300, placeholder="…").rstrip(".")
    todo = ("Copy the folder whole, or save the pipeline again." if Path(name).exists() else
            f"Check the name and the network, or fetch it with `hf download {name}` and name the folder.")  # fmt: skip
    return f'"{name}" cannot be loaded as a diffusers pipeline ({reason}). {todo}'


def _opens(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return bool(list(file.keys()))
    except Exception:  # safetensors has an error of its own, and there are the file system's
        return False


def _lacking(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Models whose files lack weights, and which, from what diffusers and transformers log."""
    found = []
    for line in lines:
        line = re.sub("\x1b\\[[0-9;]*m", "", line)
        ours = re.match(r"Some weights of (\w+) were not initialized .* newly initialized: \[(.*)\]", line)
        theirs = re.findall(r"(\S+) \| MISSING", line)
        keys = [k.strip(" '") for k in ours[2].split(",")] if ours else theirs
        if keys:
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            found.append((ours[1] if ours else line.split()[0], ", ".join(keys[:2]) + more))
    return found


def _dtype_word() -> str:
    """What from_pretrained calls the dtype: newer releases warn of the older word."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_TORCH_DTYPE_DEPRECATION_MESSAGE") else "torch_dtype"


def _refuse_no_pipeline(folder: Path, adapter: Any) -> None:
    """ConfigError for what is not a pipeline's folder, for a class without an adapter, and for a part that is not there."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ConfigError(f'"{folder}" is neither a file nor a shipped model, and no pipeline: it holds no model_index.json. Name a folder that pipe.save_pretrained '
                          "wrote, a hub id, or a weights file (.safetensors).")  # fmt: skip
    try:
        parts = json.loads(index.read_text())
        name = str(parts["_class_name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{index} cannot be read as a pipeline's index ({error!r}); save the pipeline again."
        ) from None
    if name not in ADAPTERS and adapter is None:
        raise ConfigError(_unknown(name))
    for part, kind in parts.items():
        named = isinstance(kind, list) and len(kind) == 2 and all(isinstance(k, str) for k in kind)
        if named and not part.startswith("_") and not (folder / part).is_dir():
            raise ConfigError(f'The pipeline in "{folder}" lacks its {part} ({kind[1]}), which model_index.json names. Copy the '
                              "folder whole, or save the pipeline again.")  # fmt: skip


def _device(asked: str | None) -> torch.device:
    """The device asked for, or the GPU, or the CPU."""
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(asked)
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f'The device "{asked}" cannot be used here ({reason}); leave --device out, or write cpu.'
        ) from None
    return found
