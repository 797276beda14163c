"""Official SiT weights, REPA's and DiT's: from a state dict to this project's network, whatever the head's width.

Weights are data, not programs: `.pt` files are read by ``torch.load(weights_only=True)`` alone. Training checkpoints of
the released code also pickle the run's argparse.Namespace; that one harmless class is let through.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError
from secondlook.models.sit import SIZES, SiT, SiTConfig
from secondlook.path import Kind

_LEFT_OUT = ("projectors.",)  # REPA's training-time heads, unused in sampling


def read_weights(path: Path, which: str = "ema") -> dict[str, Tensor]:
    """The state dict in a safetensors or `.pt` file. Of a training checkpoint (a dict of dicts) ``which`` is taken: "ema"
    or "model"."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f'There is no weights file "{path}".') from None
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, Exception) as error:
        reason = " ".join(str(error).split())[:160]
        raise DamagedError(
            f'"{path}" cannot be read as weights ({reason}). Wanted: safetensors, or a .pt file of tensors alone.'
        ) from None
    if isinstance(found, Mapping) and any(k in found for k in ("ema", "model", "state_dict")):
        known = [k for k in ("ema", "model", "state_dict") if k in found]
        if which not in known and "state_dict" not in known:
            raise ConfigError(f'The checkpoint "{path}" has no "{which}"; it has {", ".join(known)}.')
        found = found[which if which in known else "state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise DamagedError(f'"{path}" holds no state dict (names and tensors); got {type(found).__name__}.')
    return {k.removeprefix("module."): v for k, v in found.items()}


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


def layout(state: Mapping[str, Tensor]) -> Layout:
    """Read off the shapes; ConfigError where they are no SiT's."""
    try:
        proj, table = state["x_embedder.proj.weight"], state["pos_embed"]
        width, channels, patch, _ = proj.shape
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        hidden, rows = state["blocks.0.mlp.fc1.weight"].shape[0], state["final_layer.linear.weight"].shape[0]
        labels = state["y_embedder.embedding_table.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"These weights are no SiT or DiT of the official layout: {error} is missing.") from None
    grid, out = isqrt(table.shape[1]), rows // patch**2
    if grid**2 != table.shape[1] or out not in (channels, 2 * channels):
        raise ConfigError(f"A square grid and a head of {channels} or {2 * channels} channels were wanted; got "
                          f"{table.shape[1]} tokens and {out} channels.")  # fmt: skip
    return Layout(width, patch, channels, depth, grid * patch, labels, out, hidden / width,
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
    class like the others. The sums are float32, whatever the file holds.
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
    network = SiT(made)
    missing, extra = network.load_state_dict(kept, strict=False)
    if missing or extra:
        what = f"lack {missing[0]}" if missing else f"hold {extra[0]}, which no SiT has"
        raise ConfigError(f"These weights {what} ({len(missing)} missing, {len(extra)} left over).")
    return network


def narrowed(state: dict[str, Tensor], form: Layout) -> dict[str, Tensor]:
    """The same with the head's rows of the first C channels only; each patch cell lists its channels in order."""
    rows = torch.arange(form.patch**2 * form.out)
    keep = rows[rows % form.out < form.channels]
    return {k: v[keep] if k.startswith("final_layer.linear.") else v for k, v in state.items()}
