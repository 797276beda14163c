"""Two small ImageNet classifiers that need no ``transformers``: MobileNetV2 (1801.04381) and EfficientNet-Lite0 (1905.11946, its Lite form
without squeeze and excitation). One may guide and the other judge: they differ in network, preprocessing and training.

Both are a stem, inverted residual blocks, a head and a linear layer, and published files list them in this order. Their numbers:
table 2 of 1801.04381; table 1 of 1905.11946. MobileNetV2 pads evenly and normalises with eps = 1e-5, Lite0 pads as TensorFlow's
"SAME" does, with what is odd below and to the right, and eps = 1e-3. Activations are ReLU6.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secondlook.disk.digests import file_digest
from secondlook.errors import ConfigError, DamagedError
from secondlook.eyes import load
from secondlook.eyes.classes import _Classes
from secondlook.eyes.resample import resize
from secondlook.models import checkpoint, official
from secondlook.types import Condition, Verifier

CLASSES, SIDE = 1000, 224


@dataclass(frozen=True)
class Plan:
    """stages: (expansion, channels, blocks, stride of the first, kernel). marks: a key by which a published file is known. same:
    TensorFlow's padding."""

    stages: tuple[tuple[int, int, int, int, int], ...]
    marks: str
    same: bool
    eps: float


PLANS = {
    "mobilenet_v2": Plan(
        ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
        "features.0.0.weight", False, 1e-5),
    "efficientnet_lite0": Plan(
        ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
        "_conv_stem.weight", True, 1e-3),
}  # fmt: skip


class Layer(nn.Module):
    """Convolution without bias, batch normalisation and, unless ``linear``, ReLU6: [B, C, H, W] to [B, out, H / stride, W / stride]."""

    def __init__(
        self, plan: Plan, inputs: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ):
        super().__init__()
        self.conv = nn.Conv2d(inputs, out, kernel, stride, 0, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=plan.eps)
        self.same, self.linear, self.kernel, self.stride = plan.same, linear, kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = (
                max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
                if self.same
                else 2 * (self.kernel // 2)
            )
            pads += [total // 2, total - total // 2]
        x = self.bn(self.conv(F.pad(x, pads)))
        return x if self.linear else F.relu6(x)


class Block(nn.Module):
    """An inverted residual: wider, a convolution of each channel, narrower again; the input is added where shapes are equal."""

    def __init__(self, plan: Plan, inputs: int, out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        parts = [] if expansion == 1 else [Layer(plan, inputs, wide)]
        self.layers = nn.Sequential(
            *parts, Layer(plan, wide, wide, kernel, stride, groups=wide), Layer(plan, wide, out, linear=True)
        )
        self.adds = stride == 1 and inputs == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds else y


class Classifier(nn.Module):
    """x [B, 3, 224, 224], prepared as ``Crop`` does, to logits [B, 1000]."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, plan = kind, PLANS[kind]
        self.stem, width = Layer(plan, 3, 32, 3, 2), 32
        blocks = []
        for expansion, out, count, stride, kernel in plan.stages:
            for i in range(count):
                blocks.append(Block(plan, width, out, kernel, stride if i == 0 else 1, expansion))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = Layer(plan, width, 1280)
        self.fc = nn.Linear(1280, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.head(self.blocks(self.stem(x))).mean((2, 3)))
        return logits


class Crop:
    """uint8 [B, H, W, 3] to float32 [B, 3, 224, 224] as each network was published with: MobileNetV2 resizes the short side to 256
    (Pillow's bilinear) and crops; Lite0 crops 7/8 of the short side and resizes (bicubic)."""

    def __init__(self, kind: str):
        self.kind, self.facts = kind, {"network": kind, "side": SIDE}

    def __call__(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[1:3]
        short = min(height, width)
        if self.kind == "efficientnet_lite0":
            side = max(1, int(short * SIDE / (SIDE + 32)))
            x = resize(_middle(pictures, side), (SIDE, SIDE), 3).permute(0, 3, 1, 2).float()
            return ((x - 127) / 128).contiguous()
        x = (
            _middle(resize(pictures, (256 * height // short, 256 * width // short), 2), SIDE)
            .permute(0, 3, 1, 2)
            .float()
            / 255
        )
        mean, std = (
            torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        return ((x - mean) / std).contiguous()


def _middle(pictures: Tensor, side: int) -> Tensor:
    top, left = (round((n - side) / 2) for n in pictures.shape[1:3])
    return pictures[:, top : top + side, left : left + side]


def read(file: Path) -> Classifier:
    """A network from a published state dict, or from what ``secondlook import classifier`` wrote. ConfigError for another network's,
    DamagedError for what is no state dict; nothing in a file is run."""
    state = {k: v for k, v in official.read_weights(file).items() if not k.endswith("num_batches_tracked")}
    if "stem.conv.weight" in state:
        kind = str(checkpoint.read_config(file).get("network"))
        if kind not in PLANS:
            raise DamagedError(f'"{file}" says it is "{kind}", which is no classifier here; import it again.')
    else:
        kind = next((k for k, plan in PLANS.items() if plan.marks in state), "")
        if not kind:
            raise ConfigError(
                f'"{file}" holds none of the classifiers {", ".join(PLANS)}; give the published file of one of them.'
            )
    network = Classifier(kind)
    wanted = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    named = state if "stem.conv.weight" in state else dict(zip(wanted, state.values(), strict=False))
    if len(state) != len(wanted) or any(k not in named or named[k].shape != v.shape for k, v in wanted.items()):
        raise ConfigError(
            f'The tensors of "{file}" are not those of {kind} with {CLASSES} classes; give its published file.'
        )
    network.load_state_dict(named, strict=False)
    return network.requires_grad_(False).eval()


def import_classifier(source: Path, out: Path) -> list[str]:
    """Write ``out/weights.safetensors`` from a published file; returns lines that say what was found."""
    target = out / "weights.safetensors"
    if target.exists() or (out.exists() and not out.is_dir()):
        raise ConfigError(f'"{target if out.is_dir() else out}" exists already; choose another --out.')
    network = read(source)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.save(network, target, {"network": network.kind}, {"source": source.name, "sha256": file_digest(source)})
    return [
        f"{network.kind}: {sum(p.numel() for p in network.parameters()):,} numbers, {CLASSES} classes of ImageNet",
        f"weights: {target}",
    ]


class ByImageNet(_Classes):
    """log softmax of the logits at the class asked for."""

    def __init__(self, names: Sequence[str], held: load.Held, prepare: Any, **use: Any):
        super().__init__("imagenet", held, prepare, **use)
        self.names = tuple(names)

    def judge(self, pixels: Tensor, conditions: Sequence[Condition], device: torch.device) -> np.ndarray:
        return self.numbers(self.network(pixels)[: len(conditions)].cpu().double().numpy(), conditions)


def imagenet(weights: str, names: str = "", device: str = "auto", batch: int = 0, offload: bool = False) -> Verifier:
    """log p(class | picture) by MobileNetV2 or EfficientNet-Lite0. weights: a published file or an imported one. names: a text file with
    a class's name on each of 1000 lines, or JSON of names by number; without it classes are asked for by number. NaN where a
    condition asks for no class that is known."""
    file = Path(weights)
    held = load.share(("imagenet", str(file.resolve())), device, lambda: read(file))
    return ByImageNet(_names(names), held, Crop(str(held.network.kind)), batch=batch, offload=offload)


def _names(file: str) -> list[str]:
    if not file:
        return [str(i) for i in range(CLASSES)]
    try:
        text = Path(file).read_text()
        found = (
            json.loads(text)
            if text.lstrip().startswith("{")
            else {str(i): line for i, line in enumerate(text.split("\n")) if line.strip()}
        )
        return [str(found[str(i)]) for i in range(CLASSES)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f'imagenet: names must be a file with a name for each of {CLASSES} classes; "{file}" is not ({reason}).'
        ) from None
