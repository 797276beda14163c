"""Prompts from files."""

from __future__ import annotations

import json
from pathlib import Path

from secondlook.backends.find import world_meant
from secondlook.errors import ConfigError
from secondlook.settings import Settings
from secondlook.worlds.scenes.grammar import from_metadata, parse
from secondlook.worlds.scenes.prompts import SETS, prompt_set


def read_prompts(path: Path, s: Settings) -> list[str]:
    """The prompts of a file, or of a set by its name (scenes-dev): one a line, or GenEval JSON lines; ConfigError with the line's number. s: what will draw them, as
    it was given: lines of the Scenes world are checked here, where their number is known."""
    scenes = world_meant(s) == "scenes"
    if str(path) in SETS and not path.exists():
        return [p.text for p in prompt_set(str(path))]
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # newlines of every system are read as one
    except FileNotFoundError:
        raise ConfigError(f'There is no prompts file "{path}".') from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'The prompts file "{path}" cannot be read as text: {error}.') from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_prompt_of(line, scenes))
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
    if not found:
        raise ConfigError(f'The prompts file "{path}" holds no prompt.')
    return found


def _prompt_of(line: str, scenes: bool) -> str:
    if not line.lstrip().startswith("{"):
        return parse(line.strip()).text if scenes else line.strip()
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this is not JSON ({error}).") from None
    if not isinstance(record.get("prompt"), str):
        raise ConfigError('this record has no "prompt".')
    return from_metadata(record).text if scenes else str(record["prompt"])
