"""Detectors of transformers behind one call: pictures and names to boxes, labels and scores.

Two are told what to look for in words (GroundingDINO, OWLv2), two know COCO's 80 classes (DETR, Mask2Former, the latter with masks).
Pictures are looked at one by one, so that none depends on its company, and none is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from secondlook.errors import ConfigError, nearest
from secondlook.eyes import load
from secondlook.eyes.load import Held
from secondlook.eyes.pixels import Prepare, check
from secondlook.eyes.text import Memory
from secondlook.notes import note


@dataclass(frozen=True)
class Found:
    """What was found in one picture, highest score first. boxes [N, 4] float32: left, top, right, bottom in pixels; labels [N] int64, places in
    the names asked for; scores [N] float32 in [0, 1]; masks bool [N, H, W] where the detector draws them."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor | None = None


class Detector(Protocol):
    """network: for a run's record."""

    name: str
    network: torch.nn.Module

    def __call__(self, pictures: Tensor, names: Sequence[str]) -> list[Found]:
        """uint8 [B, H, W, 3], and names of things. All boxes with a score above ``LEAST``."""
        ...


LEAST = 0.05  # scores below this are not handed on


class _Detector:
    """look: (network, pixels [1, 3, h, w], names, (height, width)) to the boxes in the network's own measure, labels, scores and masks."""

    def __init__(self, name: str, held: Held, prepare: Prepare, offload: bool = False):
        self.name, self.network = name, held.network
        self.made: dict[str, Any] = {"pixels": dict(prepare.facts)}
        self.held, self.prepare, self.offload = held, prepare, offload

    @torch.inference_mode()
    def __call__(self, pictures: Tensor, names: Sequence[str]) -> list[Found]:
        check(self.name, pictures)
        size = (int(pictures.shape[1]), int(pictures.shape[2]))
        dtype = next(self.network.parameters()).dtype
        out = []
        with self.held.on(self.offload) as device:
            for row in pictures.split(1):
                boxes, labels, scores, masks = self.look(self.prepare(row.to(device)).to(dtype), list(names), size)
                keep = torch.nonzero(scores > LEAST).flatten()
                keep = keep[torch.argsort(scores[keep], descending=True, stable=True)]
                out.append(
                    Found(
                        boxes[keep].float().cpu(),
                        labels[keep].cpu(),
                        scores[keep].float().cpu(),
                        None if masks is None else masks[keep].cpu(),
                    )
                )
        return out

    def look(
        self, pixels: Tensor, names: list[str], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        raise AssertionError("a detector of a kind looks")


def corners(boxes: Tensor, width: float, height: float) -> Tensor:
    """Centre, width and height as shares of a picture [N, 4] to corners in pixels."""
    x, y, w, h = boxes.float().unbind(-1)
    scale = torch.tensor([width, height, width, height], device=boxes.device)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1) * scale


class Owl(_Detector):
    """OWLv2 (2306.09683): a box's label is the name with the highest logit, its score the sigmoid of that."""

    def __init__(self, *rest: Any, tokenizer: Any, **more: Any):
        super().__init__(*rest, **more)
        self.tokenizer = tokenizer
        self.made["words"] = load.words_digest(tokenizer)

    def look(
        self, pixels: Tensor, names: list[str], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        length = int(self.network.config.text_config.max_position_embeddings)  # type: ignore[union-attr,arg-type]
        texts = self.tokenizer(
            [f"a photo of a {n}" for n in names],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        found = self.network(
            pixel_values=pixels,
            input_ids=texts["input_ids"].to(pixels.device),
            attention_mask=texts["attention_mask"].to(pixels.device),
        )
        best = found.logits[0].float().max(-1)
        side = max(size)  # the picture was padded to a square
        return corners(found.pred_boxes[0], side, side), best.indices, best.values.sigmoid(), None


class Grounding(_Detector):
    """GroundingDINO (2303.05499): a box's score for a name is the highest sigmoid among the name's tokens, its label the best name. The
    released code names a box by all tokens above a threshold, which may be pieces of two names."""

    def __init__(self, *rest: Any, tokenizer: Any, **more: Any):
        super().__init__(*rest, **more)
        self.tokenizer = tokenizer
        self.made["words"] = load.words_digest(tokenizer)
        self._texts: Memory[tuple[dict[str, Tensor], list[list[int]]]] = Memory()

    def look(
        self, pixels: Tensor, names: list[str], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        text, spans = self._texts.get(". ".join(names) + ".", self._read)
        found = self.network(pixel_values=pixels, **{k: v.to(pixels.device) for k, v in text.items()})
        shares = found.logits[0].float().sigmoid()
        each = torch.stack([shares[:, span].amax(-1) if span else shares.new_zeros(len(shares)) for span in spans], -1)
        best = each.max(-1)
        return corners(found.pred_boxes[0], size[1], size[0]), best.indices, best.values, None

    def _read(self, text: str) -> tuple[dict[str, Tensor], list[list[int]]]:
        """A text of names with full stops as inputs, and for each name the places of its tokens."""
        found = self.tokenizer(text, return_tensors="pt", return_token_type_ids=True, return_offsets_mapping=True)
        offsets = found.pop("offset_mapping")[0].tolist()
        spans, start = [], 0
        for name in text[:-1].split(". "):
            end = start + len(name)
            spans.append([i for i, (a, b) in enumerate(offsets) if a >= start and b <= end and b > a])
            start = end + 2
        return dict(found), spans


class Closed(_Detector):
    """A detector with classes of its own: names are looked up among them; one that it does not know is never found, and a note says so."""

    def columns(self, names: list[str]) -> list[int | None]:
        config: Any = self.network.config
        known = {_spelled(str(v)): int(k) for k, v in config.id2label.items()}
        found = [known.get(_spelled(n)) for n in names]
        for name, at in zip(names, found, strict=True):
            if at is None:
                note(
                    f'The detector {self.name} knows no "{name}" among its {len(known)} classes, so it finds none; grounding_dino and owlv2 look for any word.'
                )
        return found

    def labelled(self, shares: Tensor, names: list[str]) -> tuple[Tensor, Tensor]:
        """Class probabilities [N, C] to (labels, scores) among ``names``: a row counts where its best class is one of them."""
        best = shares.max(-1)
        labels, scores = torch.zeros_like(best.indices), torch.zeros_like(best.values)
        for place, column in enumerate(self.columns(names)):
            if column is not None:
                hit = best.indices == column
                labels[hit], scores[hit] = place, best.values[hit]
        return labels, scores


class Detr(Closed):
    """DETR (2005.12872): a query's label is its most probable class."""

    def look(
        self, pixels: Tensor, names: list[str], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        found = self.network(pixel_values=pixels)
        labels, scores = self.labelled(found.logits[0].float().softmax(-1)[:, :-1], names)
        return corners(found.pred_boxes[0], size[1], size[0]), labels, scores, None


class Mask2Former(Closed):
    """Mask2Former (2112.01527), which GenEval looks with: a query's score is its class probability times the mean of its mask's probability
    inside the mask; its box is the mask's. A query gives its most probable class, where the released code may give it several."""

    def look(
        self, pixels: Tensor, names: list[str], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        found = self.network(pixel_values=pixels)
        labels, scores = self.labelled(found.class_queries_logits[0].float().softmax(-1)[:, :-1], names)
        rows = torch.nonzero(scores > LEAST).flatten()
        masks = (
            torch.nn.functional.interpolate(
                found.masks_queries_logits[:, rows].float(), size=size, mode="bilinear", align_corners=False
            )[0]
            if len(rows)
            else None
        )
        if masks is None:
            return pixels.new_zeros(0, 4), labels[rows], scores[rows], torch.zeros(0, *size, dtype=torch.bool)
        inside = masks > 0
        sure = (masks.sigmoid() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
        boxes = torch.stack([_around(m) for m in inside])
        return boxes, labels[rows], scores[rows] * sure, inside


def _around(mask: Tensor) -> Tensor:
    """The box around a mask [H, W]; empty ones give a box of no size."""
    rows, columns = (torch.nonzero(mask.any(d)).flatten() for d in (1, 0))
    if not len(rows):
        return torch.zeros(4, device=mask.device)
    return torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def _spelled(name: str) -> str:
    """COCO's names in one spelling, with the few that go by two."""
    name = name.lower().replace("_", " ").strip()
    return {"tvmonitor": "tv", "television": "tv", "computer mouse": "mouse", "computer keyboard": "keyboard", "couch": "sofa", "sofa": "sofa",
            "aeroplane": "airplane", "motorbike": "motorcycle", "tv remote": "remote"}.get(name, name)  # fmt: skip


KINDS: dict[str, tuple[type[_Detector], str, str]] = {
    "owlv2": (Owl, "Owlv2ForObjectDetection", "google/owlv2-base-patch16-ensemble"),
    "grounding_dino": (Grounding, "GroundingDinoForObjectDetection", "IDEA-Research/grounding-dino-base"),
    "detr": (Detr, "DetrForObjectDetection", "facebook/detr-resnet-50@no_timm"),
    "mask2former": (
        Mask2Former,
        "Mask2FormerForUniversalSegmentation",
        "facebook/mask2former-swin-small-coco-instance",
    ),
}


def detector(
    kind: str, model: str = "", device: str = "auto", dtype: str = "float32", offload: bool = False
) -> Detector:
    """A detector by its kind, with the published weights or those of a folder or hub id. ConfigError for another kind."""
    if kind not in KINDS:
        raise ConfigError(f'There is no detector "{kind}"; {nearest(kind, KINDS)}')
    made, cls, usual = KINDS[kind]
    model = model or usual
    held = load.network("objects(model", model, cls, dtype, device)
    prepare = Prepare(load.processor("objects(model", model))
    more = {"tokenizer": load.tokenizer("objects(model", model)} if made in (Owl, Grounding) else {}
    found: Callable[..., Detector] = made
    return found(kind, held, prepare, offload=offload, **more)
