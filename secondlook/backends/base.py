"""What a search needs of whoever draws: a backend. Worlds and pipelines implement it, and nothing else knows which is which."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeGuard, runtime_checkable

from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.flow.guidance import AutoGuidance, ClassifierFree, Guide, Network, Null, Plain
from secondlook.settings import Settings, flag
from secondlook.types import Condition, Verifier

COMMON = frozenset({
    "plan", "verifier", "critic", "comparer", "select", "window", "patience", "split", "world", "model", "steps", "solver", "guidance", "shift",
    "seed", "rows", "pad", "threads", "device", "cfg_channels", "cfg_interval", "until", "keep", "keyed", "seeds",
})  # fmt: skip


GUIDES = ("sharpness", "brightness", "compressibility")  # what needs no download; the first guides where none is named


@runtime_checkable
class Backend(Protocol):
    """name: the world's name, or "diffusers". takes: the options beyond the common ones that mean something here."""

    @property
    def name(self) -> str: ...

    @property
    def takes(self) -> frozenset[str]: ...

    def condition(self, text: str) -> Condition:
        """A request's text as a condition; ConfigError for what cannot be asked for."""
        ...

    def usual(self, s: Settings) -> dict[str, Any]:
        """What is left open in ``s``, as it is usually chosen here."""
        ...

    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        """The rig that filled settings describe; reads weights, so damaged files show here. Without ``scoring`` it has no
        judges either."""
        ...

    def verifier(self, name: str) -> Verifier | None:
        """The backend's own verifier of that name; None where the name is not one. ConfigError for one that it cannot have."""
        ...

    def exact(self, verifier: Verifier | None) -> bool:
        """Whether a verifier is the exact checker; a search that it guides is labelled oracle."""
        ...

    def digests(self) -> dict[str, str]:
        """Of everything that decides a run besides its settings."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain values for the run's record, that with the settings load this backend again; empty where those say it all."""
        ...

    def session(self) -> AbstractContextManager[Any]:
        """Entered while a run works: what is borrowed from a user is given back at its end."""
        ...

    def metadata(self, prompt: str) -> dict[str, Any]:
        """GenEval's line of a prompt."""
        ...


def is_backend(model: Any) -> TypeGuard[Backend]:
    """Whether what was given as a model is a backend itself: one of a user's own, or one made before."""
    return isinstance(model, Backend) and not isinstance(model, type)


def refuse_foreign(backend: Backend, given: Sequence[str], called: str) -> None:
    """ConfigError for options that mean nothing to a backend."""
    for name in given:
        if name not in COMMON and name not in backend.takes:
            raise ConfigError(f"{flag(name)} means nothing to {called}; leave it out.")


def guide_of(s: Settings, null: Any, channels: int, weak: Network | None = None) -> Guide:
    """The guide that settings ask for. null: gives the unconditional encoding (called only where it is needed); channels: the
    sample's; weak: the network of autoguidance."""
    if s.cfg_channels is not None and s.cfg_channels > channels:
        raise ConfigError(f"--cfg-channels must be at most {channels}, this model's; got {s.cfg_channels}.")
    if weak is not None:
        return AutoGuidance(2.0 if s.weak_scale is None else s.weak_scale, weak, s.cfg_interval)
    if s.guidance in (None, 1.0):
        if s.cfg_channels is not None or s.cfg_interval is not None:
            raise ConfigError("--cfg-channels and --cfg-interval need a guidance: --guidance SCALE (--cfg SCALE).")
        return Plain()
    held = Null(null())
    assert s.guidance is not None
    return ClassifierFree(s.guidance, held.join, held.null, s.cfg_channels, s.cfg_interval)


def refuse_guide(name: Any) -> None:
    """ConfigError for the verifiers of the built-in worlds."""
    if name in ("learned", "judge", "oracle"):
        raise ConfigError(f'"{name}" belongs to the built-in worlds. A pipeline is guided by {", ".join(GUIDES)}, or by your own: '
                          "package.module:attribute.")  # fmt: skip
