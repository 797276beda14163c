"""Weights on disk: one safetensors file, with its configuration as JSON in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from secondlook.errors import ConfigError, DamagedError, nearest
from secondlook.models.reflect import ReflectConfig, ReflectSiT
from secondlook.models.sit import SiT, SiTConfig
from secondlook.models.text import TextSiT, TextSiTConfig
from secondlook.registry import MODELS


def shipped(name: str) -> Path:
    """The path of a file shipped in the package's data folder."""
    return Path(str(resources.files("secondlook") / "data" / name))


def locate(model: str) -> Path:
    """The weights file behind a shipped model's name or a path."""
    if model in MODELS:
        return shipped(MODELS[model])
    path = Path(model)
    if not path.is_file():
        raise ConfigError(
            f'There is no model "{model}": it is neither a file nor a shipped model; {nearest(model, MODELS)}'
        )
    return path


def save(module: nn.Module, path: Path, config: dict[str, Any], facts: dict[str, Any] | None = None) -> None:
    """Write weights, their configuration and facts about their training (JSON) to ``path``, whole or not at all."""
    part = path.with_name(path.name + ".part")
    metadata = {"config": json.dumps(config), "facts": json.dumps(facts or {})}
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, part, metadata)
    part.chmod(0o644)  # safetensors leaves files that only their owner can read
    os.replace(part, path)


def read_config(path: Path) -> dict[str, Any]:
    """The configuration in a weights file's metadata."""
    try:
        with safe_open(path, "pt") as file:
            config: dict[str, Any] = json.loads((file.metadata() or {})["config"])
            return config
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DamagedError(
            f"The weights {path} cannot be read ({error}). Install the package again, or train again."
        ) from None


def fill(module: nn.Module, path: Path) -> None:
    """Load a file's tensors into ``module``; DamagedError where they do not fit."""
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"The weights {path} do not fit their own description ({reason}).") from None


def _text_sit(config: dict[str, Any]) -> TextSiTConfig:
    return TextSiTConfig(**{**config, "words": tuple(config["words"])})


def _reflect_sit(config: dict[str, Any]) -> ReflectSiT:
    base, words = _text_sit(config["base"]), tuple(config["remark_words"])
    return ReflectSiT(ReflectConfig(**{**config, "base": base, "remark_words": words}))


_KINDS: dict[str, Callable[[dict[str, Any]], TextSiT | SiT | ReflectSiT]] = {
    "sit": lambda config: SiT(SiTConfig(**config)),
    "text-sit": lambda config: TextSiT(_text_sit(config)),
    "reflect-sit": _reflect_sit,
}


def load(path: Path) -> TextSiT | SiT | ReflectSiT:
    """A transformer from its file: text-to-image, class-conditional, or one that reads its earlier tries; ready to sample."""
    config = read_config(path)
    kind = config.pop("kind", None)
    if kind not in _KINDS:
        raise ConfigError(f'The weights {path} hold a "{kind}"; one of {", ".join(_KINDS)} was expected.')
    try:
        module = _KINDS[kind](config)
    except (TypeError, KeyError, ConfigError) as error:
        raise DamagedError(f"The weights {path} describe no network this release knows ({error}).") from None
    fill(module, path)
    return module.requires_grad_(False).eval()


def load_text(path: Path) -> TextSiT:
    """A text-to-image transformer; ConfigError for a file that holds another kind."""
    _expect(path, "text-sit")
    module = load(path)
    assert isinstance(module, TextSiT)
    return module


def load_sit(path: Path) -> SiT:
    """A class-conditional transformer; ConfigError for a file that holds another kind."""
    _expect(path, "sit")
    module = load(path)
    assert isinstance(module, SiT)
    return module


def _expect(path: Path, kind: str) -> None:
    found = read_config(path).get("kind")
    if found != kind:
        raise ConfigError(f'The weights {path} hold a "{found}"; a "{kind}" was expected.')
