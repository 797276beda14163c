"""A digest of networks' weights by a look at each tensor, wherever it lies and however it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

PICKED = 64  # values of each tensor


def digest_of(about: str, parts: Iterable[nn.Module]) -> str:
    """SHA-256 over ``about`` and each weight's name, shape and PICKED of its values: another checkpoint or another precision shows,
    and so does a LoRA, its strength, and whether it is on. A compiled network has the digest of the one that was compiled, an
    offloaded or moved one that of the one in place."""
    digest = hashlib.sha256(about.encode())
    for part in parts:
        for key, value in sorted((k.replace("_orig_mod.", ""), v) for k, v in _state(part)):
            digest.update(f"{key} ".encode())
            for line in _look(value):
                digest.update(line)
        for name, module in part.named_modules():
            if isinstance(strengths := getattr(module, "scaling", None), dict):  # a PEFT layer: no weight says these
                state = [getattr(module, n, None) for n in ("active_adapters", "disable_adapters", "merged_adapters")]
                digest.update(f"{name.replace('_orig_mod.', '')} {sorted(strengths.items())} {state}\n".encode())
    return digest.hexdigest()


def _state(part: nn.Module) -> list[tuple[str, Any]]:
    """The state of a network, with the weights that sequential offloading keeps elsewhere in the place of what stands for them."""
    kept = {}
    for module in part.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            there = getattr(each, "weights_map", None)
            if there is not None and hasattr(there, "dataset"):
                kept.update({key: there.dataset[key] for key in there})
    return [(k, kept.get(k, v)) for k, v in part.state_dict().items()]


def _look(value: Any) -> Iterable[bytes]:
    """What a digest sees of an entry of a state: quantised layers keep tuples and dtypes beside tensors."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _look(each)
    elif isinstance(value, Tensor):
        yield f"{list(value.shape)}\n".encode()
        yield _picked(value)
    else:
        yield f"{value if isinstance(value, (torch.dtype, str, int, float)) else type(value).__name__}\n".encode()


def _picked(value: Tensor) -> bytes:
    """Values at even distances, as float32 or int64; none of a tensor that has none to show."""
    try:
        found = value.detach()
        found = found.dequantize() if found.is_quantized else found
        flat = found.reshape(-1)
        flat = flat[:: max(1, flat.numel() // PICKED)][:PICKED]
        numbers = flat.float() if flat.is_floating_point() else flat.long()
        return bytes(numbers.cpu().numpy().tobytes())
    except (RuntimeError, TypeError):  # meta tensors, and subclasses that cannot be cut
        return str(value.dtype).encode()
