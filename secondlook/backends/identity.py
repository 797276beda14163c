"""What makes a judge the same one when a run goes on: its code, and what it was made with.

Comments, docstrings and spelling of code do not count. Of an object's attributes those count that can be read: plain values and
collections of them, arrays, tensors and networks. They are read when the object is first met, so that what it remembers of
its own work does not make another judge of it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import sys
import textwrap
import weakref
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

_met: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def code_of(thing: Any) -> str | None:
    """The digest of the code of an object's class, or of a function; None for this package's own, and where there is no source.

    Of an imported module the whole file counts, of a script that is run the class or function alone."""
    thing = thing.func if isinstance(thing, functools.partial) else thing
    kind = thing if inspect.isfunction(thing) else type(thing)
    if kind.__module__.split(".")[0] == "secondlook":
        return None
    path = getattr(sys.modules.get(kind.__module__), "__file__", None)
    try:
        if kind.__module__ == "__main__" or path is None:
            return _digest(textwrap.dedent(inspect.getsource(kind)))
        file = Path(path)
        return _digest(file.read_text()) if file.suffix == ".py" else hashlib.sha256(file.read_bytes()).hexdigest()
    except (OSError, TypeError, SyntaxError, ValueError):
        return None


def settings_of(thing: Any) -> str:
    """The digest of what an object was made with, as far as that can be read."""
    try:
        if thing not in _met:
            _met[thing] = _state(thing)
        return _met[thing]
    except TypeError:  # not hashable, or nothing that can be pointed to weakly
        return _state(thing)


@lru_cache(maxsize=64)
def _digest(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body[0] = ast.Pass()  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _state(thing: Any, depth: int = 0) -> str:
    digest = hashlib.sha256(type(thing).__qualname__.encode())
    for line in _lines(thing, depth):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _lines(thing: Any, depth: int) -> Iterator[str]:
    if isinstance(thing, nn.Module):
        for key, value in sorted(thing.state_dict().items()):
            yield f"{key} {_seen(value, depth)}"
    if isinstance(thing, functools.partial):
        yield str(_seen([thing.func.__qualname__, thing.args, thing.keywords], 0))
    if inspect.isfunction(thing):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        yield str(_seen([thing.__qualname__, thing.__defaults__, thing.__kwdefaults__, cells], 0))
    for key, value in sorted(getattr(thing, "__dict__", {}).items()):
        yield f"{key} {_seen(value, depth)}"


def _seen(value: Any, depth: int) -> str:
    """What is seen of a value: equal values look equal, and what cannot be read looks like its kind."""
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Path)):
        return repr(value)
    if isinstance(value, nn.Module):
        return str([f"{k} {_seen(v, depth + 1)}" for k, v in sorted(value.state_dict().items())])
    if isinstance(value, Tensor):
        from secondlook.adapters.weights import tensor_digest

        return f"{list(value.shape)} {value.dtype} {tensor_digest(value)}"
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"{value.shape} {value.dtype} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if callable(value) and not isinstance(value, type) and isinstance(getattr(value, "name", None), str):
        return _state(value, depth + 1) if depth < 4 else type(value).__qualname__  # a judge inside another
    if depth < 4 and isinstance(value, Mapping):
        return json.dumps(sorted((_seen(k, depth + 1), _seen(v, depth + 1)) for k, v in value.items()))
    if depth < 4 and isinstance(value, Set):
        return json.dumps(sorted(_seen(v, depth + 1) for v in value))
    if depth < 4 and isinstance(value, Sequence):
        return json.dumps([_seen(v, depth + 1) for v in value])
    return type(value).__qualname__
