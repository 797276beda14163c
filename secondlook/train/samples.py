"""Pictures of the base model on training prompts, sampled as the product samples them: food for verifiers and critics."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from secondlook.errors import DamagedError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.guidance import ClassifierFree
from secondlook.flow.path import Linear
from secondlook.models.checkpoint import load_text
from secondlook.models.text import Encoded, TextSiT, TextSiTConfig
from secondlook.noise import Key, normal
from secondlook.settings import make_named
from secondlook.solvers.ode import Euler, Solver, integrate
from secondlook.types import State
from secondlook.worlds.pixels import to_bytes
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.grammar import WORDS, Prompt, parse
from secondlook.worlds.scenes.prompts import prompt_set, sample_hard, sample_training
from secondlook.worlds.scenes.world import Scenes

GUIDANCE = (2.5, 3.0, 4.0, 4.0, 4.0, 5.0)
STEPS = (16, 20, 20, 24)
BATCH = 64


@dataclass(frozen=True)
class Samples:
    """pictures uint8 [N, 64, 64, 3], their prompts' texts, and whether the checker finds each right, bool [N]."""

    pictures: np.ndarray
    texts: tuple[str, ...]
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def prompts(self) -> list[Prompt]:
        return [parse(t) for t in self.texts]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, pictures=self.pictures, texts=np.array(self.texts), right=self.right)

    @staticmethod
    def load(*paths: Path) -> Samples:
        """All samples of some files; DamagedError naming the first that cannot be read."""
        parts = []
        for path in paths:
            try:
                with np.load(path) as file:
                    parts.append((file["pictures"], file["texts"], file["right"]))
            except Exception as error:
                raise DamagedError(f"The samples {path} cannot be read ({error}); collect them again.") from None
        pictures, texts, right = (np.concatenate(p) for p in zip(*parts, strict=True))
        return Samples(pictures, tuple(str(t) for t in texts), right)


def base_network(path: Path) -> TextSiT:
    """The base model from its weights, or the moving average in a training's ``state.pt``."""
    if path.suffix != ".pt":
        return load_text(path)
    network = TextSiT(TextSiTConfig(words=WORDS))
    network.load_state_dict(torch.load(path, weights_only=True)["ema"])
    return network.eval().requires_grad_(False)


def draw(
    network: TextSiT,
    prompts: Sequence[str],
    keys: Sequence[Key],
    steps: int,
    guidance: float,
    solver: Solver | None = None,
) -> np.ndarray:
    """Pictures uint8 [B, 64, 64, 3] by ``solver`` (Euler) with classifier-free guidance, in bfloat16."""

    def join(cond: Encoded, rows: int) -> Encoded:
        return Encoded.stack([cond, null.rows([0] * rows)])

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        cond, null = network.encode(prompts), network.encode([None])
        flow = Flow(network, Linear(), ClassifierFree(guidance, join))
        n = len(prompts)
        start = State(normal(keys, network.shape), torch.zeros(n), tuple(keys), torch.zeros(n, dtype=torch.long))
        x = integrate(flow, solver or Euler(), start, grid(steps, Scenes.usual["shift"]), cond).x
    return to_bytes(x.float()).numpy()


MIXES: dict[str, Callable[[random.Random], Prompt]] = {"all": sample_training, "hard": sample_hard}
WAYS: dict[str, tuple[str, Sequence[int], Sequence[float]]] = {
    "euler": ("euler", STEPS, GUIDANCE),
    "few": ("euler", (5, 6, 8, 8, 10), (1.5, 2.0, 2.5, 2.5, 3.0, 4.0)),
    "heun": ("heun", (4, 5, 6, 8), (1.5, 2.0, 2.5, 3.0)),
    "sde": ("sde", (16, 20, 24), (1.5, 2.0, 2.5, 3.0)),
}  # solver, steps, guidance: drawn by batch


def collect(
    weights: Path, count: int, out: Path, seed: int, mix: str = "all", ways: Sequence[str] = ("euler",)
) -> Iterator[int]:
    """``count`` samples on a mixture of training prompts (``MIXES``) to ``out``, batch by batch; yields how many are done.

    The way of drawing (``WAYS``), its guidance and steps vary by batch. Deterministic by ``seed``, on one machine.
    """
    network, rng, root = base_network(weights), random.Random(f"samples-{seed}"), Key.root(seed).child("samples")
    texts: list[str] = []
    pictures: list[np.ndarray] = []
    while len(texts) < count:
        batch = [MIXES[mix](rng).text for _ in range(min(BATCH, count - len(texts)))]
        keys = [root.child(len(texts) + i) for i in range(len(batch))]
        solver, steps, guidance = WAYS[ways[0] if len(ways) == 1 else rng.choice(ways)]
        pictures.append(
            draw(network, batch, keys, rng.choice(steps), rng.choice(guidance), make_named("solver", solver))
        )
        texts += batch
        yield len(texts)
    _labelled(np.concatenate(pictures), texts).save(out)


def collect_set(weights: Path, name: str, each: int, out: Path, seed: int, every: int = 1) -> Iterator[int]:
    """``each`` samples of every ``every``-th prompt of a fixed set, at the product's settings: for evaluation only."""
    network, root = base_network(weights), Key.root(seed).child(name)
    steps, guidance = int(Scenes.usual["steps"]), Scenes.usual["guidance"]
    rows = [(i, j, p.text) for i, p in enumerate(prompt_set(name)) if i % every == 0 for j in range(each)]
    pictures = []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        keys = [root.child(i, j) for i, j, _ in part]
        pictures.append(draw(network, [t for *_, t in part], keys, steps, guidance))
        yield start + len(part)
    _labelled(np.concatenate(pictures), [t for *_, t in rows]).save(out)


def _labelled(pictures: np.ndarray, texts: Sequence[str]) -> Samples:
    return Samples(pictures, tuple(texts), check(pictures, [parse(t) for t in texts]))
