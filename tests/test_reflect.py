"""Models that draw again: what the context encoder attends to, mended scenes, training items, and the plan that reads remarks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.flow.guidance import Null
from secondlook.models.checkpoint import load, load_text, save, shipped
from secondlook.models.context import ContextConfig, ContextEncoder, Tries
from secondlook.models.reflect import Recalled, ReflectConfig, ReflectSiT
from secondlook.models.text import TextSiT, TextSiTConfig
from secondlook.train.loop import TrainConfig
from secondlook.train.pool import make_pool
from secondlook.train.redraw import Way, compared
from secondlook.train.reflect import Food, emphasis, fresh_network, trainer
from secondlook.train.samples import Samples
from secondlook.train.tries import Tried, distance
from secondlook.worlds.scenes.checker import detect_batch, judge
from secondlook.worlds.scenes.corrupt import KINDS, corrupt
from secondlook.worlds.scenes.grammar import WORDS, parse
from secondlook.worlds.scenes.mend import mended
from secondlook.worlds.scenes.prompts import prompt_set, sample_hard
from secondlook.worlds.scenes.remarks import KINDS as FAULTS
from secondlook.worlds.scenes.remarks import LONGEST, REMARK_WORDS, faults, remark, spoken, tokens
from secondlook.worlds.scenes.render import Thing, render, sample_scene

SMALL = TextSiTConfig(words=WORDS, width=32, depth=2, heads=2, text_width=24, text_depth=1, bottleneck=24)


def small(edit: bool = True, memory: int = 1, gain: float = 0.0, **more: object) -> ReflectSiT:
    torch.manual_seed(0)
    network = ReflectSiT(ReflectConfig(SMALL, REMARK_WORDS, LONGEST, memory, edit, **more))  # type: ignore[arg-type]
    for head in (network.base.patch_out, network.base.final_modulation):
        torch.nn.init.normal_(head.weight, std=0.1)
    torch.nn.init.constant_(network.context.reflection_norm.weight, gain)
    return network.eval().requires_grad_(False)


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


SAID = tokens("there is no circle, one was asked for")


def asked(network: ReflectSiT, *tries: int, text: str = "a circle") -> Recalled:
    return network.encode([text], [[picture(t) for t in tries]], [[SAID] * len(tries)])


X, T = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([0.4])


@pytest.mark.parametrize(("edit", "memory"), [(False, 3), (True, 1)])
def test_before_training_it_says_what_its_base_says(edit: bool, memory: int) -> None:
    base = load_text(shipped("scenes-base.safetensors"))
    network = fresh_network("edit" if edit else "context", shipped("scenes-base.safetensors"), memory).eval()
    with torch.no_grad():
        found = network(X, T, asked(network, *range(memory)))
        assert torch.allclose(found, base(X, T, base.encode(["a circle"])), atol=1e-5)


def test_the_gain_that_begins_at_zero_has_a_gradient() -> None:
    network = small(edit=False).requires_grad_(True)
    network(X, T, asked(network, 1)).square().sum().backward()
    assert network.context.reflection_norm.weight.grad.abs().sum() > 0


def test_a_trained_one_reads_its_tries_and_their_remarks() -> None:
    network = small(edit=False, gain=1.0)
    plain = network(X, T, asked(network, 1))
    assert not torch.equal(plain, network(X, T, asked(network, 2)))
    other = network.encode(["a circle"], [[picture(1)]], [[tokens("the circle is red, not blue")]])
    assert not torch.equal(plain, network(X, T, other))
    assert not torch.equal(plain, network(X, T, network.encode(["a circle"])))


def test_a_row_does_not_depend_on_the_tries_of_its_batch_mates() -> None:
    network = small(edit=False, memory=3, gain=1.0)
    one, three = asked(network, 1), asked(network, 2, 3, 4)
    both = network(torch.cat([X, X]), torch.cat([T, T]), Recalled.stack([one, three]))
    assert torch.allclose(both[:1], network(X, T, one), atol=1e-5)
    assert torch.allclose(both[1:], network(X, T, three), atol=1e-5)


def test_a_rows_bits_do_not_depend_on_its_company_in_a_batch_of_one_size() -> None:
    network = small(edit=True, memory=2, gain=1.0)
    rows = [asked(network, *range(i % 3)) for i in range(4)]
    x, t = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2)), torch.tensor([0.1, 0.3, 0.6, 0.9])
    found, turned = network(x, t, Recalled.stack(rows)), [2, 0, 3, 1]
    again = network(x[turned], t[turned], Recalled.stack([rows[i] for i in turned]))
    assert torch.equal(found[turned], again)
    alone = network(x[1:2].expand(4, -1, -1, -1), t[1:2].expand(4), Recalled.stack([rows[1]] * 4))
    assert torch.equal(alone[3], found[1])


# ---- the context encoder ---------------------------------------------------------------------------------------------


def encoder(drop_last: bool = False) -> ContextEncoder:
    torch.manual_seed(3)
    made = ContextEncoder(ContextConfig(6, 8, 16, 2), drop_last=drop_last)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made.eval().requires_grad_(False)


def tries(pairs: int = 2, words: int = 4, spoken_of: int = 3, seed: int = 5) -> Tries:
    g = torch.Generator().manual_seed(seed)
    spoken_mask = torch.zeros(1, pairs, words, dtype=torch.bool)
    spoken_mask[:, :, :spoken_of] = True
    there = torch.ones(1, pairs, dtype=torch.bool)
    return Tries(
        torch.randn(1, pairs, 3, 6, generator=g),
        torch.randn(1, pairs, words, 8, generator=g),
        spoken_mask,
        there,
        there,
    )


MOOD = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(9))


def test_padding_takes_no_part() -> None:
    one, some = encoder(), tries()
    x, mask = one(some, MOOD)
    noisy = replace(some, words=torch.where(some.spoken[..., None], some.words, torch.tensor(99.0)))
    y, _ = one(noisy, MOOD)
    assert torch.allclose(x[mask], y[mask], atol=1e-6)
    longer = replace(
        some, words=torch.cat([some.words, some.words], 2), spoken=torch.cat([some.spoken, some.spoken & False], 2)
    )
    z, wide = one(longer, MOOD)
    assert torch.allclose(x[mask], z[wide], atol=1e-5)  # padding between the pairs moves nothing either


def test_a_pair_that_is_not_there_takes_no_part() -> None:
    one, some = encoder(), tries()
    gone = torch.tensor([[False, True]])
    x, mask = one(replace(some, shown=gone, said=gone), MOOD)
    alone = Tries(some.pictures[:, 1:], some.words[:, 1:], some.spoken[:, 1:], gone[:, 1:], gone[:, 1:])
    y, other = one(alone, MOOD)
    assert torch.allclose(x[mask], y[other], atol=1e-5)


def test_every_real_token_is_handed_on_unless_the_released_masking_is_asked_for() -> None:
    some = tries()
    _, mask = encoder()(some, MOOD)
    _, short = encoder(drop_last=True)(some, MOOD)
    assert int(mask.sum()) == 2 * (3 + 3)
    assert int(short.sum()) == int(mask.sum()) - 1


def test_the_order_of_tries_matters_and_a_row_without_tries_gets_the_null_context() -> None:
    one, some = encoder(), tries()
    turned = Tries(**{k: v.flip(1) for k, v in vars(some).items()})
    assert not torch.allclose(one(some, MOOD)[0].sum(1), one(turned, MOOD)[0].sum(1))
    none = torch.zeros(1, 2, dtype=torch.bool)
    _, mask = one(replace(some, shown=none, said=none), MOOD)
    assert mask.sum() == 1


def test_guidance_amplifies_the_prompt_alone_unless_told_otherwise() -> None:
    for amplify in ("prompt", "both"):
        network = small(amplify=amplify)
        cond, null = asked(network, 1), network.encode([None])
        joined = Null(null).join(cond, 1)
        assert torch.equal(joined.text.words[1:], null.text.words)
        kept = torch.equal(joined.patches[1:], cond.patches)
        assert kept == (amplify == "prompt")
        assert bool(joined.tries.shown[1:].any()) == (amplify == "prompt")


def test_more_tries_than_the_memory_are_cut_to_the_last_ones_and_strange_words_are_passed_over() -> None:
    network = small(edit=False, memory=2, gain=1.0)
    assert torch.equal(network(X, T, asked(network, 1, 2, 3)), network(X, T, asked(network, 2, 3)))
    odd = network.encode(["a circle"], [[picture(1)]], [[["blimey", *SAID, "!"]]])
    assert torch.equal(network(X, T, odd), network(X, T, asked(network, 1)))
    essay = network.encode(["a circle"], [[picture(1)]], [[["circle"] * 10_000]])
    assert torch.isfinite(network(X, T, essay)).all()


def test_a_try_of_another_size_is_a_sentence() -> None:
    with pytest.raises(ShapeError, match=r"must be a picture \[64, 64, 3\]"):
        small().encode(["a circle"], [[np.zeros((32, 32, 3), np.uint8)]], [[SAID]])


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    network = small(gain=0.7)
    save(network, tmp_path / "w.safetensors", network.describe())
    again = load(tmp_path / "w.safetensors")
    assert isinstance(again, ReflectSiT)
    assert torch.equal(again(X, T, asked(again, 1)), network(X, T, asked(network, 1)))
    broken = network.describe() | {"memory": 0}
    save(network, tmp_path / "b.safetensors", broken)
    with pytest.raises(DamagedError, match="memory of at least 1"):
        load(tmp_path / "b.safetensors")


# ---- remarks and mended scenes ---------------------------------------------------------------------------------------


def spoilt(count: int) -> list[tuple[np.ndarray, str]]:
    rng = random.Random(7)
    found = []
    while len(found) < count:
        prompt = sample_hard(rng)
        made = corrupt(sample_scene(prompt, rng), prompt, rng.choice(KINDS), rng)
        if made is not None:
            found.append((made, prompt.text))
    return found


def test_a_remark_is_empty_exactly_for_right_pictures_and_stays_in_its_language() -> None:
    some = spoilt(150)
    rng = random.Random(1)
    seen = detect_batch(np.stack([p for p, _ in some]))
    kinds = set()
    for what, (_, text) in zip(seen, some, strict=True):
        for prompt in (parse(text), sample_hard(rng)):
            said = remark(what, prompt)
            assert (said == "") == judge(what, prompt).right
            assert set(tokens(said)) <= set(REMARK_WORDS)
            assert len(tokens(said)) <= LONGEST
            assert spoken(tokens(said)) == said
            kinds |= {kind for kind, _ in faults(what, prompt)}
    assert kinds <= set(FAULTS)
    assert len(kinds) >= 6


def test_a_mended_scene_is_right_and_keeps_what_was_right_where_it_was() -> None:
    some = spoilt(150)
    rng = random.Random(2)
    seen = detect_batch(np.stack([p for p, _ in some]))
    scenes = [mended(what, parse(text), rng) for what, (_, text) in zip(seen, some, strict=True)]
    after = detect_batch(render(scenes))
    assert all(judge(what, parse(text)).right for what, (_, text) in zip(after, some, strict=True))
    kept = total = 0
    for what, scene, (_, text) in zip(seen, scenes, some, strict=True):
        if parse(text).relation or any(kind in ("shapeless", "specks") for kind, _ in faults(what, parse(text))):
            continue
        for group in parse(text).groups:
            same = what.of_shape(group.shape)
            if len(same) == group.count and all(f.color == group.color or not group.color for f in same):
                total += len(same)
                kept += sum(
                    min(abs(t.cx - f.center[0]) + abs(t.box_center[1] - f.center[1]) for t in scene) < 2.5 for f in same
                )
    assert total > 30
    assert kept / total > 0.9


def test_an_object_changes_its_colour_rather_than_its_shape() -> None:
    circle, square = Thing("circle", "red", 16.0, 30.0, 9.0), Thing("square", "blue", 46.0, 30.0, 9.0)
    [seen] = detect_batch(render([[circle, square]]))
    first, second = mended(seen, parse("a red square and a blue circle"), random.Random(0))
    assert (first.shape, second.shape) == ("square", "circle")
    assert abs(first.cx - 46) < 1
    assert abs(second.cx - 16) < 1


def test_a_right_picture_is_mended_into_itself() -> None:
    rng = random.Random(3)
    prompt = parse("a red circle left of a blue square")
    scene = sample_scene(prompt, rng)
    [seen] = detect_batch(render([scene]))
    again = mended(seen, prompt, rng)
    assert distance(again, seen) < 8
    assert [t.color for t in again] == [t.color for t in scene]


# ---- training --------------------------------------------------------------------------------------------------------


def test_items_are_wrong_tries_with_right_targets_and_no_held_out_prompt() -> None:
    pool = make_pool(Tried((), 2, rendered=1.0, both=True), "t", 40)
    c = pool.columns
    words = {i + 2: w for i, w in enumerate(WORDS)}
    for i in range(40):
        prompt = parse(" ".join(words[j] for j in c["ids"][i].tolist() if j > 1))
        assert not prompt.held_out
        for name in ("target", "independent"):
            assert judge(c[name][i].numpy(), prompt).right
        assert not judge(c["tries"][i, -1].numpy(), prompt).right
        assert bool(c["shown"][i, -1])
        assert int((c["remarks"][i, -1] > 1).sum()) > 2


def test_base_samples_of_held_out_prompts_are_passed_over(tmp_path: Path) -> None:
    held = next(p for p in prompt_set("scenes-expert-dev") if p.held_out)
    empty = np.full((8, 64, 64, 3), 30, np.uint8)
    Samples(empty, (held.text,) * 8, np.zeros(8, bool)).save(tmp_path / "held.npz")
    usual = parse("two circles and a cross")
    Samples(empty, (usual.text,) * 8, np.zeros(8, bool)).save(tmp_path / "usual.npz")
    said = {i + 2: w for i, w in enumerate(WORDS)}

    def asked_for(name: str) -> set[str]:
        made = Tried((str(tmp_path / name),), 1, rendered=0.5)("s", 0, 8)
        return {" ".join(said[i] for i in row if i > 1) for row in made["ids"].tolist()}

    assert usual.text in asked_for("usual.npz")
    assert held.text not in asked_for("held.npz")


def test_a_mended_target_is_nearer_to_the_try_than_another() -> None:
    pool = make_pool(Tried((), 1, rendered=1.0, both=True), "n", 60)
    c = {k: v.float() for k, v in pool.columns.items()}

    def gap(name: str) -> float:
        return float((c[name] - c["tries"][:, -1]).abs().mean())

    assert gap("target") < 0.7 * gap("independent")


def test_patches_that_change_weigh_more_where_the_try_is_seen() -> None:
    items = {
        "tries": torch.zeros(2, 1, 64, 64, 3, dtype=torch.uint8),
        "target": torch.zeros(2, 64, 64, 3, dtype=torch.uint8),
    }
    items["target"][:, 9, 20] = 200
    weight = emphasis(items, torch.tensor([True, False]), 8, 5.0)
    assert weight.shape == (2, 1, 64, 64)
    assert weight[0].sum() == 4096 + 4 * 64
    assert float(weight[0, 0, 8, 16]) == 5
    assert weight[1].sum() == 4096


@pytest.mark.parametrize("form", ["edit", "context", "sft", "dpo"])
def test_every_form_trains_and_goes_on(form: str, tmp_path: Path) -> None:
    pool = make_pool(Tried((), 1, rendered=1.0), "f", 16)
    module = small(edit=form == "edit") if form in ("edit", "context") else TextSiT(SMALL)
    module.requires_grad_(True)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    config = TrainConfig(steps=3, batch=8, warmup=1, bf16=False, device="cpu", save_every=2)
    work = trainer(module, tmp_path / form, config, pool, Food(form))
    losses = [tick.loss for tick in work.run()]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    moved = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert not any(k.startswith("eyes.") for k in moved)  # they are frozen
    with pytest.raises(ConfigError, match="other settings"):
        trainer(module, tmp_path / form, config, pool, Food("sft" if form != "sft" else "dpo"))


def test_unknown_forms_and_pairings_are_sentences() -> None:
    with pytest.raises(ConfigError, match='no form "edits"'):
        fresh_network("edits", shipped("scenes-base.safetensors"))
    with pytest.raises(ConfigError, match="pairing is one of"):
        Tried((), 1, "near")


def test_answers_and_fresh_draws_are_counted_apart() -> None:
    some = spoilt(6)
    samples = Samples(np.stack([p for p, _ in some]), tuple(t for _, t in some), np.array([True, *[False] * 5]))
    found = compared(small(gain=1.0), samples, Way(1, rows=4), 3)
    assert found["fresh"][0] == found["answered"][0] == 5  # what is right is not asked about
    assert found["fresh"][1] == 0  # an untrained network draws nothing right
    assert found["own wrong, answered"][0] == found["own wrong, fresh again"][0] == 5
    plain = compared(TextSiT(SMALL).eval().requires_grad_(False), samples, Way(1, rows=4), 3)
    assert set(plain) == {"fresh", "own wrong, fresh again"}
