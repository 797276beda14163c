"""No GPU is needed here to see whether tensors of two devices meet: fake tensors, which hold shapes, dtypes and devices alone,
refuse that as real ones do. The pipelines' weights are put on a pretended accelerator in bfloat16, latents stay on the CPU.

Run by test_adapters_devices.py in a process of its own: a pretended device stays with its process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import secondlook
from secondlook.adapters.base import Adapter
from secondlook.adapters.encoding import Encoded

pytest.importorskip("diffusers", reason="needs secondlook[hub]")
pytest.importorskip("transformers", reason="needs secondlook[hub]")
DEVICE = "pretended"


@pytest.fixture(scope="module", autouse=True)
def _device() -> None:
    setup = getattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        pytest.skip("this torch cannot pretend a device")
    setup(DEVICE)


def pretend(module: torch.nn.Module) -> None:
    """The module's weights and buffers as fake ones on the pretended device; inside a fake mode."""
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, value in kind.items():
                if value is not None:
                    dtype = torch.bfloat16 if value.is_floating_point() else value.dtype
                    fake = torch.empty(value.shape, device=DEVICE, dtype=dtype)
                    kind[name] = torch.nn.Parameter(fake, requires_grad=False) if kind is part._parameters else fake


def held(family: str, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    from secondlook.adapters import tiny

    pipe = tiny.make(family)
    return secondlook.load(pipe, **({"tokens": 16} if family in ("flux", "sd3") else {}))


class Finite:
    """What a fake tensor cannot say of itself."""

    def all(self, *_: int) -> Any:
        return self if _ else True

    def flatten(self, *_: int) -> Finite:
        return self

    def tolist(self) -> list[bool]:
        return [True] * 4


def told(adapter: Adapter) -> Encoded:
    """Two rows of a prompt and two of none, encoded on the adapter's device (without inference mode, which fakes do not know).
    SANA's language model makes real tensors on the way, so its encoding is only put there."""
    if adapter.family == "sana":
        shapes = {"embeds": ((4, 300, 8), torch.bfloat16), "mask": ((4, 300), torch.long)}
        return Encoded({k: torch.ones(s, dtype=d, device=DEVICE) for k, (s, d) in shapes.items()})
    encode: Any = getattr(type(adapter).encode, "__wrapped__", type(adapter).encode)
    wanted = encode(adapter, adapter.condition("goldfish" if adapter.family == "dit" else "a red cat"))
    return Encoded.stack([wanted.rows([0, 0]), encode(adapter, None).rows([0, 0])])


@pytest.mark.parametrize("family", ["sana", "flux", "sd3", "pixart", "sdxl", "dit"])
def test_no_two_devices_meet(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = held(family, monkeypatch)
    level, x = adapter.schedule(4).level(torch.full((4,), 0.5)), torch.randn(4, *adapter.shape)
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        for part in adapter.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                pretend(part)
        adapter.refresh()
        assert (adapter.device.type, adapter.dtype) == (DEVICE, torch.bfloat16)
        cond = told(adapter)
        assert {v.device.type for v in cond.parts.values()} == {DEVICE}
        if adapter.distilled:
            cond = Encoded({**cond.parts, "guidance": torch.full((4,), 3.5, device=adapter.device)})
        x, level = mode.from_tensor(x), mode.from_tensor(level)
        out = adapter.outputs(x, level, cond)
        assert (out.device.type, out.dtype, out.shape[0], out.shape[2:]) == ("cpu", torch.float32, 4, x.shape[2:])
        monkeypatch.setattr(torch.Tensor, "isfinite", lambda self: Finite())
        pictures = adapter.decode(x)
    assert (pictures.device.type, pictures.dtype) == ("cpu", torch.uint8)
    assert tuple(pictures.shape) == (4, adapter.height, adapter.width, 3)


def test_a_mixture_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A condition left on the CPU, as a careless adapter would have it, is refused."""
    adapter = held("sdxl", monkeypatch)
    level, x = adapter.schedule(4).level(torch.full((4,), 0.5)), torch.randn(4, *adapter.shape)
    cond = Encoded(
        {k: v.bfloat16() for k, v in adapter.encode(adapter.condition("a red cat")).rows([0] * 4).parts.items()}
    )
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        for part in adapter.pipe.components.values():
            if isinstance(part, torch.nn.Module):
                pretend(part)
        adapter.refresh()
        here = Encoded({k: mode.from_tensor(v) for k, v in cond.parts.items()})
        with pytest.raises(Exception, match="same device"):
            adapter.outputs(mode.from_tensor(x), mode.from_tensor(level), here)
