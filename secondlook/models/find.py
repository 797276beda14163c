"""Which weights file a name means, and what it holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from secondlook.errors import ConfigError
from secondlook.models.checkpoint import locate
from secondlook.models.official import is_own
from secondlook.registry import MODELS, WORLDS


def weights_file(model: str) -> Path:
    """The weights file behind a shipped name, a path or a folder with one."""
    folder = Path(model)
    if model in WORLDS and model not in MODELS and not folder.exists():
        raise ConfigError(f'This release ships no weights for "{model}"; train them with `secondlook train {model} --out DIR`, '
                          "and give them with --model DIR.")  # fmt: skip
    if not folder.is_dir():
        return locate(model)
    files = sorted(folder.glob("*.safetensors"))
    chosen = [f for f in files if f.name == "weights.safetensors"] or files
    if len(chosen) != 1:
        raise ConfigError(
            f'The folder "{model}" holds {len(chosen)} weights files (*.safetensors); name the one you mean.'
        )
    return chosen[0]


def facts(file: Path) -> dict[str, Any]:
    """What one of this project's files says of itself: its configuration, and facts of its training; empty for others."""
    if not is_own(file):
        return {}
    with safe_open(file, "pt") as opened:
        about = opened.metadata() or {}
    found: dict[str, Any] = {}
    for part in ("config", "facts"):
        try:
            said = json.loads(about.get(part, "{}"))
        except ValueError:
            continue
        found |= said if isinstance(said, dict) else {}
    return found


def world_of(file: Path) -> str | None:
    """The world that a weights file was trained in, where it says one."""
    said = facts(file)
    if said.get("kind") in ("text-sit", "reflect-sit"):
        return "scenes"
    return next((name for name in (said.get("world"), said.get("data")) if name in WORLDS), None)
