"""secondlook: spend compute at inference time to get better pictures out of diffusion and flow transformers."""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"
__all__ = [
    "Result", "Run", "SecondlookError", "__version__", "draw", "load", "open_run", "own", "replay", "rescore", "resume", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Loaded on first use: `import secondlook` stays as quick as its caller needs it.
    if name in ("draw", "resume", "open_run", "replay", "rescore", "Result", "Run"):
        from secondlook import api

        return getattr(api, name)
    if name == "SecondlookError":
        from secondlook.errors import SecondlookError

        return SecondlookError
    if name == "load":
        from secondlook.adapters.load import load

        return load
    if name == "own":
        from secondlook.backends.network import own

        return own
    if name == "write_report":
        from secondlook.report.html import write_report

        return write_report
    raise AttributeError(f"module 'secondlook' has no attribute {name!r}")
