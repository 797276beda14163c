"""Pictures of the base model on training prompts, sampled as the product samples them: food for verifiers and critics."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secondlook.disk.team import usable
from secondlook.errors import ConfigError, DamagedError
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.guidance import ClassifierFree
from secondlook.flow.path import Linear
from secondlook.models.checkpoint import load_text
from secondlook.models.text import Encoded, TextSiT, TextSiTConfig
from secondlook.noise import Key, NoiseSource, normal
from secondlook.settings import make_named
from secondlook.solvers.ode import Euler, Solver, integrate
from secondlook.train.pool import team
from secondlook.types import State
from secondlook.worlds.pixels import to_bytes
from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.grammar import WORDS, Prompt, parse
from secondlook.worlds.scenes.prompts import prompt_set, sample_hard, sample_training
from secondlook.worlds.scenes.world import Scenes

GUIDANCE = (2.5, 3.0, 4.0, 4.0, 4.0, 5.0)
STEPS = (16, 20, 20, 24)
EVALUATED_STEPS = 20  # of samples of fixed sets: figures of verifiers stay comparable when defaults change
BATCH, LARGE_BATCH = 64, 1024


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

    def first(self, count: int | None) -> Samples:
        """The first ``count`` (None: all)."""
        return self if count is None else Samples(self.pictures[:count], self.texts[:count], self.right[:count])

    def save(self, path: Path, raw: bool = False) -> None:
        """raw: without compression, which takes one processor long."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write = np.savez if raw else np.savez_compressed
        write(path, pictures=self.pictures, texts=np.array(self.texts), right=self.right)

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
    saved = torch.load(path, map_location="cpu", weights_only=True)
    about = saved.get("about") or {}
    sizes = {name: about[name] for name in ("width", "depth", "heads") if name in about}
    network = TextSiT(TextSiTConfig(words=WORDS, **sizes))
    network.load_state_dict(saved["ema"])
    return network.eval().requires_grad_(False)


def draw(
    network: TextSiT,
    prompts: Sequence[str],
    keys: Sequence[Key],
    steps: int,
    guidance: float,
    solver: Solver | None = None,
    source: NoiseSource = normal,
) -> np.ndarray:
    """Pictures uint8 [B, 64, 64, 3] by ``solver`` (Euler) with classifier-free guidance, in bfloat16, where the network is.
    source: gives the noise to begin from."""
    device = network.text.place.device

    def join(cond: Encoded, rows: int) -> Encoded:
        return Encoded.stack([cond, null.rows([0] * rows)])

    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
        cond, null = network.encode(prompts), network.encode([None])
        flow = Flow(network, Linear(), ClassifierFree(guidance, join))
        n = len(prompts)
        noise, steps_done = source(keys, network.shape).to(device), torch.zeros(n, dtype=torch.long)
        start = State(noise, torch.zeros(n, device=device), tuple(keys), steps_done)
        x = integrate(flow, solver or Euler(), start, grid(steps, Scenes.usual["shift"]), cond).x
    return to_bytes(x.float()).cpu().numpy()


class OnDevice:
    """A noise source that draws on a device, where keyed noise would be waited for: by its seed and what was drawn before, not by
    the rows' keys."""

    def __init__(self, device: torch.device, seed: int):
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)

    def __call__(self, keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
        return torch.randn(len(keys), *shape, generator=self.generator, device=self.device)


MIXES: dict[str, Callable[[random.Random], Prompt]] = {"all": sample_training, "hard": sample_hard}
WAYS: dict[str, tuple[str, Sequence[int], Sequence[float]]] = {
    "euler": ("euler", STEPS, GUIDANCE),
    "few": ("euler", (5, 6, 8, 8, 10), (1.5, 2.0, 2.5, 2.5, 3.0, 4.0)),
    "heun": ("heun", (4, 5, 6, 8), (1.5, 2.0, 2.5, 3.0)),
    "sde": ("sde", (16, 20, 24), (1.5, 2.0, 2.5, 3.0)),
}  # solver, steps, guidance: drawn by batch


@dataclass(frozen=True)
class Means:
    """What samples are drawn with. device: of the network. On the CPU noise is keyed by row; elsewhere it is drawn there, batch by
    batch, so that a collection depends on the kind of device. batch: pictures at a time, all by one way (None: 64 on the CPU, 1024
    elsewhere); another number is another collection. workers: processes that label. raw: the file is not compressed."""

    device: str = "cpu"
    batch: int | None = None
    workers: int = 1
    raw: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} must be at least 1; got {value}.")

    def rows(self, device: torch.device) -> int:
        return self.batch or (BATCH if device.type == "cpu" else LARGE_BATCH)


USUAL = Means()


def collect(
    weights: Path, count: int, out: Path, seed: int, mix: str = "all", ways: Sequence[str] = ("euler",), per_prompt: int = 1,
    means: Means = USUAL,
) -> Iterator[int]:  # fmt: skip
    """``count`` samples on a mixture of training prompts (``MIXES``) to ``out``, batch by batch; yields how many are done.

    The way of drawing (``WAYS``), its guidance and steps vary by batch. per_prompt: samples of each prompt, one after another.
    Deterministic by ``seed``, on one machine.
    """
    if per_prompt < 1:
        raise ConfigError(f"--per-prompt must be at least 1; got {per_prompt}.")
    device = usable(means.device)
    network, rng, root = (
        base_network(weights).to(device),
        random.Random(f"samples-{seed}"),
        Key.root(seed).child("samples"),
    )
    prompt = ""
    with Labels(means.workers) as labels:
        while len(labels) < count:
            done, batch = len(labels), []
            for i in range(done, min(done + means.rows(device), count)):
                prompt = MIXES[mix](rng).text if i % per_prompt == 0 else prompt
                batch.append(prompt)
            keys = [root.child(done + i) for i in range(len(batch))]
            name, steps, guidance = WAYS[ways[0] if len(ways) == 1 else rng.choice(ways)]
            count_of_steps, scale = rng.choice(steps), rng.choice(guidance)
            solver, source = _sourced(make_named("solver", name), device, keys[0])
            labels.add(draw(network, batch, keys, count_of_steps, scale, solver, source), batch)
            yield len(labels)
        labels.samples().save(out, means.raw)


def collect_set(
    weights: Path, name: str, each: int, out: Path, seed: int, every: int = 1, means: Means = USUAL
) -> Iterator[int]:
    """``each`` samples of every ``every``-th prompt of a fixed set, with ``EVALUATED_STEPS`` steps: for evaluation only."""
    device = usable(means.device)
    network, root = base_network(weights).to(device), Key.root(seed).child(name)
    guidance = Scenes.usual["guidance"]
    rows = [(i, j, p.text) for i, p in enumerate(prompt_set(name)) if i % every == 0 for j in range(each)]
    size = means.rows(device)
    with Labels(means.workers) as labels:
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            keys, texts = [root.child(i, j) for i, j, _ in part], [t for *_, t in part]
            solver, source = _sourced(Euler(), device, keys[0])
            labels.add(draw(network, texts, keys, EVALUATED_STEPS, guidance, solver, source), texts)
            yield len(labels)
        labels.samples().save(out, means.raw)


def _sourced(solver: Any, device: torch.device, key: Key) -> tuple[Any, NoiseSource]:
    """The solver, and where its noise and that which it begins from come from on a device; ``key`` is the batch's."""
    if device.type == "cpu":
        return solver, normal
    source = OnDevice(device, key.value % 2**63)
    return (replace(solver, source=source) if solver.random else solver), source


class Labels:
    """Pictures and their prompts, held against each other by the checker, by other processes where there are several."""

    def __init__(self, workers: int = 1):
        self._open = ExitStack()
        self.team = self._open.enter_context(team(workers)) if workers > 1 else None
        self.pictures: list[np.ndarray] = []
        self.texts: list[str] = []
        self._asked: list[Future[np.ndarray]] = []

    def __len__(self) -> int:
        return len(self.texts)

    def __enter__(self) -> Labels:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, pictures: np.ndarray, texts: Sequence[str]) -> None:
        self.pictures.append(pictures)
        self.texts += texts
        if self.team is not None:
            self._asked.append(self.team.submit(_right, pictures, list(texts)))

    def samples(self) -> Samples:
        """All that were added, once they are labelled."""
        pictures = np.concatenate(self.pictures)
        right = _right(pictures, self.texts) if self.team is None else np.concatenate([a.result() for a in self._asked])
        return Samples(pictures, tuple(self.texts), right)


def _right(pictures: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    return check(pictures, [parse(t) for t in texts])
