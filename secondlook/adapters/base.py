"""What a diffusers pipeline is to a search: a network on a path, an encoding of prompts, a decoder, and usual settings.

A family's file says four things: how its text encoders are asked (``texts``), how its network is called (``ask``), the shape of
its latents and its usual settings. All else is here: devices and dtypes, the prediction's kind and sign, rows in as many as
memory holds, the autoencoder's scale, shift and overflow, what a tokenizer cut. The pipeline's own object is used
throughout, so compiled, offloaded, quantised and LoRA-patched parts stay as they are.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secondlook.adapters.borrow import borrowed
from secondlook.adapters.chunks import Chunks, fits
from secondlook.adapters.encoding import USUAL, Encoded, Options
from secondlook.adapters.logs import CUT, hushed
from secondlook.adapters.network import Network
from secondlook.adapters.schedule import Schedule, Schedules, in_force
from secondlook.adapters.truncation import note_cuts, room
from secondlook.adapters.weights import digest_of
from secondlook.errors import ConfigError, NotFinite
from secondlook.flow.path import KINDS
from secondlook.notes import note
from secondlook.types import Condition


class Adapter(ABC):
    """A pipeline held ready. ``secondlook.load`` makes one; ``draw(model=...)`` takes one."""

    family: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]]
    core: ClassVar[str] = "transformer"
    distilled: ClassVar[bool] = False  # whether ``guidance`` is shown to the network and not classifier-free
    ignores: ClassVar[tuple[str, ...]] = ()  # options that mean nothing to this family
    longest: ClassVar[int] = 16384  # of ``tokens``

    def __init__(self, pipe: Any, options: Options = USUAL):
        missing = [n for n in (*self.needs, self.core, "vae", "scheduler") if getattr(pipe, n, None) is None]
        if missing:
            raise ConfigError(
                f"This {type(pipe).__name__} has no {missing[0]}; load the pipeline with it "
                f"(from_pretrained without {missing[0]}=None)."
            )
        self.pipe, self.options = pipe, options
        self._device: torch.device | None = None
        self._dtype: torch.dtype | None = None
        self._schedules = Schedules()
        side = self.side()
        self.height, self.width = options.height or side, options.width or side
        self._refuse_size()
        self._refuse_options()
        self._decoding = Chunks("the autoencoder's decoder", max(1, 2**20 // (self.height * self.width)))
        self._running = Chunks("the network")
        self._depth = 0  # of sessions

    # ---- what a family says ----------------------------------------------------------------------------------------

    @abstractmethod
    def texts(self, prompt: str | None) -> Mapping[str, Tensor]:
        """The one-row encoding of a prompt; None is the unconditional (or negative) one."""

    @abstractmethod
    def ask(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        """The network's output for latents x [B, C, h, w] at the scheduler's levels [B], in the network's own terms."""

    def usual(self) -> dict[str, Any]:
        """steps and guidance: those of the pipeline's own call."""
        return {"steps": self.default("num_inference_steps"), "guidance": float(self.default("guidance_scale"))}

    def side(self) -> int:
        """The usual side of pictures, in pixels."""
        return int(self.module.config.sample_size) * self.factor

    def multiple(self) -> int:
        """What a picture's sides must divide by."""
        return self.factor * int(self.module.config.get("patch_size", 1) or 1)

    @property
    def channels(self) -> int:
        return int(self.module.config.in_channels)

    def timing(self, steps: int) -> dict[str, Any]:
        """What this pipeline gives its scheduler's ``set_timesteps`` besides the number of steps."""
        return {}

    @contextmanager
    def session(self) -> Iterator[None]:
        """Entered while a run works: the pipeline's modules evaluate inside, and are as they were behind, after an error too."""
        if self._depth:
            yield
            return
        with borrowed((self.module, self.pipe.vae, *self._texts())):
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    # ---- the pipeline ----------------------------------------------------------------------------------------------

    @property
    def module(self) -> Any:
        return getattr(self.pipe, self.core)

    @property
    def factor(self) -> int:
        """Pixels a latent cell, along one axis."""
        return int(self.pipe.vae_scale_factor)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, h, w] of latents."""
        return (self.channels, self.height // self.factor, self.width // self.factor)

    @property
    def device(self) -> torch.device:
        """Where the network runs. Finding it walks all modules, so it is looked up again only after ``refresh``."""
        if self._device is None:
            # Of a pipeline whose text encoders have left, the pipeline's own answer would be where those are.
            self._device = self.module.device if self._movable() else self.pipe._execution_device
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's inputs; quantised weights say nothing of it. Looked up as seldom as the device."""
        if self._dtype is None:
            found: torch.dtype = self.module.dtype
            self._dtype = found if found.is_floating_point and found.itemsize > 1 else torch.float32
        return self._dtype

    def refresh(self) -> None:
        """The pipeline may have been moved or cast: each run's record, and each rig's network, look again."""
        self._device = self._dtype = None

    def default(self, name: str) -> Any:
        """The pipeline's own default of one of its call's arguments."""
        return inspect.signature(type(self.pipe).__call__).parameters[name].default

    def schedule(self, steps: int, shift: float | None = None) -> Schedule:
        """The pipeline's scheduler as it is now, in ``steps`` steps; read again only where something of that changed."""
        return self._schedules(self.pipe.scheduler, steps, shift, self.timing)

    @property
    def name(self) -> str:
        """The folder or hub id that the pipeline came from; "" where it says none."""
        return str(getattr(self.pipe, "name_or_path", None) or "")

    def compiled(self) -> bool:
        """Whether the network or its blocks were compiled, which expects batches of one size."""
        return any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None
                   for m in self.module.modules())  # fmt: skip

    def solver(self) -> str:
        """What makes the steps that the pipeline's scheduler would."""
        return self.schedule(self.usual()["steps"]).solver

    def describe(self) -> dict[str, Any]:
        """Plain values for a run's record; with the pipeline's folder or hub id they repeat it."""
        self.refresh()
        scheduler, kind = type(self.pipe.scheduler).__name__, type(self)
        own = None if kind.__module__.startswith("secondlook.") else f"{kind.__module__}:{kind.__qualname__}"
        return {**asdict(self.options), "height": self.height, "width": self.width, "family": self.family,
                "pipeline": type(self.pipe).__name__, "scheduler": scheduler, "adapter": own, "dtype": str(self.dtype).removeprefix("torch."),
                "device": self.device.type, "settings": self._settings()}  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        """The scheduler's, as a run's record holds them."""
        config = getattr(self.pipe.scheduler, "config", None)
        if not isinstance(config, Mapping):
            return {}
        found: dict[str, Any] = json.loads(
            json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, default=str)
        )
        return {**found, **in_force(self.pipe.scheduler)}

    def __repr__(self) -> str:
        d = self.describe()
        return (f"<{self.family}: {d['pipeline']}, {self.width} x {self.height}, {self.usual()['steps']} steps, guidance "
                f"{self.usual()['guidance']:g}, {self.solver()}, {d['dtype']} on {d['device']}>")  # fmt: skip

    def digest(self) -> str:
        """Of what decides the pictures besides the run's settings: weights, their precision, and the scheduler's settings."""
        free = ("device", "free_text", "offload")  # a run may go on elsewhere
        about = {k: v for k, v in self.describe().items() if k not in free}
        names = (
            self.core,
            "vae",
            *(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")),
        )
        parts = {n: part for n in names if (part := getattr(self.pipe, n, None)) is not None}
        times = self.schedule(self.usual()["steps"]) if self.pipe.scheduler is not self else None
        numbers = (
            ""
            if times is None
            else f"{times.times} {times.levels} {times.scale} {times.predicts} {times.path!r} {getattr(times.path, 'abar', '')}"
        )
        return digest_of(json.dumps(about, sort_keys=True) + numbers, parts)

    def _texts(self) -> list[nn.Module]:
        names = (n for n in ("text_encoder", "text_encoder_2", "text_encoder_3") if hasattr(self.pipe, n))
        return [m for n in names if isinstance(m := getattr(self.pipe, n), nn.Module)]

    def _refuse_size(self) -> None:
        by = self.multiple()
        for name, size in (("height", self.height), ("width", self.width)):
            if size < by or size % by:
                near = max(by, size // by * by)
                raise ConfigError(
                    f"--{name} must divide by {by} for this pipeline; got {size}. Try {near} or {near + by}."
                )

    def _refuse_options(self) -> None:
        o = self.options
        for name in (*self.ignores, *(() if self.distilled else ("true_guidance",))):
            if getattr(o, name) != getattr(USUAL, name):
                raise ConfigError(f"--{name.replace('_', '-')} means nothing to {self.family} pipelines; leave it out.")
        if self.distilled and o.negative is not None and not o.true_guidance > 1:
            raise ConfigError(
                "--negative acts on this pipeline only with --true-guidance above 1; give both or neither."
            )
        if o.tokens is None:
            return
        ends = [o.tokens - self.room(n, limit) for n, limit in self.limits().items() if limit == o.tokens]
        least = 1 + max(ends, default=0)
        if not least <= o.tokens <= self.longest:
            raise ConfigError(f"--tokens must be from {least} to {self.longest} for this pipeline; got {o.tokens}.")

    # ---- conditions ------------------------------------------------------------------------------------------------

    def condition(self, text: str) -> Condition:
        """A request's text as a condition."""
        if not text.strip():
            raise ConfigError("The prompt is empty; write what to draw, in quotes.")
        return Condition(prompt=text)

    @torch.no_grad()  # not inference mode: what libraries move or cast on the way may be the user's weights
    def encode(self, condition: Condition | None) -> Encoded:
        """One row; None is the unconditional one."""
        prompt = None if condition is None else condition.prompt
        if prompt is not None:
            with hushed(*CUT):
                note_cuts(self.spelled(prompt), self._readers())
        hint = "Load them in a smaller dtype, or use pipe.enable_model_cpu_offload()."
        with self.session(), fits("the text encoders", hint), hushed(*CUT):
            self._move_texts(self.device)
            parts = self.texts(prompt)
        return Encoded({k: v.to(self.device) for k, v in parts.items()})

    def settle(self) -> None:
        """All prompts are encoded: text encoders may leave the device."""
        self._move_texts("cpu")
        if self.options.free_text and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _movable(self) -> bool:
        """Whether text encoders are moved here, and not by offloading hooks that the pipeline was given."""
        return (
            self.options.free_text
            and bool(self._texts())
            and not any(hasattr(p, "_hf_hook") for p in (self.module, *self._texts()))
        )

    def _move_texts(self, device: str | torch.device) -> None:
        if self._movable():
            with torch.inference_mode(False):  # weights moved inside it could never be trained again
                for part in self._texts():
                    part.to(device)

    def limits(self) -> dict[str, int]:
        """Tokens that each tokenizer's encoder reads, by the tokenizer's name."""
        return {}

    def tokens(self) -> int:
        """The most tokens of the long encoder."""
        return self.options.tokens or int(self.default("max_sequence_length"))

    def room(self, name: str, limit: int) -> int:
        """Tokens of a prompt's own that a tokenizer leaves in ``limit``."""
        return room(getattr(self.pipe, name), limit)

    def spelled(self, prompt: str) -> str:
        """A prompt as tokenizers are given it."""
        return prompt

    def _readers(self) -> dict[str, tuple[Any, int]]:
        held = {n: (getattr(self.pipe, n, None), limit) for n, limit in self.limits().items()}
        return {n: (t, self.room(n, limit)) for n, (t, limit) in held.items() if t is not None}

    # ---- the network -----------------------------------------------------------------------------------------------

    def scale(self, guidance: float) -> float:
        """The classifier-free scale of a run with ``guidance``. Pipelines guide above 1 only; models that want none are often
        used with 0."""
        scale = self.options.true_guidance if self.distilled else guidance
        return scale if scale > 1 else 1.0

    def network(self, schedule: Schedule, guidance: float = 1.0) -> Network:
        """The network as a flow takes it, shown the levels of ``schedule`` and, where that is distilled, ``guidance``."""
        if schedule.predicts not in ("flow", "epsilon", "sample", "v_prediction", *KINDS):
            raise ConfigError(f'The scheduler\'s prediction_type "{schedule.predicts}" is unknown here; known: epsilon, sample, '
                              "v_prediction and flow_prediction.")  # fmt: skip
        self.refresh()
        return Network(self, schedule, guidance)

    def outputs(self, x: Tensor, level: Tensor, cond: Encoded) -> Tensor:
        """``ask`` in as many rows as memory holds, float32 on the device of ``x``."""
        device, dtype = self.device, self.dtype
        x_in, level = x.to(device, dtype), level.to(device)

        def rows(at: slice) -> Tensor:
            return self.ask(x_in[at], level[at], cond.rows(at)).to(x.device, torch.float32)

        with self.session():
            return self._running.run(rows, len(x))

    # ---- pictures --------------------------------------------------------------------------------------------------

    def decode(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] to uint8 pictures [B, H, W, 3] on the CPU."""
        return self._shown(x, lambda picture: picture.mul_(255).round_().to(torch.uint8))

    def pictures(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] to pictures [B, H, W, 3] in [0, 1], float32 on the CPU."""
        return self._shown(x, lambda picture: picture)

    def pixels(self, x: Tensor) -> Tensor:
        """``pictures`` with a graph, on the device of ``x``: for gradients by the latents."""
        vae, z = self.pipe.vae, self.unscaled(x.float())
        with self.session():
            picture = vae.decode(z.to(self.device, vae.dtype), return_dict=False)[0].float()
        return (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).to(x.device)

    @torch.no_grad()
    def _shown(self, x: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        with self.session():
            return self._finished(x, finish)

    def _finished(self, x: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
        """``NotFinite`` names the rows that have no picture."""
        bad = tuple(i for i, ok in enumerate(x.flatten(1).isfinite().all(1).tolist()) if not ok)
        if bad:
            had = str(self.dtype).removeprefix("torch.")
            cure = {"float16": "Load it in bfloat16 and draw", "bfloat16": "Load it in float32 and draw"}.get(
                had, "Check its weights, or draw"
            )
            raise NotFinite(f"The network's latents are not finite: it overflowed in {had}. {cure} again.", bad)
        vae = self.pipe.vae
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            self._upcast()
        (found, lost), had = self._decoded(x, finish), str(vae.dtype).removeprefix("torch.")
        if lost and vae.dtype in (torch.float16, torch.bfloat16):
            note(f"The autoencoder overflowed in {had} and gave NaN; it decodes in float32 from here on. The lasting fix: "
                 "pipe.vae.to(torch.float32) after loading, or an autoencoder made for float16.")  # fmt: skip
            self._upcast()
            found, lost = self._decoded(x, finish)
        if lost:
            raise NotFinite("The autoencoder gave NaN, in float32 too: its weights do not fit these latents, or are damaged. Give "
                            "pipe.vae another, and draw again; nothing recorded is lost.", lost)  # fmt: skip
        return found

    def _decoded(self, x: Tensor, finish: Callable[[Tensor], Tensor]) -> tuple[Tensor, tuple[int, ...]]:
        """[B, H, W, 3] on the CPU, made ready where the decoder runs, and the rows in which a value is not finite."""
        finite = [True] * len(x)
        vae, z = self.pipe.vae, self.unscaled(x.float())
        dtype = vae.dtype if vae.dtype.itemsize > 1 else torch.float32

        def rows(at: slice) -> Tensor:
            picture: Tensor = vae.decode(z[at].to(self.device, dtype), return_dict=False)[0].float()
            finite[at] = picture.flatten(1).isfinite().all(1).tolist()
            return finish((picture / 2).add_(0.5).clamp_(0, 1)).permute(0, 2, 3, 1).contiguous().cpu()

        found = self._decoding.run(rows, len(z))
        return found, tuple(i for i, ok in enumerate(finite) if not ok)

    def _upcast(self) -> None:
        with hushed("should be kept in float32"):  # diffusers warns of any cast
            self.pipe.vae.to(torch.float32)

    def unscaled(self, x: Tensor) -> Tensor:
        """Latents as the autoencoder made them: without scale and shift, or with their channels' mean and deviation."""
        c = self.pipe.vae.config
        mean, std = (c.get(k) for k in ("latents_mean", "latents_std"))
        scale = float(c.scaling_factor)
        if mean is not None and std is not None:
            m, s = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for v in (mean, std))
            return x * s / scale + m
        return x / scale + float(c.get("shift_factor") or 0.0)
