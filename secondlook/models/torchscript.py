"""The tensors of a TorchScript file, read as data: no line of the program in it is compiled or run.

The format (PyTorch's documentation of serialization, "TorchScript Format for torch.jit.save"): a zip with ``data.pkl``, a pickle
of the modules' attributes, and ``data/N``, each tensor's bytes. The pickle may name the classes below and nothing else.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secondlook.errors import DamagedError

_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16, "CharStorage": torch.int8,
    "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_LISTS = ("build_intlist", "build_boollist", "build_doublelist", "build_tensorlist")
_LITTLE = b"little"


class _Part:
    """A scripted module: its attributes, and nothing that it could do."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip that holds TorchScript's constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as held:
        return any(n.endswith("/constants.pkl") for n in held.namelist())


def tensors(path: Path) -> dict[str, Tensor]:
    """Names, joined by dots, and tensors of all modules, in the order in which they were defined. DamagedError for what is not
    TorchScript, is broken, or names anything but modules and tensors."""
    try:
        with zipfile.ZipFile(path) as held:
            root = next(n for n in held.namelist() if n.endswith("/data.pkl"))[: -len("data.pkl")]
            if f"{root}byteorder" in held.namelist() and held.read(f"{root}byteorder") != _LITTLE:
                raise pickle.UnpicklingError("its numbers are big-endian")
            found = _Reader(held, root).load()
    except (OSError, KeyError, StopIteration, EOFError, RuntimeError, ValueError, TypeError, AttributeError, IndexError, zipfile.BadZipFile,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DamagedError(
            f'"{path}" cannot be read as the tensors of a TorchScript file ({reason}); nothing in it was run.'
        ) from None
    return dict(_flat(found, ""))


def _flat(value: Any, at: str) -> list[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        return [(at, value)]
    if not isinstance(value, _Part):
        return []
    return [pair for k, v in vars(value).items() for pair in _flat(v, f"{at}.{k}" if at else k)]


class _Reader(pickle.Unpickler):
    """Knows modules, tensors and ordered dictionaries; refuses every other name."""

    def __init__(self, held: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(held.read(f"{root}data.pkl")))
        self._held, self._root = held, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Part
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not str(key).isalnum():
            raise pickle.UnpicklingError("it holds what is no storage")
        data = bytearray(self._held.read(f"{self._root}data/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=count)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset).clone()
