"""A network of a user's own as a backend: ``secondlook.own(network, path)`` for ``draw``, ``resume``, ``replay`` and the report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.backends.base import guide_of
from secondlook.backends.identity import code_of
from secondlook.backends.own import Grids, Shown
from secondlook.backends.weights_of import weights_digest
from secondlook.calls import bind, parse_call
from secondlook.disk.team import usable
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError, ShapeError, nearest
from secondlook.flow.estimate import Flow
from secondlook.flow.path import KINDS, PATHS, Kind, Path
from secondlook.registry import WORLDS
from secondlook.settings import Settings, make_named
from secondlook.types import Condition, Verifier

TAKEN = (*WORLDS, "diffusers", "latents", "weights")  # names by which a recorded run is found again
STEPS = 40


class Rows:
    """Encodings of n rows in one tensor [n, ...]."""

    def __init__(self, value: Tensor):
        self.value = value

    def rows(self, index: Sequence[int]) -> Rows:
        return Rows(self.value[list(index)])

    @staticmethod
    def stack(items: Sequence[Rows]) -> Rows:
        shapes = {tuple(i.value.shape[1:]) for i in items}
        if len(shapes) > 1:
            raise ShapeError(f"encode gave rows of different shapes, {', '.join(map(str, sorted(shapes)))}; pad them to one, or return an "
                             "object with rows(index) and stack(items).")  # fmt: skip
        return Rows(torch.cat([i.value for i in items]))


class Nothing:
    """The encoding of a network that reads none, for as many rows as are asked for."""

    def rows(self, index: Sequence[int]) -> Nothing:
        return self

    @staticmethod
    def stack(items: Sequence[Nothing]) -> Nothing:
        return items[0]


@dataclass(frozen=True)
class Told:
    """A ``Network`` around the user's callable, which sees the encoding it returned itself, or none."""

    call: Callable[..., Tensor]
    predicts: Kind
    shape: tuple[int, ...]

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        more = () if isinstance(cond, Nothing) else (cond.value if isinstance(cond, Rows) else cond,)
        found = self.call(x, t, *more)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError(
                f"The network was given x {list(x.shape)} and must return a tensor of that shape; got {got}."
            )
        return found.to(x.dtype)


@dataclass(frozen=True)
class Checked:
    """A decoder whose pictures are looked at: uint8 [B, H, W, 1 or 3] for x [B, *S]."""

    inner: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        found = self.inner(x)
        if (
            not isinstance(found, Tensor)
            or found.dtype != torch.uint8
            or found.ndim != 4
            or len(found) != len(x)
            or found.shape[3] not in (1, 3)
        ):
            got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ShapeError(f"decode must return uint8 pictures [{len(x)}, H, W, 3] (or one channel); got {got}.")
        return found


def to_bytes(x: Tensor) -> Tensor:
    """x [B, C, H, W] in [-1, 1] to uint8 [B, H, W, C]; what lies outside is cut."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class OwnNetwork:
    """What ``own`` returns. Conditions are the requests' texts."""

    takes = frozenset({"interval", "eps", "last_step"})
    mend = "Give the network, path, encode and decode that it began with (model=secondlook.own(...))"

    def __init__(
        self,
        network: Told,
        path: Path,
        encode: Callable[[str | None], Any] | None,
        decode: Callable[[Tensor], Tensor],
        name: str,
    ):
        self.name, self.network, self.path, self.encode, self.decode = name, network, path, encode, decode
        self._rows = functools.lru_cache(maxsize=512)(self._encoded)

    def condition(self, text: str) -> Condition:
        if self.encode is not None:
            self._rows(text)  # what the encoder refuses is refused before a run's folder is made
        return Condition(text)

    def encoding(self, condition: Condition | None) -> Any:
        """One row; the null one for None."""
        return Nothing() if self.encode is None else self._rows(None if condition is None else condition.prompt)

    def _encoded(self, text: str | None) -> Any:
        assert self.encode is not None
        with torch.no_grad():
            found = self.encode(text)
        if isinstance(found, Tensor) and found.ndim >= 1 and len(found) == 1:
            return Rows(found)
        if hasattr(found, "rows") and hasattr(type(found), "stack"):
            return found
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(
            f"encode({text!r}) must return a tensor of one row [1, ...], or an object with rows(index) and stack(items); got {got}."
        )

    def usual(self, s: Settings) -> dict[str, Any]:
        return {"world": self.name, "steps": STEPS, "solver": "euler", "verifier": "sharpness", "rows": 16, "pad": True,
                "threads": torch.get_num_threads()}  # fmt: skip

    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        if self.encode is None and s.guidance not in (None, 1.0):
            raise ConfigError("Guidance needs a network that reads a condition, and its null one: give own(..., encode=...), with encode(None) "
                              "the null row, or leave guidance out.")  # fmt: skip
        device = self._device(s.device)
        given = guide_of(s, lambda: self.encoding(None), int(self.network.shape[0]))
        grids = Grids(s, self.path, self.path.name, self.network.predicts)
        solver = make_named("solver", str(s.solver))
        return Rig(
            Flow(self.network, self.path, given), solver, grids(int(s.steps or 1)), self.encoding, Shown(Checked(self.decode)), guide,
            rows=s.rows or 16, pad=s.pad is not False, grids=grids, device=device,
        )  # fmt: skip

    def _device(self, asked: str | None) -> torch.device:
        """Where the rows lie: where the network's weights are. They are the user's, and stay there."""
        first = next(self.network.call.parameters(), None) if isinstance(self.network.call, nn.Module) else None
        if first is None:
            return usable(asked or "cpu")
        if asked is not None and usable(asked).type != first.device.type:
            raise ConfigError(
                f'The network lies on {first.device}, and the run was asked for on "{asked}"; move it there first: network.to("{asked}").'
            )
        return first.device

    def verifier(self, name: str) -> Verifier | None:
        if name in ("learned", "judge", "oracle"):
            raise ConfigError(f'"{name}" belongs to the built-in worlds. Your own network is guided by sharpness, brightness, compressibility, or by a '
                              "verifier of your own.")  # fmt: skip
        return None

    def exact(self, verifier: Verifier | None) -> bool:
        return False

    def digests(self) -> dict[str, str]:
        parts = {"network": self.network.call, "encode": self.encode, "decode": self.decode, "path": self.path}
        weights = {role: weights_digest(part) for role, part in parts.items() if part is not None}
        code = {f"{role} (code)": code for role, part in parts.items() if (code := _code(part)) is not None}
        about = (
            f"{self.network.predicts} {self.network.shape} {self.path!r}"
            if isinstance(self.path, _NAMED)
            else f"{self.network.predicts} {self.network.shape}"
        )
        return {**weights, **code, "about": about}

    def describe(self) -> dict[str, Any]:
        return {}

    def session(self) -> AbstractContextManager[Any]:
        return _settled(self.network.call)

    def metadata(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt}


_NAMED = tuple(PATHS.values())


def _code(part: Any) -> str | None:
    """The digest of the code of a part that is not PyTorch's: that of a bound method is its object's."""
    owner = getattr(part, "__self__", part)
    kind = type(owner)
    return None if part is None or kind.__module__.split(".")[0] == "torch" else code_of(owner)


@contextmanager
def _settled(network: Any) -> Iterator[None]:
    """A module without dropout and the like while a run works; each part is given back as it was."""
    parts = [(m, m.training) for m in network.modules()] if isinstance(network, nn.Module) else []
    for module, _ in parts:
        module.training = False
    try:
        yield
    finally:
        for module, was in parts:
            module.training = was


def own(
    network: Callable[..., Tensor],
    path: str | Path = "linear",
    *,
    predicts: str | None = None,
    shape: Sequence[int] | None = None,
    encode: Callable[[str | None], Any] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    name: str = "own",
) -> OwnNetwork:
    """Your own network for ``secondlook.draw(..., model=own(...))``, and again for ``resume`` and ``replay``.

    network: (x [B, *shape] float32, t [B]) to a prediction like x; with ``encode`` it gets the rows' encodings as a third argument.
    Time runs from 0, noise, to 1, data. path: "linear", "gvp", "vp" or "vp(low=0.1, high=20.0)", or an object with ``name`` and
    ``coefs(t)`` (``secondlook.flow.path.Path``). predicts: "velocity", "noise", "data" or "logp_grad"; shape: of one sample, without the
    batch; both may be attributes of the network. encode: a request's text to one row [1, ...], and None to the null row, which
    guidance needs; without it the network is unconditional, and requests are only names. decode: x [B, *shape] to uint8
    [B, H, W, 3 or 1]; by default shape is [3 or 1, H, W] with values in [-1, 1]. name: in the run's record.

    The weights are part of what a run remembers: going on with others is refused. A module lies and stays where it is; while a run works it
    is in eval mode. Raises ConfigError for what does not fit.
    """
    if not callable(network) or isinstance(network, type):
        raise ConfigError(
            f"own expects a network that can be called with (x, t); got {network if isinstance(network, type) else type(network).__name__}."
        )
    said = predicts if predicts is not None else getattr(network, "predicts", None)
    if said not in KINDS:
        raise ConfigError(f"own expects predicts, one of {', '.join(KINDS)}; got {said!r}.")
    sized = shape if shape is not None else getattr(network, "shape", None)
    if not isinstance(sized, Sequence) or not sized or not all(isinstance(n, int) and n > 0 for n in sized):
        raise ConfigError(
            f"own expects shape, that of one sample without the batch, such as (3, 64, 64); got {sized!r}."
        )
    if decode is None and not (len(sized) == 3 and sized[0] in (1, 3)):
        raise ConfigError(
            f"Samples of shape {tuple(sized)} are no pictures of 1 or 3 channels [C, H, W]; give decode, from x [B, *shape] to uint8 [B, H, W, 3]."
        )
    for what, part in (("encode", encode), ("decode", decode)):
        if part is not None and not callable(part):
            raise ConfigError(f"own expects {what} to be a function; got {type(part).__name__}.")
    if not isinstance(name, str) or not name or name in TAKEN:
        raise ConfigError(f"own expects a name that is not one of {', '.join(TAKEN)}; got {name!r}.")
    told = Told(network, next(k for k in KINDS if k == said), tuple(sized))
    return OwnNetwork(told, _path(path), encode, decode or to_bytes, name)


def _path(path: Any) -> Path:
    """The path of a name or call-string, or the object itself."""
    if isinstance(path, str):
        call = parse_call(path, "path")
        if call.name not in PATHS:
            raise ConfigError(f'There is no path "{call.name}"; {nearest(call.name, PATHS)}')
        made: Path = PATHS[call.name](**bind(call, PATHS[call.name]))
        return made
    if not callable(getattr(path, "coefs", None)) or not isinstance(getattr(path, "name", None), str):
        raise ConfigError(
            f"A path is one of {', '.join(PATHS)}, or an object with name and coefs(t); got {type(path).__name__}."
        )
    return path  # type: ignore[no-any-return]
