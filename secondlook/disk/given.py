"""Paths as people give them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from secondlook.errors import ConfigError


def as_path(value: Any, what: str) -> Path:
    """``value`` as a path; ConfigError, which begins with ``what``, for what is none or cannot be a name on this system."""
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(f"{what} must be a path; got {value!r}.")
    name = os.fspath(value)
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{what} must be a path; got {name!r}.")
    shown = name if len(name) <= 60 else f"{name[:57]}..."
    if "\0" in name:
        raise ConfigError(f"{what} cannot hold the character NUL; got {shown!r}.")
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise ConfigError(f'{what} cannot be read: "{shown}": {error.strerror}.') from None
    return Path(name)
