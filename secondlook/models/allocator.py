"""The C library's allocator, told to keep what a network on the CPU asks for again at its next step."""

from __future__ import annotations

import ctypes
import os

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of glibc's malloc.h
KEPT = 256 * 2**20  # bytes free at the end of the heap before any go back to the system
LARGE = 32 * 2**20  # bytes from which a buffer is the system's own; glibc takes no more


def keep_buffers() -> bool:
    """Buffers that were given back stay with the process, so that no step pays for the system's clearing of their pages. Returns whether
    that could be set: glibc alone has the call, and settings in the environment (MALLOC_...) stand."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(TRIM, KEPT)) and bool(mallopt(MMAP, LARGE))
