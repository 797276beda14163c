"""The classifiers of Digits and Glyphs as shipped: how right they are, rows apart, what they reject, and their training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.models.checkpoint import shipped
from secondlook.train import degrade
from secondlook.train.auc import auc
from secondlook.train.classifiers import (
    broken,
    digit_batch,
    glyph_batch,
    half,
    held_out,
    rejection,
    train_classifier,
    trainer,
)
from secondlook.types import Condition
from secondlook.verify.classify import (
    FEATURES,
    ROWS,
    WORLDS,
    Classifier,
    features,
    judge,
    load_classifier,
    load_features,
    verifier,
    world_of,
)

COUNT = 600


def asked(labels: Tensor) -> list[Condition]:
    return [Condition(label=int(k)) for k in labels]


def networks(world: str) -> list[Classifier]:
    both = [verifier(world), judge(world)]
    assert all(isinstance(network, Classifier) for network in both)
    return both  # type: ignore[return-value]


@pytest.mark.parametrize(("world", "least", "least_features"), [("digits", 0.97, 0.98), ("glyphs", 0.998, 0.998)])
def test_they_name_pictures_they_were_not_trained_on(world: str, least: float, least_features: float) -> None:
    pictures, labels = held_out(world, COUNT)
    for network in networks(world):
        named = network.log_probs(pictures).argmax(1)
        assert float((named == labels).double().mean()) >= least, network.name
    _, logits = features(world)(pictures)
    assert float((logits.argmax(1) == labels).double().mean()) >= least_features


@pytest.mark.parametrize("world", WORLDS)
def test_broken_pictures_score_low(world: str) -> None:
    pictures, labels = held_out(world, COUNT)
    for kind, least in (("two", 0.99), ("cut", 0.97)) if world == "glyphs" else (("union", 0.97), ("shuffle", 0.99)):
        wrong, of = broken(world, kind, COUNT)
        for network in networks(world):
            scores = [network(pictures, asked(labels)), network(wrong, asked(of))]
            right = np.arange(len(labels) + len(of)) < len(labels)
            assert auc(torch.cat(scores).numpy(), right) > least, (network.name, kind)


def test_rejection_reports_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degrade, "DIGIT_KINDS", ("blend", "static"))
    [network, _] = networks("digits")
    found = rejection(network, "digits", 1)
    assert list(found) == ["all", "blend", "static", "speckle"]
    assert found["all"]["broken"] == 3 * 355


@pytest.mark.parametrize("world", WORLDS)
def test_rows_do_not_depend_on_their_company(world: str) -> None:
    pictures, labels = held_out(world, 2 * ROWS + 3)
    pictures, labels = pictures[: 2 * ROWS + 3], labels[: 2 * ROWS + 3]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    for network in networks(world):
        whole = network(pictures, asked(labels))
        assert whole.dtype == torch.float64
        assert bool((whole <= 0).all())
        assert torch.equal(network(pictures[order], asked(labels[order])), whole[order])
        for i in (0, 5, len(labels) - 1):
            assert torch.equal(network(pictures[i : i + 1], asked(labels[i : i + 1]))[0], whole[i])
        assert len(network(pictures[:0], [])) == 0
    whole_features = features(world)(pictures)
    for mixed, plain in zip(features(world)(pictures[order]), whole_features, strict=True):
        assert torch.equal(mixed, plain[order])
    assert [tuple(v.shape) for v in whole_features] == [
        (len(labels), FEATURES),
        (len(labels), len(WORLDS[world].classes)),
    ]


def test_probabilities_sum_to_one_and_nothing_asked_is_nan() -> None:
    pictures, labels = held_out("glyphs", 4)
    network = networks("glyphs")[0]
    total = network.log_probs(pictures).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(4, dtype=torch.float64))
    scores = network(pictures, [*asked(labels[:3]), Condition(prompt="a circle")])
    assert math.isnan(scores[3])
    assert not bool(scores[:3].isnan().any())


def test_wrong_words_get_a_sentence() -> None:
    network = networks("digits")[0]
    pictures, labels = held_out("digits", 1)
    with pytest.raises(ConfigError, match='did you mean "glyphs"'):
        verifier("glyph")
    with pytest.raises(ConfigError, match="classes 0 to 9"):
        network(pictures[:1], [Condition(label=10)])
    with pytest.raises(ShapeError, match="one for each picture"):
        network(pictures[:2], asked(labels[:1]))
    with pytest.raises(ShapeError, match="uint8 pictures"):
        network(pictures[:1].float(), asked(labels[:1]))
    with pytest.raises(ConfigError, match='There is no classifier role "judg"; did you mean "judge"'):
        train_classifier("digits", "judg", Path("nowhere"), 0)


def test_files_are_small_and_of_their_role(tmp_path: Path) -> None:
    files = [shipped(f"{world}-{role}.safetensors") for world in WORLDS for role in ("verifier", "judge", "features")]
    assert sum(f.stat().st_size for f in files) < 2e6
    for world in WORLDS:
        one, two = networks(world)
        assert type(one.network) is not type(two.network)
        assert {one.name, two.name} == {"classifier", "judge"}
    with pytest.raises(DamagedError, match="no verifier or judge"):
        load_classifier(files[2], "judge")
    with pytest.raises(DamagedError, match="no feature network"):
        load_features(files[0])
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(DamagedError, match="cannot be read"):
        load_classifier(tmp_path / "bad.safetensors", "judge")


def test_verifier_and_judge_of_digits_share_no_picture() -> None:
    (one, labels), (two, more), (every, all_labels) = half(0), half(1), half(None)
    assert len(one) + len(two) == len(every) == 1442
    assert torch.equal(torch.sort(torch.cat([labels, more])).values, torch.sort(all_labels).values)
    assert int((torch.bincount(labels) - torch.bincount(more)).abs().max()) <= 1
    assert not {x.numpy().tobytes() for x in one} & {x.numpy().tobytes() for x in two}


def test_training_batches_are_a_pure_function_of_the_generator() -> None:
    def made(seed: int, rejects: bool) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(seed)
        return *digit_batch(half(0), 24, rejects, g), *glyph_batch(24, rejects, g)

    first = made(0, True)
    assert all(torch.equal(a, b) for a, b in zip(first, made(0, True), strict=True))
    assert not torch.equal(first[0], made(1, True)[0])
    assert int((first[1] == 10).sum()) == 4
    assert int((first[3] == 32).sum()) > 2
    plain = made(0, False)
    assert int(plain[1].max()) < 10
    assert int(plain[3].max()) < 32
    assert all(float(x.abs().max()) <= 1 for x in (first[0], first[2]))


@pytest.mark.parametrize(("world", "role"), [("digits", "judge"), ("glyphs", "features")])
def test_training_resumes_exactly(world: str, role: str, tmp_path: Path) -> None:
    whole = trainer(world, role, tmp_path / "whole", 3, 4)
    losses = [t.loss for t in whole.run()]
    part = trainer(world, role, tmp_path / "part", 3, 4)
    ticks = part.run()
    first = [next(ticks).loss, next(ticks).loss]
    part.save()
    rest = trainer(world, role, tmp_path / "part", 3, 4)
    assert rest.step == 2
    assert first + [t.loss for t in rest.run()] == losses
    for a, b in zip(whole.ema.module.parameters(), rest.ema.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_train_classifier_writes_a_verifier(tmp_path: Path) -> None:
    path = train_classifier("digits", "verifier", tmp_path, 0, 2)
    assert path == tmp_path / "digits-verifier.safetensors"
    pictures, labels = world_of("digits").train()
    assert len(load_classifier(path, "new")(pictures[:5], asked(labels[:5]))) == 5
    # Two networks of one seed have nothing in common, not even the order of their pictures.
    seeds = {trainer("digits", role, tmp_path / role, 0, 2).config.seed for role in ("verifier", "judge", "features")}
    assert len(seeds) == 3
