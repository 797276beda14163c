"""The learned verifier and judge: probability that a Scenes picture is what a prompt asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.models import checkpoint
from secondlook.models.eyes import SIDE
from secondlook.models.threads import one_thread
from secondlook.types import Condition
from secondlook.verify.networks import CELL_VALUES, Film, NetworkConfig, Tokens, build, tokenize
from secondlook.worlds.scenes.checker import Found, Seen, judge
from secondlook.worlds.scenes.grammar import COLORS, SHAPES, parse

ROWS = 16
AGREE = 3.0  # logits; more than the match head says of a picture it is unsure of
_COLORS = tuple(COLORS)


def to_network(samples: Tensor) -> Tensor:
    """uint8 [B, 64, 64, 3] to float32 [B, 3, 64, 64] in [-1, 1]; ShapeError for anything else."""
    if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[1:] != (64, 64, 3):
        raise ShapeError(
            f"The verifier reads uint8 pictures [B, 64, 64, 3]; it was given {samples.dtype} {list(samples.shape)}."
        )
    # One memory order for every batch: kernels are chosen by it, and round differently.
    return samples.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def seen_in(cells: Tensor) -> Seen:
    """The objects that a network reads in a picture, from its cells [64, 17]. Boxes tell their centres only."""
    kinds = len(SHAPES) + 2
    found = []
    shapes, colors = cells[:, :kinds].argmax(1).tolist(), cells[:, kinds:-2].argmax(1).tolist()
    for cell, (shape, color) in enumerate(zip(shapes, colors, strict=True)):
        if shape:
            x, y = (
                (at + float(part)) * 64 / SIDE
                for at, part in zip((cell % SIDE, cell // SIDE), cells[cell, -2:], strict=True)
            )
            left, top = round(x) - 8, round(y) - 8
            box = (left, top, round(2 * x) - left, round(2 * y) - top)
            name = SHAPES[shape - 1] if shape <= len(SHAPES) else None
            found.append(Found(name, _COLORS[color] if color < len(_COLORS) else None, box, 0.0, 0.0))
    return Seen(tuple(found))


def paired(samples: Tensor, conditions: Sequence[Condition]) -> None:
    """ShapeError unless there is a condition for each picture."""
    if len(samples) != len(conditions):
        raise ShapeError(f"{len(samples)} pictures came with {len(conditions)} conditions; give one for each picture.")


def in_rows(pictures: Tensor, ids: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Batches of ``ROWS`` rows, the last one padded, with the number of their first row."""
    for start in range(0, len(pictures), ROWS):
        x, words = pictures[start : start + ROWS], ids[start : start + ROWS]
        more = ROWS - len(x)
        yield (
            start,
            torch.cat([x, x.new_zeros(more, *x.shape[1:])]),
            torch.cat([words, words.new_ones(more, words.shape[1])]),
        )


class LearnedVerifier:
    """A ``types.Verifier`` over one network, in float32.

    The network answers twice: its match head directly, and its cells by naming the objects, which are then held against
    the prompt by the world's rules. The score is the head's logit, moved by ``AGREE`` either way by the second answer.
    The checker's own eyes are not used: only what the network sees. A network whose configuration says so (``rules`` false)
    answers by its match head alone.

    Every call of the network has ``ROWS`` rows, the last ones padded: a matrix product may round differently at another
    batch size, and a row's score must not depend on its company.
    """

    inline = True

    def __init__(self, network: Tokens | Film, name: str):
        self.name = name
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def read(self, samples: Tensor, conditions: Sequence[Condition]) -> tuple[Tensor, Tensor]:
        """The network's two answers, on the CPU: its match head's logits, float64 [B], and its cells [B, 64, 17]. A condition without
        a prompt is read as the empty one. ShapeError where the two do not pair up; ConfigError for a word the network does not
        know."""
        pictures = to_network(samples)
        paired(pictures, conditions)
        c, device = self.network.config, next(self.network.parameters()).device
        ids = tokenize(c.words, c.text_length, [k.prompt or "" for k in conditions])
        match = torch.empty(len(pictures), dtype=torch.float64)
        cells = torch.empty(len(pictures), SIDE * SIDE, CELL_VALUES)
        for start, x, words in in_rows(pictures, ids):
            with one_thread():
                reading = self.network(x.to(device), words[:, None].to(device))
            end = min(start + ROWS, len(pictures))
            match[start:end] = reading.match[: end - start, 0].double().cpu()
            cells[start:end] = reading.cells[: end - start].cpu()
        return match, cells

    @torch.inference_mode()
    def logits(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """[B] float64, on the CPU; NaN where a condition has no prompt. Errors as of ``read``."""
        out, cells = self.read(samples, conditions)
        for row, condition in enumerate(conditions):
            if condition.prompt is None:
                out[row] = torch.nan
            elif self.network.config.rules:
                out[row] += AGREE if judge(seen_in(cells[row]), parse(condition.prompt)).right else -AGREE
        return out

    def gradient(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """float [B, 64, 64, 3] in [0, 1] to the derivative of the match head's logit (``types.Differentiable``): the second answer is a
        step, which has no slope. Each row is asked alone; zeros where a condition has no prompt. Errors as of ``read``."""
        if samples.ndim != 4 or samples.shape[1:] != (64, 64, 3) or not samples.is_floating_point():
            raise ShapeError(
                f"The verifier's gradient is of float pictures [B, 64, 64, 3]; it was given {samples.dtype} {list(samples.shape)}."
            )
        paired(samples, conditions)
        c, first = self.network.config, next(self.network.parameters())
        device, dtype = first.device, first.dtype
        found = torch.zeros_like(samples)
        for row, condition in enumerate(conditions):
            if condition.prompt is None:
                continue
            ids = tokenize(c.words, c.text_length, [condition.prompt])
            with torch.inference_mode(False), torch.enable_grad(), one_thread():
                x = (
                    (samples[row : row + 1].detach().to(device, dtype).permute(0, 3, 1, 2) * 2 - 1)
                    .contiguous()
                    .requires_grad_()
                )
                [slope] = torch.autograd.grad(self.network(x, ids[:, None].to(device)).match.sum(), x)
            found[row] = 2 * slope[0].permute(1, 2, 0).to(found)
        return found

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Probability of a match, [B] float64; float64 keeps the order of scores that float32 would round to 1."""
        # Number by number: torch's sigmoid rounds the last rows of a vector differently from the others.
        values = self.logits(samples, conditions).tolist()
        return torch.tensor([1 / (1 + math.exp(-v)) for v in values], dtype=torch.float64)


def save_verifier(network: Tokens | Film, path: Path, facts: dict[str, Any] | None = None) -> None:
    """Weights as safetensors; the configuration and facts about the training in the file's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(network, path, asdict(network.config), facts)


def load_verifier(path: Path | str, name: str = "learned") -> LearnedVerifier:
    """The verifier a file holds, under ``name``; DamagedError where it cannot be read or is something else."""
    path = Path(path)
    settings = checkpoint.read_config(path)
    try:
        network = build(NetworkConfig(**{**settings, "words": tuple(settings["words"])}))
    except (TypeError, KeyError, ConfigError) as error:
        raise DamagedError(f"The weights {path} describe no verifier this release knows ({error}).") from None
    checkpoint.fill(network, path)
    return LearnedVerifier(network, name)
