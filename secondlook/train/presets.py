"""What `secondlook train` does where nothing else is said, by world, and the words of its options as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from secondlook.calls import bind, parse_call
from secondlook.errors import ConfigError, nearest
from secondlook.flow.estimate import Weight
from secondlook.flow.path import PATHS, Kind
from secondlook.models.sit import SiTConfig
from secondlook.train.classes import FLOOR, Objective, Recipe, Times
from secondlook.train.looks import right, sheet
from secondlook.train.loop import TrainConfig
from secondlook.train.watch import Looks
from secondlook.worlds.pixels import to_bytes

PREDICTS: dict[str, Kind] = {"velocity": "velocity", "noise": "noise", "data": "data", "score": "logp_grad"}
_OF_DATA = ("side", "channels", "classes", "predicts", "path")


@dataclass(frozen=True)
class Preset:
    """A model's call-string or name, what it predicts on which path, the loss, and options of ``TrainConfig``."""

    model: str
    training: dict[str, Any]
    path: str = "linear"
    predicts: str = "velocity"
    weight: Weight = "none"
    times: str = "uniform"
    dropout: float = 0.1
    adamw: dict[str, Any] = field(default_factory=lambda: {"lr": 1e-4, "decay": 0.0})  # where AdamW is asked for


PRESETS = {
    # These two made the shipped models.
    "digits": Preset(
        "sit(width=96, depth=6, heads=6, patch=2)",
        {"steps": 2000, "batch": 128, "warmup": 100, "bf16": False, "look_every": 500},
    ),
    "glyphs": Preset(
        "sit(width=128, depth=6, heads=4, patch=8)",
        {"steps": 3000, "batch": 128, "bf16": False, "look_every": 500},
        predicts="data",
        weight="velocity",
        times="logit_normal(mean=-0.8, std=1.2)",
    ),
    # The paper's recipe; its 400,000 steps are those of its ablations.
    "folder": Preset(
        "SiT-S/2",
        {"steps": 400_000, "batch": 256, "optimizer": "adamw", "lr": 1e-4, "decay": 0.0, "warmup": 0, "hold": 1.0,
         "clip": 0.0, "ema": 0.9999, "ema_ramp": False, "save_every": 2000, "look_every": 10_000},
    ),
}  # fmt: skip


def training(preset: Preset, **asked: Any) -> TrainConfig:
    """The preset's training with what was asked for (None: nothing). AdamW asked for by name brings its own rate."""
    options = dict(preset.training)
    if asked.get("optimizer") == "adamw" and options.get("optimizer") != "adamw":
        options |= preset.adamw
    return TrainConfig(**{**options, **{k: v for k, v in asked.items() if v is not None}})


def network(model: str, shape: tuple[int, ...], classes: int, predicts: str, path: str) -> SiTConfig:
    """Sizes from a name, such as SiT-S/2, or a call-string, such as sit(width=128, depth=6, heads=4, patch=2), for
    samples of ``shape`` [C, side, side]; ConfigError for what is neither."""
    if predicts not in PREDICTS:
        raise ConfigError(f'--predicts expects {", ".join(PREDICTS)}; got "{predicts}".')
    if path not in (*PATHS, "discrete"):
        raise ConfigError(f'There is no path "{path}"; {nearest(path, (*PATHS, "discrete"))}')
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ConfigError(f"A SiT expects square samples [C, side, side]; these are {list(shape)}.")
    given: dict[str, Any] = {"side": shape[1], "channels": shape[0], "classes": classes}
    given |= {"predicts": PREDICTS[predicts], "path": path, **({"variance": True} if path == "discrete" else {})}
    if model.startswith(("SiT-", "DiT-")):
        return SiTConfig.named(model, **given)
    call = parse_call(model, "model")
    if call.name != "sit":
        raise ConfigError(
            f'--model expects a name such as SiT-S/2, or sit(width=128, depth=6, heads=4, patch=2); got "{model}".'
        )
    options = bind(call, SiTConfig)
    taken = [k for k in _OF_DATA if k in options]
    if taken:
        raise ConfigError(f"--model: {taken[0]} comes from the data or from an option of its own; leave it out here.")
    return SiTConfig(**{**options, **given})


def times(text: str) -> Times:
    """From `uniform` or `logit_normal(mean=0.0, std=1.0)`."""
    call = parse_call(text, "distribution of times")
    return Times(call.name, **bind(call, Times, skip=1))


def recipe(preset: Preset, predicts: str, **asked: Any) -> Recipe:
    """The loss from the preset and from what was asked for: weight, times (text), dropout, interval and eps."""
    said = {k: v for k, v in asked.items() if v is not None}
    return Recipe(
        weight=said.get("weight", preset.weight),
        times=times(said.get("times", preset.times)),
        dropout=said.get("dropout", preset.dropout),
        preset=said.get("interval", "paper"),
        eps=said.get("eps"),
        floor=FLOOR if PREDICTS.get(predicts) == "data" else 0.0,
    )


def looks(world: str, data: Any, sit: SiTConfig, recipe: Recipe, config: TrainConfig) -> Looks:
    """Samples where the data can decode them, the loss on held-out data where there are any, in Glyphs the checker's
    word."""
    numbers: list[Any] = []
    kept = held_out(world, data)
    if kept is not None and sit.path != "discrete":
        numbers.append(Objective(sit, recipe, config.bf16).validation(*kept))
    decode = getattr(data, "decode", to_bytes if hasattr(data, "pictures") else None)  # latents have neither
    if world == "glyphs":
        from secondlook.worlds.glyphs import check

        numbers.append(right(data.decode, check))
    return Looks(sheet(decode) if decode else None, tuple(numbers))


def held_out(world: str, data: Any) -> tuple[Tensor, Tensor] | None:
    """x [N, *S] and labels [N] that nothing is trained on, or None where the data know no such part."""
    if world == "glyphs":  # unlimited: other keys are other pictures
        found: tuple[Tensor, Tensor] = data.batch(2**40, 0, 512)
        return found
    if hasattr(data, "test"):
        pictures, labels = data.test()
        return data.encode(pictures), labels
    if hasattr(data, "held_out"):
        kept: tuple[Tensor, Tensor] | None = data.held_out()
        return kept
    return None
