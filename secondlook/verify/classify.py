"""Classifiers of the two class-conditional worlds, Digits and Glyphs: for each a verifier, a judge and a feature network.

``verifier`` and ``judge`` answer with the log-probability of the class that is asked for. Both know one class more than
the world, "none of them", taught with broken pictures, so that a picture of nothing scores low for every class. They
share neither architecture (``Conv`` and ``Tokens``) nor seed nor training pictures: one can judge what the other
guided. ``features`` is a third network (``Flat``) that knows real pictures only and guides nothing; it is to this
project's scores of sets of pictures what an Inception network is to FID and IS, and its numbers compare with nobody
else's. Trained by train/classifiers.py; docs/results/classifiers.json holds what they can do.

Shapes: B pictures, C classes of the world, D = 64 features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.errors import ConfigError, DamagedError, ShapeError, nearest
from secondlook.models import checkpoint
from secondlook.models.eyes import Residual
from secondlook.models.layers import Attention, FeedForward, position_table
from secondlook.models.threads import one_thread
from secondlook.types import Condition, Verifier
from secondlook.worlds.digits import Digits
from secondlook.worlds.glyphs import Glyphs

ROWS = 32
FEATURES = 64
World = Digits | Glyphs
WORLDS: dict[str, type[Digits] | type[Glyphs]] = {"digits": Digits, "glyphs": Glyphs}


@dataclass(frozen=True)
class ClassifierConfig:
    """Which network for which world; ``rejects``: whether it has the class "none of them", its last."""

    kind: str
    world: str
    width: int
    rejects: bool = True


class Conv(nn.Module):
    """The verifier's: a residual convolutional network, pooled over the picture by mean and maximum."""

    def __init__(self, side: int, channels: int, outputs: int, width: int):
        super().__init__()
        large = side > 8
        self.stem = nn.Conv2d(channels, width, 4 if large else 3, 2 if large else 1, 1)
        self.first = Residual(width)
        self.shrink = nn.Conv2d(width, 2 * width, 4, 2, 1)
        self.second = Residual(2 * width)
        self.norm = nn.GroupNorm(8, 2 * width)
        self.head = nn.Linear(4 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, side, side] to logits [B, outputs]."""
        x = self.second(self.shrink(self.first(self.stem(x))))
        x = F.silu(self.norm(x))
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))


class Tokens(nn.Module):
    """The judge's: a convolutional stem, then attention among 4 x 4 (Digits) or 8 x 8 (Glyphs) tokens, read by a
    learned query and by their maximum."""

    positions: Tensor

    def __init__(self, side: int, channels: int, outputs: int, width: int, depth: int = 1):
        super().__init__()
        large = side > 8
        half = width // 2
        self.stem = nn.Sequential(
            nn.Conv2d(channels, half, 5, 2 if large else 1, 2), Residual(half),
            nn.Conv2d(half, width, 2, 2), Residual(width),
        )  # fmt: skip
        self.register_buffer("positions", position_table(side // 4 if large else side // 2, width), persistent=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attends = nn.ModuleList(Attention(width, 4) for _ in range(depth))
        self.feeds = nn.ModuleList(FeedForward(width, 2.0) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.query_embed = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.read = Attention(width, 4)
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, side, side] to logits [B, outputs]."""
        x = self.stem(x).flatten(2).transpose(1, 2) + self.positions
        for i, (attend, feed) in enumerate(zip(self.attends, self.feeds, strict=True)):
            x = x + attend(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        x = self.norm(x)
        read = self.read(self.query_embed.expand(len(x), -1, -1), x)
        return self.head(torch.cat([read[:, 0], x.amax(1)], 1))


class Flat(nn.Module):
    """The feature network: plain convolutions with pooling, then every place has its own weights."""

    def __init__(self, side: int, channels: int, outputs: int, width: int):
        super().__init__()
        large = side > 8
        self.one = nn.Conv2d(channels, width, 5 if large else 3, 2 if large else 1, 2 if large else 1)
        self.two = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.three = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.squeeze = nn.Linear(2 * width * (4 if large else 2) ** 2, FEATURES)
        self.head = nn.Linear(FEATURES, outputs)

    def features(self, x: Tensor) -> Tensor:
        """x [B, channels, side, side] to what the last layer reads, [B, D]."""
        x = F.max_pool2d(F.gelu(self.two(F.gelu(self.one(x)))), 2)
        x = F.max_pool2d(F.gelu(self.three(x)), 2)
        return F.gelu(self.squeeze(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels, side, side] to logits [B, outputs]."""
        return self.head(self.features(x))


Network = Conv | Tokens | Flat
KINDS: dict[str, type[Conv] | type[Tokens] | type[Flat]] = {"conv": Conv, "tokens": Tokens, "flat": Flat}


def world_of(name: str) -> World:
    """A class-conditional world by its name; ConfigError for one that does not exist."""
    if name not in WORLDS:
        raise ConfigError(f'There are no classifiers of a world "{name}"; {nearest(name, WORLDS)}')
    return WORLDS[name]()


def build(config: ClassifierConfig) -> Network:
    """A fresh network; ConfigError for a kind or world that does not exist."""
    world = world_of(config.world)
    if config.kind not in KINDS:
        raise ConfigError(f'There is no classifier network "{config.kind}"; {nearest(config.kind, KINDS)}')
    channels, side, _ = world.shape
    return KINDS[config.kind](side, channels, len(world.classes) + config.rejects, config.width)


def _groups(x: Tensor) -> Iterator[tuple[Tensor, int]]:
    """x [B, ...] in groups of ``ROWS``, the last padded with zeros, and how many rows of each are real. A matrix
    product may round differently at another batch size, and a row's answer must not depend on its company."""
    for start in range(0, len(x), ROWS):
        part = x[start : start + ROWS]
        yield torch.cat([part, part.new_zeros(ROWS - len(part), *part.shape[1:])]), len(part)


class Classifier:
    """A ``types.Verifier`` over one network, in float32: log p(the class asked for | picture), natural logarithm."""

    inline = True

    def __init__(self, network: Network, world: World, name: str):
        self.name, self.world = name, world
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(self, samples: Tensor) -> Tensor:
        """uint8 pictures [B, *I] to logits float32 [B, C + 1] on the CPU, the last for "none of them". ShapeError for
        pictures that are not the world's."""
        return _run(self.network, self.network, self.world.encode(samples), len(self.world.classes) + 1)

    def log_probs(self, samples: Tensor) -> Tensor:
        """uint8 pictures [B, *I] to log-probabilities float64 [B, C + 1]."""
        rows = self.logits(samples).double().numpy()
        # Row by row: a loop over all rows at once rounds the last numbers of it differently from the others.
        out = [row - row.max() - np.log(np.exp(row - row.max()).sum()) for row in rows]
        return torch.from_numpy(np.array(out, np.float64).reshape(rows.shape))

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """[B] float64, NaN where a condition has no label. ShapeError where the two do not pair up; ConfigError for a
        label that is no class of the world."""
        if len(samples) != len(conditions):
            raise ShapeError(
                f"{len(samples)} pictures came with {len(conditions)} conditions; give one for each picture."
            )
        asked = [None if c.label is None else self.world.condition(c.label).label for c in conditions]
        rows = zip(self.log_probs(samples), asked, strict=True)
        return torch.tensor([torch.nan if k is None else float(row[k]) for row, k in rows], dtype=torch.float64)


class Features:
    """uint8 pictures [B, *I] to (features float32 [B, D], logits float32 [B, C]), row by row, on the CPU."""

    def __init__(self, network: Flat, world: World):
        self.world = world
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """ShapeError for pictures that are not the world's."""
        found = _run(self.network, self._both, self.world.encode(samples), FEATURES + len(self.world.classes))
        return found[:, :FEATURES].contiguous(), found[:, FEATURES:].contiguous()

    def _both(self, x: Tensor) -> Tensor:
        features = self.network.features(x)
        return torch.cat([features, self.network.head(features)], 1)


def _run(network: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    device = next(network.parameters()).device
    parts = [x.new_zeros(0, width)]
    for part, count in _groups(x):
        with one_thread():
            parts.append(forward(part.to(device))[:count].cpu())
    return torch.cat(parts)


def load_network(path: Path | str) -> tuple[Network, ClassifierConfig]:
    """The network a file holds, and its description; DamagedError where it cannot be read or is something else."""
    path = Path(path)
    settings = checkpoint.read_config(path)
    try:
        config = ClassifierConfig(**settings)
        network = build(config)
    except (TypeError, ConfigError) as error:
        raise DamagedError(f"The weights {path} describe no classifier this release knows ({error}).") from None
    checkpoint.fill(network, path)
    return network, config


def load_classifier(path: Path | str, name: str) -> Classifier:
    """The verifier or judge that a file holds, under ``name``; DamagedError for any other file."""
    network, config = load_network(path)
    if not config.rejects:
        raise DamagedError(f'The weights {path} know no class "none of them": they are no verifier or judge.')
    return Classifier(network, world_of(config.world), name)


def load_features(path: Path | str) -> Features:
    """The feature network that a file holds; DamagedError for any other file."""
    network, config = load_network(path)
    if not isinstance(network, Flat) or config.rejects:
        raise DamagedError(f"The weights {path} hold no feature network.")
    return Features(network, world_of(config.world))


def verifier(world: str) -> Verifier:
    """The shipped network that guides in ``world``, "digits" or "glyphs"; ConfigError for another."""
    return load_classifier(checkpoint.shipped(f"{world_of(world).name}-verifier.safetensors"), "classifier")


def judge(world: str) -> Verifier:
    """The shipped network that only judges in ``world``: another architecture, seed and training set."""
    return load_classifier(checkpoint.shipped(f"{world_of(world).name}-judge.safetensors"), "judge")


def features(world: str) -> Features:
    """The shipped feature network of ``world``, for scores of sets of pictures."""
    return load_features(checkpoint.shipped(f"{world_of(world).name}-features.safetensors"))
