"""Notes: things a person should know that are no errors, said once, as Python warnings of a kind of their own."""

from __future__ import annotations

import sys
import warnings
from typing import Any


class Note(UserWarning):
    """A sentence for the person at the keyboard. Nothing failed."""


def note(text: str) -> None:
    """Say ``text`` once in this process (Python's warning filters decide; ``-W error`` makes it an error)."""
    warnings.warn(text, Note, stacklevel=3)


def to_stderr() -> None:
    """Show notes as the command line shows errors: one line, without a file name and a line of code."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, Note):
            print(f"secondlook: note: {message}", file=sys.stderr)
        else:
            usual(message, category, *rest, **more)

    warnings.showwarning = show
