"""The training loop: keyed batches, micro-batches, several processes, warm-up and decay, Muon and AdamW, EMA, exact
resume, a stop at the first loss or gradient that is not finite.

What a step does is a function of the seed, the step and the weights: its batch, times and noise are drawn for the whole
batch by (seed, step), and micro-batches and processes take slices of them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, DamagedError, SecondlookError, nearest
from secondlook.models.ema import EMA
from secondlook.train.muon import StackedMuon
from secondlook.train.ranks import Place
from secondlook.train.watch import ByTime, Journal, Looks

OPTIMIZERS = ("muon", "adamw")
# Options that change nothing of what is learnt, or its rounding only: a resumed training may have others.
FREE = ("save_every", "device", "log_every", "look_every", "tensorboard")


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained. Times in steps; ``hold`` is the share of the run after which the rate falls linearly to
    ``final`` of its height.

    optimizer: "muon", with ``lr`` for AdamW (vectors, embeddings, first and last layers; betas 0.9 and 0.98) and
    ``muon_lr`` for Muon (hidden matrices), whose updates are scaled to AdamW's size (2502.16982, sec. 2.2); or "adamw"
    for all, betas 0.9 and 0.999. decay: weight decay. clip: largest norm of a gradient, 0 for none. ema_ramp: see EMA.
    accumulate: micro-batches that a batch is computed in, for memory. checkpointing: recompute blocks in the backward
    pass, for memory. device: None for CUDA where there is one. log_every: steps between readings of the loss (None: 1 on
    the CPU, 50 elsewhere, where reading waits for the device). look_every: steps between looks (0: none).
    """

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
    optimizer: str = "muon"
    accumulate: int = 1
    ema_ramp: bool = True
    checkpointing: bool = False
    device: str | None = None
    log_every: int | None = None
    look_every: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f'There is no optimizer "{self.optimizer}"; {nearest(self.optimizer, OPTIMIZERS)}')
        for name, least in (("steps", 1), ("batch", 1), ("accumulate", 1), ("save_every", 1), ("log_every", 1),
                            ("warmup", 0), ("look_every", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name.replace('_', '-')} must be at least {least}; got {value}.")
        for name in ("lr", "muon_lr", "decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name.replace('_', '-')} must be 0 or above, and finite; got {getattr(self, name)}."
                )
        for name in ("ema", "hold", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} lies in 0 to 1; got {getattr(self, name)}.")

    @staticmethod
    def paper(steps: int, **more: Any) -> TrainConfig:
        """SiT's recipe (2401.08740, app. D, and the released code): AdamW at a constant 1e-4 without decay, warm-up or
        clipping, batch 256, EMA 0.9999, float32."""
        recipe: dict[str, Any] = {
            "batch": 256, "optimizer": "adamw", "lr": 1e-4, "decay": 0.0, "warmup": 0, "hold": 1.0, "clip": 0.0,
            "ema": 0.9999, "ema_ramp": False, "bf16": False,
        }  # fmt: skip
        return TrainConfig(steps, **{**recipe, **more})


@dataclass(frozen=True)
class Tick:
    """One step's news; ``seconds`` of training when it was read, ``rate`` the learning rate."""

    step: int
    loss: float
    seconds: float
    grad_norm: float = math.nan
    rate: float = math.nan


class Rows(NamedTuple):
    """A loss by row, [n]; where there are such, each row's time and its velocity's squared error, for ``ByTime``."""

    loss: Tensor
    t: Tensor | None = None
    velocity: Tensor | None = None


@dataclass(frozen=True)
class ByRows:
    """A loss that micro-batches and processes can share.

    draw(step, generator, rows): tensors whose first axis counts rows: those of a slice of the step's whole batch, of
    which every random number must be drawn, whatever the slice. rows(forward, *tensors): the loss of each of these rows;
    the tensors come as slices, on the training's device.
    """

    draw: Callable[[int, torch.Generator, slice], tuple[Tensor, ...]]
    rows: Callable[..., Rows]


# Either of: (forward, step, generator) to the mean loss of a whole batch, for one process on the CPU, or one by rows.
Loss = Callable[[Callable[..., Any], int, torch.Generator], Tensor] | ByRows


def _optimizers(module: nn.Module, c: TrainConfig) -> list[torch.optim.Optimizer]:
    if c.optimizer == "adamw":
        return [torch.optim.AdamW(module.parameters(), c.lr, (0.9, 0.999), 1e-8, c.decay, fused=True)]
    outer = ("embed", "patch_in", "patch_out", "table", "place", "head", "final_layer.linear")
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        muon = p.ndim == 2 and not any(o in name for o in outer)
        (hidden if muon else rest).append(p)
    adam = torch.optim.AdamW(rest, lr=c.lr, betas=(0.9, 0.98), weight_decay=c.decay, fused=True)
    if not hidden:
        return [adam]
    kind = torch.optim.Muon if hidden[0].device.type == "cpu" else StackedMuon
    return [adam, kind(hidden, lr=c.muon_lr, weight_decay=c.decay, adjust_lr_fn="match_rms_adamw")]


def rate(c: TrainConfig, step: int) -> float:
    """The learning rate's height at a step, 0 to 1."""
    if step < c.warmup:
        return (step + 1) / c.warmup
    start = c.hold * c.steps
    if step <= start:
        return 1.0
    return 1.0 - (1.0 - c.final) * (step - start) / max(1.0, c.steps - start)


class Trainer:
    """Trains ``module`` in ``folder``, resuming what that holds.

    loss: see ``Loss``. looks: see ``Looks``. about: what is trained on what, as plain values; a training is resumed only
    by one that says the same.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        config: TrainConfig,
        folder: Path,
        *,
        looks: Looks | None = None,
        about: dict[str, Any] | None = None,
    ):
        self.loss, self.config, self.folder = loss, config, folder
        self.looks, self.about = looks, about or {}
        shared = isinstance(loss, ByRows)
        self.place = Place.find(config.device, shared)
        if not shared and config.accumulate > 1:
            raise ConfigError(f"This training takes a batch whole; got accumulate {config.accumulate}.")
        if config.batch < self.place.world * config.accumulate:
            raise ConfigError(f"A batch of {config.batch} cannot be cut into {config.accumulate} micro-batches for each of "
                              f"{self.place.world} processes.")  # fmt: skip
        if config.checkpointing and not hasattr(module, "checkpointing"):
            raise ConfigError("This network cannot recompute its blocks; leave checkpointing out.")
        self.module = module.to(self.place.device)
        if config.checkpointing:
            self.module.checkpointing = True  # type: ignore[assignment]
        self.ema = EMA(self.module, config.ema, config.ema_ramp)
        self.optimizers = _optimizers(self.module, config)
        counts = self.place.device if self.place.device.type == "cuda" else torch.device("cpu")  # in float64
        self.by_time = ByTime(config.steps / 10, counts)
        self.log_every = config.log_every or (1 if self.place.device.type == "cpu" else 50)
        self.step = 0
        self.seconds = 0.0
        self.ahead = self.place.device.type != "cpu"  # draw the next batch while the device computes
        self._drawing: tuple[int, Future[tuple[Tensor, ...]]] | None = None
        self._unread: list[tuple[int, Tensor, Tensor]] = []
        self._read: list[tuple[int, float, float]] = []
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.pt").exists():
            self._load()

    def _load(self) -> None:
        try:
            saved = torch.load(self.folder / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            raise DamagedError(
                f"{self.folder / 'state.pt'} cannot be read ({error}); delete it to start over."
            ) from None
        self._compare(saved)
        self.module.load_state_dict(saved["module"])
        self.ema.module.load_state_dict(saved["ema"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]
        if "by_time" in saved and self.place.first:  # the others' sums are in it
            self.by_time.sums.copy_(saved["by_time"])

    def _compare(self, saved: dict[str, Any]) -> None:
        """ConfigError where the folder holds a training of something else; what older ones did not say is as it was."""
        usual = {f.name: f.default for f in fields(TrainConfig) if f.default is not MISSING}
        was, now = {**usual, **saved["config"]}, asdict(self.config)
        if "about" in saved:
            was, now = {**was, **saved["about"]}, {**now, **self.about}
        other = [k for k in {**was, **now} if k not in FREE and was.get(k) != now.get(k)]
        if other:
            what = f"{other[0]} {was.get(other[0])!r}, asked for {now.get(other[0])!r}"
            raise ConfigError(
                f"{self.folder} holds a training with other settings ({what[:200]}); choose another folder."
            )

    def save(self) -> None:
        """Write the state beside the old one, then replace it, so that a crash leaves one or the other whole."""
        self.by_time.gather(self.place)
        if not self.place.first:
            return
        state: dict[str, Any] = {
            "config": asdict(self.config),
            "about": self.about,
            "module": self.module.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "by_time": self.by_time.sums,
            "step": self.step,
            "seconds": self.seconds,
        }
        part = self.folder / "state.pt.part"
        torch.save(state, part)
        os.replace(part, self.folder / "state.pt")
        table = self.by_time.table()
        if table["times"]:
            (self.folder / "loss-by-time.json").write_text(json.dumps(table) + "\n")

    def _draw(self, step: int) -> tuple[Tensor, ...]:
        assert isinstance(self.loss, ByRows)
        c = self.config
        found = self.loss.draw(step, keyed(c.seed, step), self.place.rows(c.batch))
        return tuple(x.pin_memory() if self.place.device.type == "cuda" else x for x in found)

    def _batch(self, pool: ThreadPoolExecutor | None) -> list[Tensor]:
        """This process's rows of this step's batch, on its device."""
        if pool is None:
            drawn = self._draw(self.step)
        else:
            waiting = self._drawing if self._drawing and self._drawing[0] == self.step else None
            drawn = (waiting[1] if waiting else pool.submit(self._draw, self.step)).result()
            self._drawing = (self.step + 1, pool.submit(self._draw, self.step + 1))
        return [x.to(self.place.device, non_blocking=True) for x in drawn]

    def _gradient(self, forward: nn.Module, pool: ThreadPoolExecutor | None) -> Tensor:
        """Leave the batch's gradient in the parameters; returns this process's share of the batch's mean loss."""
        c, place = self.config, self.place
        if not isinstance(self.loss, ByRows):
            loss = self.loss(forward, self.step, keyed(c.seed, self.step))
            loss.backward()
            return loss.detach()
        drawn = self._batch(pool)
        count, total = len(drawn[0]), torch.zeros((), device=place.device)
        self.by_time.age()
        for i in range(c.accumulate):
            part = slice(i * count // c.accumulate, (i + 1) * count // c.accumulate)
            with place.alone(forward, i == c.accumulate - 1):
                rows = self.loss.rows(forward, *(x[part] for x in drawn))
                share = rows.loss.sum() / c.batch
                (share * place.world if place.world > 1 else share).backward()  # processes are averaged
            total = total + share.detach()
            if rows.t is not None and rows.velocity is not None:
                self.by_time.add(rows.t, rows.velocity)
        return total

    def _once(self, forward: nn.Module, pool: ThreadPoolExecutor | None) -> None:
        c = self.config
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            base = c.lr if isinstance(optimizer, torch.optim.AdamW) else c.muon_lr
            for group in optimizer.param_groups:
                group["lr"] = base * rate(c, self.step)
        loss = self._gradient(forward, pool)
        if c.clip:
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), c.clip)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self._unread.append((self.step, loss, norm.detach()))
        if self.log_every == 1:  # before the weights change
            self._settle()
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.module, self.step)

    def _settle(self) -> None:
        """Read losses and norms of the gradient from the device; SecondlookError for the first that is not finite."""
        if not self._unread:
            return
        losses = self.place.total(torch.stack([loss.float() for _, loss, _ in self._unread])).tolist()
        norms = torch.stack([norm.float() for _, _, norm in self._unread]).tolist()
        for (step, _, _), loss, norm in zip(self._unread, losses, norms, strict=True):
            for what, value in (("loss", loss), ("gradient's norm", norm)):
                if not math.isfinite(value):
                    raise SecondlookError(
                        f"The {what} became {value} at step {step}; the weights of the last save are whole. "
                        "Lower lr and muon_lr, or start from another seed."
                    )
            self._read.append((step, loss, norm))
        self._unread = []

    def run(self) -> Iterator[Tick]:
        """Train to the end, yielding every step once it is read; saves as it goes and at the end."""
        c = self.config
        if self.step >= c.steps:
            return
        self.module.train()
        # Compiled inside, so that what exchanges gradients sees ``alone``.
        forward = self.place.wrap(torch.compile(self.module) if c.compile else self.module)  # type: ignore[arg-type]
        shared = isinstance(self.loss, ByRows)
        pool = ThreadPoolExecutor(1) if self.ahead and shared else None
        journal = Journal(self.folder, self.step, c.tensorboard, self.place.first)
        try:
            while self.step < c.steps:
                start = time.perf_counter()
                self._once(forward, pool)
                self.step += 1
                last = self.step == c.steps
                saves = last or self.step % c.save_every == 0
                looks = self.looks is not None and c.look_every > 0 and (last or self.step % c.look_every == 0)
                if saves or looks or self.step % self.log_every == 0:
                    self._settle()
                self.seconds += time.perf_counter() - start
                ticks = self._ticks(journal)
                if looks:
                    self._look(journal)
                if saves:
                    journal.flush()
                    self.save()
                yield from ticks
        finally:
            journal.close()
            if pool is not None:
                pool.shutdown(cancel_futures=True)
                self._drawing = None

    def _ticks(self, journal: Journal) -> list[Tick]:
        """News of the steps read since the last call, written to loss.jsonl."""
        found = []
        for step, loss, norm in self._read:
            height = self.config.lr * rate(self.config, step)
            found.append(Tick(step + 1, loss, self.seconds, norm, height))
            line = {"loss": round(loss, 6), "seconds": round(self.seconds, 1), "grad_norm": float(f"{norm:.6g}")}
            journal.write("loss", step + 1, {**line, "rate": height})
        self._read = []
        return found

    def _look(self, journal: Journal) -> None:
        """A look at the averaged weights, by the first process; the others wait at their next exchange."""
        if not self.place.first or self.looks is None:
            return
        network = self.ema.module
        with torch.no_grad():
            numbers: dict[str, float] = {}
            for count in self.looks.numbers:
                numbers |= count(network)
            if numbers:
                journal.write("metrics", self.step, numbers)
            if self.looks.sheet is not None:
                journal.picture(self.step, self.looks.sheet(network))


def keyed(seed: int, step: int) -> torch.Generator:
    """The generator of a step."""
    return torch.Generator().manual_seed((seed << 32) + step)
