"""Fixtures every test may use. One thread: pictures are compared bit for bit, and machines are shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from secondlook.engine.rig import Rig
from secondlook.models import checkpoint
from secondlook.models.text import TextSiT
from tests.helpers import tiny_network, tiny_rig

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-adapters-table", action="store_true", help="write docs/results/adapters.md from the tests of adapters"
    )


@pytest.fixture(scope="session")
def adapters_seen(request: pytest.FixtureRequest) -> Iterator[dict[tuple[Any, ...], Any]]:
    """What the tests of adapters see, by cell of docs/results/adapters.md."""
    seen: dict[tuple[Any, ...], Any] = {}
    yield seen
    if request.config.getoption("--write-adapters-table"):
        from tests.test_adapters_table import write

        write(seen)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def network() -> TextSiT:
    return tiny_network()


@pytest.fixture(scope="session")
def weights(network: TextSiT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network on disk, as the command line reads it."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    checkpoint.save(network, path, network.describe(), {"steps": 0})
    return path


@pytest.fixture
def rig(network: TextSiT) -> Rig:
    return tiny_rig(network)


@pytest.fixture(scope="session")
def eyes_at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny weights of all judges of published ones: a folder with one of each kind."""
    pytest.importorskip("transformers")
    from secondlook.eyes import tiny

    path = tmp_path_factory.mktemp("eyes")
    tiny.verifiers(path)
    return path


@pytest.fixture(scope="session")
def eyes(eyes_at: Path) -> dict[str, str]:
    """The call-strings of those verifiers, by name."""
    from secondlook.eyes import tiny

    return tiny.verifiers(eyes_at)
