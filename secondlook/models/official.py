"""Official SiT weights, REPA's and DiT's: from a state dict to this project's network, whatever the head's width.

Weights are data, not programs: `.pt` files are read by ``torch.load(weights_only=True)`` alone. Training checkpoints of
the released code also pickle the run's argparse.Namespace; that one harmless class is let through.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from secondlook.errors import ConfigError, DamagedError
from secondlook.flow.path import Kind
from secondlook.models import checkpoint
from secondlook.models.sit import SIZES, SiT, SiTConfig

_LEFT_OUT = ("projectors.",)  # REPA's training-time heads, unused in sampling
_WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before names
_PARTS = ("ema", "model", "state_dict")


@dataclass(frozen=True)
class Found:
    """A state dict and the part of the file it was: "ema", "model", "state_dict", or "all" of a bare one."""

    state: dict[str, Tensor]
    which: str


def read(path: Path, which: str = "ema") -> Found:
    """The state dict in a safetensors or `.pt` file. Of a training checkpoint (a dict of dicts) ``which`` is taken: "ema"
    or "model". ConfigError for a file that is not there or lacks it, DamagedError for one that is more than tensors."""
    if not path.is_file():
        raise ConfigError(f'There is no weights file "{path}".')
    found, taken = _open(path), "all"
    if isinstance(found, Mapping) and any(k in found for k in _PARTS):
        known = [k for k in _PARTS if k in found]
        if which not in known and "state_dict" not in known:
            raise ConfigError(f'The checkpoint "{path}" has no "{which}"; it has {", ".join(known)}.')
        taken = which if which in known else "state_dict"
        found = found[taken]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()) or not found:
        raise DamagedError(f'"{path}" holds no state dict (names and tensors); got {type(found).__name__}.')
    return Found({_bare(str(k)): v for k, v in found.items()}, taken)


def read_weights(path: Path, which: str = "ema") -> dict[str, Tensor]:
    """``read``'s state dict alone."""
    return read(path, which).state


def _open(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        # Mapped where the format allows, so that a checkpoint's optimizer state is never read.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch, pickle and safetensors raise a dozen kinds
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it names the object {named[1]}" if named else " ".join(str(error).split())[:160]
        raise DamagedError(
            f'"{path}" cannot be read as weights ({reason}); nothing in it was run. Wanted: safetensors, or a .pt file of '
            "tensors alone."
        ) from None


def _bare(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    return name


@dataclass(frozen=True)
class Layout:
    """What a state dict's shapes say about its network."""

    width: int
    patch: int
    channels: int
    depth: int
    side: int
    labels: int
    out: int
    ratio: float
    qk_norm: bool
    repa: bool

    def name(self, heads: int) -> str:
        """The named size it is, such as "SiT-XL/2", or its numbers."""
        for name, sizes in SIZES.items():
            if sizes == (self.depth, self.width, heads):
                return f"SiT-{name}/{self.patch}"
        return f"{self.depth} blocks of width {self.width}, {heads} heads, patch {self.patch}"


_RANKS = {"x_embedder.proj.weight": 4, "pos_embed": 3, "blocks.0.mlp.fc1.weight": 2, "final_layer.linear.weight": 2,
          "y_embedder.embedding_table.weight": 2}  # fmt: skip


def layout(state: Mapping[str, Tensor]) -> Layout:
    """Read off the shapes; ConfigError where they are no SiT's."""
    lacking = [k for k in _RANKS if k not in state]
    if lacking:
        raise ConfigError(f'These weights are no SiT or DiT of the official layout: "{lacking[0]}" is missing.')
    for key, rank in _RANKS.items():
        if state[key].ndim != rank:
            raise ConfigError(
                f'These weights are no SiT\'s: "{key}" expects {rank} axes; it has {list(state[key].shape)}.'
            )
    proj, table, fc1, head, labels = (state[k] for k in _RANKS)
    width, channels, patch, patch_too = proj.shape
    depth = len({k.split(".")[1] for k in state if k.startswith("blocks.")})
    tokens, hidden = table.shape[1], fc1.shape[0]
    grid, out = isqrt(tokens), head.shape[0] // patch**2
    if (
        grid**2 != tokens
        or patch != patch_too
        or out not in (channels, 2 * channels)
        or head.shape[0] != out * patch**2
    ):
        raise ConfigError(f"Square patches, a square grid and a head of {channels} or {2 * channels} channels were wanted; got "
                          f"patches of {patch} x {patch_too}, {tokens} tokens and {head.shape[0]} rows in the head.")  # fmt: skip
    ratio = hidden / width
    if int(width * ratio) != hidden:  # rounding, for widths that do not divide
        ratio = math.nextafter(ratio, math.inf)
    return Layout(width, patch, channels, depth, grid * patch, labels.shape[0], out, ratio,
                  any(".attn.q_norm." in k for k in state), any(k.startswith(_LEFT_OUT) for k in state))  # fmt: skip


def from_state_dict(
    state: Mapping[str, Tensor],
    *,
    heads: int | None = None,
    null: bool = True,
    reversed_time: bool | None = None,
    narrow: bool = False,
    predicts: Kind = "velocity",
    path: str = "linear",
    **config: Any,
) -> SiT:
    """A network holding the weights, every tensor used and none missing.

    heads: where None, the named sizes' (by width), else 64 channels a head. reversed_time: where None, by whether the
    weights are REPA's (time 0 is data there). narrow: drop a wider head's dead half, losslessly. ``null`` False: the last label is a
    class like the others. The sums are float32, whatever the file holds. ConfigError for tensors that are missing, left
    over, of another shape or not finite.
    """
    form = layout(state)
    known = {w: h for _, w, h in SIZES.values()}
    out = form.channels if narrow else form.out
    made = SiTConfig(
        side=form.side, patch=form.patch, channels=form.channels, width=form.width, depth=form.depth,
        heads=heads or known.get(form.width, max(1, form.width // 64)), ratio=form.ratio,
        classes=form.labels - int(null), variance=out > form.channels, null=null, qk_norm=form.qk_norm, predicts=predicts, path=path,
        reversed_time=form.repa if reversed_time is None else reversed_time, **config,
    )  # fmt: skip
    kept = {k: v.float() for k, v in state.items() if not k.startswith(_LEFT_OUT)}
    if narrow:
        kept = narrowed(kept, form)
    with _Undrawn():
        network = SiT(made)
    _refuse_misfits(network.state_dict(), kept)
    network.load_state_dict(kept)
    return network


def _refuse_misfits(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra:
        what = f"lack {missing[0]}" if missing else f"hold {extra[0]}, which no SiT has"
        raise ConfigError(f"These weights {what} ({len(missing)} missing, {len(extra)} left over).")
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            raise ConfigError(
                f'The weights "{key}" want the shape {list(wanted[key].shape)}; theirs is {list(value.shape)}.'
            )
        if not value.is_meta and not bool(value.isfinite().all()):
            raise ConfigError(f'The weights "{key}" hold numbers that are not finite; fetch or save the file again.')


class _Undrawn(TorchFunctionMode):
    """Networks made inside leave out their first random weights: all of their tensors are to be loaded, and drawing 675
    million numbers takes seconds. (So does what torch imports for its meta device.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func in (Tensor.uniform_, Tensor.normal_) or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else options["tensor"]
        return func(*args, **options)


def narrowed(state: dict[str, Tensor], form: Layout) -> dict[str, Tensor]:
    """The same with the head's rows of the first C channels only; each patch cell lists its channels in order."""
    rows = torch.arange(form.patch**2 * form.out)
    keep = rows[rows % form.out < form.channels]
    return {k: v[keep] if k.startswith("final_layer.linear.") else v for k, v in state.items()}


def is_own(path: Path) -> bool:
    """Whether a file is one this project wrote: safetensors with its configuration inside."""
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        with safe_open(path, "pt") as file:
            return "config" in (file.metadata() or {})
    except Exception:  # unreadable: whoever reads it says so
        return False


def load_sit(path: Path) -> SiT:
    """A class-conditional network ready to sample: from this project's own file, or from an official one as ``read`` and
    ``from_state_dict`` take it by default."""
    if not is_own(path):
        return from_state_dict(read(path).state).requires_grad_(False).eval()
    with _Undrawn():
        return checkpoint.load_sit(path)
