"""Labels of pictures held against prompts, and the loss that a verifier's reading of them has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from secondlook.models.eyes import SIDE
from secondlook.train.pairs import Shown, fact_places
from secondlook.verify.networks import Reading
from secondlook.worlds.scenes.checker import Seen, judge
from secondlook.worlds.scenes.grammar import COLORS, SHAPES, Prompt

PROMPTS = 4  # prompts held against each picture
LENGTH = 16  # words of the longest prompt
OWN = 2.0  # weight of a picture's own prompt, the only one that a search asks about, among its prompts
_COLORS = tuple(COLORS)
_SKIP = -100


@dataclass(frozen=True)
class Targets:
    """Labels of a batch: match [P, K] and words [P, K, L + 1] in {0, 1}, words NaN where a word states no fact; shapes
    and colors int64 [P, 64], ``_SKIP`` where there is no object; places [P, 64, 2] in its cell; spoiled [P]."""

    match: Tensor
    words: Tensor
    shapes: Tensor
    colors: Tensor
    places: Tensor
    spoiled: Tensor


def targets_of(shown: Sequence[Shown], prompts: Sequence[Sequence[Prompt]]) -> Targets:
    """The labels that the checker's rules give each picture for each of its ``PROMPTS`` prompts."""
    n, cells = len(shown), SIDE * SIDE
    match = torch.zeros(n, PROMPTS)
    words = torch.full((n, PROMPTS, LENGTH + 1), float("nan"))
    shapes, colors = torch.zeros(n, cells, dtype=torch.long), torch.full((n, cells), _SKIP)
    places, spoiled = torch.zeros(n, cells, 2), torch.zeros(n)
    for i, (s, asked) in enumerate(zip(shown, prompts, strict=True)):
        for k, prompt in enumerate(asked):
            verdict = judge(s.seen, prompt)
            match[i, k] = verdict.right
            words[i, k, fact_places(prompt)] = torch.tensor(verdict.atoms).float()
        for cell, shape, color, place in marks(s.seen):
            shapes[i, cell], colors[i, cell], places[i, cell] = shape, color, torch.tensor(place)
        spoiled[i] = s.seen.littered or not all(f.recognised for f in s.seen.found)
    return Targets(match, words, shapes, colors, places, spoiled)


def marks(seen: Seen) -> Iterator[tuple[int, int, int, tuple[float, float]]]:
    """A picture's objects, each as the cell that holds its box's centre, the class of its shape, that of its colour, and its place
    in the cell, (x, y) from 0 to 1."""
    for found in seen.found:
        x, y = (min(v, 63.5) / SIDE for v in found.center)
        shape = SHAPES.index(found.shape) + 1 if found.shape else len(SHAPES) + 1
        color = _COLORS.index(found.color) if found.color else len(_COLORS)
        yield int(y) * SIDE + int(x), shape, color, (x % 1, y % 1)


def loss_of(reading: Reading, targets: Targets) -> Tensor:
    """Mean loss: the match, and with smaller weights the facts and what stands in each cell."""
    weight = torch.ones(reading.match.shape[1], device=reading.match.device)
    weight[0] = OWN
    match = F.binary_cross_entropy_with_logits(reading.match.float(), targets.match, weight / weight.mean())
    stated = ~targets.words.isnan()
    words = F.binary_cross_entropy_with_logits(reading.words.float()[stated], targets.words[stated])
    cells = reading.cells.float()
    kinds = len(SHAPES) + 2
    shapes = F.cross_entropy(cells[..., :kinds].flatten(0, 1), targets.shapes.flatten())
    here = targets.shapes > 0
    colors = F.cross_entropy(cells[..., kinds:-2][here], targets.colors[here], ignore_index=_SKIP)
    places = F.mse_loss(cells[..., -2:][here], targets.places[here])
    spoiled = F.binary_cross_entropy_with_logits(reading.spoiled.float(), targets.spoiled)
    return match + 0.5 * words + 2.0 * shapes + 0.3 * colors + places + 0.3 * spoiled
