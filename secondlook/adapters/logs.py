"""What diffusers and transformers print on their own, kept where a note or an error of ours says it better."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("diffusers", "transformers", "huggingface_hub")
CUT = ("was truncated because", "sequence length is longer than")  # their words for a prompt past a tokenizer's limit


class _Catch(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextmanager
def caught() -> Iterator[list[str]]:
    """The libraries' log lines, in a list instead of on stderr."""
    catch = _Catch()
    logs = [logging.getLogger(name) for name in LIBRARIES]
    usual = [log.handlers for log in logs]
    for log in logs:
        log.handlers = [catch]
    try:
        yield catch.lines
    finally:
        for log, handlers in zip(logs, usual, strict=True):
            log.handlers = handlers


@contextmanager
def hushed(*known: str) -> Iterator[None]:
    """Without the libraries' log lines that hold one of ``known``."""

    def other(record: logging.LogRecord) -> bool:
        return not any(k in record.getMessage() for k in known)

    handlers = [h for name in LIBRARIES for h in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(other)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(other)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars where nobody watches a terminal."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    watched = sys.stderr.isatty()
    for log in logs:
        watched or log.disable_progress_bar()
    try:
        yield
    finally:
        for log in logs:
            watched or log.enable_progress_bar()
