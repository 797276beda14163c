"""One digest of what a callable computes with: the weights in it, wherever an object, a closure or a function's globals hold them."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
from torch import Tensor, nn

from secondlook.adapters.weights import tensor_digest

DEPTH = 6  # objects within objects that are looked into
PLAIN = (bool, int, float, complex, str, bytes, Path)


def weights_digest(thing: Any) -> str:
    """sha256 over parameters, buffers, tensors, arrays and plain values in ``thing``, read afresh each time. Equal values give equal
    digests; whether a module trains does not count."""
    digest = hashlib.sha256()
    for line in _lines("", thing, 0, set()):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _lines(at: str, value: Any, depth: int, met: set[int]) -> Iterator[str]:
    if value is None or isinstance(value, PLAIN):
        yield f"{at} {value!r}"
    elif isinstance(value, Tensor):
        yield f"{at} {list(value.shape)} {value.dtype} {tensor_digest(value)}"
    elif isinstance(value, np.ndarray) and value.dtype != object:
        yield f"{at} {value.shape} {value.dtype} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    elif id(value) not in met and depth < DEPTH:
        met = met | {id(value)}
        yield f"{at} {type(value).__qualname__}"
        for name, part in _parts(value):
            yield from _lines(f"{at}.{name}", part, depth + 1, met)
    else:
        yield f"{at} {type(value).__qualname__}"


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object consists of, by names, in an order that does not change."""
    if isinstance(value, nn.Module):
        yield from value.named_parameters()
        yield from value.named_buffers()
        for name, module in value.named_modules():
            plain = {k: v for k, v in vars(module).items() if k != "training" and not k.startswith("_")}
            yield from ((f"{name}.{k}", v) for k, v in sorted(plain.items()) if _is_data(v))
    elif isinstance(value, functools.partial):
        yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
    elif isinstance(value, MethodType):
        yield from (("name", value.__name__), ("self", value.__self__))
    elif inspect.isfunction(value):
        read = inspect.getclosurevars(value)
        yield from (("defaults", value.__defaults__), ("more", value.__kwdefaults__))
        yield from ((k, v) for k, v in sorted({**read.globals, **read.nonlocals}.items()) if not _is_code(v))
    elif isinstance(value, Mapping):
        yield from sorted((str(k), v) for k, v in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((str(i), v) for i, v in enumerate(value))
    elif isinstance(value, (set, frozenset)):
        yield "set", sorted(map(repr, value))
    elif not inspect.isclass(value) and not inspect.ismodule(value):
        yield from sorted(getattr(value, "__dict__", {}).items())


def _is_data(value: Any) -> bool:
    flat = value if isinstance(value, (list, tuple)) else (value,)
    return all(v is None or isinstance(v, (*PLAIN, Tensor, np.ndarray)) for v in flat)


def _is_code(value: Any) -> bool:
    return inspect.ismodule(value) or inspect.isclass(value) or inspect.isbuiltin(value)
