"""Notes: things a person should know that are no errors, said once, as Python warnings of a kind of their own."""

from __future__ import annotations

import sys
import warnings
from typing import Any

_said: set[str] = set()


class Note(UserWarning):
    """A sentence for the person at the keyboard. Nothing failed."""


def note(text: str) -> None:
    """Say ``text`` once in this process. Python's warning filters may show it each time ("always"), never, or as an error."""
    # Python's own memory of what was said is lost whenever any library touches the filters, which some do at every call.
    if text in _said and not _always():
        return
    _said.add(text)
    frame = sys._getframe(1)
    frame = frame.f_back or frame
    warnings.warn_explicit(text, Note, frame.f_code.co_filename, frame.f_lineno)


def _always() -> bool:
    """Whether the first filter that covers notes shows each one."""
    actions = (
        action
        for action, text, kind, module, _ in warnings.filters
        if not text and not module and issubclass(Note, kind)
    )
    return next(actions, "default") in ("always", "all", "error")


def to_stderr() -> None:
    """Show notes as the command line shows errors: one line, without a file name and a line of code. Each command says them again."""
    _said.clear()
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, Note):
            print(f"secondlook: note: {message}", file=sys.stderr)
        else:
            usual(message, category, *rest, **more)

    warnings.showwarning = show
