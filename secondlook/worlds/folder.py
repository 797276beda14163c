"""Training data from disk: pictures in folders, and latents that an autoencoder made of them once.

Both give ``batch(seed, step, count)``, a pure function of its arguments, and ``part``, some rows of it: samples come in epochs, each in an order of its
own by (seed, epoch); a batch may reach from one epoch into the next, and flips and posterior noise are drawn again in each.
Preparation is ADM's (2105.05233, its released code): halve by box averages while twice too large, resize the short
side by bicubic interpolation, cut the centre; then a horizontal flip with probability 1/2 and levels to [-1, 1].
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError
from secondlook.noise import Key, integers, normal

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
INDEX = "latents.json"  # written last, so that a folder with it is whole
Order = tuple[np.ndarray, np.ndarray]


def places(seed: int, step: int, count: int, size: int) -> Order:
    """Which of ``size`` samples a batch takes, and in which epoch each: int64 [count] both."""
    epochs, at = np.divmod(np.arange(step * count, (step + 1) * count), size)
    index = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        index[here] = _shuffled(seed, int(epoch), size)[at[here]]
    return index, epochs


def coins(seed: int, index: np.ndarray, epochs: np.ndarray, size: int) -> np.ndarray:
    """A fair coin for each sample of each epoch: bool like ``index``."""
    out = np.empty(len(index), bool)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _flips(seed, int(epoch), size)[index[here]]
    return out


@lru_cache(maxsize=4)
def _shuffled(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.argsort(integers(Key.root(seed).child("folder", "order", epoch), size), kind="stable")


@lru_cache(maxsize=4)
def _flips(seed: int, epoch: int, size: int) -> np.ndarray:
    return (integers(Key.root(seed).child("folder", "flip", epoch), size) >> np.uint64(63)).astype(bool)


def prepared(image: Image.Image, size: int) -> np.ndarray:
    """A picture of any size and mode as uint8 [size, size, 3], without what lies beside its central square."""
    image = image.convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


class Images:
    """A folder of pictures: a class for each sub-folder, in the order of their names, with all pictures below it; or, where
    the folder itself holds pictures, one class. ConfigError where there is none, or one whose header cannot be read."""

    def __init__(self, path: str | Path, size: int, flip: bool = True, workers: int | None = None):
        if size < 1:
            raise ConfigError(f"A picture's size must be at least 1; got {size}.")
        self.path, self.size, self.flip = Path(path), size, flip
        self.workers = workers or min(16, os.cpu_count() or 1)
        self.shape = (3, size, size)
        self.names, self.files, labels = _listed(self.path)
        self.labels = torch.tensor(labels, dtype=torch.long)
        self.classes = len(self.names)
        _refuse_unreadable(self.files, self.workers)

    def __len__(self) -> int:
        return len(self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pictures' names and sizes on disk: another set has another."""
        found = hashlib.sha256()
        for file in self.files:
            found.update(f"{file.relative_to(self.path).as_posix()}\t{file.stat().st_size}\n".encode())
        return found.hexdigest()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.workers)

    def pictures(self, index: Iterable[int], mirrored: Iterable[bool] | None = None) -> Tensor:
        """uint8 [B, size, size, 3], mirrored where asked; DamagedError naming a file that cannot be decoded."""
        index = [int(i) for i in index]
        flips = [False] * len(index) if mirrored is None else list(mirrored)
        found = list(self._pool.map(self._read, index))
        return torch.from_numpy(np.stack([p[:, ::-1] if f else p for p, f in zip(found, flips, strict=True)]))

    def _read(self, number: int) -> np.ndarray:
        try:
            with Image.open(self.files[number]) as image:
                return prepared(image, self.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DamagedError(
                f'The picture "{self.files[number]}" cannot be decoded ({error}); replace or remove it.'
            ) from None

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """x float32 [count, 3, size, size] in [-1, 1] and labels int64 [count] of one training step."""
        return self.part(seed, step, count, slice(None))

    def part(self, seed: int, step: int, count: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Those rows of the batch, and only their files read."""
        index, epochs = (v[rows] for v in places(seed, step, count, len(self)))
        flips = coins(seed, index, epochs, len(self)) if self.flip else np.zeros(len(index), bool)
        return as_input(self.pictures(index, flips)), self.labels[torch.from_numpy(index)]


def as_input(pictures: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] to x float32 [B, 3, H, W] in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def _listed(path: Path) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Classes, files and a label for each file, in the order of their names."""
    if not path.is_dir():
        raise ConfigError(f'There is no folder "{path}" of pictures.')
    entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    loose, folders = [p for p in entries if _is_picture(p)], [p for p in entries if p.is_dir()]
    if loose and folders:
        raise ConfigError(f'The folder "{path}" holds pictures ({loose[0].name}) beside folders ({folders[0].name}); give one '
                          "with a folder for each class, or one of pictures alone.")  # fmt: skip
    if loose:
        return (path.resolve().name,), loose, [0] * len(loose)
    files, labels = [], []
    for label, folder in enumerate(folders):
        below = sorted(p for p in folder.rglob("*") if _is_picture(p))
        if not below:
            raise ConfigError(f'The class folder "{folder}" holds no picture; fill or remove it.')
        files += below
        labels += [label] * len(below)
    if not files:
        raise ConfigError(f'The folder "{path}" holds no picture ({", ".join(sorted(ENDINGS))}).')
    return tuple(f.name for f in folders), files, labels


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def _refuse_unreadable(files: list[Path], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        bad = [f for f, fine in zip(files, pool.map(_has_header, files, chunksize=64), strict=True) if not fine]
    if bad:
        more = f" and {len(bad) - 1} more of {len(files)}" if len(bad) > 1 else ""
        raise ConfigError(f'The picture "{bad[0]}"{more} cannot be read as a picture; replace or remove it.')


def _has_header(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return min(image.size) > 0
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


class Latents:
    """Latents as `secondlook encode` left them: each picture's posterior mean and standard deviation, and those of its
    mirror image. Every epoch draws again, x = (mean + std noise - shift) * scale, the noise keyed by (seed, epoch, picture).
    ConfigError for a folder that holds no latents or unfinished ones, DamagedError for a damaged one."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.about = _read_index(self.path)
        a = self.about
        try:
            self.names = tuple(a["names"])
            self.scale, self.shift, self.size, self.per = (
                float(a["scale"]),
                float(a["shift"]),
                int(a["size"]),
                int(a["per part"]),
            )
            self.shape = (int(a["shape"][0]), int(a["shape"][1]), int(a["shape"][2]))
            self.mirrored, count = bool(a["mirrored"]), int(a["count"])
            labels = np.load(self.path / "labels.npy")
        except (KeyError, TypeError, ValueError, IndexError, OSError, EOFError) as error:
            raise DamagedError(f"The latents in {self.path} cannot be read ({error}); encode them again.") from None
        self.classes = len(self.names)
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self._parts = [self._part(i, count) for i in range(-(-count // self.per))]
        if len(self.labels) != count:
            raise DamagedError(
                f"The latents in {self.path} are {count}, their labels {len(self.labels)}; encode them again."
            )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the encoding says of itself: its pictures, autoencoder, scale and size."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()

    def _part(self, number: int, count: int) -> np.ndarray:
        """A part, mapped and not read: [n, 1 or 2 (mirrored), 2 (mean, std), *shape]."""
        file, rows = self.path / f"{number:06d}.npy", min(self.per, count - number * self.per)
        try:
            part: np.ndarray = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DamagedError(
                f"The latents {file} cannot be read ({error}); delete that file and encode again."
            ) from None
        if part.shape != (rows, 1 + self.mirrored, 2, *self.shape):
            raise DamagedError(
                f"The latents {file} have the shape {list(part.shape)}; delete that file and encode again."
            )
        return part

    def __len__(self) -> int:
        return len(self.labels)

    def moments(self, index: np.ndarray, mirrored: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each float32 [B, *shape], of pictures ``index`` [B] or their mirror images."""
        found = np.stack(
            [self._parts[i // self.per][i % self.per, int(m)] for i, m in zip(index, mirrored, strict=True)]
        )
        mean, std = torch.from_numpy(found.astype(np.float32)).unbind(1)
        return mean, std

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """x float32 [count, *shape] and labels int64 [count] of one training step."""
        return self.part(seed, step, count, slice(None))

    def part(self, seed: int, step: int, count: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Those rows of the batch, and only they read."""
        index, epochs = (v[rows] for v in places(seed, step, count, len(self)))
        flips = coins(seed, index, epochs, len(self)) if self.mirrored else np.zeros(len(index), bool)
        mean, std = self.moments(index, flips)
        root = Key.root(seed).child("folder", "posterior")
        noise = normal([root.child(int(e), int(i)) for e, i in zip(epochs, index, strict=True)], self.shape)
        return (mean + std * noise - self.shift) * self.scale, self.labels[torch.from_numpy(index)]


def _read_index(path: Path) -> dict[str, Any]:
    if not (path / INDEX).is_file():
        if (path / "settings.json").is_file():
            raise ConfigError(f'The latents in "{path}" are not finished; run the same `secondlook encode` again.')
        raise ConfigError(
            f'The folder "{path}" holds no latents; make them with `secondlook encode FOLDER --vae DIR --out DIR`.'
        )
    try:
        found: dict[str, Any] = json.loads((path / INDEX).read_text())
        return found
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path / INDEX} cannot be read ({error}); encode the pictures again.") from None


def open_data(path: str | Path, size: int | None = None) -> Images | Latents:
    """What a folder holds: latents, or else pictures, which want ``size``. ConfigError where ``size`` is not the one that
    latents were made at."""
    folder = Path(path)
    if (folder / INDEX).is_file() or (folder / "settings.json").is_file():
        data = Latents(folder)
        if size not in (None, data.size):
            raise ConfigError(
                f'The latents in "{folder}" are of pictures of {data.size} pixels, not {size}; encode again for others.'
            )
        return data
    if size is None:
        raise ConfigError(f'Pictures from the folder "{folder}" want a size in pixels, such as 256.')
    return Images(folder, size)
