"""Where the networks of judges come from: a folder, or the hub's id. Each is loaded once and shared by all judges of a process."""

from __future__ import annotations

import hashlib
import json
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.adapters.logs import caught
from secondlook.errors import ConfigError, DamagedError, MissingExtra, nearest
from secondlook.notes import note

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SPARE = 2**30  # bytes that must be left free on a device beside a judge's weights and half of them again
TOKENS = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer_config.json", "spiece.model")


class Held:
    """A network, and where it works. Judges that name the same weights, dtype and device hold one and the same."""

    def __init__(self, network: nn.Module, device: str):
        self.network = network.requires_grad_(False).eval()
        self.asked, self.lock = device, threading.RLock()
        self.near: torch.device | None = None
        self.place: torch.device | None = None

    def settle(self) -> torch.device:
        """The device to work on: the one asked for; with "auto" the generator's, or the first accelerator where no generator is known,
        if half as much again as the weights and a gigabyte are free there, and else the CPU."""
        if self.place is None:
            wanted = self._wanted()
            need = 3 * sum(p.numel() * p.element_size() for p in self.network.parameters()) // 2 + SPARE
            if self.asked == "auto" and wanted.type == "cuda" and torch.cuda.mem_get_info(wanted)[0] < need:
                note(f"A judge of {need / 1e9:.1f} GB does not fit beside the generator on {wanted}, so it works on the CPU; "
                     "device='cuda' with offload=True has it take turns there.")  # fmt: skip
                wanted = torch.device("cpu")
            self.place = wanted
        return self.place

    def _wanted(self) -> torch.device:
        if self.asked != "auto":
            return torch.device(self.asked)
        if self.near is not None:
            return self.near
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")

    @contextmanager
    def on(self, offload: bool = False) -> Iterator[torch.device]:
        """The network on its device, for one caller at a time; with ``offload`` it goes back to the CPU afterwards."""
        with self.lock:
            place = self.settle()
            if next(self.network.parameters()).device != place:
                self.network.to(place)
            try:
                yield place
            finally:
                if offload and place.type != "cpu":
                    self.network.to("cpu")


_held: weakref.WeakValueDictionary[tuple[Any, ...], Held] = weakref.WeakValueDictionary()
_holding = threading.RLock()


def share(key: tuple[Any, ...], device: str, make: Callable[[], nn.Module]) -> Held:
    """The network of that key, made where no judge of this process holds it."""
    refuse_device(device)
    with _holding:
        found = _held.get((*key, device))
        if found is None:
            found = _held[(*key, device)] = Held(make(), device)
        return found


def refuse_device(device: str) -> None:
    """ConfigError for a device that is not there."""
    if device == "auto":
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(
            f'device="{device}" cannot be used here ({reason}); it is auto, cpu, cuda, cuda:N or mps.'
        ) from None


def dtype_of(name: str) -> torch.dtype:
    """ConfigError for a dtype that a judge cannot have."""
    if name not in DTYPES:
        raise ConfigError(f'There is no dtype "{name}" here; {nearest(name, DTYPES)}')
    return DTYPES[name]


def transformers() -> Any:
    """The package; MissingExtra where it is not installed."""
    try:
        import transformers as package
    except ImportError as error:
        raise MissingExtra(
            f"Judges with published weights need transformers ({error}): pip install 'secondlook[hub]'"
        ) from None
    return package


@contextmanager
def unwatched() -> Iterator[None]:
    """Without transformers' progress bars where nobody watches a terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def split(model: str) -> tuple[str, str | None]:
    """A folder, or a hub id with its revision where one is written: OWNER/NAME@REVISION."""
    if Path(model).exists():
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


def fetched(what: str, model: str, get: Callable[..., Any]) -> Any:
    """What ``get(name, **revision)`` gives, its errors in one sentence. what: the option in which it was named, as in `clip(model`."""
    name, revision = split(model)
    try:
        with caught(), unwatched():
            return get(name, **({} if revision is None else {"revision": revision}))
    except (ConfigError, DamagedError, MissingExtra):
        raise
    except Exception as error:  # the hub's, the network's and the file formats' own kinds
        raise ConfigError(_why(what, name, revision, error)) from None


def _why(what: str, name: str, revision: str | None, error: Exception) -> str:
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder="…").rstrip(".")
    if Path(name).exists():
        return f'"{name}" cannot be read as {what} ({reason}). Copy the folder whole, or save the model again.'
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        return f'There is no folder "{name}" for {what}, and it is no hub id either (OWNER/NAME).'
    at = f" --revision {revision}" if revision else ""
    return (f'"{name}" is not on this machine and cannot be fetched ({reason}). Where there is a network, `hf download {name}{at} --local-dir DIR` fetches '
            f"it; then name the folder, {what}='DIR').")  # fmt: skip


def identity(what: str, model: str) -> tuple[str, ...]:
    """What tells weights apart: a folder's files with their sizes and times, or the id and the commit that it stands for."""
    name, _ = split(model)
    path = Path(name)
    if path.is_file():
        return (str(path.resolve()), _stamp(path))
    if path.is_dir():
        return (str(path.resolve()), *(f"{f.name} {_stamp(f)}" for f in sorted(path.iterdir()) if f.is_file()))
    file = fetched(what, model, lambda n, **r: transformers().utils.cached_file(n, "config.json", **r))
    return (name, Path(file).parent.name)  # the hub's cache keeps a folder a commit


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


def network(what: str, model: str, kind: str, dtype: str, device: str) -> Held:
    """The network of class ``kind`` of transformers that a folder or hub id holds. ConfigError where weights lack or do not fit."""
    number = dtype_of(dtype)

    def make() -> nn.Module:
        cls = getattr(transformers(), kind)
        found, facts = fetched(
            what, model, lambda n, **r: cls.from_pretrained(n, dtype=number, output_loading_info=True, **r)
        )
        lacking = [*facts["missing_keys"], *(k[0] for k in facts["mismatched_keys"])]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise ConfigError(f'"{model}" is no {kind} with all its weights: {sorted(lacking)[0]}{more} is not there or has another shape. '
                              f"Name weights of that kind for {what}.")  # fmt: skip
        return found

    return share((kind, *identity(what, model), dtype), device, make)


def processor(what: str, model: str) -> Any:
    """The image processor saved beside weights, with its PIL backend."""
    return fetched(what, model, lambda n, **r: transformers().AutoImageProcessor.from_pretrained(n, backend="pil", **r))


def tokenizer(what: str, model: str) -> Any:
    """The tokenizer saved beside weights."""
    return fetched(what, model, lambda n, **r: transformers().AutoTokenizer.from_pretrained(n, **r))


def beside(model: str, default: str, files: tuple[str, ...]) -> str:
    """Where a processor or tokenizer lies: in the weights' own folder where it has one of ``files``, else at ``default``."""
    folder = Path(model)
    own = folder if folder.is_dir() else folder.parent
    return str(own) if folder.exists() and any((own / f).exists() for f in files) else default


def file_of(what: str, model: str, names: tuple[str, ...]) -> Path:
    """A weights file: ``model`` itself, the only one in its folder that ends as ``names`` allow or is named so, or the hub's first of ``names``."""
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        found = [path / n for n in names if (path / n).is_file()] or sorted(
            f for f in path.iterdir() if f.suffix in (".safetensors", ".pth", ".pt", ".bin")
        )
        if len(found) != 1:
            raise ConfigError(f'The folder "{path}" holds {len(found)} weights files for {what}; name the file.')
        return found[0]

    def get(name: str, **revision: Any) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, names[0], **revision))

    found_there: Path = fetched(what, model, get)
    return found_there


def state_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, never by running its pickle; one folder deep under "state_dict", and without "module.".
    DamagedError for what cannot be read so."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors' and torch's own kinds
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder="…")
        raise DamagedError(f'The weights "{path}" cannot be read without running code in them ({reason}).') from None
    inner = found.get("state_dict", found) if isinstance(found, dict) else {}
    tensors = (
        {str(k).removeprefix("module."): v for k, v in inner.items() if isinstance(v, Tensor)}
        if isinstance(inner, dict)
        else {}
    )
    if not tensors:
        raise DamagedError(f'The file "{path}" holds no tensors by name.')
    return tensors


def filled(module: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """``module`` with all weights of ``state`` and no other; ConfigError naming the first that does not fit."""
    own = module.state_dict()
    odd = sorted((own.keys() ^ state.keys()) | {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape})
    if odd:
        raise ConfigError(
            f'"{path}" does not fit a {type(module).__name__}: {odd[0]} ({len(odd)} in all) is not there, of another shape, or not known.'
        )
    module.load_state_dict(state)
    return module


def words_digest(some: Any) -> str:
    """The digest of a tokenizer's rules and words."""
    backend = getattr(some, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else sorted(some.get_vocab().items())
    if isinstance(rules, dict):
        rules = {k: v for k, v in rules.items() if k not in ("padding", "truncation")}  # set again at every call
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
