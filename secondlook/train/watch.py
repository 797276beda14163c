"""What a training leaves behind on its way: its logs, the loss by time, looks at the averaged weights."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secondlook.errors import MissingExtra
from secondlook.train.ranks import Place

BINS = 20


@dataclass(frozen=True)
class Looks:
    """What is done every ``look_every`` steps and at the end, without gradients, to the averaged weights: ``sheet``
    makes a picture, kept as samples-STEP.png, each of ``numbers`` a dictionary for metrics.jsonl and TensorBoard."""

    sheet: Callable[[Any], Image.Image] | None = None
    numbers: tuple[Callable[[Any], Mapping[str, float]], ...] = ()


class Journal:
    """JSON lines in a training's folder and, where asked for, TensorBoard's events in its subfolder ``tensorboard``.

    Lines of steps after ``step`` are dropped at first: a training that was cut off does those again. ``active`` False
    writes nothing, for all processes but the first.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool = False, active: bool = True):
        self.folder, self.active = folder, active
        self.files: dict[str, IO[str]] = {}
        self.board = _board(folder / "tensorboard", step) if tensorboard and active else None
        if active:
            for name in ("loss", "metrics"):
                trim(folder / f"{name}.jsonl", step)

    def write(self, name: str, step: int, numbers: Mapping[str, float]) -> None:
        """One line of NAME.jsonl; what is no finite number is null there, and left out of TensorBoard."""
        if not self.active:
            return
        if name not in self.files:
            self.files[name] = (self.folder / f"{name}.jsonl").open("a")
        known = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        self.files[name].write(json.dumps({"step": step, **known}) + "\n")
        if self.board is not None:
            for key, value in known.items():
                if value is not None:
                    self.board.add_scalar(f"{name}/{key}", value, step)

    def picture(self, step: int, image: Image.Image) -> None:
        """A contact sheet, as samples-STEP.png."""
        if not self.active:
            return
        image.save(self.folder / f"samples-{step:06d}.png")
        if self.board is not None:
            self.board.add_image("samples", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        for file in self.files.values():
            file.flush()
        if self.board is not None:
            self.board.flush()

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        if self.board is not None:
            self.board.close()


def _board(folder: Path, step: int) -> Any:
    """TensorBoard's writer, going on after ``step``; MissingExtra where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtra(
            "--tensorboard needs TensorBoard: pip install 'secondlook[train]', or leave it out; loss.jsonl has the same."
        ) from None
    return SummaryWriter(str(folder), purge_step=step + 1)  # type: ignore[no-untyped-call]


def trim(path: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, and a last line that was cut off."""
    if not path.exists():
        return
    lines = path.read_text().splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        part = path.with_name(path.name + ".part")
        part.write_text("".join(line + "\n" for line in kept))
        os.replace(part, path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class ByTime:
    """The velocity's mean squared error by time, in bins of equal width over [0, 1]: a running mean that forgets as
    exp(-age / memory), age and memory in steps. It is what the diffusion ``kl_eta`` of 2401.08740, sec. 2.4, reads."""

    def __init__(self, memory: float, device: torch.device, bins: int = BINS):
        self.keep = math.exp(-1 / max(1.0, memory))
        self.sums = torch.zeros(2, bins, dtype=torch.float64, device=device)  # errors, rows

    def age(self) -> None:
        """One step passes."""
        self.sums *= self.keep

    def add(self, t: Tensor, error: Tensor) -> None:
        """Rows at times t [B] with squared errors [B]."""
        bins = self.sums.shape[1]
        at = (t.detach() * bins).long().clamp(0, bins - 1)
        error = error.detach().to(self.sums)
        self.sums.index_add_(1, at.to(self.sums.device), torch.stack([error, torch.ones_like(error)]))

    def gather(self, place: Place) -> None:
        """Bring together in the first process what all have counted."""
        total = place.total(self.sums)
        self.sums = total if place.first else torch.zeros_like(total)

    def table(self) -> dict[str, list[float]]:
        """``times`` (rising bin centres) and ``losses`` of the bins that hold rows, as ``LossTable.read`` expects them."""
        errors, rows = self.sums.tolist()
        bins = len(rows)
        known = [i for i in range(bins) if rows[i] > 0]
        return {"times": [(i + 0.5) / bins for i in known], "losses": [errors[i] / rows[i] for i in known]}


class News(Protocol):
    """What a step says of itself (loop.Tick)."""

    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def seconds(self) -> float: ...


def report(ticks: Iterable[News], every: int = 100) -> None:
    """Print the mean loss of every hundred steps to standard error."""
    losses: list[float] = []
    for tick in ticks:
        losses.append(tick.loss)
        if tick.step % every == 0:
            mean = sum(losses) / len(losses)
            print(f"step {tick.step}  loss {mean:.4f}  {tick.seconds:.0f} s", file=sys.stderr, flush=True)
            losses = []
