"""One training loop: keyed batches, warm-up and decay, Muon and AdamW, EMA, exact resume, a stop at the first NaN."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, DamagedError, SecondlookError
from secondlook.models.ema import EMA


@dataclass(frozen=True)
class TrainConfig:
    """``lr`` is AdamW's (vectors, embeddings, first and last layers), ``muon_lr`` Muon's (hidden matrices), whose
    updates are scaled to AdamW's size (2502.16982, sec. 2.2). Times in steps; ``hold`` is the share of the run after
    which the rate falls linearly to ``final`` of its height."""

    steps: int
    batch: int = 128
    lr: float = 1.5e-3
    muon_lr: float = 3e-3
    decay: float = 0.01
    warmup: int = 200
    hold: float = 0.4
    final: float = 0.02
    clip: float = 1.0
    ema: float = 0.9995
    seed: int = 0
    bf16: bool = True
    compile: bool = False
    save_every: int = 250


@dataclass(frozen=True)
class Tick:
    """One step's news."""

    step: int
    loss: float
    seconds: float


Loss = Callable[[Callable[..., Any], int, torch.Generator], Tensor]


def _optimizers(module: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    outer = ("embed", "patch_in", "patch_out", "table", "place", "head")
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        muon = p.ndim == 2 and not any(o in name for o in outer)
        (hidden if muon else rest).append(p)
    adam = torch.optim.AdamW(rest, lr=c.lr, betas=(0.9, 0.98), weight_decay=c.decay, fused=True)
    if not hidden:
        return [adam]
    muon_opt = torch.optim.Muon(hidden, lr=c.muon_lr, weight_decay=c.decay, adjust_lr_fn="match_rms_adamw")
    return [adam, muon_opt]


def rate(c: TrainConfig, step: int) -> float:
    """The learning rate's height at a step, 0 to 1."""
    if step < c.warmup:
        return (step + 1) / c.warmup
    start = c.hold * c.steps
    if step <= start:
        return 1.0
    return 1.0 - (1.0 - c.final) * (step - start) / max(1.0, c.steps - start)


class Trainer:
    """``loss(module, step, generator)`` returns a mean loss; the generator is seeded by (seed, step), so that a step's
    data, times and noise do not depend on what ran before it."""

    def __init__(self, module: nn.Module, loss: Loss, config: TrainConfig, folder: Path):
        self.module, self.loss, self.config, self.folder = module, loss, config, folder
        self.ema = EMA(module, config.ema)
        self.optimizers = _optimizers(module, config)
        self.step = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._load()

    def _load(self) -> None:
        try:
            saved = torch.load(self.folder / "state.pt", weights_only=True)
        except Exception as error:
            raise DamagedError(
                f"{self.folder / 'state.pt'} cannot be read ({error}); delete it to start over."
            ) from None
        if saved["config"] != asdict(self.config):
            raise ConfigError(f"{self.folder} holds a training with other settings; choose another folder.")
        self.module.load_state_dict(saved["module"])
        self.ema.module.load_state_dict(saved["ema"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]

    def save(self) -> None:
        """Write the state beside the old one, then replace it, so that a crash leaves one or the other whole."""
        state: dict[str, Any] = {
            "config": asdict(self.config),
            "module": self.module.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.folder / "state.pt.part"
        torch.save(state, part)
        os.replace(part, self.folder / "state.pt")

    def _once(self, forward: Callable[..., Any]) -> float:
        c = self.config
        generator = torch.Generator().manual_seed((c.seed << 32) + self.step)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            base = c.lr if isinstance(optimizer, torch.optim.AdamW) else c.muon_lr
            for group in optimizer.param_groups:
                group["lr"] = base * rate(c, self.step)
        loss = self.loss(forward, self.step, generator)
        value = loss.item()
        if not torch.isfinite(loss):
            raise SecondlookError(
                f"The loss became {value} at step {self.step}; the weights of the last save are whole. "
                "Lower lr and muon_lr, or start from another seed."
            )
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), c.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.module, self.step)
        return value

    def run(self) -> Iterator[Tick]:
        """Train to the end, yielding every step; saves as it goes and at the end."""
        c = self.config
        forward = torch.compile(self.module) if c.compile else self.module
        self.module.train()
        with (self.folder / "loss.jsonl").open("a") as log:
            while self.step < c.steps:
                start = time.perf_counter()
                value = self._once(forward)
                self.step += 1
                self.seconds += time.perf_counter() - start
                log.write(
                    json.dumps({"step": self.step, "loss": round(value, 6), "seconds": round(self.seconds, 1)}) + "\n"
                )
                if self.step % c.save_every == 0 or self.step == c.steps:
                    log.flush()
                    self.save()
                yield Tick(self.step, value, self.seconds)
