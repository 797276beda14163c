"""Critics of the Scenes world: what they say and of what, the network that writes, its training and its weights on disk."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from secondlook.api import draw, opened
from secondlook.critics import scenes
from secondlook.critics.scenes import Detector, Learned, Oracle
from secondlook.engine.record import Record
from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.models.writer import CLOSE, PAD, Writer, WriterConfig, load_writer, save_writer, to_ids, to_text
from secondlook.registry import CRITICS
from secondlook.settings import make_named
from secondlook.testing import CriticContract
from secondlook.train.auc import without_nan
from secondlook.train.critic import Items, columns, loss_of, loss_over, train_critic
from secondlook.train.critic_scores import kind_of, remarks_of, table
from secondlook.train.loop import TrainConfig, Trainer
from secondlook.train.pairs import describe, fresh, near_miss, prompts_for
from secondlook.train.pool import Pool, make_pool
from secondlook.train.samples import Samples
from secondlook.types import Condition, Critic, Remark
from secondlook.verify.learned import ROWS, LearnedVerifier, to_network
from secondlook.verify.networks import NetworkConfig, build, tokenize
from secondlook.worlds.scenes.checker import check, detect, judge
from secondlook.worlds.scenes.grammar import WORDS, held_out, parse
from secondlook.worlds.scenes.remarks import KINDS, LONGEST, REMARK_WORDS, faults, remark, tokens
from secondlook.worlds.scenes.render import render, sample_scene

TINY = WriterConfig(stem=16, width=32, depth=1, read=1, write=1)


def network(seed: int = 0, sizes: WriterConfig = TINY) -> Writer:
    torch.manual_seed(seed)
    return Writer(sizes)


@cache
def learned() -> Learned:
    """A fresh network that finds about half of what it is shown wrong, and writes what comes."""
    made = network()
    with torch.no_grad():
        made.head.bias[CLOSE] = 1.0
        made.place.mul_(50)
        made.reader.match_head[-1].weight.mul_(20)
    made.eval()
    with torch.inference_mode():
        x, conditions = pictures(64)
        scores = [r.score for r in Learned(made)(x, conditions) if r is not None]
        middle = sorted(scores)[len(scores) // 2] if scores else 0.5
        made.reader.match_head[-1].bias -= math.log(middle / (1 - middle))
    return Learned(made)


def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(LearnedVerifier(build(NetworkConfig("tokens", WORDS, stem=16, width=32, depth=1, read=1)), "tiny"))


MADE: dict[str, Callable[[], Critic]] = {"learned": learned, "detector": detector, "oracle": Oracle}


def pictures(count: int, seed: int = 0) -> tuple[torch.Tensor, list[Condition]]:
    made = fresh(random.Random(seed), count, 0.6)
    return torch.from_numpy(np.stack([m.picture for m in made])), [Condition(m.prompt.text) for m in made]


def samples(count: int, seed: int = 0) -> Samples:
    made = fresh(random.Random(seed), count, 0.6)
    stacked = np.stack([m.picture for m in made])
    return Samples(stacked, tuple(m.prompt.text for m in made), check(stacked, [m.prompt for m in made]))


# ---- what every critic does -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", [t for t in dir(CriticContract) if t.startswith("test_")])
@pytest.mark.parametrize("name", MADE)
def test_critics_keep_their_contract(name: str, test: str) -> None:
    critic, under = MADE[name](), CriticContract()
    under.made = lambda: critic  # type: ignore[method-assign]
    getattr(under, test)()


@pytest.mark.parametrize("name", MADE)
def test_a_remark_does_not_depend_on_its_row(name: str) -> None:
    critic = MADE[name]()
    x, conditions = pictures(2 * ROWS + 3)
    whole = list(critic(x, conditions))
    assert len({None if r is None else r.text for r in whole}) > 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1)).tolist()
    assert list(critic(x[order], [conditions[i] for i in order])) == [whole[i] for i in order]
    for i in (0, 5, len(x) - 1):
        assert list(critic(x[i : i + 1], conditions[i : i + 1])) == [whole[i]]
    assert list(critic(x[:0], [])) == []


@pytest.mark.parametrize("name", MADE)
def test_a_condition_without_a_prompt_is_given_no_remark(name: str) -> None:
    x, conditions = pictures(4)
    said = list(MADE[name]()(x, [conditions[0], Condition(), Condition(label=3), conditions[3]]))
    assert said[1:3] == [None, None]


@pytest.mark.parametrize("name", MADE)
def test_what_cannot_be_remarked_on_is_refused(name: str) -> None:
    critic = MADE[name]()
    x, conditions = pictures(2)
    with pytest.raises(ShapeError, match="2 pictures came with 1 conditions"):
        critic(x, conditions[:1])
    with pytest.raises(ShapeError, match="reads uint8 pictures"):
        critic(x.float(), conditions)
    with pytest.raises(ConfigError, match='"rad"'):
        critic(x[:1], [Condition("a rad circle")])


@pytest.mark.parametrize("name", [n for n in MADE if n != "learned"])
def test_what_is_told_by_rules_reads_as_remarks_do(name: str) -> None:
    x, conditions = pictures(32)
    said = [r.text for r in MADE[name]()(x, conditions) if r is not None]
    assert all(set(tokens(text)) <= set(REMARK_WORDS) for text in said)
    assert all(kind_of(clause) for text in said if text for clause in text.split("; "))


# ---- the learned one ----------------------------------------------------------------------------------------------------


def test_the_learned_critic_says_nothing_of_what_its_network_finds_right_and_something_of_all_else() -> None:
    x, conditions = pictures(64)
    said = learned()(x, conditions)
    with torch.inference_mode():
        ids = tokenize(WORDS, 16, [k.prompt or "" for k in conditions])
        right = learned().network.write(to_network(x), ids)[0] >= 0
    assert [r is not None and r.text == "" for r in said] == right.tolist()
    found = [r for r in said if r is not None]
    assert {r.text == "" for r in found} == {True, False}
    assert all((r.text == "") == (r.score >= 0.5) for r in found)
    assert all(set(tokens(r.text)) <= set(REMARK_WORDS) for r in found)
    assert any(r is None for r in said) or all(len(tokens(r.text)) <= LONGEST for r in found)


def test_a_remark_that_does_not_end_is_none_and_never_right() -> None:
    made = network()
    with torch.no_grad():
        made.head.bias[CLOSE] = -100.0
        made.reader.match_head[-1].bias.fill_(-100.0)
    assert Learned(made)(*pictures(2)) == [None, None]
    with torch.no_grad():
        made.head.bias[CLOSE] = 100.0
    assert all(r is not None and len(tokens(r.text)) == 1 for r in Learned(made)(*pictures(2)))
    assert to_text([5, 6]) is None


def test_writing_word_by_word_is_what_the_whole_forward_pass_says() -> None:
    critic = learned()
    x, conditions = pictures(8)
    asked = tokenize(WORDS, 16, [k.prompt or "" for k in conditions])
    x = to_network(x)
    with torch.no_grad():
        match, said = critic.network.write(x, asked)
        given = torch.zeros(8, 1, LONGEST + 1, dtype=torch.long)
        for row, ids in zip(given[:, 0], said, strict=True):
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        reading, logits = critic.network(x, asked[:, None], given)
    assert torch.allclose(reading.match[:, 0], match, atol=1e-4)
    logits[..., :CLOSE] = -torch.inf
    logits[:, :, 0, CLOSE] = -torch.inf
    assert any(said)
    for row, ids in enumerate(said):
        assert logits[row, 0, : len(ids)].argmax(-1).tolist() == ids


# ---- the language -------------------------------------------------------------------------------------------------------


def test_remarks_come_back_from_their_ids() -> None:
    made = fresh(random.Random(3), 200, 0.6)
    texts = [remark(s.seen, p) for s in made for p in prompts_for(s, 2, random.Random(1))]
    ids = to_ids(texts)
    assert ids.shape == (400, LONGEST + 1)
    assert [to_text(row.tolist()) for row in ids] == texts
    assert int(ids.max()) < len(REMARK_WORDS) + 3
    with pytest.raises(ConfigError, match='does not know "sorry"'):
        to_ids(["sorry"])


def test_of_a_remark_too_long_the_whole_clauses_that_fit_are_kept() -> None:
    clause = "there are no circles, two were asked for"
    text = "; ".join([clause] * 6)
    assert to_text(to_ids([text])[0].tolist()) == "; ".join([clause] * 3)
    assert to_text(to_ids(["circle " * 50])[0].tolist()) == ("circle " * LONGEST).strip()


def test_a_clause_tells_its_kind() -> None:
    found = set()
    for s in fresh(random.Random(5), 250, 0.6):
        for prompt in (s.prompt, near_miss(s.prompt, random.Random(2))):
            for kind, clause in faults(s.seen, prompt):
                assert kind_of(clause) == kind, clause
                found.add(kind)
    more = {"colorless": "the cross is of no known color", "specks": "specks lie about"}
    assert all(kind_of(clause) == kind for kind, clause in more.items())
    assert found | set(more) == set(KINDS)
    assert kind_of("there are many circles, two were asked for") == "count"
    assert [kind_of(c) for c in ("", "circle", "asked for", "there asked for")] == [None] * 4


# ---- the detector and the oracle ----------------------------------------------------------------------------------------


def test_the_oracle_finds_right_what_the_checker_finds_right() -> None:
    made = fresh(random.Random(7), 200, 0.6)
    pairs = [
        (s, p)
        for s in made
        for p in (s.prompt, near_miss(s.prompt, random.Random(1)), describe(s.seen, random.Random(1)))
        if p
    ]
    x = torch.from_numpy(np.stack([s.picture for s, _ in pairs]))
    said = Oracle()(x, [Condition(p.text) for _, p in pairs])
    verdicts = [judge(s.seen, p).right for s, p in pairs]
    assert {True, False} == set(verdicts)
    assert [r == Remark("", 1.0) for r in said] == verdicts
    assert [r is not None and r.text == "" for r in said] == verdicts


def test_the_detector_says_what_the_shipped_verifier_sees() -> None:
    rng = random.Random(1)
    prompt = parse("a red circle left of a blue square")
    x = torch.from_numpy(render([sample_scene(prompt, rng)]))
    asked = ("a red circle left of a blue square", "a green circle left of a blue square", "two crosses")
    said = make_named("critic", "detector")(x.expand(3, -1, -1, -1), [Condition(t) for t in asked])
    assert [r.text for r in said] == [remark(detect(x[0].numpy()), parse(t)) for t in asked]
    assert said[0].text == ""
    assert math.isnan(said[0].score)


# ---- training -----------------------------------------------------------------------------------------------------------


def test_training_learns_eight_pictures_by_heart(tmp_path: Path) -> None:
    made = fresh(random.Random(11), 8, 0.6)
    pool = Pool({k: torch.from_numpy(v) for k, v in columns(made, [[s.prompt] for s in made]).items()})
    config = TrainConfig(
        80, 8, lr=6e-3, warmup=5, ema=0.8, device="cpu", bf16=False, save_every=1000, optimizer="adamw"
    )
    work = Trainer(network(), loss_over(pool, config), config, tmp_path)
    losses = [tick.loss for tick in work.run()]
    assert losses[-1] < 0.2 * losses[0]
    critic = Learned(work.ema.module)  # type: ignore[arg-type]
    x = torch.from_numpy(np.stack([s.picture for s in made]))
    said = critic(x, [Condition(s.prompt.text) for s in made])
    true = [remark(s.seen, s.prompt) for s in made]
    assert any(true)
    assert sum(r is not None and r.text == t for r, t in zip(said, true, strict=True)) >= 7


def test_labels_are_the_remarks_and_no_prompt_is_held_out(tmp_path: Path) -> None:
    samples(40, 5).save(tmp_path / "v.npz")
    items = Items((str(tmp_path / "v.npz"),))("s", 0, 64)
    again = Items((str(tmp_path / "v.npz"),))("s", 0, 64)
    assert all(np.array_equal(items[k], again[k]) for k in items)
    assert {v.dtype.name for v in items.values()} == {"uint8"}
    checked = 0
    for i in range(64):
        seen = detect(items["pictures"][i])
        for j in range(items["ids"].shape[1]):
            prompt = parse(" ".join(WORDS[k - 2] for k in items["ids"][i, j] if k > 1))
            assert prompt.says().isdisjoint(held_out())
            text = remark(seen, prompt)
            assert bool(items["match"][i, j]) == (text == "")
            if text:
                assert to_text(items["remark"][i, j].tolist()) == text
                checked += 1
            else:
                assert (items["remark"][i, j] == PAD).all()
    assert checked > 40


def test_a_loss_by_rows_does_not_depend_on_the_other_rows() -> None:
    items = {k: torch.from_numpy(v) for k, v in Items()("s", 0, 6).items()}
    made = network()
    whole = loss_of(made, items, False)
    assert whole.shape == (6,)
    part = loss_of(made, {k: v[2:4] for k, v in items.items()}, False)
    assert torch.allclose(whole[2:4], part, atol=1e-4)


@pytest.mark.slow
def test_a_pool_is_the_same_whatever_the_number_of_its_makers() -> None:
    one, two = make_pool(Items(), "a", 300), make_pool(Items(), "a", 300, workers=2)
    assert all(torch.equal(one.columns[k], two.columns[k]) for k in one.columns)


def test_training_writes_weights_with_facts_that_a_critic_is_made_of(tmp_path: Path) -> None:
    samples(20, 5).save(tmp_path / "v.npz")
    config = TrainConfig(2, 4, warmup=1, device="cpu")
    ticks = list(train_critic(config, tmp_path / "out", 16, paths=[tmp_path / "v.npz"], sizes=TINY))
    assert len(ticks) == 2
    file = tmp_path / "out" / "weights.safetensors"
    critic = make_named("critic", f"learned(weights='{file}')")
    found = table(remarks_of(critic, samples(30)), samples(30))
    assert json.loads(json.dumps(without_nan(found)))["all"]["samples"] == 30
    perfect = table(remarks_of(Oracle(), samples(30)), samples(30))["all"]
    assert (perfect["verdict"], perfect["sentence"], perfect["first_clause"], perfect["unreadable"]) == (1, 1, 1, 0)
    assert all(row["precision"] == row["recall"] == 1 for row in perfect["clauses"].values())


# ---- on disk, and by name -----------------------------------------------------------------------------------------------


def test_weights_come_back_whole(tmp_path: Path) -> None:
    critic = learned()
    save_writer(critic.network, tmp_path / "w.safetensors", {"seed": 1})
    x, conditions = pictures(6)
    assert scenes.learned(str(tmp_path / "w.safetensors"))(x, conditions) == critic(x, conditions)


def test_damaged_weights_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(ConfigError, match="no critic's weights at"):
        load_writer(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DamagedError, match="cannot be read"):
        load_writer(path)
    save_writer(network(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DamagedError):
        load_writer(path)
    for config, error, words in (
        ({"kind": "tokens"}, ConfigError, 'hold a "tokens"'),
        ({"kind": "writer"}, DamagedError, "no writer"),
    ):
        save_file({"a": torch.zeros(1)}, path, {"config": json.dumps(config)})
        with pytest.raises(error, match=words):
            load_writer(path)


def test_without_shipped_weights_the_learned_critic_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scenes, "shipped", lambda name: tmp_path / name)
    with pytest.raises(ConfigError, match="no critic's weights at"):
        make_named("critic", "learned")


def test_the_whole_network_is_small() -> None:
    assert sum(p.numel() for p in Writer(WriterConfig()).parameters()) <= 1_200_000


def test_critics_go_by_their_names_in_their_world(tmp_path: Path) -> None:
    assert set(CRITICS) == set(MADE)
    save_writer(learned().network, tmp_path / "w.safetensors")
    how = {"world": "scenes", "steps": 2, "plan": "examples.own_critic:reflect(most=2)"}
    for name in ("detector", "oracle", f"learned(weights='{tmp_path / 'w.safetensors'}')"):
        draw("a red circle", critic=name, out=tmp_path / name[:6], **how)
        store, _ = opened(tmp_path / name[:6])
        assert store.config["oracle"] == (name == "oracle")
        assert "critic's settings" in store.config["weights"]
        assert not Record.read(store).failures
    with pytest.raises(ConfigError, match="of the world scenes only"):
        draw(3, critic="oracle", out=tmp_path / "digits", world="digits", steps=2)
