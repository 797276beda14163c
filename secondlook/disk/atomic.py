"""Files that appear whole under their name, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np


@contextmanager
def whole(path: Path, sync: bool = True, named: bool = True) -> Iterator[BinaryIO]:
    """A file to write into that takes its name ``path`` when the block ends well, and leaves nothing otherwise.

    sync: the content is on the disk, power cut or not, before the name is taken, and the name too unless ``named`` is false
    (whoever writes many files into a folder syncs it once, ``sync_folder``). Without, only a file that is whole can bear the
    name as long as the machine stays up.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # another process may be writing the same name
    try:
        with part.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync and named:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """The names in ``folder`` to the disk. A system that cannot open folders is left to its own ways."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_whole(path: Path, content: bytes, sync: bool = True, named: bool = True) -> None:
    """Write a file whole or not at all; see ``whole``."""
    with whole(path, sync, named) as file:
        file.write(content)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an ``.npy`` whole or not at all."""
    with whole(path) as file:
        np.save(file, array, allow_pickle=False)
