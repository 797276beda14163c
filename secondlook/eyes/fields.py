"""GenEval and GenEval 2 as verifiers: their scores of a picture, for prompts of their own files.

GenEval (2310.11513, sec. 3; the rules as released in djghosh13/geneval, evaluation/evaluate_images.py) looks with a detector, tells
colours with a CLIP, and says yes or no. GenEval 2 (2512.16853, "Soft-TIFA") asks a model that answers questions, and takes means of the
probabilities of the right answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.eyes.clip import CLIP_L, HUNDRED, two_encoders
from secondlook.eyes.detect import Detector, Found, detector
from secondlook.eyes.facts import COLOURS
from secondlook.eyes.objects import GREY, MARGIN, Colours
from secondlook.eyes.pixels import check
from secondlook.notes import note
from secondlook.settings import make_named
from secondlook.types import Condition, Verifier
from secondlook.verify.benchmarks import Entry, read

Colour = Callable[[Tensor, Tensor, Tensor | None, str], np.ndarray]  # as objects.Colours


@dataclass(frozen=True)
class Rules:
    """GenEval's numbers, at their released values. threshold, counting: scores above which a box counts, the latter for the task
    "counting"; most: boxes of a class at most, before ``overlap``: the intersection over union from which the weaker of two boxes of a
    class is dropped (1: none is); margin: of both sizes, by which centres must be apart; background: what is put around a mask, "grey" or
    "original"; crop: whether colours are told from the box alone."""

    threshold: float = 0.3
    counting: float = 0.9
    most: int = 16
    overlap: float = 1.0
    margin: float = MARGIN
    background: str = "grey"
    crop: bool = True

    def __post_init__(self) -> None:
        for name in ("threshold", "counting", "overlap", "margin"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"geneval: {name} is from 0 to 1; got {getattr(self, name)!r}.")
        if self.most < 1:
            raise ConfigError(f"geneval: most must be 1 or more; got {self.most!r}.")
        if self.background not in ("grey", "original"):
            raise ConfigError(f'geneval: background is "grey" or "original"; got "{self.background}".')


@dataclass(frozen=True)
class Thing:
    """A detection. box [4] float: left, top, right, bottom in pixels; mask bool [H, W] or None."""

    box: Tensor
    mask: Tensor | None


def kept(found: Found, names: Sequence[str], counting: bool, rules: Rules) -> dict[str, list[Thing]]:
    """By class, best first, what the thresholds, the limit and the suppression leave of a picture's detections."""
    out: dict[str, list[Thing]] = {}
    for label, name in enumerate(names):
        rows = torch.nonzero(
            (found.labels == label) & (found.scores > (rules.counting if counting else rules.threshold))
        ).flatten()
        rows = rows[torch.argsort(found.scores[rows], descending=True, stable=True)][: rules.most]
        left = [Thing(found.boxes[i], None if found.masks is None else found.masks[i]) for i in rows]
        chosen: list[Thing] = []
        while left:
            best, *left = left
            chosen.append(best)
            left = [o for o in left if rules.overlap == 1 or overlap(best.box, o.box) < rules.overlap]
        out[name] = chosen
    return out


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two boxes [4] whose corners are pixels that belong to them, hence one more on each side."""

    def area(left: float, top: float, right: float, below: float) -> float:
        return max(right - left + 1, 0) * max(below - top + 1, 0)

    a, b = one.tolist(), other.tolist()
    both = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - both
    return both / union if union else 0.0


def relations(one: Tensor, other: Tensor, margin: float = MARGIN) -> set[str]:
    """Where the box ``one`` [4] is of ``other``. The offset of their centres is shortened by ``margin`` of both sizes, then divided by
    its whole length before; a relation holds where that points its way by more than a half."""
    a, b = (np.asarray(v.tolist(), dtype=np.float64).reshape(2, 2) for v in (one, other))
    offset = a.mean(0) - b.mean(0)
    sizes = np.abs(a[1] - a[0]) + np.abs(b[1] - b[0])
    moved = np.maximum(np.abs(offset) - margin * sizes, 0) * np.sign(offset)
    if (np.abs(moved) < 1e-3).all():
        return set()
    x, y = moved / np.linalg.norm(offset)
    held = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in held.items() if holds}


def judge(
    facts: Mapping[str, Any],
    things: Mapping[str, Sequence[Thing]],
    colour: Callable[[Thing, str], str],
    margin: float = MARGIN,
) -> list[str]:
    """What is wrong by a line of GenEval's file; empty where the picture is right. colour: of a thing of that class. Only the best so
    many boxes that a clause counts are looked at for colour and place; more of them are no fault unless "exclude" says so."""
    wrong: list[str] = []
    groups: list[Sequence[Thing] | None] = []
    for clause in facts["include"]:
        name, count = clause["class"], clause["count"]
        some = list(things.get(name, ()))[:count]
        faults = _clause_faults(clause, some, groups, colour, margin) if len(some) == count else [
            f"expected {count} or more {name}, found {len(some)}"
        ]  # fmt: skip
        wrong += faults
        groups.append(None if faults else some)
    for clause in facts.get("exclude", ()):
        count = len(things.get(clause["class"], ()))
        if count >= clause["count"]:
            wrong.append(f"expected fewer than {clause['count']} {clause['class']}, found {count}")
    return wrong


def _clause_faults(clause: Mapping[str, Any], some: Sequence[Thing], groups: Sequence[Sequence[Thing] | None],
                   colour: Callable[[Thing, str], str], margin: float) -> list[str]:  # fmt: skip
    name = clause["class"]
    if "color" in clause:
        found = [colour(t, name) for t in some]
        if found.count(clause["color"]) < clause["count"]:
            return [f"expected {clause['count']} {clause['color']} {name}, found colours {', '.join(found)}"]
    if "position" in clause:
        relation, at = clause["position"]
        target = groups[at]
        if target is None:
            return [f"nothing for {name} to be {relation}"]
        for one in some:
            for other in target:
                if relation not in relations(one.box, other.box, margin):
                    return [f"expected {name} {relation} its target"]
    return []


class GenEval:
    """A ``types.Verifier``: 1 where GenEval calls a picture right, else 0; NaN for prompts that its file does not hold."""

    inline, oracle = True, True  # oracle: a search that it guides is measured by what it was shown
    name = "geneval"

    def __init__(self, entries: Sequence[Entry], detector: Detector, colours: Colour, rules: Rules):
        self.entries = _by_prompt(self.name, entries)
        self.detector, self.colours, self.rules = detector, colours, rules
        self.network = detector.network

    def beside(self, device: torch.device | None) -> None:
        """Told where the generator works, before the first picture."""
        inner = getattr(self.colours, "inner", None)
        for held in (getattr(self.detector, "held", None), None if inner is None else inner._use.held):
            if held is not None:
                held.near = device

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        out = torch.full((len(samples),), math.nan, dtype=torch.float64)
        for row, entry in enumerate(_known(self.name, self.entries, samples, conditions)):
            if entry is not None:
                out[row] = float(not self.faults(samples[row], entry.facts))
        return out

    def faults(self, picture: Tensor, facts: Mapping[str, Any]) -> list[str]:
        """What is wrong with a picture uint8 [H, W, 3] by a line of GenEval's file."""
        clauses = [*facts["include"], *facts.get("exclude", ())]
        names = list(dict.fromkeys(str(c["class"]) for c in clauses))
        [found] = self.detector(picture[None], names)
        things = kept(found, names, facts["tag"] == "counting", self.rules)
        return judge(facts, things, lambda thing, name: self.colour(picture, thing, name), self.rules.margin)

    def colour(self, picture: Tensor, thing: Thing, name: str) -> str:
        """The likeliest of ten colours of a thing, seen in its box with all else grey where there is a mask."""
        picture = picture.cpu()
        if thing.mask is not None and self.rules.background == "grey":
            picture = torch.where(thing.mask.cpu()[..., None], picture, torch.full_like(picture, GREY))
        height, width = picture.shape[:2]
        box = thing.box.round() if self.rules.crop else torch.tensor([0.0, 0.0, width, height])
        return COLOURS[int(self.colours(picture, box, None, name).argmax())]


def _by_prompt(name: str, entries: Sequence[Entry]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for entry in entries:
        first = found.setdefault(entry.prompt, entry)
        if first.facts != entry.facts:
            note(f'{name}: the file says two things of "{entry.prompt[:60]}"; the first is taken.')
    return found


def _known(
    name: str, entries: Mapping[str, Entry], samples: Tensor, conditions: Sequence[Condition]
) -> list[Entry | None]:
    check(name, samples)
    if len(samples) != len(conditions):
        raise ShapeError(f"{len(samples)} pictures came with {len(conditions)} conditions; give one for each picture.")
    found = [entries.get(str(c.prompt)) for c in conditions]
    for entry, condition in zip(found, conditions, strict=True):
        if entry is None:
            note(f'{name} judges prompts of its own file; it can say nothing of "{str(condition.prompt)[:60]}".')
    return found


def geneval(prompts: str, detector: str = "mask2former", model: str = "", colours: str = CLIP_L, threshold: float = 0.3, counting: float = 0.9,
            most: int = 16, overlap: float = 1.0, margin: float = MARGIN, background: str = "grey", crop: bool = True, device: str = "auto",
            dtype: str = "float32", offload: bool = False) -> Verifier:  # fmt: skip
    """prompts: GenEval's evaluation_metadata.jsonl. detector: mask2former (COCO, with masks), detr (COCO), owlv2 or grounding_dino; model: its
    folder or hub id. colours: the CLIP that names them. The other options are ``Rules``. GenEval's own detector is MMDetection's Mask2Former
    with a Swin-S, whose weights these are not, so that scores may differ by points from published ones."""
    rules = Rules(threshold, counting, most, overlap, margin, background, crop)
    entries = read("geneval", prompts)
    inner = two_encoders("geneval", colours, "CLIPModel", dtype, device, colours, HUNDRED, offload=offload)
    return GenEval(
        entries, _detector(detector, model, device=device, dtype=dtype, offload=offload), Colours(inner), rules
    )


_detector: Any = detector

# ---- GenEval 2 -------------------------------------------------------------------------------------------------------

DIGITS = {
    w: str(i) for i, w in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1)
}
SKILLS = ("object", "attribute", "count", "position", "verb")


class Answerer(Protocol):
    """A verifier that also answers questions."""

    name: str

    def answer_probabilities(
        self, samples: Tensor, questions: Sequence[str], spellings: Sequence[Sequence[str]], strict: bool
    ) -> Tensor:
        """uint8 [B, H, W, 3], a question and the spellings of its right answer for each: [B] probabilities of that answer. Not ``strict``: the
        sum, over the spellings, of the first token's probability, a token that two spellings begin with counted twice. ``strict``:
        each token counted once, and only of spellings that are one whole token."""
        ...


def spellings(question: str, answer: str) -> list[str]:
    """Of the right answer, as the released code sums them: the number in letters, with a capital, both after a space, and in digits; or yes."""
    if not question.startswith("How many"):
        return ["Yes", "yes", " yes", " Yes"]
    digit = DIGITS.get(answer, answer)
    return [answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}", digit, f" {digit}"]


def means(probabilities: Sequence[float]) -> tuple[float, float]:
    """Soft-TIFA's arithmetic mean (atoms) and geometric mean (the prompt) of a picture's probabilities."""
    arithmetic = math.fsum(probabilities) / len(probabilities)
    if min(probabilities) <= 0:
        return arithmetic, 0.0
    return arithmetic, math.exp(math.fsum(math.log(p) for p in probabilities) / len(probabilities))


class GenEval2:
    """A ``types.Verifier``: a mapping with the score, one of its two means, and the components ``am``, ``gm`` and the mean of each skill (NaN
    where a prompt asks for none). ``told`` are the components that a run's log keeps of it."""

    inline, oracle = True, True
    name = "geneval2"
    told = ("am", "gm", *SKILLS)

    def __init__(self, entries: Sequence[Entry], answerer: Answerer, mode: str = "official", mean: str = "gm"):
        if mode not in ("official", "strict"):
            raise ConfigError(f'geneval2: mode is "official" or "strict"; got "{mode}".')
        if mean not in ("am", "gm"):
            raise ConfigError(f'geneval2: mean is "gm" (of prompts) or "am" (of atoms); got "{mean}".')
        if not callable(getattr(answerer, "answer_probabilities", None)):
            raise ConfigError(
                f'geneval2: the judge "{getattr(answerer, "name", answerer)}" answers no questions; name a verifier with a method '
                "answer_probabilities(samples, questions, spellings, strict), as in docs/benchmark.md."
            )
        self.entries, self.answerer = _by_prompt(self.name, entries), answerer
        self.mode, self.mean = mode, mean
        self.network = getattr(answerer, "network", None)

    def beside(self, device: torch.device | None) -> None:
        """Told where the generator works, before the first picture."""
        if hasattr(self.answerer, "beside"):
            self.answerer.beside(device)

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        columns = {n: torch.full((len(samples),), math.nan, dtype=torch.float64) for n in ("score", *self.told)}
        for row, entry in enumerate(_known(self.name, self.entries, samples, conditions)):
            if entry is None:
                continue
            found = self.questions(samples[row], entry.facts)
            columns["am"][row], columns["gm"][row] = means(found)
            columns["score"][row] = columns[self.mean][row]
            for skill in SKILLS:
                some = [p for p, s in zip(found, entry.facts["skills"], strict=True) if s == skill]
                if some:
                    columns[skill][row] = math.fsum(some) / len(some)
        return columns

    def questions(self, picture: Tensor, facts: Mapping[str, Any]) -> list[float]:
        """The probability of the right answer to each question on a picture uint8 [H, W, 3], in the file's order."""
        asked = facts["vqa_list"]
        strict = self.mode == "strict"
        found = self.answerer.answer_probabilities(
            picture[None].expand(len(asked), *picture.shape),
            [f"{q} Answer in one word." for q, _ in asked],
            [spellings(q, a) for q, a in asked],
            strict,
        )
        if tuple(found.shape) != (len(asked),):
            raise ShapeError(f"{self.answerer.name} gave {tuple(found.shape)} probabilities to {len(asked)} questions.")
        values = [float(v) for v in found]
        # Summed over spellings that begin with the same token, the released score may pass 1; what is below 0 is no probability.
        if not all(v >= 0 for v in values) or (strict and max(values) > 1 + 1e-6):
            raise ConfigError(f"{self.answerer.name} gave {values} as probabilities, which are from 0 to 1.")
        return values


def geneval2(prompts: str, judge: str, mode: str = "official", mean: str = "gm") -> Verifier:
    """prompts: GenEval 2's geneval2_data.jsonl. judge: a verifier that answers questions, as a call-string; the published scores are of
    Qwen3-VL-8B. mode: "official" sums first tokens as the released code does, "strict" counts each whole-word token once. mean: what the
    score is, "gm" or "am"."""
    return GenEval2(read("geneval2", prompts), make_named("verifier", judge), mode, mean)
