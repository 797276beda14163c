"""Pictures as evaluation reads them: streams of uint8 batches, from memory or from an ADM ``.npz``, a batch at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError, ShapeError

Pictures = str | Path | Iterable[Tensor | np.ndarray]
KEY = "arr_0"


def batches(pictures: Pictures, size: int) -> Iterator[Tensor]:
    """uint8 [B, H, W, 3 or 1] with 1 <= B <= size, from batches of any size or from the file at a path."""
    if isinstance(pictures, str | Path):
        yield from read_pictures(pictures, size)
        return
    for batch in pictures:
        checked = check(torch.as_tensor(batch))
        if len(checked):
            yield from torch.split(checked, size)


def check(batch: Tensor) -> Tensor:
    """The batch itself, if it is uint8 [B, H, W, 3 or 1]; ShapeError or ConfigError if not."""
    if batch.ndim != 4 or batch.shape[-1] not in (1, 3):
        raise ShapeError(f"Pictures are [B, H, W, 3] or [B, H, W, 1]; got {list(batch.shape)}.")
    if batch.dtype != torch.uint8:
        raise ConfigError(f"Pictures are uint8 from 0 to 255; got {batch.dtype}: round and clamp them first.")
    return batch


def holds_pictures(path: str | Path) -> bool:
    """Whether the ``.npz`` has the array ADM keeps pictures in, ``arr_0``."""
    try:
        with zipfile.ZipFile(path) as file:
            return f"{KEY}.npy" in file.namelist()
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}; give an .npz of pictures or of statistics.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DamagedError(f"The file {path} cannot be read as an .npz ({error}).") from None


def read_pictures(path: str | Path, size: int) -> Iterator[Tensor]:
    """``arr_0`` of an ``.npz`` in batches of ``size``, uint8 [B, H, W, C]; never more than one batch in memory."""
    if not holds_pictures(path):
        raise ConfigError(f"The file {path} holds no {KEY}; give an .npz of pictures as ADM writes them.")
    try:
        with zipfile.ZipFile(path) as file, file.open(f"{KEY}.npy") as member:
            shape = _header(member, path)
            for start in range(0, shape[0], size):
                count = min(size, shape[0] - start)
                data = bytearray(member.read(count * shape[1] * shape[2] * shape[3]))
                yield torch.frombuffer(data, dtype=torch.uint8).reshape(count, *shape[1:])
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise DamagedError(f"The pictures in {path} cannot be read ({error}).") from None


def _header(member: IO[bytes], path: str | Path) -> tuple[int, int, int, int]:
    """The shape of a ``.npy`` of pictures; ``member`` is left at the first pixel."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran or 0 in shape:
        order = ", in Fortran order" if fortran else ""
        raise ConfigError(
            f"The pictures in {path} must be uint8 [N, H, W, 3 or 1] in C order; got {dtype} {list(shape)}{order}."
        )
    return shape
