"""A digest of all that decides a pipeline's pictures: every byte of every weight, wherever it lies and however it is stored,
and what the parts' configurations say."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

WORKERS = 4  # hashing lets other threads work
SMALL = 2**22  # bytes, below which threads would cost more than they save
VOLATILE = (
    "architectures",
    "transformers_version",
    "torch_dtype",
    "dtype",
)  # and what begins with an underscore: the libraries' bookkeeping


def digest_of(about: str, parts: Mapping[str, Any]) -> str:
    """SHA-256 over ``about`` and each part by name: networks (weights, configuration, LoRA strengths) and tokenizers (vocabulary and limits). A compiled network has the digest of the one that was compiled, an offloaded
    or moved one that of the one in place."""
    digest = hashlib.sha256(about.encode())
    for name, part in parts.items():
        lines = _network(part) if isinstance(part, nn.Module) else _tokenizer(part)
        digest.update(f"{name}\n".encode())
        for line in lines:
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _network(part: nn.Module) -> Iterable[str]:
    state = sorted((k.replace("_orig_mod.", ""), v) for k, v in _state(part))
    had = [_remembered(v) if isinstance(v, Tensor) else None for _, v in state]
    new = [v for (_, v), digest in zip(state, had, strict=True) if digest is None]
    if sum(v.numel() * v.element_size() for v in new if isinstance(v, Tensor)) < SMALL:
        found = [_seen(v) for v in new]
    else:
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(_seen, new))
    rest = iter(found)
    for (key, value), digest in zip(state, had, strict=True):
        yield f"{key} {next(rest) if digest is None else _said(value, digest)}"
    for name, module in part.named_modules():
        if isinstance(strengths := getattr(module, "scaling", None), dict):  # a PEFT layer: no weight says these
            state_of = [getattr(module, n, None) for n in ("active_adapters", "disable_adapters", "merged_adapters")]
            yield f"{name.replace('_orig_mod.', '')} {sorted(strengths.items())} {state_of}"
    yield _configuration(part)


def _configuration(part: Any) -> str:
    config: Any = getattr(part, "config", None)
    found: Any = config if isinstance(config, Mapping) else config.to_dict() if hasattr(config, "to_dict") else {}
    return json.dumps(
        {k: v for k, v in found.items() if k not in VOLATILE and not k.startswith("_")}, sort_keys=True, default=str
    )


def _tokenizer(part: Any) -> Iterable[str]:
    """A tokenizer's words and limits; anything else by its class."""
    yield type(part).__name__
    words = getattr(part, "get_vocab", None)
    if words is not None:
        yield hashlib.sha256(json.dumps(sorted(words().items())).encode()).hexdigest()
        yield str([getattr(part, n, None) for n in ("model_max_length", "chat_template")])
        backend = getattr(part, "backend_tokenizer", None)
        if backend is not None:  # merges, normalisers and what is put around a prompt
            rules = json.loads(backend.to_str())
            rules = {k: v for k, v in rules.items() if k not in ("padding", "truncation")}  # set again at every call
            yield hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _state(part: nn.Module) -> list[tuple[str, Any]]:
    """The state of a network, with the weights that sequential offloading keeps elsewhere in the place of what stands for them."""
    kept = {}
    for module in part.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            there = getattr(each, "weights_map", None)
            if there is not None and hasattr(there, "dataset"):
                kept.update({key: there.dataset[key] for key in there})
    return [(k, kept.get(k, v)) for k, v in part.state_dict(keep_vars=True).items()]


def _seen(value: Any) -> str:
    """What a digest sees of an entry of a state: quantised layers keep tuples and dtypes beside tensors."""
    if isinstance(value, (tuple, list)):
        return str([_seen(each) for each in value])
    if isinstance(value, Tensor):
        return _said(value, tensor_digest(value))
    return str(value) if isinstance(value, (torch.dtype, str, int, float)) else type(value).__name__


def _said(value: Tensor, digest: str) -> str:
    return f"{list(value.shape)} {value.dtype} {digest}"


_known: dict[int, tuple[weakref.ref[Tensor], tuple[Any, ...], str]] = {}
PROBES = 64  # values looked at each time


def tensor_digest(value: Tensor) -> str:
    """The digest of a tensor's bytes; worked out again only where the tensor was changed since. Its version tells, and for
    what is written past that (through ``.data``) so do ``PROBES`` of its values, evenly spaced."""
    had = _remembered(value)
    if had is not None:
        return had
    stamp, found = _stamp(value), _hashed(value)  # in this order: what is written meanwhile is seen next time
    if stamp is not None:
        _known[id(value)] = (weakref.ref(value, partial(_forget, id(value))), stamp, found)
    return found


def _remembered(value: Tensor) -> str | None:
    """The digest as it was worked out before; None where the tensor is new, or was changed since."""
    had = _known.get(id(value))
    return had[2] if had is not None and had[0]() is value and had[1] == _stamp(value) else None


def _stamp(value: Tensor) -> tuple[Any, ...] | None:
    """What tells that a tensor was changed; None where nothing does."""
    try:
        return value.data_ptr(), value._version, _probed(value)
    except RuntimeError:  # inference tensors count no versions, and some subclasses lie nowhere
        return None


def _probed(value: Tensor) -> bytes:
    flat = value.detach()
    flat = (flat.int_repr() if flat.is_quantized else flat).flatten()
    some = flat[:: max(1, len(flat) // PROBES)]
    return bytes(some.contiguous().view(torch.uint8).cpu().numpy().data)


def _forget(key: int, gone: Any) -> None:
    _known.pop(key, None)


def _hashed(value: Tensor) -> str:
    try:
        flat = value.detach()
        flat = (flat.int_repr() if flat.is_quantized else flat).contiguous().cpu().reshape(-1)
        return hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=16).hexdigest()
    except (RuntimeError, TypeError):  # meta tensors, and subclasses that cannot be read so
        inner = getattr(value, "__tensor_flatten__", None)
        if inner is None:
            return "unread"
        names, context = inner()
        return str([_hashed(getattr(value, n)) for n in names]) + str(context)
