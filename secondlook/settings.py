"""A run's settings: one table, from which the command line's flags and help, Python's keywords, the checks, the record of a run
and the command that repeats it are made. Light to import: nothing of PyTorch is needed to show help.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, replace
from inspect import signature
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from secondlook.calls import Call, bind, parse_call
from secondlook.cost import ABOUT_UNITS, UNITS
from secondlook.errors import ConfigError, SecondlookError, nearest
from secondlook.registry import MODELS, resolve

Kind = Literal["text", "path", "whole", "number", "times", "yes", "budget", "seeds"]
Group = Literal["search", "results", "budget", "sampling", "guidance", "times", "pipeline", "hidden"]
GROUPS: dict[Group, str] = {
    "search": "search",
    "results": "where each prompt begins and ends, and what is kept of it",
    "budget": "budget for each prompt (an endless plan without one may spend that of 20 samples)",
    "sampling": "sampling (defaults are the world's, or the pipeline's own)",
    "guidance": "guidance",
    "times": "times (0 is noise, 1 is data), for this project's own networks",
    "pipeline": "pipelines (--model FOLDER or a hub id; needs secondlook[hub]); defaults are the pipeline's own",
}
MOST_STEPS = 10_000
SPLITS = ("even", "pool")
KEYED = ("place", "prompt")
MOST_SEED = 2**63 - 1


def _option(
    about: str, group: Group, kind: Kind = "text", *, default: Any = None, least: float | None = None, most: float | None = None,
    above: bool = False, metavar: str | None = None, flags: tuple[str, ...] = (), choices: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """A row of the table. least, most: the range of numbers; above: the least itself is not allowed. flags: further names."""
    facts = {"about": about, "group": group, "kind": kind, "least": least, "most": most, "above": above, "metavar": metavar,
             "flags": flags, "choices": choices}  # fmt: skip
    return field(default=default, metadata=facts)


@dataclass
class Settings:
    """What a run does. None is what was left open: the backend's own (``fill``)."""

    prompts: list[str] = field(default_factory=list)
    plan: str = _option("how to search; see `secondlook list plans`", "search", default="random(n=20)")
    verifier: str | None = _option("the verifier that ranks candidates: learned (default), oracle, brightness, sharpness (pipelines' "
                                   "default), compressibility, or package.module:attribute", "search")  # fmt: skip
    critic: str | None = _option("who puts into words what is wrong with a picture: learned, detector or oracle (world scenes), or "
                                 "package.module:attribute", "search")  # fmt: skip
    comparer: str | None = _option("who compares pairs of pictures: package.module:attribute", "search")
    select: str | None = _option("who chooses among the finished pictures; see `secondlook list selectors`", "search")
    window: int | None = _option(
        "prompts under way at once (default: enough to fill the rows twice)", "search", "whole", least=1, most=10**6
    )
    patience: float | None = _option("seconds to wait for one answer of a verifier, critic, comparer or judge (default: 600)", "search",
                                     "number", least=0, most=1e6, above=True)  # fmt: skip
    split: str | None = _option("how --total-... is shared: even (default), or pool, where what easy prompts leave goes to later ones",
                                "search", choices=SPLITS)  # fmt: skip
    until: float | None = _option(
        "stop a prompt when its best finished score is at least this",
        "results",
        "number",
        least=-math.inf,
        most=math.inf,
    )
    keep: int | None = _option("how many pictures of each prompt the run's folder shows in best/ (default: 1)", "results", "whole",
                               least=0, most=1000)  # fmt: skip
    keyed: str | None = _option("what a prompt's noise is keyed by: its place in the list (default), or the prompt itself, so that sorting "
                                "or adding lines changes no other picture", "results", choices=KEYED)  # fmt: skip
    seeds: tuple[int, ...] | None = _option("begin each prompt from the noise that a pipeline draws with this torch.Generator seed: one for all, or "
                                            "one for each prompt, with commas", "results", "seeds")  # fmt: skip
    budget: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    world: str | None = _option(
        "scenes (prompts), digits or glyphs (classes); default: scenes, or the --model's", "sampling"
    )
    model: str | None = _option(
        "a shipped model's name, a weights file or folder, or a diffusers pipeline's folder or hub id", "sampling"
    )
    steps: int | None = _option("solver steps", "sampling", "whole", least=1, most=MOST_STEPS)
    solver: str | None = _option("see `secondlook list solvers`", "sampling")
    guidance: float | None = _option(
        "the scale of classifier-free guidance; 1 is none", "sampling", "number", least=0, most=1000, flags=("--cfg",)
    )
    shift: float | None = _option("time shift; 1 is even steps", "sampling", "number", least=0, most=1000, above=True)
    seed: int = _option("what the noise is keyed by (default: 0)", "sampling", "whole", default=0, least=0, most=2**63)
    rows: int | None = _option(
        "micro-batch (default: chosen by the number of prompts)", "sampling", "whole", least=1, most=4096
    )
    pad: bool | None = _option(
        "pad batches to --rows, for pictures that repeat bit for bit (default: no on pipelines)", "sampling", "yes"
    )
    bf16: bool | None = _option(
        "products in bfloat16 (default: where the CPU has it); pipelines: --dtype", "sampling", "yes"
    )
    compile: bool | None = _option("compile the network; needs a C++ compiler", "sampling", "yes")
    threads: int | None = _option("CPU threads (default: all)", "sampling", "whole", least=1, most=1024)
    device: str | None = _option(
        "cpu, cuda, cuda:N or mps (default: the GPU for pipelines, the CPU for this project's worlds)", "sampling"
    )
    cfg_channels: int | None = _option("how many channels guidance changes (default: all); 3 in the numbers of the SiT and DiT papers, whose "
                                       "latents have 4", "guidance", "whole", least=1, most=4096, metavar="N")  # fmt: skip
    cfg_interval: tuple[float, float] | None = _option("times in which to guide (default: all)", "guidance", "times")
    weak: str | None = _option(
        "guide by a weaker model of the same task (autoguidance)", "guidance", "path", metavar="WEIGHTS"
    )
    weak_scale: float | None = _option("scale of autoguidance (default: 2)", "guidance", "number", least=0, most=1000)
    interval: str | None = _option("where sampling begins and ends: whole (default), paper or official (the released SiT code's)", "times",
                                   choices=("whole", "paper", "official"))  # fmt: skip
    eps: float | None = _option(
        "distance kept from both ends of time (default: the interval's)", "times", "number", least=0, most=0.499
    )
    last_step: float | None = _option("of sde and sde_heun, which --steps counts; 0 is none (default: 0.04 with an interval)", "times", "number",
                                      least=0, most=0.999)  # fmt: skip
    height: int | None = _option("pixels", "pipeline", "whole", least=1, most=16384)
    width: int | None = _option("pixels", "pipeline", "whole", least=1, most=16384)
    negative: str | None = _option("what guidance leads away from", "pipeline", metavar="PROMPT")
    tokens: int | None = _option("of the long text encoder", "pipeline", "whole", least=1, most=16384)
    true_guidance: float | None = _option(
        "FLUX: classifier-free guidance beside the distilled one (1: none)", "pipeline", "number", least=0, most=1000
    )
    free_text: bool | None = _option("text encoders leave the device once the prompts are encoded", "pipeline", "yes")
    lora: str | None = _option(
        "LoRA weights: a file, folder or hub id (needs peft)", "pipeline", "path", metavar="FILE"
    )
    offload: bool | None = _option("parts wait on the CPU for their turn on the GPU", "pipeline", "yes")
    dtype: str | None = _option("float32 (default on a CPU), bfloat16 (default on a GPU) or float16", "pipeline")
    adapter: str | None = _option("for a pipeline that secondlook does not know", "pipeline", metavar="MODULE:ATTR")
    vae: str | None = _option("with SiT weights: the autoencoder that decodes", "pipeline", "path", metavar="DIR")
    pipeline: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in OPTIONS.values():
            setattr(self, row.name, normal(row, getattr(self, row.name)))
        self.budget = limits_of(self.budget)
        self.total = limits_of(self.total)
        if self.weak is not None and self.guidance not in (None, 1.0):
            raise ConfigError("--weak is a guidance of its own (--weak-scale); leave --guidance at 1 with it.")
        if self.weak_scale is not None and self.weak is None:
            raise ConfigError("--weak-scale needs --weak WEIGHTS.")

    def given(self) -> dict[str, Any]:
        """The options that are not left open."""
        return {name: v for name in OPTIONS if (v := getattr(self, name)) is not None}

    def filled(self, usual: Mapping[str, Any]) -> Settings:
        """The same with what was left open taken from ``usual``, and with the comparer that its plan cannot do without."""
        if "similarity" in needs_of(self.plan):
            usual = {**usual, "comparer": "similarity"}
        if (chosen := selector_of(self.verifier)) is not None:
            usual = {**usual, "select": chosen}
        return replace(self, **{k: v for k, v in usual.items() if getattr(self, k) in (None, {})})

    def resolved(self) -> Settings:
        """The same with nothing left to a plan's defaults or to the current folder: every option of the plan, absolute paths."""
        call = parse_call(self.plan)
        target = resolve("plan", call.name)
        given = bind(call, target, skip=1)
        whole = {p.name: given.get(p.name, p.default) for p in list(signature(target).parameters.values())[1:]}
        paths: dict[str, Any] = {
            n: str(Path(v).resolve())
            for n in ("model", *PATHS)
            if (v := getattr(self, n)) and v not in MODELS and Path(v).exists()
        }
        return replace(self, plan=str(Call(call.name, (), tuple(whole.items()))), **paths)

    def as_dict(self) -> dict[str, Any]:
        """For a run's configuration: what is left open is left out."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @staticmethod
    def of(config: Mapping[str, Any]) -> Settings:
        """The settings in a run's configuration."""
        names = {f.name for f in fields(Settings)}
        return Settings(**{k: v for k, v in config.items() if k in names})

    def command(self, act: str, prompts: Sequence[str], **more: str) -> str:
        """The command line that does this; several prompts are named as a file."""
        words = ["secondlook", act, *(prompts if len(prompts) == 1 else ["--prompts", "FILE"])]
        for prefix, limits in (("--", self.budget), ("--total-", self.total)):
            words += [w for name, value in limits.items() for w in (f"{prefix}{name}", f"{value:g}")]
        for name, value in self.given().items():
            words += _words(OPTIONS[name], value)
        return shlex.join([*words, *(w for k, v in more.items() for w in (f"--{k}", v))])


OPTIONS: dict[str, Field[Any]] = {f.name: f for f in fields(Settings) if "group" in f.metadata}
PATHS = tuple(name for name, row in OPTIONS.items() if row.metadata["kind"] == "path")
_UNNAMED = {
    "model": "FOLDER_OR_ID",
    "verifier": "MODULE:ATTR",
    "critic": "MODULE:ATTR",
    "comparer": "MODULE:ATTR",
}  # of Python objects


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(row: Field[Any], value: Any) -> list[str]:
    name, kind = flag(row.name), row.metadata["kind"]
    if row.default == value or (row.name, value) == ("world", "diffusers"):
        return []
    if kind == "yes":
        return [name if value else name.replace("--", "--no-", 1)]
    if kind == "times":
        return [name, *(f"{v:g}" for v in value)]
    if kind == "seeds":
        return [name, ",".join(map(str, value))]
    if row.name in _UNNAMED and (not value or str(value).startswith("object:")):
        return [name, _UNNAMED[row.name]]
    return [name, str(value)]


def normal(row: Field[Any], value: Any) -> Any:
    """The value as the table has it; ConfigError in one sentence for what is not such a value."""
    facts, name = row.metadata, flag(row.name)
    if value is None:
        return row.default
    kind = facts["kind"]
    if kind == "yes":
        if not isinstance(value, bool):
            raise ConfigError(f"{name} must be true or false; got {value!r}.")
        return value
    if kind == "times":
        return _times(name, value)
    if kind == "seeds":
        return _seeds(name, value)
    if kind in ("whole", "number"):
        return _within(name, _number(name, value, kind), facts)
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a text; got {value!r}.")
    if facts["choices"] and value not in facts["choices"]:
        raise ConfigError(f'{name} must be one of {", ".join(facts["choices"])}; got "{value}".')
    return value


def _number(name: str, value: Any, kind: str) -> float:
    """A plain int or float, from Python's, NumPy's or a tensor's; text is not read as a number."""
    what = "a whole number" if kind == "whole" else "a number"
    if isinstance(value, (bool, str, bytes)) or not (hasattr(value, "__index__") or hasattr(value, "__float__")):
        raise ConfigError(f"{name} must be {what}; got {value!r}.")
    try:
        if kind == "whole":
            found: float = value.__index__() if hasattr(value, "__index__") else int(value)
            if found != value:
                raise ValueError
        else:
            found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} must be {what}; got {value!r}.") from None
    return found


def _within(name: str, value: float, facts: Mapping[str, Any]) -> float:
    least, most = facts["least"], facts["most"]
    low = value > least if facts["above"] else value >= least
    if not (low and value <= most):
        start = f"above {least:g} and at most" if facts["above"] else f"from {least:g} to"
        raise ConfigError(f"{name} must be {start} {_plain(most)}; got {_plain(value)}.")
    return value


def _plain(value: float) -> str:
    """A number as it is typed: whole ones in full."""
    return str(int(value)) if value == value and abs(value) < 1e19 and int(value) == value else f"{value:g}"


def _times(name: str, value: Any) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} must be two times, LOW and HIGH; got {value!r}.") from None
    if not 0 <= low < high <= 1:
        raise ConfigError(f"{name} must be two times, 0 <= LOW < HIGH <= 1 (1 is data); got {low:g} {high:g}.")
    return low, high


def _seeds(name: str, value: Any) -> tuple[int, ...]:
    """Seeds from a number, several, or a text of them with commas."""
    if isinstance(value, str):
        value = value.split(",")
        if not all(v.strip().isascii() and v.strip().isdigit() and len(v.strip()) < 20 for v in value):
            raise ConfigError(f"{name} expects whole numbers with commas, such as 7 or 1,2,3; got {','.join(value)!r}.")
        value = [int(v) for v in value]
    some = list(value) if isinstance(value, (list, tuple, range)) else [value]
    if not some:
        raise ConfigError(f"{name} expects one seed, or one for each prompt; got none.")
    facts = {"least": 0, "most": MOST_SEED, "above": False}
    return tuple(int(_within(name, _number(name, v, "whole"), facts)) for v in some)


def limits_of(given: Mapping[str, Any]) -> dict[str, float]:
    """Budgets by unit as plain numbers; ConfigError for an unknown unit or what is not above 0."""
    found = {}
    for name, value in given.items():
        if name not in UNITS:
            raise ConfigError(f'There is no budget in "{name}"; {nearest(name, UNITS)}')
        if value is None:
            continue
        number = _number(f"A budget, {name},", value, "number")
        if not (number > 0 and not math.isinf(number)):
            raise ConfigError(f"A budget must be above 0; got {name} = {number:g}.")
        found[name] = number if name == "seconds" or number != int(number) else int(number)
    return found


def texts(prompts: Any) -> list[str]:
    """A run's prompts as a list of texts, from a text, a number (a class), or several of those; ConfigError otherwise."""
    some = [prompts] if isinstance(prompts, (str, bytes, int)) or not isinstance(prompts, Sequence) else list(prompts)
    found = []
    for prompt in some:
        if isinstance(prompt, bool) or not isinstance(prompt, (str, Integral)):
            raise ConfigError(f"A prompt must be a text (or a class's number); got {prompt!r}.")
        found.append(prompt if isinstance(prompt, str) else str(int(prompt)))
    if not found:
        raise ConfigError("There is no prompt. Give one in quotes, or a file of them with --prompts.")
    return found


def make_plan(text: str) -> Any:
    """task -> plan, from a call-string; ConfigError for unknown names and options, before anything runs."""
    if not isinstance(text, str):
        raise ConfigError(
            f'A plan is written as a text, such as "random(n=20)", or "package.module:plan(option=1)"; got {text!r}.'
        )
    call = parse_call(text, "plan")
    target = resolve("plan", call.name)
    options = bind(call, target, skip=1)
    return lambda task: target(task, **options)


def needs_of(text: str) -> tuple[str, ...]:
    """What a plan says it needs beside a generator: some of "critic", "comparer", "similarity" (the comparer
    of that name) and "context" (a model that reads its earlier tries). Its attribute ``needs`` tells: words, or a function of its options."""
    call = parse_call(text, "plan")
    target = resolve("plan", call.name)
    needs = getattr(target, "needs", ())
    return tuple(needs(**bind(call, target, skip=1)) if callable(needs) else needs)


def selector_of(verifier: str | None) -> str | None:
    """The selector that a verifier is meant to be used with, where it says so by an attribute ``selector``, as ``rank`` does."""
    if verifier is None or verifier.startswith("object:"):
        return None
    found = getattr(resolve("verifier", parse_call(verifier, "verifier").name), "selector", None)
    return found if isinstance(found, str) else None


def make_named(kind: str, text: str) -> Any:
    """A verifier, critic, comparer, selector or solver from its call-string."""
    call = parse_call(text, kind)
    target = resolve(kind, call.name)
    options = bind(call, target)
    try:
        made = target(**options)
    except SecondlookError:
        raise
    except Exception as error:  # whatever another package's class raises
        raise ConfigError(f'The {kind} "{text}" cannot be made ({type(error).__name__}: {error}).') from None
    if kind != "solver" and not isinstance(getattr(made, "name", None), str):
        raise ConfigError(
            f'The {kind} "{text}" has no name: give its class a text, name = "...", for logs and reports.'
        )
    return made


def budget_units() -> dict[str, str]:
    """The units that a budget may limit, with what each counts."""
    return {unit: ABOUT_UNITS[unit] for unit in UNITS}


__all__ = ["GROUPS", "OPTIONS", "Settings", "flag", "limits_of", "make_named", "make_plan", "texts"]
