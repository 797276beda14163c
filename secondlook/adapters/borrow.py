"""A user's modules, borrowed: whatever is changed on them while a run works is as it was when the run has ended, however it
ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def borrowed(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Modules set to evaluate inside. Behind: train or eval mode of every module, ``requires_grad``, dtype and device of every
    parameter and buffer as they were before."""
    modules = [m for part in parts for m in part.modules()]
    modes = [(m, m.training) for m in modules]
    weights = [(p, p.requires_grad, p.dtype, p.device) for m in modules for p in m.parameters(recurse=False)]
    buffers = [(m, n, b.dtype, b.device) for m in modules for n, b in m.named_buffers(recurse=False)]
    try:
        for module, training in modes:
            if training:
                module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad(), torch.inference_mode(False):
            for p, grad, dtype, device in weights:
                if (p.dtype, p.device) != (dtype, device) and not p.is_meta:  # a meta tensor has nothing to give back
                    p.data = p.data.to(device, dtype)
                if p.requires_grad is not grad:
                    p.requires_grad_(grad)
            for module, name, dtype, device in buffers:
                now: Any = getattr(module, name)
                if isinstance(now, torch.Tensor) and not now.is_meta and (now.dtype, now.device) != (dtype, device):
                    setattr(module, name, now.to(device, dtype))
