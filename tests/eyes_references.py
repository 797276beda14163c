"""Networks of the eyes written again from their papers and published layouts, on the weights alone: what the loaders are held against.

Nothing here knows of transformers. Pixels are prepared, [1, 3, h, w].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d)) v by heads: q [N, W], k and v [M, W], mask bool [N, M]."""
    split = [x.view(len(x), heads, -1).transpose(0, 1) for x in (q, k, v)]
    weights = split[0] @ split[1].transpose(1, 2) / split[0].shape[-1] ** 0.5
    if mask is not None:
        weights = weights.masked_fill(~mask, -torch.inf)
    return (weights.softmax(-1) @ split[2]).transpose(0, 1).reshape(len(q), -1)


def linear(w: State, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normed(w: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def open_clip_tower(w: State, start: str, x: Tensor, causal: bool) -> Tensor:
    """OpenCLIP's residual blocks (2103.00020; pre-norm, exact GELU)."""
    depth = len({k.split("resblocks.")[1].split(".")[0] for k in w if k.startswith(f"{start}transformer.resblocks.")})
    mask = torch.ones(len(x), len(x)).tril().bool() if causal else None
    for n in range(depth):
        at = f"{start}transformer.resblocks.{n}."
        q, k, v = (normed(w, f"{at}ln_1", x) @ w[f"{at}attn.in_proj_weight"].T + w[f"{at}attn.in_proj_bias"]).chunk(
            3, -1
        )
        x = x + linear(w, f"{at}attn.out_proj", attended(q, k, v, x.shape[1] // 64, mask))
        x = x + linear(w, f"{at}mlp.c_proj", F.gelu(linear(w, f"{at}mlp.c_fc", normed(w, f"{at}ln_2", x))))
    return x


def open_clip_cosine(w: State, pixels: Tensor, ids: list[int]) -> float:
    """cos of the picture's and the prompt's projected features; the prompt is read where its highest token stands."""
    cells = F.conv2d(pixels, w["visual.conv1.weight"], stride=w["visual.conv1.weight"].shape[-1]).flatten(2)[0].T
    x = torch.cat([w["visual.class_embedding"][None], cells]) + w["visual.positional_embedding"]
    x = open_clip_tower(w, "visual.", normed(w, "visual.ln_pre", x), causal=False)
    seen = normed(w, "visual.ln_post", x[0]) @ w["visual.proj"]
    y = w["token_embedding.weight"][ids] + w["positional_embedding"][: len(ids)]
    y = normed(w, "ln_final", open_clip_tower(w, "", y, causal=True))
    said = y[max(range(len(ids)), key=lambda i: ids[i])] @ w["text_projection"]
    return float(F.cosine_similarity(seen, said, 0))


def imagereward(w: State, pixels: Tensor, ids: list[int], length: int = 35) -> float:
    """ImageReward (2304.05977): BLIP's ViT, BERT with cross-attention after self-attention, its first token through the linear layers."""
    eye, text = "blip.visual_encoder.", "blip.text_encoder."
    patch = w[f"{eye}patch_embed.proj.weight"]
    cells = F.conv2d(pixels, patch, w[f"{eye}patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2)[0].T
    x = torch.cat([w[f"{eye}cls_token"][0], cells]) + w[f"{eye}pos_embed"][0]
    for n in range(len({k.split(".")[3] for k in w if k.startswith(f"{eye}blocks.")})):
        at = f"{eye}blocks.{n}."
        q, k, v = linear(w, f"{at}attn.qkv", normed(w, f"{at}norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(w, f"{at}attn.proj", attended(q, k, v, x.shape[1] // 64))
        x = x + linear(w, f"{at}mlp.fc2", F.gelu(linear(w, f"{at}mlp.fc1", normed(w, f"{at}norm2", x, 1e-6))))
    seen = normed(w, f"{eye}norm", x, 1e-6)
    ids = ids[:length]
    y = (
        w[f"{text}embeddings.word_embeddings.weight"][ids]
        + w[f"{text}embeddings.position_embeddings.weight"][: len(ids)]
    )
    y = normed(w, f"{text}embeddings.LayerNorm", y, 1e-12)
    for n in range(len({k.split(".")[4] for k in w if k.startswith(f"{text}encoder.layer.")})):
        at = f"{text}encoder.layer.{n}."
        for part, other in (("attention", None), ("crossattention", seen)):
            source = y if other is None else other
            q, k, v = (
                linear(w, f"{at}{part}.self.{name}", s)
                for name, s in (("query", y), ("key", source), ("value", source))
            )
            found = linear(w, f"{at}{part}.output.dense", attended(q, k, v, y.shape[1] // 64))
            y = normed(w, f"{at}{part}.output.LayerNorm", found + y, 1e-12)
        wide = F.gelu(linear(w, f"{at}intermediate.dense", y))
        y = normed(w, f"{at}output.LayerNorm", linear(w, f"{at}output.dense", wide) + y, 1e-12)
    z = y[0]
    for n in (0, 2, 4, 6, 7):
        z = linear(w, f"mlp.layers.{n}", z)
    return (float(z[0]) - 0.16717) / 1.03334
