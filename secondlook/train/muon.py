"""Muon for a GPU: matrices of one shape are orthogonalised together, for one after another waits for the kernels to be begun."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class StackedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` with ``adjust_lr_fn`` "match_rms_adamw" and Nesterov's momentum; the same up to rounding, and the same
    state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            given: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not given:
                continue
            grads = [p.grad for p in given if p.grad is not None]
            for p in given:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in given]
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, buffers, group["momentum"])
            torch._foreach_mul_(given, 1 - group["lr"] * group["weight_decay"])
            for shape, at in _by_shape(given).items():
                stack = torch.stack([updates[i] for i in at])
                found = orthogonal(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])
                height = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_add_([given[i] for i in at], list(found.unbind()), alpha=-height)


def _by_shape(matrices: list[Tensor]) -> dict[tuple[int, ...], list[int]]:
    """The places of the matrices of each shape."""
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        found[tuple(matrix.shape)].append(i)
    return found


def orthogonal(stack: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Of each matrix [N, H, W] the nearly orthogonal one that Newton-Schulz steps in bfloat16 lead to, float32 (Jordan's Muon)."""
    a, b, c = coefficients
    x = stack.bfloat16()
    high = x.shape[1] > x.shape[2]
    x = x.mT if high else x
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if high else x).float()
