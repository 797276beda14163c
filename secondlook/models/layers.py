"""Blocks shared by the project's small transformers. Shapes: N rows, T tokens, L words, W width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm's last step (DiT, 2212.09748): x [N, T, W] with shift and scale [N, 1, W]."""
    return x * (1 + scale) + shift


def position_table(side: int, width: int) -> Tensor:
    """Fixed 2-D sin-cos positions, [side * side, width], row-major; half the channels for each axis."""
    rates = 100.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rates
    axis = torch.cat([angle.sin(), angle.cos()], 1)
    rows = axis[:, None].expand(side, side, -1)
    cols = axis[None, :].expand(side, side, -1)
    return torch.cat([cols, rows], -1).reshape(side * side, width).float()


def time_features(t: Tensor, count: int) -> Tensor:
    """[N] times in [0, 1] to [N, count]: cosines and sines at rates from 1 to 1000 rad."""
    half = count // 2
    rates = torch.exp(torch.linspace(0.0, math.log(1000.0), half, dtype=t.dtype, device=t.device))
    angle = t[:, None] * rates
    return torch.cat([angle.cos(), angle.sin()], 1)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys; ``context`` None attends to x itself."""

    def __init__(self, width: int, heads: int, context_width: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width or width, width, bias=False)
        self.to_v = nn.Linear(context_width or width, width, bias=False)
        self.out = nn.Linear(width, width)
        self.q_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.k_norm = nn.RMSNorm(width // heads, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """x [N, T, W], context [N, L, C], mask bool [N, L] (True: attend). Returns [N, T, W]."""
        source = x if context is None else context
        q, k, v = (f(s).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f, s in ((self.to_q, x), (self.to_k, source), (self.to_v, source)))  # fmt: skip
        if mask is not None:
            mask = mask[:, None, None, :]
        kind = x.device.type
        # Float32 on purpose on the CPU, whose bfloat16 kernel's backward pass is five times slower (torch 2.13). A GPU's fast
        # kernels take 16 bits.
        low = kind != "cpu" and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if low else torch.float32
        with torch.autocast(kind, enabled=False):
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
            y = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype), attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class ConvFeedForward(nn.Module):
    """SANA's Mix-FFN (2410.10629, sec. 2.2): widen, depthwise 3x3 over the token grid, gate, narrow."""

    def __init__(self, width: int, ratio: float, side: int):
        super().__init__()
        hidden = int(width * ratio)
        self.side = side
        self.up = nn.Linear(width, 2 * hidden)
        self.depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        h = F.silu(self.up(x)).view(n, self.side, self.side, -1).permute(0, 3, 1, 2)
        # A GPU's own depthwise kernels ask for one picture's channels one after another; for others cuDNN's are taken.
        h = self.depth(h if h.device.type == "cpu" else h.contiguous()).permute(0, 2, 3, 1).reshape(n, t, -1)
        value, gate = h.chunk(2, -1)
        return self.down(value * F.silu(gate))


class FeedForward(nn.Module):
    """Two linear maps with a GELU between."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))
