"""The contract that every adapter inherits, for the built-in families and for the example of one's own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

import secondlook
from secondlook.adapters.base import Adapter
from secondlook.testing import AdapterContract

diffusers = pytest.importorskip("diffusers", reason="needs secondlook[hub]")
pytest.importorskip("transformers", reason="needs secondlook[hub]")
UNBINNED = {"use_resolution_binning": False}


class Family(AdapterContract):
    """A family's tiny pipeline, made once."""

    name = ""
    options: ClassVar[dict[str, Any]] = {}
    made: ClassVar[dict[str, Adapter]] = {}

    def held(self) -> Adapter:
        from secondlook.adapters import tiny

        if self.name not in self.made:
            self.made[self.name] = secondlook.load(tiny.make(self.name), **self.options)
        return self.made[self.name]


class TestSana(Family):
    name, call = "sana", UNBINNED


class TestFlux(Family):
    name, call, options = "flux", {"max_sequence_length": 16}, {"tokens": 16}


class TestSD3(Family):
    name, call, options = "sd3", {"max_sequence_length": 16}, {"tokens": 16}


class TestPixArt(Family):
    name, call = "pixart", UNBINNED


class TestPixArtAlphaAt1024(AdapterContract):
    """Told the picture's size and shape, as the released network of 1024 pixels is; not square."""

    call = UNBINNED
    made: ClassVar[list[Adapter]] = []

    def held(self) -> Adapter:
        import torch

        from secondlook.adapters import tiny

        if not self.made:
            pipe = tiny.make("pixart")
            torch.manual_seed(0)
            network = type(pipe.transformer).from_config(
                pipe.transformer.config, sample_size=128, use_additional_conditions=True
            )
            tiny._wake(network)
            pipe = diffusers.PixArtAlphaPipeline(**{**pipe.components, "transformer": network.eval()})
            pipe.set_progress_bar_config(disable=True)
            self.made.append(secondlook.load(pipe, height=32, width=48))
        return self.made[0]


class TestSDXL(Family):
    name = "sdxl"


class TestDiT(Family):
    name, prompts = "dit", ("goldfish", "207")


class TestOwnAdapter(AdapterContract):
    """examples/own_adapter.py on a tiny Stable Diffusion 1."""

    def held(self) -> Adapter:
        import torch

        from secondlook.adapters import tiny

        parts = tiny.make("sdxl").components
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                  "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}  # fmt: skip
        unet = diffusers.UNet2DConditionModel(block_out_channels=(8, 16), layers_per_block=1, sample_size=16, norm_num_groups=4,
                                              attention_head_dim=4, cross_attention_dim=32, **blocks)  # fmt: skip
        pipe = diffusers.StableDiffusionPipeline(
            vae=parts["vae"], text_encoder=parts["text_encoder"], tokenizer=parts["tokenizer"], unet=unet,
            scheduler=parts["scheduler"], safety_checker=None, feature_extractor=None, requires_safety_checker=False)  # fmt: skip
        pipe.set_progress_bar_config(disable=True)
        return secondlook.load(pipe, adapter="examples.own_adapter:StableDiffusion")
