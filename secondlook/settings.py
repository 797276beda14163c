"""A run's resolved configuration: everything needed to do it again, and nothing that was not said or chosen."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Any

import torch

import secondlook
from secondlook.calls import Call, bind, parse_call
from secondlook.engine.ledger import Budget
from secondlook.errors import ConfigError, SecondlookError, nearest
from secondlook.registry import MODELS, WORLD_DEFAULTS, resolve

PIPELINE = "diffusers"  # the world of generators from outside: see pipelines.py
DEFAULT_SAMPLES = 20  # what an endless plan without a budget may spend, in plain samples


@dataclass
class Settings:
    """What a run does. ``rows``, ``bf16`` and ``threads`` decide the last bits of a picture, so they are kept too. Model,
    steps, guidance and shift are the world's own where they are not said (registry.WORLD_DEFAULTS). pad: whether batches are
    padded to ``rows`` (None: yes in the built-in worlds, no on pipelines, whose compute is dear). pipeline: how a generator
    from outside was loaded."""

    prompts: list[str]
    plan: str = "random(n=20)"
    verifier: str = "learned"
    model: str = None  # type: ignore[assignment]
    steps: int = None  # type: ignore[assignment]
    solver: str = None  # type: ignore[assignment]
    guidance: float = None  # type: ignore[assignment]
    shift: float | None = None
    seed: int = 0
    budget: dict[str, float | None] = field(default_factory=dict)
    rows: int | None = None
    bf16: bool | None = None
    threads: int | None = None
    world: str = "scenes"
    pad: bool | None = None
    pipeline: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ConfigError("There is no prompt. Give one in quotes, or a file of them with --prompts.")
        if self.world not in WORLD_DEFAULTS and self.world != PIPELINE:
            raise ConfigError(f'There is no world "{self.world}" to draw in; {nearest(self.world, WORLD_DEFAULTS)}')
        usual = WORLD_DEFAULTS.get(self.world, {})
        for name, value in (("model", self.world), ("solver", "euler"), *usual.items()):
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, least, most in (("steps", 1, 10_000), ("rows", 1, 4096), ("threads", 1, 1024), ("seed", 0, 2**63)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"--{name} must be from {least} to {most}; got {value}.")
        if not (self.guidance >= 0 and self.guidance < 1e3):
            raise ConfigError(f"--guidance must be a number from 0 to 1000 (1: none); got {self.guidance}.")
        if self.shift is not None and not 0 < self.shift <= 1e3:
            raise ConfigError(f"--shift must be above 0 and at most 1000; got {self.shift}.")
        Budget(**self.budget)  # type: ignore[arg-type]

    def fill(self) -> Settings:
        """Choose what was left open, by this machine."""
        if self.rows is None:
            # A lone prompt's plan proposes few rows at once, and padding is work; many prompts fill wide batches.
            self.rows = 16 if len(self.prompts) >= 4 else 4
        if self.bf16 is None:
            self.bf16 = fast_bf16()
        if self.threads is None:
            self.threads = torch.get_num_threads()
        return self

    def resolved(self) -> Settings:
        """The same with nothing left to defaults or to the current folder: every option of the plan, absolute paths."""
        call = parse_call(self.plan)
        target = resolve("plan", call.name)
        given = bind(call, target, skip=1)
        whole = {p.name: given.get(p.name, p.default) for p in list(signature(target).parameters.values())[1:]}
        local = self.model not in MODELS and (self.world != PIPELINE or Path(self.model).exists())
        model = str(Path(self.model).resolve()) if local and self.model else self.model
        return replace(self, plan=str(Call(call.name, (), tuple(whole.items()))), model=model)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of(config: dict[str, Any]) -> Settings:
        """The settings in a run's configuration."""
        names = Settings.__dataclass_fields__
        return Settings(**{k: v for k, v in config.items() if k in names})


def fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; elsewhere it would be slower than float32."""
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())


def make_plan(text: str) -> Any:
    """task -> plan, from a call-string; ConfigError for unknown names and options, before anything runs."""
    call = parse_call(text, "plan")
    target = resolve("plan", call.name)
    options = bind(call, target, skip=1)
    return lambda task: target(task, **options)


def make_named(kind: str, text: str) -> Any:
    """A verifier or solver from its call-string."""
    call = parse_call(text, kind)
    target = resolve(kind, call.name)
    options = bind(call, target)
    try:
        made = target(**options)
    except SecondlookError:
        raise
    except Exception as error:  # whatever another package's class raises
        raise ConfigError(f'The {kind} "{text}" cannot be made ({type(error).__name__}: {error}).') from None
    if kind == "verifier" and not isinstance(getattr(made, "name", None), str):
        raise ConfigError(
            f'The verifier "{text}" has no name: give its class a text, name = "...", for logs and reports.'
        )
    return made


@cache
def versions() -> dict[str, str]:
    names = ("torch", "numpy", "scipy", "pillow", "safetensors")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


def commit() -> str | None:
    """The commit of the source tree this package runs from, with a + where it has changes; None elsewhere."""
    root = Path(secondlook.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        ask = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
