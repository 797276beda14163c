"""This project's own networks as backends: what the worlds' backends share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, ClassVar

import torch
from torch import Tensor

from secondlook.backends.base import guide_of
from secondlook.calls import parse_call
from secondlook.disk.digests import file_digest
from secondlook.disk.team import usable
from secondlook.disk.versions import fast_bf16
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.flow.autocast import Autocast
from secondlook.flow.discrete import Discrete, respaced
from secondlook.flow.estimate import Flow
from secondlook.flow.grid import grid, spread
from secondlook.flow.guidance import Network
from secondlook.flow.interval import LAST_STEP, interval
from secondlook.flow.path import Path
from secondlook.models.checkpoint import shipped
from secondlook.models.find import weights_file
from secondlook.settings import Settings, make_named
from secondlook.types import Condition, Verifier

STOCHASTIC = ("sde", "sde_heun")  # SiT's, whose last step has a size of its own


@dataclass(frozen=True)
class Loaded:
    """A network on its device, the path it was trained on, and what encodes conditions for it (None: the null one). settled:
    its path's name and prediction, which decide where sampling may begin and end. full: what compiles."""

    network: Network
    path: Path
    encode: Callable[[Condition | None], Any]
    path_name: str
    module: Any


class Own:
    """Base of the worlds' backends. model: a shipped name, a weights file, or a folder with one (None: the world's)."""

    name: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    channels: ClassVar[int] = 3  # of pictures as the world has them; people are shown three
    takes = frozenset({"bf16", "compile", "weak", "weak_scale", "interval", "eps", "last_step"})

    def __init__(self, model: str | None = None):
        self.left_open = model is None
        self.model = model or self.name
        self.file = weights_file(self.model)
        self._weak: File | None = None

    # ---- what a world says -------------------------------------------------------------------------------------------

    def condition(self, text: str) -> Condition:
        raise ConfigError(f'Nothing can be asked for in the world "{self.name}".')

    def decode(self, x: Tensor) -> Tensor:
        """x [B, *S] to uint8 pictures [B, H, W, channels]."""
        raise ConfigError(f'Nothing is decoded in the world "{self.name}".')

    def pixels(self, x: Tensor) -> Tensor:
        """``decode`` without rounding, with a graph: x [B, *S] to floats in [0, 1], [B, H, W, 3]."""
        light = ((x.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)
        return light.expand(-1, -1, -1, 3) if light.shape[-1] == 1 else light

    def load(self, file: File, device: torch.device) -> Loaded:
        """A network from its file."""
        raise ConfigError(f'The world "{self.name}" has no networks.')

    def verifiers(self) -> Mapping[str, Callable[[], Verifier]]:
        """By the names of the registry: learned, judge, and oracle where the world has an exact checker."""
        return {}

    def checker(self) -> Verifier | None:
        """The exact checker, which then also looks on."""
        return None

    def metadata(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt}

    # ---- a backend ---------------------------------------------------------------------------------------------------

    def usual(self, s: Settings) -> dict[str, Any]:
        # A lone prompt's plan proposes few rows at once, and padding is work; many prompts fill wide batches.
        rows = 16 if len(s.prompts) >= 4 else 4
        own = self.defaults if s.weak is None else {**self.defaults, "guidance": 1.0}
        return {"world": self.name, "model": self.model, "solver": "euler", "verifier": "learned", "rows": rows, "pad": True,
                "bf16": fast_bf16(), "threads": torch.get_num_threads(), **own}  # fmt: skip

    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        device = usable(s.device or "cpu")
        held = self.load(self.file, device)
        if s.compile:
            _compile(held.module)
        network = Autocast(held.network, bool(s.bf16))
        weak = self._loaded_weak(s, device, held)
        with torch.inference_mode():
            given = guide_of(s, lambda: held.encode(None), int(network.shape[0]), weak)
        solver = make_named("solver", str(s.solver))
        grids = Grids(s, held.path, held.path_name, network.predicts)
        return Rig(
            Flow(network, held.path, given), solver, grids(int(s.steps or 1)), held.encode, Shown(self.decode), guide,
            {n: j for n, j in self.judges().items() if guide is None or n != guide.name} if scoring else {}, rows=s.rows or 16, pad=s.pad is not False, grids=grids, device=device, inference=True, pixels=self.pixels,
        )  # fmt: skip

    def _loaded_weak(self, s: Settings, device: torch.device, held: Loaded) -> Network | None:
        if s.weak is None:
            return None
        self._weak = weights_file(s.weak)
        other = self.load(self._weak, device)
        for what, mine, its in (("shape", held.network.shape, other.network.shape), ("path", held.path_name, other.path_name),
                                ("prediction", held.network.predicts, other.network.predicts)):  # fmt: skip
            if mine != its:
                raise ConfigError(f"--weak expects a model of the same task: its {what} is {its}, not {mine}.")
        return Autocast(other.network, bool(s.bf16))

    def verifier(self, name: str) -> Verifier | None:
        made = self.verifiers().get(name)
        if made is None and name == "oracle":
            raise ConfigError(f'The world "{self.name}" has no exact checker, so it has no oracle; use learned.')
        return None if made is None else made()

    def judges(self) -> dict[str, Verifier]:
        judge, checker = self.verifiers().get("judge"), self.checker()
        return {**({} if judge is None else {"judge": judge()}), **({} if checker is None else {"checker": checker})}

    def exact(self, verifier: Verifier | None) -> bool:
        checker = self.checker()
        return checker is not None and isinstance(verifier, type(checker))

    def digests(self) -> dict[str, str]:
        scoring = {role: shipped(f"{self.name}-{role}.safetensors") for role in ("verifier", "judge")}
        files = {"model": self.file, **scoring, **({} if self._weak is None else {"weak": self._weak})}
        return {role: file_digest(file) for role, file in files.items() if file.is_file()}

    def describe(self) -> dict[str, Any]:
        return {}

    def session(self) -> AbstractContextManager[Any]:
        return nullcontext()


@dataclass(frozen=True)
class Shown:
    """A decoder whose pictures have three channels: those of grey worlds three equal ones."""

    inner: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        found = self.inner(x).cpu()
        return found.expand(-1, -1, -1, 3).contiguous() if found.shape[-1] == 1 else found


@dataclass(frozen=True)
class Grids:
    """Grids of times by their number of steps, as settings have them: the whole of time, or an interval of 2401.08740."""

    settings: Settings
    path: Path
    path_name: str
    predicts: Any

    def __call__(self, steps: int) -> tuple[float, ...]:
        s, name = self.settings, parse_call(str(self.settings.solver), "solver").name
        shift = 1.0 if s.shift is None else s.shift
        if name == "dopri5" and shift != 1.0:
            raise ConfigError(f"--shift needs a solver of given steps, and dopri5 chooses its own; got --shift {shift:g}. Leave it out, or "
                              "take another solver, such as heun.")  # fmt: skip
        if s.last_step is not None and name not in STOCHASTIC:
            raise ConfigError(f"--last-step is for sde and sde_heun; got it with {name}.")
        steps = 1 if name == "dopri5" else steps
        if isinstance(self.path, Discrete) and name in ("ddpm", "ddim", "dpmpp") and shift == 1.0 and s.eps is None:
            return respaced(steps)
        if s.interval in (None, "whole") and s.eps is None and s.last_step is None:
            return grid(steps, shift)
        if name in STOCHASTIC:
            return self._stochastic(steps, shift)
        span = interval(
            self.path_name, self.predicts, "ode", preset=self._preset, eps=s.eps if s.eps is not None else self._whole
        )
        return spread(span.start, span.end, steps, shift)

    def _stochastic(self, steps: int, shift: float) -> tuple[float, ...]:
        s = self.settings
        usual = LAST_STEP if s.interval not in (None, "whole") else 0.0
        last = usual if s.last_step is None else s.last_step
        if last and steps < 2:
            raise ConfigError(f"An SDE with a last step of {last} needs at least two --steps; got {steps}.")
        span = interval(
            self.path_name,
            self.predicts,
            "sde",
            preset=self._preset,
            last=last,
            eps=s.eps if s.eps is not None else self._whole,
        )
        return spread(span.start, span.end, steps - (last > 0), shift, last)

    @property
    def _preset(self) -> str:
        return "paper" if self.settings.interval in (None, "whole") else str(self.settings.interval)

    @property
    def _whole(self) -> float | None:
        return 0.0 if self.settings.interval in (None, "whole") else None


def _compile(module: Any) -> None:
    name = "full" if hasattr(module, "full") else "forward"
    setattr(module, name, torch.compile(getattr(module, name)))
