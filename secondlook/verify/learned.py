"""The learned verifier and judge: probability that a Scenes picture is what a prompt asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.models import checkpoint
from secondlook.models.threads import one_thread
from secondlook.types import Condition
from secondlook.verify.networks import SIDE, Film, NetworkConfig, Tokens, build, tokenize
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
    def logits(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """[B] float64, on the CPU; NaN where a condition has no prompt. ShapeError where the two do not pair up;
        ConfigError for a word the network does not know."""
        pictures = to_network(samples)
        if len(pictures) != len(conditions):
            raise ShapeError(
                f"{len(pictures)} pictures came with {len(conditions)} conditions; give one for each picture."
            )
        c, device = self.network.config, next(self.network.parameters()).device
        ids = tokenize(c.words, c.text_length, [k.prompt or "" for k in conditions])
        out = torch.empty(len(pictures), dtype=torch.float64)
        seen: list[Seen] = []
        for start in range(0, len(pictures), ROWS):
            x, words = pictures[start : start + ROWS], ids[start : start + ROWS]
            count = len(x)
            x = torch.cat([x, x.new_zeros(ROWS - count, *x.shape[1:])]).to(device)
            words = torch.cat([words, words.new_ones(ROWS - count, words.shape[1])]).to(device)
            with one_thread():
                reading = self.network(x, words[:, None])
            out[start : start + count] = reading.match[:count, 0].double().cpu()
            seen += [seen_in(cells) if c.rules else Seen(()) for cells in reading.cells[:count].cpu()]
        for row, (what, condition) in enumerate(zip(seen, conditions, strict=True)):
            if condition.prompt is None:
                out[row] = torch.nan
            elif c.rules:
                out[row] += AGREE if judge(what, parse(condition.prompt)).right else -AGREE
        return out

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
