"""Generators from outside as backends: a diffusers pipeline, or SiT weights with an autoencoder, held by an adapter.

Such a run's world is "diffusers": free prompts (or a pipeline's classes), no exact checker, no verifier of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secondlook.backends.base import GUIDES, guide_of, refuse_guide
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.notes import note
from secondlook.settings import Settings, make_named
from secondlook.types import Condition, Verifier

if TYPE_CHECKING:
    from secondlook.adapters.base import Adapter

NAME = "diffusers"
LOADING = (
    "height",
    "width",
    "negative",
    "tokens",
    "true_guidance",
    "free_text",
    "lora",
    "offload",
    "dtype",
    "device",
    "adapter",
    "vae",
)
ELSEWHERE = ("device", "free_text", "offload", "settings")  # a run may go on with others
ROWS = 8


class Pipeline:
    """held: the adapter."""

    name = NAME
    takes = frozenset(LOADING)

    def __init__(self, held: Adapter):
        self.held = held

    @property
    def classes(self) -> int | None:
        """How many classes it draws, where it draws classes."""
        return getattr(getattr(self.held, "config", None), "classes", None)

    def condition(self, text: str) -> Condition:
        return self.held.condition(text)

    def usual(self, s: Settings) -> dict[str, Any]:
        of_pipeline = self.held.usual()
        steps = s.steps or of_pipeline["steps"]
        if s.verifier is None:
            note(f"No verifier was named, so {GUIDES[0]} guides, which needs no download, and none reads the prompt until one that does is named: "
                 "try pickscore, imagereward or clip first (--verifier pickscore; verifier=... in Python; docs/judges.md).")  # fmt: skip
        return {"world": NAME, "model": self.held.name, "pipeline": self.held.describe(), "steps": steps, "guidance": of_pipeline["guidance"],
                "rows": ROWS, "bf16": False, "verifier": GUIDES[0], "threads": torch.get_num_threads(),
                "solver": s.solver or self.held.schedule(steps, s.shift).solver}  # fmt: skip

    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        held, guidance = self.held, float(1.0 if s.guidance is None else s.guidance)
        schedule = held.schedule(int(s.steps or 1), s.shift)
        network = held.network(schedule, guidance)
        scaled = Settings(guidance=held.scale(guidance), cfg_channels=s.cfg_channels, cfg_interval=s.cfg_interval)
        with torch.no_grad():
            given = guide_of(scaled, lambda: held.encode(None), int(network.shape[0]))
        judges = {n: make_named("verifier", n) for n in GUIDES if guide is None or n != guide.name} if scoring else {}
        pad = held.compiled() if s.pad is None else s.pad
        decode = Singly(held.decode) if pad else held.decode
        return Rig(
            Flow(network, schedule.path, given), make_named("solver", str(s.solver)), schedule.times, held.encode, decode, guide, judges,
            rows=s.rows or ROWS, pad=pad, scale=schedule.scale, settle=held.settle, device=held.device,
            beside=_apart(held), grids=Grids(held, s.shift, schedule.times[0]), pixels=None if _hooked(held) else held.pixels,
        )  # fmt: skip

    def verifier(self, name: str) -> Verifier | None:
        refuse_guide(name)
        return None

    def exact(self, verifier: Verifier | None) -> bool:
        return False

    def digests(self) -> dict[str, str]:
        return {"model": self.held.digest()}

    def describe(self) -> dict[str, Any]:
        return self.held.describe()

    def session(self) -> AbstractContextManager[Any]:
        session: Callable[[], AbstractContextManager[Any]] = getattr(self.held, "session", nullcontext)
        return session()

    def metadata(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt}


@dataclass
class Grids:
    """Other grids of a pipeline's schedule by their number of steps. All begin where the run's does: noise is put there."""

    held: Adapter
    shift: float | None
    begin: float
    _known: dict[int, tuple[float, ...]] = field(default_factory=dict, repr=False)

    def __call__(self, steps: int) -> tuple[float, ...]:
        if steps not in self._known:
            self._known[steps] = (self.begin, *self.held.schedule(steps, self.shift).times[1:])
        return self._known[steps]


def _apart(held: Any) -> bool:
    """Whether the decoder may work beside the network: on a device that is not the CPU, and not ``_hooked``."""
    return held.device.type != "cpu" and not _hooked(held)


def _hooked(held: Any) -> bool:
    """Whether hooks move network or decoder out of the way when the other is called."""
    hooks = ("_hf_hook", "_diffusers_hook")
    return any(hasattr(p, h) for p in (held.module, held.pipe.vae) for h in hooks)


@dataclass(frozen=True)
class Singly:
    """A decoder asked one row at a time, so that a picture's bits do not depend on company there either."""

    inner: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self.inner(row) for row in torch.split(x, 1)])


def hold(model: Any, s: Settings) -> Pipeline:
    """The backend of a pipeline object, its folder or hub id, SiT weights with an autoencoder, or an adapter."""
    from secondlook.adapters.base import Adapter
    from secondlook.adapters.load import load

    given = {name: v for name in LOADING if (v := getattr(s, name)) is not None}
    if s.bf16:
        raise ConfigError(
            "--bf16 belongs to the built-in worlds; a pipeline runs in the dtype it was loaded in: --dtype bfloat16."
        )
    refuse_guide(s.verifier)
    if isinstance(model, Adapter):
        if given:
            raise ConfigError(f"This model is loaded already; give {next(iter(given))} to secondlook.load.")
        return Pipeline(model)
    for name in ("lora", "vae"):  # recorded so that a run goes on from any folder
        if name in given and Path(str(given[name])).exists():
            given[name] = str(Path(str(given[name])).resolve())
    return Pipeline(load(model, **given))


def again(s: Settings, model: Any, device: str | None) -> Pipeline:
    """The backend of a recorded run: ``model`` where one is held, else loaded as it was, onto ``device``. ConfigError where it is
    not the same."""
    from secondlook.adapters.base import Adapter
    from secondlook.adapters.load import load

    recorded = {k: v for k, v in s.pipeline.items() if k != "device"}
    if model is None:
        if not s.model:
            raise ConfigError("This run was drawn with a pipeline object that came from no folder; give it again: "
                              "secondlook.resume(out, model=pipe).")  # fmt: skip
        known = {k: recorded[k] for k in LOADING if recorded.get(k) is not None}
        held = load(s.model, **known, **({} if device is None else {"device": device}))
    elif isinstance(model, Adapter):
        held = model
    else:
        named = LOADING if isinstance(model, (str, Path)) else (*LOADING[:6], "adapter")  # an object has the rest on it
        held = load(model, **{k: recorded[k] for k in named if recorded.get(k) is not None})
    now, flat = held.describe(), {**recorded, **recorded.get("settings", {})}
    now = {**now, **now["settings"]}
    for key, had in flat.items():
        if now.get(key) != had and key not in ELSEWHERE:
            raise ConfigError(f"This run was drawn with {key.replace('_', ' ')} {had}, the model now has {now.get(key)}; load it "
                              "as it was.")  # fmt: skip
    return Pipeline(held)
