"""The learned verifier: scores row by row, weights on disk, the prompts it is taught with, and how it is measured."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.train.auc import auc, mistakes, picked, scores_of, shared, table, within
from secondlook.train.loop import TrainConfig
from secondlook.train.pairs import Shown, describe, fact_places, fresh, moved, near_miss, prompts_for
from secondlook.train.samples import Samples
from secondlook.train.verifier import batch, loss_of, pool_of, train_verifier, trainer
from secondlook.types import Condition
from secondlook.verify.learned import AGREE, ROWS, LearnedVerifier, load_verifier, save_verifier
from secondlook.verify.networks import KINDS, NetworkConfig, build
from secondlook.worlds.scenes.checker import check, detect, judge
from secondlook.worlds.scenes.grammar import WORDS, parse
from secondlook.worlds.scenes.prompts import prompt_set, sample_training
from secondlook.worlds.scenes.render import render, sample_scene

TEXTS = ("a circle", "a red circle left of a blue square and two white crosses", "three squares")


def tiny(kind: str) -> LearnedVerifier:
    torch.manual_seed(0)
    config = NetworkConfig(kind, WORDS, stem=16, width=32, depth=1, read=1)
    return LearnedVerifier(build(config), kind)


def pictures(count: int, seed: int = 0) -> tuple[torch.Tensor, list[Condition]]:
    made = fresh(random.Random(seed), count)
    return torch.from_numpy(np.stack([m.picture for m in made])), [Condition(m.prompt.text) for m in made]


def samples(count: int, seed: int = 0) -> Samples:
    made = fresh(random.Random(seed), count)
    stacked = np.stack([m.picture for m in made])
    return Samples(stacked, tuple(m.prompt.text for m in made), check(stacked, [m.prompt for m in made]))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_company(kind: str) -> None:
    verifier = tiny(kind)
    x, conditions = pictures(2 * ROWS + 3)
    whole = verifier(x, conditions)
    assert whole.dtype == torch.float64
    assert bool(((whole > 0) & (whole < 1)).all())
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    shuffled = verifier(x[order], [conditions[i] for i in order])
    assert torch.equal(shuffled, whole[order])
    for i in (0, 5, len(x) - 1):
        assert torch.equal(verifier(x[i : i + 1], conditions[i : i + 1])[0], whole[i])
    assert len(verifier(x[:0], [])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_places_matter(kind: str) -> None:
    verifier = tiny(kind)
    x, _ = pictures(1)
    scores = [float(verifier(x, [Condition(t)])) for t in TEXTS]
    assert len(set(scores)) == len(TEXTS)
    assert float(verifier(x.flip(2), [Condition(TEXTS[0])])) != scores[0]


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_one_picture_do_not_see_each_other(kind: str) -> None:
    network = tiny(kind).network
    b = batch([], 0, 0, 4)
    together = network(b.pictures, b.ids).match
    alone = torch.stack([network(b.pictures, b.ids[:, k : k + 1]).match[:, 0] for k in range(b.ids.shape[1])], 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_judged() -> None:
    verifier = tiny("tokens")
    x, conditions = pictures(2)
    assert verifier(x, [Condition(label=3), conditions[1]]).isnan().tolist() == [True, False]
    with pytest.raises(ShapeError, match="uint8"):
        verifier(x.float(), conditions)
    with pytest.raises(ShapeError, match="2 pictures came with 1"):
        verifier(x, conditions[:1])
    with pytest.raises(ConfigError, match='"hexagon"'):
        verifier(x[:1], [Condition("a hexagon")])
    with pytest.raises(ConfigError, match="no verifier network"):
        build(NetworkConfig("token", WORDS))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_whole(kind: str, tmp_path: Path) -> None:
    verifier = tiny(kind)
    x, conditions = pictures(3)
    save_verifier(verifier.network, tmp_path / "w.safetensors", {"seed": 0})
    again = load_verifier(tmp_path / "w.safetensors", "judge")
    assert again.name == "judge"
    assert torch.equal(again(x, conditions), verifier(x, conditions))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(DamagedError, match="cannot be read"):
        load_verifier(path)
    save_verifier(tiny("film").network, path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError) as caught:
            load_verifier(path)
        assert "\n" not in str(caught.value)
    save_file({"x": torch.zeros(1)}, path, {"config": '{"kind": "text-sit", "words": []}'})
    with pytest.raises(DamagedError):
        load_verifier(path)


def test_shipped_sizes_are_small() -> None:
    for kind in KINDS:
        assert sum(p.numel() for p in build(NetworkConfig(kind, WORDS)).parameters()) < 1_500_000


def test_near_misses_are_prompts_and_never_held_out() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        prompt = sample_training(rng)
        miss = near_miss(prompt, rng)
        assert miss != prompt
        assert parse(miss.text) == miss
        assert not miss.held_out


def test_near_misses_are_mostly_wrong_and_descriptions_right() -> None:
    rng = random.Random(1)
    prompts = [sample_training(rng) for _ in range(200)]
    seen = [detect(p) for p in render([sample_scene(p, rng) for p in prompts])]
    described = [describe(s, rng) for s in seen]
    # A clean picture has no training prompt only where everything it shows is a held-out combination.
    assert sum(d is not None for d in described) > 190
    assert all(judge(s, d).right and not d.held_out for s, d in zip(seen, described, strict=True) if d)
    wrong = [not judge(s, near_miss(p, rng)).right for s, p in zip(seen, prompts, strict=True)]
    assert np.mean(wrong) > 0.7


def test_moved_pictures_keep_their_verdicts() -> None:
    rng = random.Random(2)
    for shown in fresh(rng, 150):
        other = moved(shown, rng)
        assert other.picture.shape == (64, 64, 3)
        looked = detect(other.picture)
        for prompt in prompts_for(other, 4, rng):
            told, found = judge(other.seen, prompt), judge(looked, prompt)
            assert (told.right, told.atoms) == (found.right, found.atoms)
        assert judge(looked, other.prompt).right == judge(shown.seen, shown.prompt).right


def test_facts_stand_at_their_words() -> None:
    prompt = parse("a red circle left of a square and two blue crosses")
    words = ["<open>", *prompt.text.split()]
    assert [words[i] for i in fact_places(prompt)] == ["circle", "red", "square", "crosses", "blue", "two", "left"]
    rng = random.Random(3)
    for _ in range(500):
        asked = sample_training(rng)
        assert len(fact_places(asked)) == asked.atoms


def test_batches_are_keyed_and_never_say_what_is_held_out() -> None:
    pool = pool_of(samples(20))
    one, two, other = batch(pool, 1, 5, 12), batch(pool, 1, 5, 12), batch(pool, 1, 6, 12)
    assert torch.equal(one.pictures, two.pictures)
    assert torch.equal(one.ids, two.ids)
    assert torch.equal(one.targets.match, two.targets.match)
    assert not torch.equal(one.pictures, other.pictures)
    for step in range(20):
        assert not any(p.held_out for row in batch(pool, 2, step, 12).prompts for p in row)


def test_labels_are_balanced() -> None:
    pool = pool_of(samples(100))
    shares = [float(batch(pool, 0, step, 32).targets.match.mean()) for step in range(10)]
    assert 0.3 < np.mean(shares) < 0.6


def test_samples_for_held_out_prompts_are_left_out() -> None:
    held = next(p for p in prompt_set("scenes-dev") if p.held_out)
    some = samples(4)
    assert len(pool_of(some)) == 4
    assert len(pool_of(replace(some, texts=(held.text, *some.texts[1:])))) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_a_fixed_batch(kind: str) -> None:
    network = build(NetworkConfig(kind, WORDS, stem=16, width=32, depth=1, read=1))
    b = batch([], 0, 0, 8)
    adam = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(network(b.pictures, b.ids), b.targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_training_is_deterministic_and_writes_weights(tmp_path: Path) -> None:
    some = samples(6)
    for name in ("a", "b"):
        assert [t.step for t in train_verifier("film", some, tmp_path / name, 2, 7, batch_size=4)] == [1, 2]
    a, b = (load_verifier(tmp_path / name / "weights.safetensors") for name in ("a", "b"))
    x, conditions = pictures(2)
    assert torch.equal(a(x, conditions), b(x, conditions))
    config = TrainConfig(steps=1, batch=4)
    more = trainer("film", tmp_path / "c", config, None, tmp_path / "a" / "weights.safetensors")
    for key, value in a.network.state_dict().items():
        assert torch.equal(more.module.state_dict()[key], value)


def test_samples_come_back(tmp_path: Path) -> None:
    some = samples(3)
    some.save(tmp_path / "s.npz")
    again = Samples.load(tmp_path / "s.npz", tmp_path / "s.npz")
    assert again.texts == some.texts * 2
    assert np.array_equal(again.pictures[3:], some.pictures)
    (tmp_path / "s.npz").write_bytes(b"x")
    with pytest.raises(DamagedError, match="collect them again"):
        Samples.load(tmp_path / "s.npz")


def test_auc_against_hand_made_cases() -> None:
    right = np.array([True, True, False, False])
    assert auc(np.array([4.0, 3, 2, 1]), right) == 1.0
    assert auc(np.array([1.0, 2, 3, 4]), right) == 0.0
    assert auc(np.array([1.0, 1, 1, 1]), right) == 0.5
    assert auc(np.array([4.0, 1, 2, 3]), right) == 0.5
    assert auc(np.array([2.0, 1, 1, 0]), right) == 0.875
    assert np.isnan(auc(np.zeros(4), np.ones(4, bool)))


def test_within_prompt_ignores_what_separates_prompts() -> None:
    scores, right = np.array([9.0, 8, 1, 0, 5]), np.array([False, True, True, False, True])
    groups = ["p", "p", "q", "q", "r"]
    assert within(scores, right, groups) == (0.5, 2)
    assert auc(scores, right) == pytest.approx(3 / 6)
    assert picked(scores, right, groups) == pytest.approx(2 / 3)


def test_table_tells_trained_from_held_out() -> None:
    held = next(p for p in prompt_set("scenes-dev") if p.held_out).text
    some = samples(6)
    some = Samples(some.pictures, ("a circle",) * 3 + (held,) * 3, np.array([1, 0, 1, 0, 1, 1], bool))
    rows = table(scores_of(tiny("film"), some), some)
    assert rows["all"]["samples"] == 6
    assert rows["trained"]["samples"] == rows["held_out"]["samples"] == 3
    assert rows["all"]["any_is_right"] == 1.0


def test_mirrored_pictures_mirror_their_relation() -> None:
    rng = random.Random(4)
    prompt = parse("a circle left of a cross")
    picture = render([sample_scene(prompt, rng)])[0]
    said = {moved(Shown(picture, detect(picture), prompt), rng).prompt.text for _ in range(20)}
    mirrored = parse("a circle right of a cross")
    assert said == ({prompt.text} if mirrored.held_out else {prompt.text, mirrored.text})


def test_a_render_s_truth_is_what_the_checker_sees() -> None:
    """Labels by the renderer's own scenes are a second witness to those by the checker's eyes."""
    told, seen = (fresh(random.Random(5), 120, hard=0.5, truth=truth) for truth in (True, False))
    assert all(np.array_equal(a.picture, b.picture) for a, b in zip(told, seen, strict=True))
    same, differ = 0, 0
    for a, b in zip(told, seen, strict=True):
        for prompt in (a.prompt, near_miss(a.prompt, random.Random(1))):
            if judge(a.seen, prompt).right == judge(b.seen, prompt).right:
                same += 1
            else:
                differ += 1
    assert differ <= 2 < same
    assert sum(p.prompt.atoms >= 3 for p in told) > 60


def test_a_network_without_rules_answers_by_its_match_head_alone() -> None:
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    conditions = [Condition("a red circle")] * 3
    network = build(NetworkConfig("film", WORDS, rules=False))
    alone = LearnedVerifier(network, "x").logits(pictures, conditions)
    network.config = replace(network.config, rules=True)
    gap = LearnedVerifier(network, "x").logits(pictures, conditions) - alone
    assert torch.allclose(gap.abs(), torch.full((3,), AGREE, dtype=torch.float64))


def test_mistakes_are_counted_by_the_logits_sign_and_shared_ones_apart() -> None:
    right = np.array([True, True, False, False])
    wrong = {
        "a": mistakes(np.array([0.2, -0.2, 0.2, -3.0]), right),
        "b": mistakes(np.array([2.0, -2.0, -2.0, 2.0]), right),
    }
    assert wrong["a"].tolist() == [False, True, True, False]
    assert shared(wrong, "a") == {"b": [2, 0.5]}
    assert shared({"a": right & False, "b": right}, "a") == {}
