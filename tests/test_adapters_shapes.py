"""Parity at published widths: one layer of SANA 1.6B and of FLUX 12B, with their whole autoencoders, at 128 pixels. Slow."""

from __future__ import annotations

import pytest
import torch

import secondlook
from secondlook.testing import ours, start_noise, theirs

pytest.importorskip("diffusers", reason="needs secondlook[hub]")
pytest.importorskip("transformers", reason="needs secondlook[hub]")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sana", "flux"])
def test_one_layer_at_the_published_width(family: str) -> None:
    from benchmarks.adapters import full

    pipe = full(family, "cpu", torch.float32, depth=1)
    held = secondlook.load(pipe, height=128, width=128)
    call = {"use_resolution_binning": False} if family == "sana" else {}
    noise, scale = start_noise(held, 1, 0), held.usual()["guidance"]
    mine = ours(held, "a photo of a red cube", noise, 3, scale)
    its = theirs(held, "a photo of a red cube", noise, 0, 3, scale, **call)
    assert mine.std() > 0.01
    assert (mine - its).abs().max() < 1e-4
