"""Draws of models that draw again, outside of any search: the success of one more draw, and tries for a further training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid
from secondlook.flow.guidance import ClassifierFree, Null
from secondlook.flow.path import Linear
from secondlook.models.reflect import ReflectSiT
from secondlook.solvers.ode import Euler, integrate
from secondlook.train.samples import Samples
from secondlook.types import State
from secondlook.worlds.pixels import to_bytes, to_floats
from secondlook.worlds.scenes.checker import detect_batch, judge
from secondlook.worlds.scenes.grammar import parse
from secondlook.worlds.scenes.remarks import faults, remark, tokens
from secondlook.worlds.scenes.world import Scenes


@dataclass(frozen=True)
class Way:
    """How is drawn: Euler steps, guidance, and rows at a time. strength: the time that the last try's picture is taken back to
    before it goes on (0: fresh noise)."""

    steps: int = 8
    guidance: float = 2.5
    rows: int = 64
    strength: float = 0.0


def draw(network: Any, texts: Sequence[str], pictures: Sequence[Sequence[np.ndarray]], remarks: Sequence[Sequence[Sequence[str]]],
         way: Way, seed: int) -> np.ndarray:  # fmt: skip
    """Pictures uint8 [B, 64, 64, 3] of prompts after earlier tries; a network without context is asked for the prompts alone. The
    noise is drawn on the network's device from ``seed``."""
    device = next(network.parameters()).device
    g = torch.Generator(device).manual_seed(seed)
    made = []
    for start in range(0, len(texts), way.rows):
        part = slice(start, start + way.rows)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
            some = list(texts[part])
            if isinstance(network, ReflectSiT):
                cond: Any = network.encode(some, pictures[part], remarks[part])
                null: Any = network.encode([None])
            else:
                cond, null = network.encode(some), network.encode([None])
            n = len(some)
            noise = torch.randn(n, *network.shape, generator=g, device=device)
            times = (way.strength, *(t for t in grid(way.steps, Scenes.usual["shift"]) if t > way.strength))
            if way.strength:
                last = to_floats(torch.from_numpy(np.stack([p[-1] for p in pictures[part]])).to(device))
                noise = way.strength * last + (1 - way.strength) * noise
            flow = Flow(network, Linear(), ClassifierFree(way.guidance, Null(null).join))
            first = State(noise, torch.full((n,), way.strength, device=device), (), torch.zeros(n, dtype=torch.long))
            x = integrate(flow, Euler(), first, times, cond).x
        made.append(to_bytes(x.float()).cpu().numpy())
    return np.concatenate(made)


def said(pictures: np.ndarray, texts: Sequence[str]) -> list[tuple[bool, str, tuple[str, ...]]]:
    """The checker on each picture: right, its remark, the kinds of its faults."""
    found = []
    for seen, text in zip(detect_batch(pictures), texts, strict=True):
        prompt = parse(text)
        kinds = tuple(kind for kind, _ in faults(seen, prompt))
        found.append((judge(seen, prompt).right, remark(seen, prompt), kinds))
    return found


def chains(
    network: nn.Module, samples: Samples, turns: int, way: Way, seed: int, memory: int = 1
) -> Iterator[dict[str, Any]]:
    """From every wrong sample ``turns`` draws again, each after the last ``memory`` tries, the oracle's remarks on them. Yields for
    each turn: at (numbers of samples still wrong before it), right [n], kinds before, pictures."""
    at = [i for i, r in enumerate(samples.right) if not r]
    history: dict[int, list[np.ndarray]] = {i: [samples.pictures[i]] for i in at}
    words: dict[int, list[list[str]]] = {}
    kinds: dict[int, tuple[str, ...]] = {}
    for i, (_, text, faulty) in zip(at, said(samples.pictures[at], [samples.texts[i] for i in at]), strict=True):
        words[i], kinds[i] = [tokens(text)], faulty
    for turn in range(turns):
        if not at:
            return
        texts = [samples.texts[i] for i in at]
        pictures = draw(
            network, texts, [history[i][-memory:] for i in at], [words[i][-memory:] for i in at], way, seed + turn
        )
        verdicts = said(pictures, texts)
        right = np.array([v[0] for v in verdicts])
        yield {"turn": turn, "at": list(at), "right": right, "kinds": [kinds[i] for i in at], "pictures": pictures}
        for i, picture, (_, text, faulty) in zip(at, pictures, verdicts, strict=True):
            history[i].append(picture)
            words[i].append(tokens(text))
            kinds[i] = faulty
        at = [i for i, ok in zip(at, right, strict=True) if not ok]


def collect_chains(
    network: nn.Module, samples: Samples, turns: int, way: Way, seed: int, out: Path, memory: int = 1
) -> int:
    """The model's own wrong tries of ``turns`` draws, to ``out``, those of one chain beside each other; returns how many."""
    own: dict[int, list[np.ndarray]] = defaultdict(list)
    for news in chains(network, samples, turns, way, seed, memory):
        for i, ok, picture in zip(news["at"], news["right"], news["pictures"], strict=True):
            if not ok:
                own[i].append(picture)
    pictures = [p for i in own for p in own[i]]
    texts = tuple(samples.texts[i] for i in own for _ in own[i])
    made = Samples(np.stack(pictures), texts, np.zeros(len(texts), bool))
    made.save(out, raw=True)
    return len(texts)


def one_step(
    network: nn.Module, samples: Samples, way: Way, seed: int, turns: int = 1, memory: int = 1
) -> list[dict[str, Any]]:
    """For each turn: how many wrong tries, the share that one more draw puts right, in all and by the kinds of fault before it."""
    table = []
    for news in chains(network, samples, turns, way, seed, memory):
        kinds: dict[str, list[bool]] = defaultdict(list)
        for ok, faulty in zip(news["right"].tolist(), news["kinds"], strict=True):
            for kind in set(faulty):
                kinds[kind].append(ok)
            kinds["one fault" if len(faulty) == 1 else "more faults"].append(ok)
        by = {kind: [len(v), round(sum(v) / len(v), 3)] for kind, v in sorted(kinds.items())}
        share = float(news["right"].mean()) if len(news["right"]) else float("nan")
        table.append({"turn": news["turn"], "wrong": len(news["right"]), "right": round(share, 4), "by": by})
    return table


def compared(network: nn.Module, samples: Samples, way: Way, seed: int) -> dict[str, Any]:
    """Answers beside fresh draws of the same network, with the oracle's remarks: on the wrong ones of ``samples``, and on the wrong
    ones of the network's own first draws of their prompts. Each as [how many, the share that is right]."""
    texts = [samples.texts[i] for i, r in enumerate(samples.right) if not r]
    pictures = samples.pictures[~samples.right]
    nothing: list[list[Any]] = [[] for _ in texts]

    def share(found: Sequence[tuple[bool, str, tuple[str, ...]]]) -> list[float]:
        return [len(found), round(float(np.mean([right for right, *_ in found])), 4) if found else float("nan")]

    def answered(wrong: np.ndarray, asked: Sequence[str], at: int) -> list[float]:
        heard = [[tokens(text)] for _, text, _ in said(wrong, asked)]
        return (
            share(said(draw(network, asked, [[p] for p in wrong], heard, way, at), asked)) if len(asked) else share([])
        )

    first = draw(network, texts, nothing, nothing, way, seed)
    verdicts = said(first, texts)
    bad = [i for i, (right, *_) in enumerate(verdicts) if not right]
    own = [texts[i] for i in bad]
    again = said(draw(network, own, nothing[: len(own)], nothing[: len(own)], way, seed + 1), own) if own else []
    found = {"fresh": share(verdicts), "own wrong, fresh again": share(again)}
    if isinstance(network, ReflectSiT):
        found |= {
            "answered": answered(pictures, texts, seed + 2),
            "own wrong, answered": answered(first[bad], own, seed + 3),
        }
    return found
