"""What a run was made with: versions, the commit of the source tree, this machine's arithmetic."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import secondlook


@cache
def versions() -> dict[str, str]:
    names = ("torch", "numpy", "scipy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


@cache
def commit() -> str | None:
    """The commit of the source tree this package runs from, with a + where it has changes; None elsewhere. Asked once a process,
    whose code is what it was when it was loaded."""
    root = Path(secondlook.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; elsewhere it would be slower than float32."""
    import torch

    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
