"""Critics of the Scenes world: what is wrong with a picture, in the closed language of worlds/scenes/remarks.py.

All three say "" of a right picture. A condition without a prompt is given no remark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from secondlook.models.checkpoint import shipped
from secondlook.models.threads import one_thread
from secondlook.models.writer import Writer, load_writer, to_text
from secondlook.types import Condition, Critic, Remark
from secondlook.verify.learned import LearnedVerifier, in_rows, load_verifier, paired, seen_in, to_network
from secondlook.verify.networks import tokenize
from secondlook.worlds.scenes.checker import detect_batch
from secondlook.worlds.scenes.grammar import parse
from secondlook.worlds.scenes.remarks import remark

CRITIC = "scenes-critic.safetensors"  # in the package's data folder


class Learned:
    """A network that writes. Its match head decides, with a half as the border, whether a picture is right; a wrong one's remark is
    written word by word, the likeliest each time, and cannot be empty. The score is the head's probability that it is right. Where a
    remark does not end within the length that the network knows, the answer is None: neither right nor readable.

    Batches have a fixed number of rows, for the reason that LearnedVerifier tells.
    """

    inline = True

    def __init__(self, network: Writer, name: str = "learned"):
        self.name = name
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark | None]:
        pictures = to_network(samples)
        paired(pictures, conditions)
        c, device = self.network.config, next(self.network.parameters()).device
        ids = tokenize(c.words, c.text_length, [k.prompt or "" for k in conditions])
        found: list[Remark | None] = []
        for _, x, words in in_rows(pictures, ids):
            with one_thread():
                match, said = self.network.write(x.to(device), words.to(device))
            found += [self._remark(*each) for each in zip(match.double().tolist(), said, strict=True)]
        return [None if k.prompt is None else r for r, k in zip(found, conditions, strict=False)]

    def _remark(self, match: float, said: list[int]) -> Remark | None:
        text = "" if match >= 0 else to_text(said, self.network.config.said)
        return None if text is None else Remark(text, 1 / (1 + math.exp(-match)))


class Detector:
    """What the verifier's network sees, put into words by the world's rules: the network that guides, heard instead of asked for a
    number. It tells no specks, and not how sure it is."""

    inline = True

    def __init__(self, verifier: LearnedVerifier, name: str = "detector"):
        self.name = name
        self.verifier = verifier

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark | None]:
        _, cells = self.verifier.read(samples, conditions)
        return [
            None if k.prompt is None else Remark(remark(seen_in(what), parse(k.prompt)))
            for what, k in zip(cells, conditions, strict=True)
        ]


class Oracle:
    """The exact checker's eyes, put into words: never a method. The score is 1 for a right picture, else 0."""

    inline = True
    oracle = True  # a run that it steers is labelled so
    name = "oracle"

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> list[Remark | None]:
        paired(samples, conditions)
        found: list[Remark | None] = []
        for seen, condition in zip(detect_batch(samples.cpu().numpy()), conditions, strict=True):
            text = None if condition.prompt is None else remark(seen, parse(condition.prompt))
            found.append(None if text is None else Remark(text, float(text == "")))
        return found


def learned(weights: str | None = None) -> Critic:
    """The shipped network that writes, or the one in a weights file."""
    return Learned(load_writer(shipped(CRITIC) if weights is None else Path(weights)))


def detector() -> Critic:
    """The detector's detections, in words."""
    return Detector(load_verifier(shipped("scenes-detector.safetensors")))


def oracle() -> Critic:
    """The exact checker's remarks."""
    return Oracle()
