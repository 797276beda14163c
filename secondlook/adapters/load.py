"""From a pipeline, a folder, a hub id or official SiT weights to an adapter."""

from __future__ import annotations

import importlib
import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from secondlook.adapters.base import Adapter, Options
from secondlook.adapters.logs import quiet
from secondlook.errors import ConfigError, MissingExtra, nearest

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


def load(model: Any, *, dtype: str | None = None, device: str | None = None, adapter: str | None = None,
         vae: str | None = None, **options: Any) -> Adapter:  # fmt: skip
    """Hold a generator ready for ``draw(model=...)``.

    model: a diffusers pipeline object, used as it is; or the folder or hub id of one, loaded in ``dtype`` (float32, bfloat16
    or float16; bfloat16 on a GPU) onto ``device``; or a file of SiT weights with ``vae``, the folder or hub id of an
    autoencoder. adapter: ``module:attr`` of a class for pipelines that this package does not know. options: see
    ``base.Options``. Raises ConfigError or MissingExtra, in one sentence.
    """
    chosen = _options(options)
    if isinstance(model, Adapter):
        raise ConfigError("This model is loaded already; give it to draw(model=...).")
    if not isinstance(model, (str, Path)):
        if dtype or device or vae:
            raise ConfigError(
                "A pipeline object keeps its own dtype, device and autoencoder; change them on the object."
            )
        return _class_of(type(model), adapter)(model, chosen)
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
    if not 0 <= made.true_guidance < 1e3:
        raise ConfigError(f"true_guidance must be from 0 to 1000 (1: none); got {made.true_guidance!r}.")
    return made


def _class_of(kind: type, adapter: str | None) -> type[Adapter]:
    """The adapter for a pipeline's class, or for the nearest class that it was derived from."""
    if adapter is None:
        target = next((ADAPTERS[c.__name__] for c in kind.__mro__ if c.__name__ in ADAPTERS), None)
        if target is None:
            raise ConfigError(_unknown(kind.__name__))
    else:
        target = adapter
    module, _, attr = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), attr)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f'The adapter "{target}" cannot be imported ({error}); wanted module:attr.') from None
    if not (inspect.isclass(found) and issubclass(found, Adapter)):
        raise ConfigError(f'"{target}" is no adapter: wanted a class derived from secondlook.adapters.base.Adapter.')
    return found


def _unknown(name: str) -> str:
    return (f"There is no adapter for {name}; there are ones for {', '.join(ADAPTERS)}. Writing one takes one file: see "
            f"{PAGE}, and name it with --adapter module:attr (adapter=... in Python).")  # fmt: skip


def _from_folder(name: str, dtype: str | None, device: str | None, adapter: str | None, options: Options) -> Adapter:
    folder = Path(name)
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f'There is no dtype "{dtype}" here; {nearest(dtype, DTYPES)}')
    if folder.exists():
        _refuse_no_pipeline(folder, adapter)
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f'There is no folder "{name}", and it is no hub id either (OWNER/NAME).')
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise MissingExtra(
            f"Pipelines need diffusers and transformers ({error}): pip install 'secondlook[hub]'"
        ) from None
    place = _device(device)
    kind = DTYPES[dtype] if dtype else (torch.float32 if place.type == "cpu" else torch.bfloat16)
    try:
        with quiet():
            pipe = DiffusionPipeline.from_pretrained(name, **{_dtype_word(): kind})
    except MemoryError:
        raise
    except Exception as error:  # the hub's, the network's and the file format's own kinds
        reason = " ".join(str(error).split())[:240]
        raise ConfigError(
            f'"{name}" cannot be loaded as a diffusers pipeline ({type(error).__name__}: {reason}).'
        ) from None
    pipe.set_progress_bar_config(disable=True)
    return _class_of(type(pipe), adapter)(pipe.to(place), options)


def _dtype_word() -> str:
    """What from_pretrained calls the dtype: newer releases warn of the older word."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_TORCH_DTYPE_DEPRECATION_MESSAGE") else "torch_dtype"


def _refuse_no_pipeline(folder: Path, adapter: str | None) -> None:
    """ConfigError for what is no pipeline's folder, for a class without an adapter, and for a part that is not there."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise ConfigError(f'"{folder}" is neither a file nor a shipped model, and no pipeline: it holds no model_index.json. Name a folder that pipe.save_pretrained '
                          "wrote, a hub id, or a weights file (.safetensors).")  # fmt: skip
    try:
        parts = json.loads(index.read_text())
        name = parts["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{index} cannot be read as a pipeline's index ({error!r}); save the pipeline again."
        ) from None
    if name not in ADAPTERS and adapter is None:
        raise ConfigError(_unknown(str(name)))
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
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f'The device "{asked}" cannot be used here ({reason}); leave --device out, or write cpu.'
        ) from None
    return found
