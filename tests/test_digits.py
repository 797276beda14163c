"""The Digits world: its data, its split, exact scales, and batches that are a pure function of seed and step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.types import Condition
from secondlook.worlds import digits
from secondlook.worlds.digits import Digits

WORLD = Digits()


def test_the_data_are_those_of_scikit_learn() -> None:
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    found = load_digits()
    pictures, labels = digits._data()
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, found.images)
    assert np.array_equal(labels, found.target)


def test_the_split_is_fixed_stratified_and_of_all_pictures() -> None:
    (train, train_labels), (test, test_labels) = WORLD.train(), WORLD.test()
    assert tuple(train.shape) == (1442, 8, 8, 1)
    assert tuple(test.shape) == (355, 8, 8, 1)
    assert train.dtype == torch.uint8
    assert train_labels.dtype == torch.int64
    share = torch.bincount(test_labels) / (torch.bincount(test_labels) + torch.bincount(train_labels))
    assert bool(((share > 0.19) & (share <= 0.2)).all())
    pictures, labels = digits._data()
    fifth = np.flatnonzero(labels == 3)[4]
    assert np.array_equal(test[test_labels == 3][0, :, :, 0], pictures[fifth] * 15)


def test_levels_are_exact_and_come_back() -> None:
    levels = torch.arange(17, dtype=torch.uint8)
    pictures = (levels * 15).view(-1, 1, 1, 1).expand(17, 8, 8, 1)
    x = WORLD.encode(pictures)
    assert x.dtype == torch.float32
    assert tuple(x.shape[1:]) == WORLD.shape
    assert torch.equal(x[:, 0, 0, 0], levels / 8 - 1)
    assert torch.equal(WORLD.decode(x), pictures)
    assert torch.equal(WORLD.decode(x + 0.06), pictures)  # the nearest level, however far outside
    assert torch.equal(WORLD.decode(torch.full((1, 1, 8, 8), 7.0)), torch.full((1, 8, 8, 1), 240, dtype=torch.uint8))


def test_wrong_words_get_a_sentence() -> None:
    assert WORLD.condition(7) == Condition(label=7)
    for label in (-1, 10):
        with pytest.raises(ConfigError, match="classes 0 to 9"):
            WORLD.condition(label)
    with pytest.raises(ShapeError, match=r"8, 8, 1"):
        WORLD.encode(torch.zeros(2, 8, 8, dtype=torch.uint8))


def test_damaged_data_get_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(digits.resources, "files", lambda package: tmp_path)
    with pytest.raises(DamagedError, match="install the package again"):
        digits._data()


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    x, labels = WORLD.batch(0, 5, 64)
    again, same = WORLD.batch(0, 5, 64)
    assert torch.equal(x, again)
    assert torch.equal(labels, same)
    assert tuple(x.shape) == (64, *WORLD.shape)
    for seed, step in ((1, 5), (0, 6)):
        assert not torch.equal(WORLD.batch(seed, step, 64)[0], x)


def test_an_epoch_shows_every_picture_once() -> None:
    n, count = 1442, 103  # 14 batches a epoch: epochs end inside the next one's first
    drawn = torch.cat([WORLD.batch(3, step, count)[0] for step in range(42)])[: 3 * n].flatten(1)
    every = torch.unique(WORLD.encode(WORLD.train()[0]).flatten(1), dim=0, return_counts=True)
    epochs = [drawn[i * n : (i + 1) * n] for i in range(3)]
    for epoch in epochs:
        found = torch.unique(epoch, dim=0, return_counts=True)
        assert torch.equal(found[0], every[0])
        assert torch.equal(found[1], every[1])
    assert not torch.equal(epochs[0], epochs[1])
    assert tuple(WORLD.batch(0, 0, 4000)[0].shape) == (4000, 1, 8, 8)
