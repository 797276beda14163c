"""The Digits world: handwritten digits of 8 x 8 pixels, ten classes. A stand-in for ImageNet that a CPU can train on.

The data are the 1,797 pictures that scikit-learn ships: the test part of the UCI "Optical Recognition of Handwritten
Digits" (Alpaydin and Kaynak, 1998, CC BY 4.0), ink counted per 4 x 4 block of a 32 x 32 scan, hence 17 levels, 0 to 16.
``secondlook/data/digits.npz`` holds them; ``python -m secondlook.worlds.digits`` wrote it from scikit-learn, which
nothing else here needs.

The split is fixed: of each class, in the data's order, the fifth, tenth, ... picture is for testing (355), the others
for training (1,442). The data's order goes by writer, so that both parts hold pictures of the same hands.

Scale of pictures: level k is the byte 15 k (0 to 240) and k / 8 - 1 inside a network, both exact. ``decode`` rounds to
the nearest level, as any other world's rounds to the nearest byte.
"""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.noise import Key, integers
from secondlook.types import Condition

LEVELS = 17
STEP = 15  # of a byte, between levels
SIDE = 8
TEST_EVERY = 5


class Digits:
    """Grey digits on black, 8 x 8; the class is the digit."""

    name = "digits"
    classes = tuple(str(digit) for digit in range(10))
    shape = (1, SIDE, SIDE)

    def condition(self, label: int) -> Condition:
        """The condition of a class; ConfigError for a label that is none."""
        if not 0 <= label < len(self.classes):
            raise ConfigError(f"The digits world has classes 0 to {len(self.classes) - 1}; got {label}.")
        return Condition(label=label)

    def train(self) -> tuple[Tensor, Tensor]:
        """Pictures uint8 [1442, 8, 8, 1] and labels int64 [1442]."""
        return _part(False)

    def test(self) -> tuple[Tensor, Tensor]:
        """Pictures uint8 [355, 8, 8, 1] and labels int64 [355], which nothing is trained on."""
        return _part(True)

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 pictures [B, 8, 8, 1] of bytes 0 to 240 to x float32 [B, 1, 8, 8] in [-1, 1]; ShapeError otherwise."""
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1:] != (SIDE, SIDE, 1):
            raise ShapeError(
                f"Digits are uint8 pictures [B, {SIDE}, {SIDE}, 1]; got {pictures.dtype} {list(pictures.shape)}."
            )
        return pictures.permute(0, 3, 1, 2).contiguous().float() / (STEP * (LEVELS - 1) / 2) - 1

    def decode(self, x: Tensor) -> Tensor:
        """x [B, 1, 8, 8] in about [-1, 1] to uint8 pictures [B, 8, 8, 1], at the nearest of the 17 levels."""
        levels = ((x.clamp(-1, 1) + 1) * ((LEVELS - 1) / 2)).round()
        return (levels * STEP).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def batch(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """x float32 [count, 1, 8, 8] and labels int64 [count] of one training step.

        Batches of one size run through the training part in epochs, each in an order of its own; a batch may reach
        from one epoch into the next. A pure function of its three numbers.
        """
        pictures, labels = self.train()
        epochs, places = np.divmod(np.arange(step * count, (step + 1) * count), len(labels))
        chosen = torch.from_numpy(
            np.concatenate([_order(seed, int(e), len(labels))[places[epochs == e]] for e in np.unique(epochs)])
        )
        return self.encode(pictures[chosen]), labels[chosen]


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """A permutation of ``range(count)``, int64."""
    return np.argsort(integers(Key.root(seed).child("digits", epoch), count), kind="stable")


@cache
def _part(test: bool) -> tuple[Tensor, Tensor]:
    pictures, labels = _data()
    rank = np.empty(len(labels), np.int64)  # of a picture in its class
    for label in range(10):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    chosen = (rank % TEST_EVERY == TEST_EVERY - 1) == test
    return torch.from_numpy(pictures[chosen, :, :, None] * STEP), torch.from_numpy(labels[chosen].astype(np.int64))


def _data() -> tuple[np.ndarray, np.ndarray]:
    """Levels uint8 [1797, 8, 8] and labels uint8 [1797]; DamagedError where the file cannot be read."""
    path = Path(str(resources.files("secondlook") / "data" / "digits.npz"))
    try:
        with np.load(path) as file:
            return file["levels"], file["labels"]
    except Exception as error:  # numpy and zipfile raise half a dozen kinds
        raise DamagedError(f"The digits in {path} cannot be read ({error}); install the package again.") from None


def write_data(path: Path) -> None:
    """Write scikit-learn's digits to ``path``; ConfigError where scikit-learn is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("Writing the digits again needs scikit-learn: pip install scikit-learn.") from None
    found = load_digits()
    np.savez_compressed(path, levels=found.images.astype(np.uint8), labels=found.target.astype(np.uint8))


if __name__ == "__main__":
    write_data(Path(__file__).resolve().parents[1] / "data" / "digits.npz")
