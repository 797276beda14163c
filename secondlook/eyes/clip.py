"""Verifiers with two encoders: CLIPScore, SigLIP 2, PickScore and HPSv2. Each compares a picture's direction with its prompt's.

cos is the cosine of the projected features of picture and prompt, in float64 from features in the network's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, nearest
from secondlook.eyes import load, open_clip
from secondlook.eyes.base import Eye, unit
from secondlook.eyes.load import Held
from secondlook.eyes.pixels import Prepare
from secondlook.eyes.text import Memory, Words
from secondlook.types import Condition, Verifier

CLIP_L = "openai/clip-vit-large-patch14"
CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
PICKSCORE = "yuvalkirstain/PickScore_v1"
SIGLIP = "google/siglip2-so400m-patch14-384"
HPS = "xswu/HPSv2"
HPS_FILES = {"2.1": "HPS_v2.1_compressed.pt", "2.0": "HPS_v2_compressed.pt"}
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
HUNDRED, COSINE, LOGIT = "hundred", "cosine", "logit"  # what is made of the cosine


class TwoEncoders(Eye):
    """score: 100 cos, cos, or the network's logit, exp(scale) cos (+ bias)."""

    def __init__(self, name: str, held: Held, prepare: Prepare, words: Words, score: str, **use: Any):
        super().__init__(name, held, prepare, **use)
        self.score = score
        self.made |= {"words": load.words_digest(words.tokenizer), "length": words.most}
        self.words = words
        self._prompts: Memory[np.ndarray] = Memory()

    def judge(self, pixels: Tensor, conditions: Sequence[Condition], device: torch.device) -> np.ndarray:
        seen = self.seen(pixels)[: len(conditions)]
        said = np.stack([self.said(str(c.prompt), device) for c in conditions])
        return self.scaled(np.array([float(np.sum(a * b)) for a, b in zip(seen, said, strict=True)]))

    def seen(self, pixels: Tensor) -> np.ndarray:
        """Prepared pictures [n, 3, h, w] to unit features [n, D] float64."""
        return unit(self.network.get_image_features(pixel_values=pixels).pooler_output)  # type: ignore[operator]

    def said(self, prompt: str, device: torch.device) -> np.ndarray:
        """A prompt's unit features [D] float64; encoded once."""

        def encode(text: str) -> np.ndarray:
            found = {k: v.to(device) for k, v in self.words(text).items()}
            if self.words.full:  # SigLIP reads its padding too, as it was trained to
                found.pop("attention_mask")
            return unit(self.network.get_text_features(**found).pooler_output)[0]  # type: ignore[operator]

        return self._prompts.get(prompt, encode)

    def scaled(self, cosine: np.ndarray) -> np.ndarray:
        """The score that a cosine makes."""
        if self.score == HUNDRED:
            return 100 * cosine
        if self.score == COSINE:
            return cosine
        bias = getattr(self.network, "logit_bias", None)
        scale = math.exp(float(self.network.logit_scale))  # type: ignore[arg-type]
        return cosine * scale + (0.0 if bias is None else float(bias))


def two_encoders(what: str, model: str, kind: str, dtype: str, device: str, default: str, score: str, full: bool = False,
                 held: Held | None = None, **use: Any) -> TwoEncoders:  # fmt: skip
    """Network, processor and tokenizer together. default: whose processor and tokenizer serve where ``model`` has none of its own."""
    held = held or load.network(f"{what}(model", model, kind, dtype, device)
    option = f"{what}({'model' if default == model else 'processor'}"
    prepare = Prepare(load.processor(option, load.beside(model, default, PROCESSOR)))
    tokenizer = load.tokenizer(option, load.beside(model, default, load.TOKENS))
    config: Any = held.network.config
    words = Words(tokenizer, int(config.text_config.max_position_embeddings), what, full, small=full)
    return TwoEncoders(what, held, prepare, words, score, **use)


def clip(
    model: str = CLIP_L, device: str = "auto", dtype: str = "float32", batch: int = 0, offload: bool = False
) -> Verifier:
    """CLIPScore (2104.08718) on the scale of 100 cos, as most tables have it: the paper's is 2.5 max(cos, 0), the same order where cos is
    above 0, and this one is not cut off there, so that bad pictures can still be told apart."""
    return two_encoders("clip", model, "CLIPModel", dtype, device, model, HUNDRED, batch=batch, offload=offload)


def siglip(
    model: str = SIGLIP, device: str = "auto", dtype: str = "float32", batch: int = 0, offload: bool = False
) -> Verifier:
    """SigLIP 2's logit exp(t) cos + b (2303.15343, sec. 3; 2502.14786); its sigmoid is the probability that picture and prompt belong
    together. The prompt is read in small letters and padded to the network's 64 tokens, as in training."""
    return two_encoders(
        "siglip", model, "SiglipModel", dtype, device, model, LOGIT, full=True, batch=batch, offload=offload
    )


def pickscore(model: str = PICKSCORE, processor: str = CLIP_H, device: str = "auto", dtype: str = "float32", batch: int = 0,
              offload: bool = False) -> Verifier:  # fmt: skip
    """PickScore (2305.01569, eq. 1): exp(t) cos of a CLIP-H that was taught with people's choices between pictures of a prompt.
    processor: whose image processor and tokenizer serve where ``model`` has none of its own."""
    return two_encoders("pickscore", model, "CLIPModel", dtype, device, processor, LOGIT, batch=batch, offload=offload)


def hpsv2(model: str = HPS, version: str = "2.1", processor: str = CLIP_H, device: str = "auto", dtype: str = "float32", batch: int = 0,
          offload: bool = False) -> Verifier:  # fmt: skip
    """HPS v2 (2306.09341): cos of a CLIP-H taught with rankings of people. model: the published file or its hub id (OpenCLIP's layout,
    read by its keys), or a folder with a CLIPModel of transformers. version: which published file, 2.1 or 2.0."""
    if version not in HPS_FILES:
        raise ConfigError(f'hpsv2: there is no version "{version}"; {nearest(version, HPS_FILES)}')
    held = None
    if not _in_transformers(model):
        path = load.file_of("hpsv2(model", model, (HPS_FILES[version],))
        number = load.dtype_of(dtype)

        def make() -> nn.Module:
            return open_clip.clip_of(load.state_of(path), path).to(number)

        held = load.share(("open_clip", *load.identity("hpsv2(model", str(path)), dtype), device, make)
    return two_encoders(
        "hpsv2", model, "CLIPModel", dtype, device, processor, COSINE, held=held, batch=batch, offload=offload
    )


def _in_transformers(model: str) -> bool:
    from pathlib import Path

    return (Path(model) / "config.json").is_file()
