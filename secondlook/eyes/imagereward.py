"""ImageReward (2304.05977) on transformers' BLIP parts: a ViT sees the picture, a BERT reads the prompt and looks at the picture by
cross-attention, and a linear head of five layers makes the reward of its first token.

The published file holds ``blip.visual_encoder`` (timm's names), ``blip.text_encoder`` (BERT's) and ``mlp``. Sizes are read from the weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError
from secondlook.eyes import load
from secondlook.eyes.base import Eye
from secondlook.eyes.heads import applied, linear_stack
from secondlook.eyes.load import Held
from secondlook.eyes.pixels import Prepare
from secondlook.eyes.text import Memory, Words
from secondlook.types import Condition, Verifier

MODEL = "THUDM/ImageReward"
FILE = "ImageReward.pt"
BERT = "google-bert/bert-base-uncased"
LENGTH = 35  # tokens of a prompt that it reads
MEAN, STD = (
    0.16717362830052426,
    1.0333394966054072,
)  # of its rewards on its own data: it is reported as (reward - mean) / std
_VISION = (
    (r"cls_token", "embeddings.class_embedding"), (r"pos_embed", "embeddings.position_embedding"), (r"patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"norm\.", "post_layernorm."), (r"blocks\.(\d+)\.norm", r"encoder.layers.\1.layer_norm"), (r"blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."), (r"blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)  # fmt: skip
_UNUSED = ("embeddings.position_ids", "pooler.")


class Parts(nn.Module):
    """Both encoders, as one network."""

    def __init__(self, vision: nn.Module, text: nn.Module):
        super().__init__()
        self.vision, self.text = vision, text

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Pictures [B, 3, h, w], token ids and mask [B, L] to what the first token has become, [B, D]."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        whole = torch.ones(seen.shape[:2], dtype=torch.int64, device=seen.device)
        return self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=whole
        ).last_hidden_state[:, 0]


def parts_of(state: Mapping[str, Tensor], path: Path) -> tuple[Parts, nn.Sequential]:
    """The encoders and the head that a published file holds; ConfigError for another file."""
    try:
        vision, text = _configs(state)
    except (KeyError, ValueError) as error:
        raise ConfigError(f'"{path}" holds no ImageReward: {error} is not among its weights.') from None
    package = load.transformers()
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    made = Parts(package.BlipVisionModel(package.BlipVisionConfig(**vision)),
                 BlipTextModel(package.BlipTextConfig(**text), add_pooling_layer=False))  # fmt: skip
    head = {k.removeprefix("mlp."): v for k, v in state.items() if k.startswith("mlp.")}
    filled = load.filled(made, dict(renamed(state)), path)
    return filled, linear_stack(head, path)  # type: ignore[return-value]


def renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The encoders' weights under the names of transformers, float32. What else a BLIP has for its training (projections, a pooler) is
    left out: the released code reads files so (``strict=False``), and the reward does not pass through it."""
    eye, text = "blip.visual_encoder.", "blip.text_encoder."
    for key, value in state.items():
        rest = key.removeprefix(text).removeprefix(eye)
        if rest == key or rest.startswith(_UNUSED):
            continue
        found = [re.sub(rf"^{there}", here, rest) for there, here in _VISION if re.match(there, rest)]
        yield (f"text.{rest}" if key.startswith(text) else f"vision.{found[0]}" if found else key), value.float()


def _configs(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes of both encoders, by the weights; heads are 64 wide in both (BLIP ViT-L and BERT base)."""

    def depth(start: str) -> int:
        return len({k[len(start) :].partition(".")[0] for k in state if k.startswith(start)})

    eye, text = "blip.visual_encoder.", "blip.text_encoder."
    patch, places = state[f"{eye}patch_embed.proj.weight"], state[f"{eye}pos_embed"].shape[1]
    words, key = (
        state[f"{text}embeddings.word_embeddings.weight"],
        state[f"{text}encoder.layer.0.crossattention.self.key.weight"],
    )
    width, hidden = patch.shape[0], words.shape[1]
    vision = {"hidden_size": width, "intermediate_size": len(state[f"{eye}blocks.0.mlp.fc1.bias"]), "num_hidden_layers": depth(f"{eye}blocks."),
              "num_attention_heads": max(1, width // 64), "patch_size": patch.shape[-1], "image_size": int((places - 1) ** 0.5) * patch.shape[-1],
              "layer_norm_eps": 1e-6}  # fmt: skip
    reader = {"hidden_size": hidden, "vocab_size": len(words), "intermediate_size": len(state[f"{text}encoder.layer.0.intermediate.dense.bias"]),
              "num_hidden_layers": depth(f"{text}encoder.layer."), "num_attention_heads": max(1, hidden // 64), "encoder_hidden_size": key.shape[1],
              "max_position_embeddings": len(state[f"{text}embeddings.position_embeddings.weight"]), "layer_norm_eps": 1e-12, "is_decoder": True,
              "pad_token_id": 0}  # fmt: skip
    return vision, reader


def processor(side: int) -> Any:
    """The published preprocessing: Pillow's bicubic to ``side`` on the short edge, the middle square, CLIP's mean and spread."""
    return load.transformers().CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )


class ImageReward(Eye):
    """(reward - mean) / std: 0 is the mean of its training data, 1 a standard deviation above."""

    def __init__(self, held: Held, head: nn.Sequential, words: Words, **use: Any):
        side = int(held.network.vision.config.image_size)  # type: ignore[union-attr,arg-type]
        super().__init__("imagereward", held, Prepare(processor(side)), **use)
        self.head, self.words = head, words
        self.made |= {"words": load.words_digest(words.tokenizer), "length": words.most}
        self._prompts: Memory[dict[str, Tensor]] = Memory()

    def judge(self, pixels: Tensor, conditions: Sequence[Condition], device: torch.device) -> np.ndarray:
        read = [self._prompts.get(str(c.prompt), self.words) for c in conditions]
        read += [read[-1]] * (len(pixels) - len(read))
        ids, mask = (torch.cat([r[name] for r in read]).to(device) for name in ("input_ids", "attention_mask"))
        features = self.network(pixels, ids, mask)[: len(conditions)]
        return (applied(self.head, features.cpu().double().numpy()) - MEAN) / STD


def imagereward(
    model: str = MODEL,
    tokenizer: str = BERT,
    device: str = "auto",
    dtype: str = "float32",
    batch: int = 0,
    offload: bool = False,
) -> Verifier:
    """ImageReward (2304.05977). model: the published file, a folder with it, or its hub id. tokenizer: BERT's uncased, where the folder has none.
    A prompt is read up to 35 tokens."""
    path = load.file_of("imagereward(model", model, (FILE,))
    number = load.dtype_of(dtype)
    state = None

    def make() -> nn.Module:
        nonlocal state
        state = load.state_of(path)
        return parts_of(state, path)[0].to(number)

    held = load.share(("imagereward", *load.identity("imagereward(model", str(path)), dtype), device, make)
    state = state or load.state_of(path)
    head = linear_stack({k.removeprefix("mlp."): v for k, v in state.items() if k.startswith("mlp.")}, path)
    reader = load.tokenizer("imagereward(tokenizer", load.beside(model, tokenizer, load.TOKENS))
    return ImageReward(held, head, Words(reader, LENGTH, "imagereward", full=True), batch=batch, offload=offload)
