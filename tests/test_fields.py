"""GenEval's rules hold clause by clause on constructed detections; GenEval 2's means are of the probabilities that a judge gives."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.eyes import fields
from secondlook.eyes.detect import Found
from secondlook.eyes.facts import COLOURS
from secondlook.eyes.fields import (
    GenEval,
    GenEval2,
    Rules,
    Thing,
    geneval2,
    judge,
    kept,
    means,
    overlap,
    relations,
    spellings,
)
from secondlook.settings import make_named
from secondlook.types import Condition
from secondlook.verify.benchmarks import Entry
from tests.test_benchmark_files import GENEVAL, GENEVAL2, lines


def box(*corners: float) -> Tensor:
    return torch.tensor([float(c) for c in corners])


def found(*rows: tuple[int, float, tuple[float, ...]]) -> Found:
    """(label, score, box) a detection."""
    return Found(
        torch.stack([box(*b) for _, _, b in rows]),
        torch.tensor([n for n, _, _ in rows]),
        torch.tensor([s for _, s, _ in rows]),
    )


A, B, C = (0, 0, 9, 9), (20, 0, 29, 9), (40, 0, 49, 9)


def scores(things: dict[str, list[Thing]], name: str) -> list[list[float]]:
    return [t.box.tolist() for t in things[name]]


def test_boxes_count_above_the_threshold_and_in_the_counting_task_above_its_own() -> None:
    seen = found((0, 0.95, A), (0, 0.9, B), (0, 0.31, C), (1, 0.3, A))
    assert len(kept(seen, ["cat", "dog"], False, Rules())["cat"]) == 3
    assert kept(seen, ["cat", "dog"], False, Rules(threshold=float(torch.tensor(0.3))))["dog"] == []  # above, not at
    assert scores(kept(seen, ["cat", "dog"], True, Rules()), "cat") == [list(A)]  # 0.9 itself is not above 0.9
    assert len(kept(seen, ["cat"], True, Rules(counting=0.5))["cat"]) == 2


def test_only_the_best_so_many_boxes_of_a_class_are_kept_best_first() -> None:
    seen = found(*((0, 0.4 + i / 100, (i, 0, i + 1, 1)) for i in range(20)))
    assert [b[0] for b in scores(kept(seen, ["cat"], False, Rules()), "cat")] == list(range(19, 3, -1))
    assert len(kept(seen, ["cat"], False, Rules(most=3))["cat"]) == 3


def test_the_weaker_of_two_boxes_of_a_class_goes_only_where_suppression_is_asked_for() -> None:
    seen = found((0, 0.9, (0, 0, 9, 9)), (0, 0.8, (0, 0, 9, 8)), (1, 0.7, (0, 0, 9, 9)), (0, 0.6, B))
    assert len(kept(seen, ["cat", "dog"], False, Rules())["cat"]) == 3
    left = kept(seen, ["cat", "dog"], False, Rules(overlap=0.9))
    assert scores(left, "cat") == [[0, 0, 9, 9], list(map(float, B))]  # 0.9 is not below 0.9
    assert len(left["dog"]) == 1
    assert len(kept(seen, ["cat"], False, Rules(overlap=0.91))["cat"]) == 3


def test_the_overlap_counts_corner_pixels() -> None:
    assert overlap(box(0, 0, 9, 9), box(0, 0, 9, 8)) == pytest.approx(0.9)
    assert overlap(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 1.0
    assert overlap(box(0, 0, 9, 9), box(10, 0, 19, 9)) == 0.0
    assert overlap(box(0, 0, 9, 9), box(9, 0, 18, 9)) == pytest.approx(10 / 190)


def test_a_side_holds_beyond_a_tenth_of_both_sizes_as_a_share_of_the_whole_offset() -> None:
    mid = box(0, 0, 10, 10)
    assert relations(box(-20, 0, -10, 10), mid) == {"left of"}
    assert relations(box(20, 0, 30, 10), mid) == {"right of"}
    assert relations(box(0, -20, 10, -10), mid) == {"above"}
    assert relations(box(0, 20, 10, 30), mid) == {"below"}
    assert relations(box(20, 20, 30, 30), mid) == {"right of", "below"}
    assert relations(box(2, 0, 12, 10), mid) == set()  # 2 = 0.1 (10 + 10)
    # 3.9 beyond a margin of 2 is 1.9, less than half of 3.9: no side, although only its own direction is left.
    assert relations(box(3.9, 0, 13.9, 10), mid) == set()
    assert relations(box(4.1, 0, 14.1, 10), mid) == {"right of"}
    assert relations(box(3.9, 0, 13.9, 10), mid, margin=0.05) == {"right of"}


def things(**boxes: Sequence[tuple[float, ...]]) -> dict[str, list[Thing]]:
    return {n: [Thing(box(*b), None) for b in some] for n, some in boxes.items()}


def never(thing: Thing, name: str) -> str:
    raise AssertionError("no colour was asked for")


def want(*clauses: dict[str, Any], exclude: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"include": list(clauses), "exclude": list(exclude)}


def test_more_than_asked_is_no_fault_unless_excluded() -> None:
    one = want({"class": "cat", "count": 1})
    assert judge(one, things(cat=[A]), never) == judge(one, things(cat=[A, B]), never) == []
    assert judge(one, things(dog=[A]), never) == ["expected 1 or more cat, found 0"]
    two = want({"class": "cat", "count": 2}, exclude=[{"class": "cat", "count": 3}])
    assert judge(two, things(cat=[A, B]), never) == []
    assert judge(two, things(cat=[A]), never) == ["expected 2 or more cat, found 1"]
    assert judge(two, things(cat=[A, B, C]), never) == ["expected fewer than 3 cat, found 3"]
    assert judge(want({"class": "cat", "count": 1}, {"class": "dog", "count": 1}), things(cat=[A]), never) != []


def test_colours_are_of_the_best_so_many_boxes() -> None:
    red = want({"class": "cup", "count": 1, "color": "red"})

    def of(*names: str) -> Any:
        return lambda thing, name: names[int(thing.box[0]) // 20]

    assert judge(red, things(cup=[A, B]), of("red", "blue")) == []
    assert judge(red, things(cup=[A, B]), of("blue", "red")) == ["expected 1 red cup, found colours blue"]
    both = want({"class": "cup", "count": 2, "color": "red"})
    assert judge(both, things(cup=[A, B]), of("red", "red")) == []
    assert judge(both, things(cup=[A, B]), of("red", "blue")) != []


def test_every_box_must_be_on_the_side_of_every_target() -> None:
    left = want({"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]})
    assert judge(left, things(dog=[A], cat=[B]), never) == []
    assert judge(left, things(dog=[B], cat=[A]), never) == ["expected dog left of its target"]
    assert judge(left, things(dog=[A, C], cat=[B]), never) == []  # the second dog is not looked at
    two = want({"class": "cat", "count": 2}, {"class": "dog", "count": 1, "position": ["left of", 0]})
    assert judge(two, things(dog=[B], cat=[C, A]), never) == ["expected dog left of its target"]


def test_a_target_that_failed_is_none_to_be_beside() -> None:
    clauses = want(
        {"class": "cat", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "position": ["left of", 0]}
    )
    faults = judge(clauses, things(dog=[A], cat=[B]), lambda *_: "blue")
    assert faults == ["expected 1 red cat, found colours blue", "nothing for dog to be left of"]
    assert judge(clauses, things(dog=[A], cat=[B]), lambda *_: "red") == []


class Seen:
    """A detector that sees the same in every picture."""

    name = "seen"

    def __init__(self, answer: dict[str, list[tuple[float, tuple[float, ...]]]], mask: Tensor | None = None):
        self.network, self.answer, self.mask = torch.nn.Identity(), answer, mask

    def __call__(self, pictures: Tensor, names: Sequence[str]) -> list[Found]:
        rows = [(i, s, b) for i, n in enumerate(names) for s, b in self.answer.get(n, [])]
        rows.sort(key=lambda r: -r[1])
        seen = found(*rows) if rows else Found(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
        masks = None if self.mask is None else self.mask.expand(len(seen.scores), *self.mask.shape)
        return [Found(seen.boxes, seen.labels, seen.scores, masks)] * len(pictures)


class Looked:
    """Says a colour, and remembers what it was shown."""

    def __init__(self, colour: str = "red"):
        self.colour, self.seen = colour, list[tuple[Tensor, Tensor, str]]()

    def __call__(self, picture: Tensor, box: Tensor, mask: Tensor | None, noun: str) -> np.ndarray:
        assert mask is None
        self.seen.append((picture, box, noun))
        return np.eye(10)[COLOURS.index(self.colour)]


def entries(*records: dict[str, Any]) -> list[Entry]:
    return [Entry(r["prompt"], str(i), r.get("tag", ""), r) for i, r in enumerate(records)]


def test_a_picture_is_right_or_wrong_and_other_prompts_are_not_judged() -> None:
    eye = GenEval(
        entries(*GENEVAL), Seen({"bench": [(0.4, A)], "clock": [(0.95, A), (0.92, B), (0.6, C)]}), Looked(), Rules()
    )
    prompts = [*(r["prompt"] for r in GENEVAL), "a photo of a house"]
    out = eye(torch.zeros(4, 64, 64, 3, dtype=torch.uint8), [Condition(p) for p in prompts])
    assert isinstance(out, Tensor)
    assert out[:3].tolist() == [1.0, 1.0, 0.0]  # the third clock is below what the task of counting counts
    assert math.isnan(out[3])
    with pytest.raises(ShapeError, match="give one for each picture"):
        eye(torch.zeros(1, 64, 64, 3, dtype=torch.uint8), [])


def test_colours_are_seen_in_the_box_with_the_rest_grey_or_as_it_is() -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[:5] = True
    red = {"tag": "colors", "prompt": "a red cup", "include": [{"class": "cup", "count": 1, "color": "red"}]}
    picture, seen = torch.full((1, 64, 64, 3), 7, dtype=torch.uint8), {"cup": [(0.9, (1.4, 2.6, 9.0, 9.0))]}
    for rules, grey, corners in (
        (Rules(), True, [1, 3, 9, 9]),
        (Rules(background="original"), False, [1, 3, 9, 9]),
        (Rules(crop=False), True, [0, 0, 64, 64]),
    ):
        look = Looked()
        assert GenEval(entries(red), Seen(seen, mask), look, rules)(picture, [Condition("a red cup")]).tolist() == [1.0]
        shown, where, noun = look.seen[0]
        assert noun == "cup"
        assert where.tolist() == corners
        assert shown[:5].unique().tolist() == [7]
        assert shown[5:].unique().tolist() == [153 if grey else 7]
    assert GenEval(entries(red), Seen(seen), Looked("blue"), Rules())(picture, [Condition("a red cup")]).tolist() == [
        0.0
    ]


def test_geneval_is_made_by_name_from_its_file_with_tiny_weights(eyes_at: Path, tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(lines(GENEVAL))
    text = f"geneval(prompts={str(file)!r}, model={str(eyes_at / 'mask2former')!r}, colours={str(eyes_at / 'clip')!r})"
    out = make_named("verifier", text)(
        torch.zeros(3, 64, 64, 3, dtype=torch.uint8), [Condition(r["prompt"]) for r in GENEVAL]
    )
    assert set(out.tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("bad", [{"threshold": 1.5}, {"most": 0}, {"background": "white"}])
def test_rules_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"geneval: {next(iter(bad))}"):
        Rules(**bad)


# ---- GenEval 2 -------------------------------------------------------------------------------------------------------


class Answers:
    """Gives these probabilities, and remembers what it was asked."""

    name = "answers"

    def __init__(self, *values: float):
        self.values = values
        self.asked: list[tuple[list[str], list[list[str]], bool]] = []

    def answer_probabilities(
        self, samples: Tensor, questions: Sequence[str], spellings: Sequence[Sequence[str]], strict: bool
    ) -> Tensor:
        assert len(samples) == len(questions) == len(spellings)
        self.asked.append((list(questions), [list(s) for s in spellings], strict))
        return torch.tensor(self.values, dtype=torch.float64)

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        return torch.zeros(len(samples))


def stub() -> Answers:
    return Answers(0.5, 1.0, 0.25)


PICTURE = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)


def test_both_means_and_the_skills_are_of_the_questions_probabilities() -> None:
    judge = Answers(0.5, 1.0, 0.25)
    out = GenEval2(entries(GENEVAL2), judge)(PICTURE, [Condition(str(GENEVAL2["prompt"]))])
    told = {k: float(v) for k, v in out.items()}
    assert told["am"] == pytest.approx(1.75 / 3)
    assert told["gm"] == told["score"] == pytest.approx(0.125 ** (1 / 3))
    assert (told["count"], told["attribute"], told["object"]) == (0.5, 1.0, 0.25)
    assert math.isnan(told["verb"])
    assert judge.asked[0][0][0] == "How many bicycles are in the image? Answer in one word."
    assert (
        float(GenEval2(entries(GENEVAL2), judge, mean="am")(PICTURE, [Condition(str(GENEVAL2["prompt"]))])["score"])
        == told["am"]
    )
    assert math.isnan(GenEval2(entries(GENEVAL2), judge)(PICTURE, [Condition("another")])["score"])


def test_one_question_that_is_surely_wrong_makes_the_geometric_mean_nothing() -> None:
    assert means([1.0, 0.0]) == (0.5, 0.0)
    assert means([0.3]) == pytest.approx((0.3, 0.3))


def test_the_official_mode_may_pass_one_and_the_strict_one_may_not() -> None:
    for mode, strict in (("official", False), ("strict", True)):
        judge = Answers(0.5, 1.0, 0.25)
        GenEval2(entries(GENEVAL2), judge, mode)(PICTURE, [Condition(str(GENEVAL2["prompt"]))])
        assert judge.asked[0][2] is strict
    over = Answers(0.5, 1.2, 0.25)
    assert float(
        GenEval2(entries(GENEVAL2), over)(PICTURE, [Condition(str(GENEVAL2["prompt"]))])["am"]
    ) == pytest.approx(0.65)
    with pytest.raises(ConfigError, match="as probabilities, which are from 0 to 1"):
        GenEval2(entries(GENEVAL2), over, "strict")(PICTURE, [Condition(str(GENEVAL2["prompt"]))])
    with pytest.raises(ConfigError, match="as probabilities"):
        GenEval2(entries(GENEVAL2), Answers(0.5, math.nan, 0.2))(PICTURE, [Condition(str(GENEVAL2["prompt"]))])
    with pytest.raises(ShapeError, match="probabilities to 3 questions"):
        GenEval2(entries(GENEVAL2), Answers(0.5))(PICTURE, [Condition(str(GENEVAL2["prompt"]))])


def test_numbers_are_spelled_in_six_ways_and_yes_in_four() -> None:
    assert spellings("How many cows are in the image?", "three") == ["three", "Three", " three", " Three", "3", " 3"]
    assert spellings("Are the cows plastic?", "Yes") == ["Yes", "yes", " yes", " Yes"]


def test_geneval2_is_made_by_name_and_refuses_a_judge_that_answers_nothing(tmp_path: Path) -> None:
    file = tmp_path / "geneval2_data.jsonl"
    file.write_text(json.dumps(GENEVAL2) + "\n")
    made = make_named("verifier", f"geneval2(prompts={str(file)!r}, judge='tests.test_fields:stub')")
    assert float(made(PICTURE, [Condition(str(GENEVAL2["prompt"]))])["am"]) == pytest.approx(1.75 / 3)
    for bad, told in (
        ({"judge": "brightness"}, "answers no questions"),
        ({"mode": "loose"}, 'mode is "official" or'),
        ({"mean": "hm"}, "mean is"),
    ):
        with pytest.raises(ConfigError, match=told):
            geneval2(**{"prompts": str(file), "judge": "tests.test_fields:stub", **bad})  # type: ignore[arg-type]
    assert fields.GenEval2.told[:2] == ("am", "gm")
