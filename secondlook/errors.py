"""Errors a person can act on: every message says what was wanted, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SecondlookError(Exception):
    """Base of all errors this project raises on purpose. ``exit_code`` is what the command line returns."""

    exit_code = 1


class ConfigError(SecondlookError):
    """Something typed, or a file given, is not understood. The command line exits with 2."""

    exit_code = 2


class BudgetError(ConfigError):
    """A budget that buys nothing."""


class ShapeError(SecondlookError):
    """Tensors of shapes that do not go together."""


class DamagedError(SecondlookError):
    """Weights or a run on disk that cannot be read."""


class NotFinite(SecondlookError):
    """Rows that hold numbers which are not finite; ``rows`` names them by their place in what was given."""

    def __init__(self, message: str, rows: tuple[int, ...]):
        super().__init__(message)
        self.rows = rows


class ReplayError(SecondlookError):
    """A recorded run and its replay differ."""


class MissingExtra(SecondlookError):
    """An optional package is needed; the message holds the install command."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause naming the closest known word, or all of them: `did you mean "circle"?`"""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}."
