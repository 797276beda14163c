"""A verifier that looks for what a prompt names: is it there, as many, in that colour, on that side?

The rules are GenEval's (2310.11513, sec. 3): boxes above a threshold count (a higher one for counting), colours are told by a CLIP
from the box, one is left of another where its centre is, by more than a tenth of their sizes. The score is softer than GenEval's
yes or no, so that a search has something to climb: the mean over all facts of how sure each is. ``right`` is the yes or no.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.eyes.clip import CLIP_L, HUNDRED, TwoEncoders, two_encoders
from secondlook.eyes.detect import Detector, Found, detector
from secondlook.eyes.facts import COLOURS, Facts, Wanted, parse
from secondlook.eyes.pixels import check
from secondlook.notes import note
from secondlook.types import Condition, Verifier

MARGIN = 0.1  # of the sizes of two boxes: so far apart their centres must be
GREY = 153  # 0.6 of white: what GenEval puts around a mask
TEMPLATES = ("a photo of a {colour} {noun}", "a photo of a {colour}-colored {noun}", "a photo of a {colour} object")
COMPONENTS = ("right", "there", "count", "colour", "place")


@dataclass(frozen=True)
class Said:
    """Of one fact: its kind, how sure it is (0 to 1), and whether it holds by the thresholds."""

    kind: str
    sure: float
    holds: bool


class Colours:
    """Which of GenEval's ten colours a thing in a picture has: probabilities from a CLIP, over its templates' mean."""

    name = "colours"

    def __init__(self, inner: TwoEncoders):
        self.inner, self.network, self.made = inner, inner.network, inner.made

    @torch.inference_mode()
    def __call__(self, picture: Tensor, box: Tensor, mask: Tensor | None, noun: str) -> np.ndarray:
        """picture uint8 [H, W, 3], box [4] in pixels, mask bool [H, W]: [10] float64 that sum to 1."""
        height, width = picture.shape[:2]
        if mask is not None:
            picture = torch.where(mask[..., None], picture, torch.full_like(picture, GREY))
        left, top = max(0, min(width - 1, math.floor(box[0]))), max(0, min(height - 1, math.floor(box[1])))
        right, below = min(width, max(left + 1, math.ceil(box[2]))), min(height, max(top + 1, math.ceil(box[3])))
        use = self.inner._use
        with use.held.on(use.offload) as device:
            [(_, pixels)] = list(use.batches(picture[None, top:below, left:right], [0], device))
            seen = self.inner.seen(pixels)[0]
            texts = [
                np.mean([self.inner.said(t.format(colour=c, noun=noun), device) for t in TEMPLATES], 0) for c in COLOURS
            ]
        logits = np.array([100 * float(np.sum(seen * t)) / math.sqrt(float(np.sum(t * t))) for t in texts])
        shares: np.ndarray = np.exp(logits - logits.max())
        return shares / shares.sum()


class Objects:
    """A ``types.Verifier``; a mapping with the score and the components ``right`` (1 where all facts hold), ``there``, ``count``, ``colour`` and
    ``place``: how sure its facts are on average, NaN where the prompt asks for none of that kind. NaN for prompts of no kind that is known.
    """

    inline = True
    name = "objects"

    def __init__(self, detector: Detector, colours: Colours, threshold: float = 0.3, counting: float = 0.5):
        for name, value in (("threshold", threshold), ("counting", counting)):
            if not 0 < value < 1:
                raise ConfigError(f"objects: {name} is a score above 0 and below 1; got {value!r}.")
        self.detector, self.colours, self.network = detector, colours, detector.network
        self.threshold, self.counting = threshold, counting

    def beside(self, device: torch.device | None) -> None:
        """Told where the generator works, before the first picture."""
        for held in (getattr(self.detector, "held", None), self.colours.inner._use.held):
            if held is not None:
                held.near = device

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        check(self.name, samples)
        if len(samples) != len(conditions):
            raise ShapeError(
                f"{len(samples)} pictures came with {len(conditions)} conditions; give one for each picture."
            )
        columns = {n: torch.full((len(samples),), torch.nan, dtype=torch.float64) for n in ("score", *COMPONENTS)}
        for row, condition in enumerate(conditions):
            facts = None if condition.prompt is None else parse(condition.prompt)
            if facts is None:
                note(f'objects reads prompts such as "two dogs", "a red cup and a book" or "a cat left of a chair"; of "{str(condition.prompt)[:60]}" it can '
                     "say nothing.")  # fmt: skip
                continue
            for name, value in self.summed(self.facts(samples[row], facts)).items():
                columns[name][row] = value
        return columns

    def facts(self, picture: Tensor, facts: Facts) -> list[Said]:
        """What is said of each fact on one picture uint8 [H, W, 3]."""
        [found] = self.detector(picture[None], [t.noun for t in facts.things])
        said, best = [], []
        for place, thing in enumerate(facts.things):
            rows = torch.nonzero(found.labels == place).flatten()
            best.append(int(rows[0]) if len(rows) else None)
            said.append(self._counted(found.scores[rows].tolist(), thing))
            if thing.colour is not None:
                said.append(self._coloured(picture, found, best[-1], thing))
        if facts.place is not None:
            said.append(self._placed(found, best[0], best[1], facts.place))
        return said

    def _counted(self, scores: list[float], thing: Wanted) -> Said:
        """At least one: its score. Exactly n: the n-th highest score times one less the next."""
        at = [*scores, *[0.0] * ((thing.count or 1) + 1)]
        if thing.count is None:
            return Said("there", at[0], at[0] > self.threshold)
        sure = at[thing.count - 1] * (1 - at[thing.count])
        return Said("count", sure, sum(s > self.counting for s in scores) == thing.count)

    def _coloured(self, picture: Tensor, found: Found, at: int | None, thing: Wanted) -> Said:
        if at is None:
            return Said("colour", 0.0, False)
        mask = None if found.masks is None else found.masks[at]
        shares = self.colours(picture.cpu(), found.boxes[at], mask, thing.noun)
        asked = COLOURS.index(str(thing.colour))
        return Said(
            "colour",
            float(found.scores[at]) * float(shares[asked]),
            bool(int(shares.argmax()) == asked and found.scores[at] > self.threshold),
        )

    def _placed(self, found: Found, one: int | None, other: int | None, place: str) -> Said:
        if one is None or other is None:
            return Said("place", 0.0, False)
        right = place in placed(found.boxes[one], found.boxes[other])
        sure = float(found.scores[one]) * float(found.scores[other])
        return Said(
            "place",
            sure if right else 0.0,
            right and min(float(found.scores[one]), float(found.scores[other])) > self.threshold,
        )

    @staticmethod
    def summed(said: Sequence[Said]) -> dict[str, float]:
        """The score and the components of a picture."""
        kinds: dict[str, list[float]] = {k: [s.sure for s in said if s.kind == k] for k in COMPONENTS[1:]}
        means = {k: (math.fsum(v) / len(v) if v else math.nan) for k, v in kinds.items()}
        return {
            "score": math.fsum(s.sure for s in said) / len(said),
            "right": float(all(s.holds for s in said)),
            **means,
        }


def placed(one: Tensor, other: Tensor) -> set[str]:
    """Where the box ``one`` [4] is of ``other``: its centre's offset, less a tenth of both sizes and divided by its whole length, points so by more
    than a half (GenEval's rule)."""

    def centre(box: Tensor) -> np.ndarray:
        return np.array([(float(box[0]) + float(box[2])) / 2, (float(box[1]) + float(box[3])) / 2])

    def size(box: Tensor) -> np.ndarray:
        return np.abs([float(box[2]) - float(box[0]), float(box[3]) - float(box[1])])

    offset = centre(one) - centre(other)
    moved = np.maximum(np.abs(offset) - MARGIN * (size(one) + size(other)), 0) * np.sign(offset)
    if math.hypot(*moved) < 1e-3:
        return set()
    x, y = moved / math.hypot(*offset)
    return {
        name
        for name, holds in (("left", x < -0.5), ("right", x > 0.5), ("above", y < -0.5), ("below", y > 0.5))
        if holds
    }


def objects(detector: str = "owlv2", model: str = "", colours: str = CLIP_L, threshold: float = 0.3, counting: float = 0.5, device: str = "auto",
            dtype: str = "float32", offload: bool = False) -> Verifier:  # fmt: skip
    """detector: owlv2, grounding_dino, detr or mask2former; model: its folder or hub id. colours: the CLIP that names them. threshold, counting: the scores from
    which a box is there, and is counted; GenEval's 0.3 and 0.9 are for its own Mask2Former."""
    return Objects(
        _detector(detector, model, device=device, dtype=dtype, offload=offload),
        _colours(colours, device, dtype, offload),
        threshold,
        counting,
    )


_detector: Any = detector


def _colours(model: str, device: str, dtype: str, offload: bool) -> Colours:
    return Colours(two_encoders("objects", model, "CLIPModel", dtype, device, model, HUNDRED, offload=offload))
