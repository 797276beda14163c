"""No two devices meet: pretended_devices.py in a process of its own, since a pretended device stays with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="needs secondlook[hub]")
pytest.importorskip("transformers", reason="needs secondlook[hub]")


def test_no_two_devices_meet_in_any_family() -> None:
    file = Path(__file__).with_name("pretended_devices.py")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=file.parents[1], timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "7 passed" in done.stdout or "skipped" in done.stdout
