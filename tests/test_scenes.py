"""The Scenes world against its specification: language, prompt sets, rendering, corruptions and the exact checker."""

from __future__ import annotations

import hashlib
import json
import math
import random
from functools import cache
from itertools import permutations, product

import numpy as np
import pytest

from secondlook.errors import ConfigError, ShapeError
from secondlook.worlds.scenes import grammar
from secondlook.worlds.scenes.checker import Found, Seen, Verdict, check, detect, detect_batch, judge
from secondlook.worlds.scenes.corrupt import KINDS, corrupt, satisfies
from secondlook.worlds.scenes.grammar import COLORS, RELATIONS, SHAPES, TASKS, Group, Prompt, from_metadata, parse
from secondlook.worlds.scenes.prompts import sample_task, sample_training
from secondlook.worlds.scenes.render import BACKGROUND, Thing, apart, related, render, sample_scene

MAX_WRONG = MAX_ACCEPTED = 0.005
SPEC_METADATA = """\
{"tag": "position", "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}], "prompt": "a circle left of a square"}
{"tag": "counting", "include": [{"class": "square", "count": 3}], "exclude": [{"class": "square", "count": 4}], "prompt": "three squares"}
{"tag": "color_attr", "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}], "prompt": "a red circle and a blue square"}
""".splitlines()


@cache
def fresh(n: int, seed: int) -> tuple[list[Prompt], list[list[Thing]]]:
    """Training prompts and a scene of each."""
    rng = random.Random(seed)
    prompts = [sample_training(rng) for _ in range(n)]
    return prompts, [sample_scene(p, rng) for p in prompts]


def small_prompts() -> list[Prompt]:
    """Every prompt of one group, and every one of two groups of which at least one is single."""
    colors = (None, *COLORS)
    groups = [Group(s, n, c) for s, n, c in product(SHAPES, (1, 2, 3, 4), colors)]
    prompts = [Prompt((g,)) for g in groups]
    for a, b in permutations(groups, 2):
        if a.shape != b.shape and a.count + b.count <= 4:
            relations = (None, *RELATIONS) if a.count == b.count == 1 else (None,)
            prompts += [Prompt((a, b), r) for r in relations]
    return prompts


def test_every_small_prompt_is_read_back_and_tags_hold_the_specified_numbers() -> None:
    counts = dict.fromkeys((*TASKS, "compound"), 0)
    texts = set()
    for prompt in small_prompts():
        assert parse(prompt.text) == prompt
        texts.add(prompt.text)
        counts[prompt.tag] += 1
    assert len(texts) == sum(counts.values())
    assert [counts[tag] for tag in TASKS] == [4, 12, 12, 32, 48, 672]


def test_compound_prompts_are_read_back() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        prompt = sample_task("compound", rng)
        assert (prompt.tag, prompt.objects <= 4) == ("compound", True)
        assert parse(prompt.text) == prompt == from_metadata(json.loads(json.dumps(prompt.metadata())))


@pytest.mark.parametrize(
    ("text", "tag", "atoms", "objects"),
    [
        ("a circle", "single_object", 1, 1),
        ("a circle and a square", "two_object", 2, 2),
        ("three squares", "counting", 2, 3),
        ("a red circle", "colors", 2, 1),
        ("a circle left of a square", "position", 3, 2),
        ("a red circle and a blue square", "color_attr", 4, 2),
        ("a red circle left of a blue square and two white crosses", "compound", 8, 4),
        ("two red circles", "compound", 3, 2),
        ("a red circle and a red square", "compound", 4, 2),
        ("a circle and a red square", "compound", 3, 2),
    ],
)
def test_tags_atoms_and_objects(text: str, tag: str, atoms: int, objects: int) -> None:
    prompt = parse(text)
    assert (prompt.tag, prompt.atoms, prompt.objects) == (tag, atoms, objects)
    assert len(judge(Seen(()), prompt).atoms) == atoms


@pytest.mark.parametrize("line", SPEC_METADATA)
def test_metadata_is_the_specified_line(line: str) -> None:
    record = json.loads(line)
    assert json.dumps(parse(record["prompt"]).metadata()) == line
    assert from_metadata(record).text == record["prompt"]
    with pytest.raises(ConfigError, match="include"):
        from_metadata(record | {"include": [{"class": "cross", "count": 1}]})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a red cirle", '"cirle"'),
        ("A circle", '"A"'),
        ("red circle", '"red"'),
        ("a circle and", '"the end"'),
        ("two circle", '"circle"'),
        ("a circles", '"circles"'),
        ("a circle left a square", '"left"'),
        ("a circle and a circle", '"circle"'),
        ("two circles left of a square", '"left of"'),
        ("a circle and a square above a cross", '"above"'),
        ("three circles and two squares", "5 objects"),
        ("a  circle", "one space"),
    ],
)
def test_a_refused_prompt_names_the_word_and_shows_two_valid_examples(text: str, word: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse(text)
    message = str(refusal.value)
    assert word in message
    examples = message.rsplit("Valid examples: ", 1)[1].rstrip(".").split(", ")
    assert len(examples) == 2
    for example in examples:
        parse(example.strip('"'))


def test_held_out_is_the_fifth_with_the_lowest_digests() -> None:
    relations, pairs = grammar.canonical_relations(), grammar.canonical_pairs()
    assert (len(set(relations)), len(set(pairs))) == (24, 336)
    for texts, kept in ((relations, 5), (pairs, 67)):
        out = [t for t in texts if t in grammar.held_out()]
        digests = sorted(hashlib.sha256(t.encode()).hexdigest() for t in texts)
        assert len(out) == kept
        assert all(hashlib.sha256(t.encode()).hexdigest() <= digests[kept - 1] for t in out)
    assert len(grammar.held_out()) == 72


def test_held_out_combinations_are_found_in_every_wording() -> None:
    def plural(words: str) -> str:
        return words + ("es" if words.endswith("cross") else "s")

    reverse = {"left": "right of", "above": "below"}
    for text in grammar.held_out():
        spare = next(s for s in SHAPES if s not in text)
        if " + " in text:
            first, second = text.split(" + ")
            said = [f"a {first} and a {second}", f"a {second} and a {first}", f"a {second} below a {first}"]
            said += [f"a {spare} above a {first} and a {second}", f"two {plural(second)} and a {spare} and a {first}"]
        else:
            words = text.split()
            a, way, b = words[0], words[1], words[-1]
            said = [f"a {text.removesuffix(b)}a {b}", f"a {b} {reverse[way]} a {a}"]
            said += [f"a red {b} {reverse[way]} a red {a} and two {plural(spare)}"]
        for wording in said:
            prompt = parse(wording)
            assert prompt.held_out, wording
            assert text in prompt.says(), wording
    assert parse("a red circle and a red square").says() == set()
    assert parse("a circle right of a square").says() == {"square left of circle"}
    assert parse("a circle below a square").says() == {"square above circle"}


def test_training_prompts_are_never_held_out_and_follow_the_mixture() -> None:
    rng = random.Random(11)
    counts = dict.fromkeys((*TASKS, "compound"), 0)
    for _ in range(10_000):
        prompt = sample_training(rng)
        assert not prompt.held_out
        counts[prompt.tag] += 1
    free = ("single_object", "two_object", "counting", "colors")  # the held-out rule redraws from the others
    assert all(abs(counts[tag] / 10_000 - 0.1) < 0.025 for tag in free)
    assert 0.33 < counts["compound"] / 10_000 < 0.43


def distance(shape: str, dx: float, dy: float, r: float) -> float:
    """The specification's signed distances, written again one number at a time."""
    ax, ay = abs(dx), abs(dy)
    return {
        "circle": math.sqrt(dx * dx + dy * dy) - r,
        "square": max(ax, ay) - 0.88 * r,
        "cross": min(max(ax - r, ay - 0.36 * r), max(ax - 0.36 * r, ay - r)),
        "triangle": max(dy - 0.8 * r, (1.8 * ax - dy - r) / math.sqrt(1 + 1.8 * 1.8)),
    }[shape]


@pytest.mark.parametrize("seed", range(4))
def test_pixels_follow_the_signed_distances(seed: int) -> None:
    scene = sample_scene(parse("a circle and a square and a triangle and a cross"), random.Random(seed))
    picture = render([scene])[0]
    assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)
    for row, column in product(range(64), repeat=2):
        value = list(map(float, BACKGROUND))
        for t in scene:
            cover = min(max(0.5 - distance(t.shape, column + 0.5 - t.cx, row + 0.5 - t.cy, t.r), 0.0), 1.0)
            value = [v + cover * (c - v) for v, c in zip(value, COLORS[t.color], strict=True)]
        assert np.abs(picture[row, column] - np.array(value)).max() < 0.51, (row, column)


def test_pixels_worked_out_by_hand() -> None:
    square = render([[Thing("square", "white", 30.0, 40.0, 10.0)]])[0]  # half a side is 8.8 px
    assert square[40, 30].tolist() == [240, 240, 240]
    assert square[40, 38].tolist() == [198, 198, 199]  # d = 8.5 - 8.8 = -0.3, coverage 0.8
    assert square[40, 39].tolist() == list(BACKGROUND)  # d = 0.7
    triangle = render([[Thing("triangle", "red", 32.5, 32.5, 10.0)]])[0]
    assert triangle[24, [30, 32]].tolist() == [list(BACKGROUND), [220, 40, 40]]  # apex up


def test_scenes_keep_the_rules_and_mean_their_prompt() -> None:
    for prompt, scene in zip(*fresh(400, 21), strict=True):
        assert all((apart(scene), related(scene, prompt.relation), satisfies(scene, prompt)))
        for t in scene:
            assert 7 <= t.r <= 10.5
            assert t.r + 2 <= min(t.cx, t.cy) <= max(t.cx, t.cy) <= 62 - t.r


def test_a_batch_renders_as_its_scenes_do_alone() -> None:
    scenes = fresh(200, 41)[1]  # more than one chunk
    assert np.array_equal(render(scenes), np.concatenate([render([s]) for s in scenes]))


@pytest.mark.parametrize("n", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_fresh_renders_are_right(n: int) -> None:
    prompts, scenes = fresh(n, 31)
    assert check(render(scenes), prompts).mean() >= 1 - MAX_WRONG


@pytest.mark.parametrize("n", [2000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_corrupted_pictures_do_not_pass(kind: str, n: int) -> None:
    rng = random.Random(32)
    made = [(corrupt(s, p, kind, rng), p) for p, s in zip(*fresh(n, 31), strict=True)]
    applicable = [(picture, p) for picture, p in made if picture is not None]
    assert len(applicable) > 0.15 * n
    pictures, prompts = zip(*applicable, strict=True)
    assert check(np.stack(pictures), prompts).mean() <= MAX_ACCEPTED


def test_corruptions_that_do_not_apply_give_none() -> None:
    rng = random.Random(0)
    one, four = parse("a circle"), parse("four circles")
    assert all(corrupt(sample_scene(one, rng), one, kind, rng) is None for kind in ("recoloured", "swapped", "bridged"))
    assert corrupt(sample_scene(four, rng), four, "added", rng) is None
    with pytest.raises(ValueError, match="no such corruption"):
        corrupt(sample_scene(one, rng), one, "melted", rng)


def circle_at(x: float = 20.0, y: float = 20.0, color: str = "red", r: float = 9.0) -> Thing:
    return Thing("circle", color, x, y, r)


def found(shape: str, x: float, y: float, color: str = "red") -> Found:
    left, top = round(2 * x - 16) // 2, round(2 * y - 16) // 2
    right, bottom = round(2 * x) - left, round(2 * y) - top
    return Found(shape, color, (left, top, right, bottom), 8.0, 0.95)


def test_what_is_seen_in_a_picture() -> None:
    scene = [circle_at(), Thing("triangle", "cyan", 45.0, 40.0, 8.0)]
    seen = detect(render([scene])[0])
    assert [(f.shape, f.color) for f in seen.found] == [("circle", "red"), ("triangle", "cyan")]
    assert (seen.litter, seen.littered) == (0, False)
    for f, t in zip(seen.found, scene, strict=True):
        assert f.recognised
        assert f.iou > 0.85
        assert abs(f.radius - t.r) < 0.8
        assert max(abs(p - q) for p, q in zip(f.center, t.box_center, strict=True)) <= 1
    verdict = judge(seen, parse("a circle"))
    assert (verdict.right, verdict.atoms) == (False, (True,))
    assert "a triangle" in verdict.why


def test_litter_may_be_twelve_pixels_and_no_more() -> None:
    prompt = parse("a red circle")
    picture = render([[circle_at()]])[0]
    picture[50, 10:17] = picture[55, 10:15] = (240, 240, 240)  # 7 and 5 pixels
    assert (judge(picture, prompt).right, detect(picture).litter) == (True, 12)
    picture[60, 60] = (240, 240, 240)
    verdict = judge(picture, prompt)
    assert (verdict.right, verdict.atoms) == (False, (True, True))
    assert "13 pixels" in verdict.why
    picture[50, 10:18] = (240, 240, 240)  # eight together are an object, and no shape
    seen = detect(picture)
    assert (seen.litter, [f.shape for f in seen.found]) == (6, ["circle", None])
    assert "none of the shapes" in judge(seen, prompt).why


def test_diagonal_neighbours_are_apart() -> None:
    picture = render([[]])[0]
    picture[range(20, 30), range(20, 30)] = (240, 240, 240)
    assert detect(picture) == Seen((), 10)


@pytest.mark.parametrize("count", range(5))
def test_counts_are_exact(count: int) -> None:
    places = [(14, 14), (45, 14), (14, 45), (45, 45)][:count]
    picture = render([[circle_at(x, y) for x, y in places]])[0]
    single, two = judge(picture, parse("a circle")), judge(picture, parse("two circles"))
    assert (two.right, two.atoms) == (count == 2, (count > 0, count == 2))
    assert (single.right, single.atoms) == (count == 1, (count == 1,))
    assert single.why == ("" if count == 1 else f"There are {count or 'no'} circles where 1 should be.")


@pytest.mark.parametrize(
    ("dx", "dy", "right"),
    [(6.5, 0.0, True), (6.0, 0.0, False), (10.0, 9.5, True), (10.0, 10.0, False), (-10.0, 0.0, False)],
)
def test_a_relation_needs_more_than_six_pixels_and_the_larger_axis(dx: float, dy: float, right: bool) -> None:
    a, b = found("circle", 30, 30), found("square", 30 + dx, 30 + dy)
    assert judge(Seen((a, b)), parse("a circle left of a square")).right == right
    assert judge(Seen((a, b)), parse("a square right of a circle")).right == right
    a, b = found("circle", 30, 30), found("square", 30 + dy, 30 + dx)
    assert judge(Seen((b, a)), parse("a circle above a square")).right == right
    verdict = judge(Seen((b, a)), parse("a square below a circle"))
    assert verdict == Verdict(right, (True, True, right), "" if right else "The square is not below the circle.")


def test_colours_must_be_near_and_as_asked() -> None:
    picture = render([[circle_at()]])[0]
    assert judge(picture, parse("a blue circle")).why == "The circle is red, not blue."
    gray = picture.copy()
    gray[(picture != BACKGROUND).any(-1)] = (128, 128, 128)
    seen = detect(gray)
    assert [(f.shape, f.color, f.recognised) for f in seen.found] == [("circle", None, False)]
    verdict = judge(seen, parse("a circle"))
    assert (verdict.right, verdict.atoms) == (False, (True,))
    assert "none of the colours" in verdict.why


def test_shapes_must_be_of_a_fitting_size_and_filled() -> None:
    def square(side: int) -> np.ndarray:
        picture: np.ndarray = render([[]])[0]
        picture[20 : 20 + side, 20 : 20 + side] = COLORS["red"]
        return picture

    sizes = {side: judge(square(side), parse("a square")).right for side in (9, 10, 14, 22, 23)}
    assert sizes == {9: False, 10: True, 14: True, 22: True, 23: False}  # radius is side / 1.76
    ring = render([[circle_at()]])[0]
    ring[15:25, 15:25] = BACKGROUND
    assert detect(ring).found[0].shape is None


def test_right_is_every_atom_and_nothing_else() -> None:
    prompts, scenes = fresh(200, 41)
    for seen, own in zip(detect_batch(render(scenes)), prompts, strict=True):
        for prompt in (own, prompts[0], prompts[1]):
            verdict = judge(seen, prompt)
            assert len(verdict.atoms) == prompt.atoms
            assert verdict.right == (verdict.why == "")
            assert all(verdict.atoms) or not verdict.right


def test_pictures_of_another_form_are_refused() -> None:
    picture = render([[circle_at()]])
    assert check(picture[:0], []).shape == (0,)
    with pytest.raises(ShapeError, match="uint8"):
        check(picture.astype(np.float32), [parse("a circle")])
    with pytest.raises(ShapeError, match="64"):
        detect(picture[0].transpose(2, 0, 1))
    with pytest.raises(ShapeError, match="1 pictures came with 2 prompts"):
        check(picture, [parse("a circle")] * 2)


@pytest.mark.parametrize("half", [11.5, 12.5])
def test_a_square_too_large_for_one_does_not_pass_for_a_circle(half: float) -> None:
    picture = np.full((64, 64, 3), (30, 30, 34), np.uint8)
    picture[9:, 9:][: round(2 * half), : round(2 * half)] = COLORS["red"]
    assert not judge(picture, parse("a red circle")).right
    assert detect(picture).found[0].shape is None
