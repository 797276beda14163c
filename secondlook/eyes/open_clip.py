"""CLIP as OpenCLIP's files hold it (keys ``visual.transformer.resblocks...``), in the CLIPModel of transformers: the same network
under other names. Sizes are read from the weights; the networks of that layout that judge (ViT-H/14 of LAION) use the exact GELU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError
from secondlook.eyes.load import filled, transformers

HEAD = {
    1280: 80,
    1408: 88,
    1664: 104,
}  # width of an attention head by the width of the picture's transformer; 64 for all others
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ENDS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "logit_scale": "logit_scale",
}
_TURNED = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}  # there the input comes first
_IGNORED = ("attn_mask",)  # a constant that old files keep


def clip_of(state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The CLIPModel with these weights; ConfigError where they are not those of such a network."""
    try:
        config = _config(state)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f'"{path}" holds no CLIP of OpenCLIP\'s layout: {error} is not among its weights.') from None
    with torch.device("meta"):
        network = transformers().CLIPModel(transformers().CLIPConfig(**config))
    network = network.to_empty(device="cpu")
    for name, buffer in network.named_buffers():  # the numbers of the places: in no file
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer)) if name.endswith("position_ids") else None
    return filled(network, dict(renamed(state)), path)


def renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights under the names of transformers; those of joint projections are parted, float32."""
    for key, value in state.items():
        if key in _IGNORED:
            continue
        value = value.float()
        if key in _ENDS:
            yield _ENDS[key], value
        elif key in _TURNED:
            yield _TURNED[key], value.T.contiguous()
        elif "resblocks." in key:
            yield from _of_block(key, value)
        else:
            yield key, value  # not known: the check on filling names it


def _of_block(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    side = "vision_model" if key.startswith("visual.") else "text_model"
    number, _, rest = key.partition("resblocks.")[2].partition(".")
    start = f"{side}.encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        for name, third in zip("qkv", value.chunk(3), strict=True):
            yield f"{start}.self_attn.{name}_proj.{rest.removeprefix('attn.in_proj_')}", third.clone()
        return
    part, _, end = rest.rpartition(".")
    yield (f"{start}.{_PARTS[part]}.{end}" if part in _PARTS else key), value


def _config(state: Mapping[str, Tensor]) -> dict[str, Any]:
    def depth(start: str) -> int:
        return len({k[len(start) :].partition(".")[0] for k in state if k.startswith(start)})

    def encoder(width: int, start: str, head: int) -> dict[str, Any]:
        return {"hidden_size": width, "num_hidden_layers": depth(start), "num_attention_heads": max(1, width // head), "hidden_act": "gelu",
                "intermediate_size": len(state[f"{start}0.mlp.c_fc.bias"])}  # fmt: skip

    first, words = state["visual.conv1.weight"], state["token_embedding.weight"]
    side = int((len(state["visual.positional_embedding"]) - 1) ** 0.5) * first.shape[-1]
    vision = encoder(first.shape[0], "visual.transformer.resblocks.", HEAD.get(first.shape[0], 64))
    text = encoder(words.shape[1], "transformer.resblocks.", 64)
    # eos_token_id 2 makes transformers pool where the largest token stands, as OpenCLIP does.
    return {"projection_dim": state["visual.proj"].shape[1], "vision_config": {**vision, "image_size": side, "patch_size": first.shape[-1]},
            "text_config": {**text, "vocab_size": len(words), "max_position_embeddings": len(state["positional_embedding"]), "eos_token_id": 2}}  # fmt: skip
