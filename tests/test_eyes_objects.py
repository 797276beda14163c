"""Detectors give the library's own boxes, prompts are read as GenEval writes them, and facts are judged by its rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secondlook.eyes import detect, tiny
from secondlook.eyes.detect import KINDS, LEAST, Found, detector
from secondlook.eyes.facts import COLOURS, Facts, Wanted, parse
from secondlook.eyes.objects import Colours, Objects, objects, placed
from secondlook.notes import Note
from secondlook.testing.contracts import noise_pictures
from secondlook.types import Condition

transformers = pytest.importorskip("transformers")
NAMES = list(tiny.COCO)


def theirs(kind: str, folder: str, picture: Tensor) -> list[tuple[str, float, list[float]]]:
    """What the library's own processor makes of its network's answer: label, score and box, best first."""
    network = getattr(transformers, KINDS[kind][1]).from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    size = [(picture.shape[0], picture.shape[1])]
    inputs = {"pixel_values": processor(images=[picture.numpy()], return_tensors="pt")["pixel_values"]}
    with torch.inference_mode():
        if kind == "owlv2":
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            inputs |= tokenizer(
                [f"a photo of a {n}" for n in NAMES], padding="max_length", max_length=32, return_tensors="pt"
            )
        if kind == "grounding_dino":
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            inputs |= tokenizer(". ".join(NAMES[:3]) + ".", return_tensors="pt", return_token_type_ids=True)
        out = network(**inputs)
        if kind == "grounding_dino":
            found = transformers.GroundingDinoProcessor(processor, tokenizer).post_process_grounded_object_detection(
                out, inputs["input_ids"], LEAST, LEAST, size
            )[0]
            rows = zip(found["text_labels"], found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        else:
            found = processor.post_process_object_detection(out, LEAST, size)[0]
            names = [NAMES[i] for i in found["labels"].tolist()]
            rows = zip(names, found["scores"].tolist(), found["boxes"].tolist(), strict=True)
    return sorted(rows, key=lambda r: -r[1])


@pytest.mark.parametrize("kind", ["owlv2", "detr"])
def test_boxes_labels_and_scores_are_the_librarys(kind: str, eyes_at: Path) -> None:
    picture = noise_pictures(1, 64)[0, :40]
    wanted = theirs(kind, str(eyes_at / kind), picture)
    [found] = detector(kind, str(eyes_at / kind))(picture[None], NAMES)
    assert len(wanted) > 3
    assert [NAMES[i] for i in found.labels] == [w[0] for w in wanted]
    assert np.allclose(found.scores, [w[1] for w in wanted], atol=1e-5)
    assert np.allclose(found.boxes, [w[2] for w in wanted], atol=1e-3)


def test_grounding_dinos_boxes_are_the_librarys_and_a_name_has_its_best_tokens_score(eyes_at: Path) -> None:
    """The library's score is the best of all tokens, the full stops between names too; ours is the best of a name's."""
    picture, folder = noise_pictures(1, 64)[0], str(eyes_at / "grounding_dino")
    [found] = detector("grounding_dino", folder)(picture[None], NAMES[:3])
    boxes = {tuple(np.round(b, 2)): s for _, s, b in theirs("grounding_dino", folder, picture)}
    assert len(found.scores) > 3
    for box, score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True):
        assert score <= boxes[tuple(np.round(box, 2))] + 1e-5
    text, spans = detector("grounding_dino", folder)._read("person. car. dog.")  # type: ignore[attr-defined]
    assert [bytes(text["input_ids"][0, s].tolist()) for s in spans] != []
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.decode(text["input_ids"][0, s]).strip() for s in spans] == ["person", "car", "dog"]


def test_mask2formers_boxes_are_around_its_masks_and_its_scores_the_librarys(eyes_at: Path) -> None:
    """The library gives the same mask again for its second class, so ours are among its own, to what its 384 pixels round."""
    folder, picture = str(eyes_at / "mask2former"), noise_pictures(1, 64)[0]
    [found] = detector("mask2former", folder)(picture[None], NAMES)
    network = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    with torch.inference_mode():
        out = network(pixel_values=processor(images=[picture.numpy()], return_tensors="pt")["pixel_values"])
    known = processor.post_process_instance_segmentation(out, LEAST, return_binary_maps=True)[0]["segments_info"]
    scores = [(s["label_id"], s["score"]) for s in known]
    assert len(found.scores) >= 2
    for label, score, box, mask in zip(
        found.labels.tolist(), found.scores.tolist(), found.boxes.int().tolist(), found.masks, strict=True
    ):  # type: ignore[arg-type]
        assert any(a == label and abs(b - score) < 2e-2 for a, b in scores)
        inside = torch.zeros_like(mask)
        inside[box[1] : box[3], box[0] : box[2]] = True
        assert not (mask & ~inside).any()
        assert mask[box[1]].any()
        assert mask[:, box[2] - 1].any()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_picture_is_looked_at_alone_and_boxes_come_best_first(kind: str, eyes_at: Path) -> None:
    look, pictures = detector(kind, str(eyes_at / kind)), noise_pictures(3, 64)
    for one, alone in zip(look(pictures, NAMES), [look(p[None], NAMES)[0] for p in pictures], strict=True):
        assert torch.equal(one.boxes, alone.boxes)
        assert torch.equal(one.scores, alone.scores)
        assert one.labels.dtype == torch.int64
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
        assert ((one.scores > LEAST) & (one.scores <= 1)).all() or kind == "mask2former"


def test_a_class_that_a_closed_detector_does_not_know_is_never_found_and_said(eyes_at: Path) -> None:
    with pytest.warns(Note, match='detr knows no "unicorn" among its 10 classes'):
        [found] = detector("detr", str(eyes_at / "detr"))(noise_pictures(1, 64), ["unicorn"])
    assert len(found.labels) == 0
    assert detect._spelled("Couch") == detect._spelled("sofa")


# ---- prompts -----------------------------------------------------------------------------------------------------------------

READ = {
    "a photo of a bench": Facts((Wanted("bench"),)),
    "two clocks": Facts((Wanted("clock", 2),)),
    "a photo of four knives": Facts((Wanted("knife", 4),)),
    "3 teddy bears": Facts((Wanted("teddy bear", 3),)),
    "a photo of a bench and a sports ball": Facts((Wanted("bench"), Wanted("sports ball"))),
    "A photo of a purple wine glass and a black apple.": Facts(
        (Wanted("wine glass", None, "purple"), Wanted("apple", None, "black"))
    ),
    "a photo of a dog right of a teddy bear": Facts((Wanted("dog"), Wanted("teddy bear")), "right"),
    "a red cup to the left of an orange": Facts((Wanted("cup", None, "red"), Wanted("orange")), "left"),
    "a cat above two buses": Facts((Wanted("cat"), Wanted("bus", 2)), "above"),
    "a cat, a dog and three sandwiches": Facts((Wanted("cat"), Wanted("dog"), Wanted("sandwich", 3))),
    "a photo of two wine glasss": Facts((Wanted("wine glass", 2),)),
    "an orange": Facts((Wanted("orange"),)),
}


@pytest.mark.parametrize("prompt", list(READ))
def test_a_prompt_of_genevals_kinds_is_read(prompt: str) -> None:
    assert parse(prompt) == READ[prompt]


@pytest.mark.parametrize(
    "prompt",
    [
        "a red fox in the snow, golden hour",
        "a man riding a horse",
        "",
        "zero cats",
        "a very large old grey cat",
        "cats and cats",
        "42",
        "no dogs",
    ],
)
def test_of_other_prompts_nothing_is_guessed(prompt: str) -> None:
    assert parse(prompt) is None


# ---- facts -------------------------------------------------------------------------------------------------------------------


class Scripted:
    """A detector that finds what it was told."""

    name, network = "scripted", torch.nn.Linear(1, 1)

    def __init__(self, *rows: tuple[int, float, list[float]]):
        self.rows = sorted(rows, key=lambda r: -r[1])

    def __call__(self, pictures: Tensor, names: Sequence[str]) -> list[Found]:
        boxes = torch.tensor([r[2] for r in self.rows]).reshape(-1, 4)
        return [
            Found(
                boxes,
                torch.tensor([r[0] for r in self.rows], dtype=torch.int64),
                torch.tensor([r[1] for r in self.rows]),
            )
        ] * len(pictures)


class Painted:
    """Colours that are told by the mean of a box, not by a network."""

    class inner:
        class _use:
            held = None

    def __call__(self, picture: Tensor, box: Tensor, mask: Any, noun: str) -> np.ndarray:
        left, top, right, below = (int(v) for v in box)
        red, green, blue = picture[top:below, left:right].double().mean((0, 1)).tolist()
        shares = np.full(len(COLOURS), 0.01)
        shares[COLOURS.index("red" if red > max(green, blue) else "blue")] = 0.91
        return shares


def said(prompt: str, *rows: tuple[int, float, list[float]], picture: Tensor | None = None) -> dict[str, float]:
    verifier = Objects(Scripted(*rows), Painted())  # type: ignore[arg-type]
    some = torch.zeros(1, 20, 20, 3, dtype=torch.uint8) if picture is None else picture[None]
    return {k: float(v[0]) for k, v in verifier(some, [Condition(prompt)]).items()}


LEFT, RIGHT, MIDDLE = [0.0, 5.0, 5.0, 10.0], [15.0, 5.0, 20.0, 10.0], [7.0, 5.0, 13.0, 10.0]


def test_a_thing_is_as_surely_there_as_its_best_box() -> None:
    found = said("a cat", (0, 0.4, LEFT), (0, 0.8, RIGHT))
    assert found["score"] == found["there"] == pytest.approx(0.8)
    assert found["right"] == 1
    assert math.isnan(found["colour"])
    assert said("a cat", (0, 0.2, LEFT))["right"] == 0
    assert said("a cat")["score"] == 0


def test_exactly_so_many_are_counted() -> None:
    two = [(0, 0.9, LEFT), (0, 0.8, RIGHT)]
    assert said("two cats", *two)["count"] == pytest.approx(0.8)
    assert said("two cats", *two)["right"] == 1
    three = said("two cats", *two, (0, 0.7, MIDDLE))
    assert three["right"] == 0
    assert three["count"] == pytest.approx(0.8 * 0.3)
    assert said("three cats", *two)["score"] == 0


def test_a_colour_is_told_from_the_best_box() -> None:
    picture = torch.zeros(20, 20, 3, dtype=torch.uint8)
    picture[5:10, 0:5, 0] = 250
    picture[5:10, 15:20, 2] = 250
    assert said("a red cup", (0, 0.9, LEFT), picture=picture)["right"] == 1
    assert said("a red cup", (0, 0.9, LEFT), picture=picture)["score"] == pytest.approx((0.9 + 0.9 * 0.91) / 2)
    assert said("a red cup", (0, 0.9, RIGHT), picture=picture)["right"] == 0
    assert said("a red cup", picture=picture)["colour"] == 0


def test_a_place_is_told_from_centres() -> None:
    both = [(0, 0.9, LEFT), (1, 0.8, RIGHT)]
    assert said("a cat left of a dog", *both)["place"] == pytest.approx(0.72)
    assert said("a cat left of a dog", *both)["right"] == 1
    assert said("a cat right of a dog", *both)["right"] == 0
    assert said("a cat above a dog", *both)["place"] == 0


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [(LEFT, RIGHT, {"left"}), (RIGHT, LEFT, {"right"}), ([0, 0, 4, 4], [10, 10, 14, 14], {"left", "above"}), (LEFT, LEFT, set()),
     ([0, 0, 10, 10], [2, 0, 12, 10], set()), ([0, 0, 10, 10], [3, 0, 13, 10], set()), ([0, 0, 10, 10], [0, 12, 10, 22], {"above"})],
)  # fmt: skip
def test_one_is_beside_another_by_more_than_a_tenth_of_their_sizes(
    one: list[float], other: list[float], wanted: set[str]
) -> None:
    assert placed(torch.tensor(one), torch.tensor(other)) == wanted


def test_of_a_prompt_that_is_not_read_nothing_is_said_and_a_note_says_so(eyes: dict[str, str], eyes_at: Path) -> None:
    verifier = objects(model=str(eyes_at / "owlv2"), colours=str(eyes_at / "clip"))
    with pytest.warns(Note, match='of "a fox in a winter wood" it can say nothing'):
        found = verifier(noise_pictures(2), [Condition("a fox in a winter wood"), Condition("a red cup")])
    assert math.isnan(found["score"][0])  # type: ignore[call-overload]
    assert not math.isnan(found["score"][1])  # type: ignore[call-overload]


def test_colours_are_clips_zero_shot_over_the_mean_of_three_templates(eyes_at: Path) -> None:
    verifier = objects(model=str(eyes_at / "owlv2"), colours=str(eyes_at / "clip"))
    colours: Colours = verifier.colours  # type: ignore[attr-defined]
    picture = noise_pictures(1, 64)[0]
    network = transformers.CLIPModel.from_pretrained(eyes_at / "clip").eval()
    processor = transformers.CLIPImageProcessorPil.from_pretrained(eyes_at / "clip")
    tokenizer = transformers.AutoTokenizer.from_pretrained(eyes_at / "clip")
    with torch.inference_mode():
        seen = network.get_image_features(
            processor(images=[picture[9:41, 4:50].numpy()], return_tensors="pt")["pixel_values"]
        ).pooler_output[0]
        texts = []
        for c in COLOURS:
            lines = [f"a photo of a {c} cup", f"a photo of a {c}-colored cup", f"a photo of a {c} object"]
            each = [
                network.get_text_features(**tokenizer(line, return_tensors="pt")).pooler_output[0] for line in lines
            ]
            texts.append(torch.stack([e / e.norm() for e in each]).mean(0))
        wanted = (100 * torch.cosine_similarity(torch.stack(texts), seen[None])).softmax(0)
    found = colours(picture, torch.tensor([4.2, 9.5, 49.5, 40.9]), None, "cup")
    assert np.allclose(found, wanted, atol=1e-4)
    masked = colours(picture, torch.tensor([0.0, 0, 64, 64]), torch.zeros(64, 64, dtype=torch.bool), "cup")
    grey = colours(torch.full_like(picture, 153), torch.tensor([0.0, 0, 64, 64]), None, "cup")
    assert np.allclose(masked, grey)
