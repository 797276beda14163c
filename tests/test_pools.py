"""Items made beforehand: the same for any number of processes, and taught as those that a step makes for itself. Samples of the
base model: several of a prompt, and by several processes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from secondlook.cli.app import main
from secondlook.errors import ConfigError
from secondlook.models import checkpoint
from secondlook.models.text import TextSiT
from secondlook.noise import Key, normal
from secondlook.settings import make_named
from secondlook.train import larder, samples, scenes, verifier
from secondlook.train.larder import Larder, Stock, columns, lay, pooled_loss, stocked, targets_in
from secondlook.train.loop import TrainConfig
from secondlook.train.muon import StackedMuon
from secondlook.train.pairs import fresh, prompts_for
from secondlook.train.pool import make_pool, over
from secondlook.train.samples import MIXES, WAYS, Means, OnDevice, Samples, collect, draw
from secondlook.train.targets import PROMPTS, loss_of, targets_of
from secondlook.verify.learned import load_verifier, to_network
from secondlook.verify.networks import NetworkConfig, build, tokenize
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.grammar import WORDS, Prompt, parse
from secondlook.worlds.scenes.prompts import sample_training


def base_samples(count: int, seed: int = 0) -> Samples:
    shown = fresh(random.Random(seed), count)
    pictures = np.stack([s.picture for s in shown])
    prompts = [s.prompt for s in shown]
    return Samples(pictures, tuple(p.text for p in prompts), check(pictures, prompts))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(v.float().nan_to_num(9), b[k].float().nan_to_num(9)) for k, v in a.items()
    )


def said(ids: np.ndarray) -> Prompt:
    return parse(" ".join(WORDS[i - 2] for i in ids.tolist() if i > 1))


def test_a_pool_is_the_same_for_any_number_of_processes() -> None:
    some = base_samples(40)
    one = stocked(some, Stock(300), 1, 0.5, True)
    assert len(one) == 300
    assert same(one.columns, stocked(some, Stock(300, workers=2), 1, 0.5, True).columns)


def test_items_of_a_verifier_are_as_a_step_makes_them(tmp_path: Path) -> None:
    some = base_samples(40)
    held = "a red circle and a blue square"
    held = next(t for t in (held, *_pairs()) if parse(t).held_out)
    lay(replace(some, texts=(held, *some.texts[1:])), tmp_path)
    items = Larder(1, 0.5, folder=tmp_path)("x", 0, 50)
    assert {k: (v.dtype.name, v.shape) for k, v in items.items()} == {
        "picture": ("uint8", (50, 64, 64, 3)), "ids": ("int8", (50, PROMPTS, 17)), "match": ("uint8", (50, PROMPTS)),
        "words": ("float16", (50, PROMPTS, 17)), "shapes": ("int8", (50, 64)), "colors": ("int8", (50, 64)),
        "places": ("float16", (50, 64, 2)), "spoiled": ("uint8", (50,)),
    }  # fmt: skip
    prompts = [[said(ids) for ids in row] for row in items["ids"]]
    assert not any(p.held_out for row in prompts for p in row)
    for k in range(PROMPTS):
        right = check(items["picture"], [row[k] for row in prompts])
        assert np.array_equal(right, items["match"][:, k].astype(bool))
    assert 0 < items["match"].mean() < 1


def _pairs() -> list[str]:
    from secondlook.worlds.scenes.prompts import prompt_set

    return [p.text for p in prompt_set("scenes-dev")]


def test_every_base_sample_is_looked_at_by_some_part(tmp_path: Path) -> None:
    some = base_samples(70)
    lay(some, tmp_path)
    parts = [Larder(3, folder=tmp_path)._own(part) for part in range(3)]
    assert [len(own) for own in parts] == [32, 32, 32]
    pictures = {s.picture.tobytes() for own in parts for s in own}
    assert pictures == {p.tobytes() for p in some.pictures}


@pytest.mark.parametrize("kind", ["tokens", "film"])
def test_a_pooled_item_has_the_loss_of_one_that_a_step_made(kind: str) -> None:
    rng = random.Random(4)
    shown = fresh(rng, 8, 0.5)
    prompts = [prompts_for(s, PROMPTS, rng) for s in shown]
    torch.manual_seed(0)
    network = build(NetworkConfig(kind, WORDS, stem=16, width=48, depth=1, read=1, heads=4))
    ids = tokenize(WORDS, 16, [p.text for row in prompts for p in row]).view(8, PROMPTS, -1)
    pictures = to_network(torch.from_numpy(np.stack([s.picture for s in shown])))
    direct = loss_of(network(pictures, ids), targets_of(shown, prompts))
    items = {k: torch.from_numpy(v) for k, v in columns(shown, prompts).items()}
    rows = pooled_loss(False)(network, items, torch.Generator()).loss
    assert rows.shape == (8,)
    assert torch.equal(rows.mean(), direct)
    back, whole = targets_in(items), targets_of(shown, prompts)
    assert torch.equal(back.places, whole.places)
    assert torch.equal(back.words.nan_to_num(9), whole.words.nan_to_num(9))


def test_a_pool_of_renders_is_right_and_learnt_as_a_step_learns(network: TextSiT) -> None:
    items = scenes.Renders(0.5)("x", 0, 60)
    prompts = [said(ids) for ids in items["ids"]]
    assert check(items["picture"], prompts).all()
    assert not any(p.held_out for p in prompts)
    again, other = scenes.Renders(0.5)("x", 0, 60), scenes.Renders(0.5)("x", 1, 60)
    assert all(np.array_equal(items[k], again[k]) and not np.array_equal(items[k], other[k]) for k in items)
    assert np.mean([p.atoms >= 3 for p in prompts]) > 0.5
    texts = [p.text for p in prompts[:6]]
    assert torch.equal(torch.from_numpy(items["ids"][:6]).long(), network.tokenize(texts))
    data = torch.from_numpy(items["picture"][:6]).permute(0, 3, 1, 2).float() / 127.5 - 1
    drop, t, noise = torch.tensor([True, False] * 3), torch.linspace(0.1, 0.9, 6), torch.randn(data.shape)
    ids = torch.from_numpy(items["ids"][:6]).long()
    found = scenes.item_loss(network, network, data, ids, drop, t, noise, False)
    asked = [None if d else text for d, text in zip(drop.tolist(), texts, strict=True)]
    x = t.view(-1, 1, 1, 1) * data + (1 - t.view(-1, 1, 1, 1)) * noise
    error = (network(x, t, network.encode(asked)) - data).square().flatten(1).mean(1)
    assert torch.allclose(found, error / (1 - t).square(), rtol=1e-4)


def test_the_base_trains_from_a_pool_in_other_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "scenes", "--pool", "40", "--device", "cpu", "--width", "24", "--depth", "1", "--heads", "2",
             "--batch", "6", "--steps", "2", "--hard", "0.5", "--out", str(tmp_path)]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    module = checkpoint.load_text(tmp_path / "weights.safetensors")
    assert (module.config.width, module.config.depth, module.config.heads) == (24, 1, 2)
    average = samples.base_network(tmp_path / "state.pt")
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in average.state_dict().items())
    assert main([*words[:-2], "--width", "48", "--out", str(tmp_path)]) == 2
    assert "other settings" in capsys.readouterr().err
    for wrong, message in (
        (["--device", "cpu"], "--device goes with --pool"),
        (["--hard", "0.5"], "--hard goes with --pool"),
        (["--width", "30", "--heads", "4"], "a multiple of 4"),
        (["--pool", "0"], "--pool must be at least 1"),
    ):
        assert main(["train", "scenes", *wrong, "--out", str(tmp_path / "b")]) == 2
        assert message in capsys.readouterr().err


def test_a_verifier_trains_from_a_pool(tmp_path: Path) -> None:
    ticks = verifier.train_verifier("film", base_samples(8), tmp_path, 2, 7, batch_size=4, stock=Stock(40, 1, "cpu"))
    assert [t.step for t in ticks] == [1, 2]
    assert load_verifier(tmp_path / "weights.safetensors").network.config.kind == "film"
    with pytest.raises(ConfigError, match="other settings"):
        verifier.trainer("film", tmp_path, _config(7), None, stock=Stock(60, 1, "cpu"))


def _config(seed: int) -> TrainConfig:
    return TrainConfig(steps=2, batch=4, warmup=100, ema=0.998, seed=seed, hold=0.5, device="cpu")


def test_a_step_draws_the_same_items_in_micro_batches() -> None:
    pool = make_pool(scenes.Renders(), "a", 30)
    seen: list[torch.Tensor] = []
    by_rows = over(pool, 8, lambda forward, items, g: seen.append(items["ids"]) or larder.Rows(torch.zeros(4)))
    drawn = by_rows.draw(3, torch.Generator().manual_seed(1), slice(0, 8))
    for part in (slice(0, 4), slice(4, 8)):
        by_rows.rows(None, *(d[part] for d in drawn))
    assert torch.equal(torch.cat(seen), pool.columns["ids"][drawn[0]])


def test_samples_are_drawn_as_they_were(weights: Path, network: TextSiT, tmp_path: Path) -> None:
    """What collect did before it knew of devices, step by step."""
    list(collect(weights, 70, tmp_path / "a.npz", 5, "hard", ("few", "heun")))
    found = Samples.load(tmp_path / "a.npz")
    rng, root, at = random.Random("samples-5"), Key.root(5).child("samples"), 0
    for size in (64, 6):
        texts = [MIXES["hard"](rng).text for _ in range(size)]
        name, steps, guidance = WAYS[rng.choice(("few", "heun"))]
        keys = [root.child(at + i) for i in range(size)]
        pictures = draw(network, texts, keys, rng.choice(steps), rng.choice(guidance), make_named("solver", name))
        assert found.texts[at : at + size] == tuple(texts)
        assert np.array_equal(found.pictures[at : at + size], pictures)
        at += size
    assert np.array_equal(found.right, check(found.pictures, found.prompts))


def test_several_samples_of_each_prompt(weights: Path, tmp_path: Path) -> None:
    list(
        collect(
            weights, 14, tmp_path / "a.npz", 5, ways=["few"], per_prompt=4, means=Means(batch=6, workers=2, raw=True)
        )
    )
    found = Samples.load(tmp_path / "a.npz")
    rng = random.Random("samples-5")
    first = sample_training(rng).text
    assert found.texts[:4] == (first,) * 4
    assert [len(set(found.texts[i : i + 4])) for i in (0, 4, 8, 12)] == [1, 1, 1, 1]
    assert len(set(found.texts)) > 2
    assert len({p.tobytes() for p in found.pictures}) == 14
    assert np.array_equal(found.right, check(found.pictures, found.prompts))
    with pytest.raises(ConfigError, match="--per-prompt must be at least 1"):
        list(collect(weights, 4, tmp_path / "b.npz", 5, per_prompt=0))
    with pytest.raises(ConfigError, match="--batch must be at least 1"):
        Means(batch=0)
    with pytest.raises(ConfigError, match="cannot be used here"):
        list(collect(weights, 4, tmp_path / "b.npz", 5, means=Means("nowhere")))


def test_matrices_are_orthogonalised_together_as_alone() -> None:
    torch.manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (12, 12)]
    start = [torch.randn(s) for s in shapes]
    ends = []
    for kind in (torch.optim.Muon, StackedMuon):
        given = [torch.nn.Parameter(s.clone()) for s in start]
        optimizer = kind(given, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            for p in given[:-1]:
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        ends.append(given)
    for s, one, two in zip(start, *ends, strict=True):
        assert torch.allclose(one - s, two - s, atol=2e-3)
        assert torch.equal(one, s) == torch.equal(two, s)


def test_noise_drawn_on_a_device_goes_on_from_what_was_drawn(network: TextSiT, monkeypatch: pytest.MonkeyPatch) -> None:
    source = OnDevice(torch.device("cpu"), 3)
    keys = [Key.root(0)] * 2
    first, second = source(keys, (2, 3)), source(keys, (2, 3))
    assert first.shape == (2, 2, 3)
    assert not torch.equal(first, second)
    assert torch.equal(OnDevice(torch.device("cpu"), 3)(keys, (2, 3)), first)
    drawn = []
    for seed in (4, 4, 5):
        source = OnDevice(torch.device("cpu"), seed)
        solver = replace(make_named("solver", "sde"), source=source)
        drawn.append(draw(network, ["a circle"] * 2, keys, 3, 2.0, solver, source))
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    monkeypatch.setattr(samples, "OnDevice", lambda device, seed: seed)
    solver, found = samples._sourced(make_named("solver", "sde"), torch.device("meta"), Key.root(1))
    assert solver.source == found == Key.root(1).value % 2**63
    assert samples._sourced(make_named("solver", "heun"), torch.device("cpu"), Key.root(1))[1] is normal
