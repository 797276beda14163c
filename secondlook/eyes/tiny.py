"""Tiny weights of the judges' true architectures, by chance, made on the spot: what they are tested and timed on, and something to
try them with. ``save("clip", folder)`` writes what the published folder or file holds, a few hundred kilobytes of it.

The numbers that such judges give mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secondlook.adapters.logs import caught
from secondlook.adapters.tiny import letters
from secondlook.errors import ConfigError, nearest
from secondlook.eyes.load import transformers, unwatched

SIDE = 32  # pixels that most of them read
COCO = ("person", "car", "dog", "cat", "bench", "cup", "clock", "book", "chair", "couch")


def save(name: str, folder: str | Path, seed: int = 0) -> Path:
    """Write tiny weights of a kind (see ``KINDS``) into ``folder``, a function of ``seed``; what the judge's ``model`` option takes."""
    if name not in KINDS:
        raise ConfigError(f'There are no tiny weights "{name}"; {nearest(name, KINDS)}')
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), caught(), unwatched():
        torch.manual_seed(seed)
        KINDS[name](path)
    return path


def _wake(module: nn.Module) -> nn.Module:
    """Chance in all weights, wide enough that pictures and prompts show: a new network's are small, and some zero."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim > 1:
                p.normal_(std=0.7 / p[0].numel() ** 0.5)
            elif "logit_scale" not in name and "logit_bias" not in name:
                p.add_(torch.randn_like(p) * 0.1)
    return module.eval()


def _encoder(**more: Any) -> dict[str, Any]:
    return {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1, **more}


def _two(kind: str, vision: dict[str, Any], text: dict[str, Any], **more: Any) -> nn.Module:
    package = transformers()
    config = getattr(package, f"{kind}Config")(vision_config=_encoder(**vision), text_config=_encoder(**text), **more)
    return _wake(getattr(package, f"{kind}Model")(config))


def clip_model() -> nn.Module:
    """A CLIPModel that has the sizes and the activation of no other but the form of ViT-H/14 with heads 64 wide."""
    return _two("CLIP", {"image_size": SIDE, "patch_size": 8, "hidden_act": "gelu"},
                {"vocab_size": 258, "max_position_embeddings": 77, "hidden_act": "gelu", "bos_token_id": 256, "eos_token_id": 257}, projection_dim=48)  # fmt: skip


def _pixels(kind: str, folder: Path, **more: Any) -> None:
    getattr(transformers(), f"{kind}ImageProcessorPil")(**more).save_pretrained(folder)


def _square(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def _clip(folder: Path) -> None:
    clip_model().save_pretrained(folder)  # type: ignore[operator]
    _pixels("CLIP", folder, **_square(SIDE))
    letters(77).save_pretrained(folder)


def _siglip(folder: Path) -> None:
    _two(
        "Siglip",
        {"image_size": SIDE, "patch_size": 8},
        {"vocab_size": 258, "max_position_embeddings": 64, "projection_size": 64},
    ).save_pretrained(folder)  # type: ignore[operator]
    _pixels(
        "Siglip", folder, size={"height": SIDE, "width": SIDE}, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    letters(64).save_pretrained(folder)


def open_clip_layout(model: nn.Module) -> dict[str, Tensor]:
    """A CLIPModel's weights under OpenCLIP's names."""
    from secondlook.eyes.open_clip import _ENDS, _PARTS, _TURNED

    ends, parts = ({v: k for k, v in table.items()} for table in (_ENDS, _PARTS))
    turned = {v: k for k, v in _TURNED.items()}
    state, out = model.state_dict(), {}
    for key, value in state.items():
        if key in ends:
            out[ends[key]] = value
        elif key in turned:
            out[turned[key]] = value.T.contiguous()
        elif ".layers." in key:
            side, _, rest = key.partition(".encoder.layers.")
            number, _, inner = rest.partition(".")
            start = ("visual." if side == "vision_model" else "") + f"transformer.resblocks.{number}."
            part, _, end = inner.rpartition(".")
            if part in parts:
                out[f"{start}{parts[part]}.{end}"] = value
            elif part == "self_attn.q_proj":
                some = [state[key.replace("q_proj", f"{n}_proj")] for n in "qkv"]
                out[f"{start}attn.in_proj_{end}"] = torch.cat(some)
    return out


def _hpsv2(folder: Path) -> None:
    torch.save(
        {"state_dict": {k: v.half() for k, v in open_clip_layout(clip_model()).items()}},
        folder / "HPS_v2.1_compressed.pt",
    )
    _pixels("CLIP", folder, **_square(SIDE))
    letters(77).save_pretrained(folder)


def stack(inputs: int) -> dict[str, Tensor]:
    """The published head's layers for features of another width."""
    sizes = {0: (inputs, 32), 2: (32, 16), 4: (16, 8), 6: (8, 4), 7: (4, 1)}
    out: dict[str, Tensor] = {}
    for n, (i, o) in sizes.items():
        out |= {f"layers.{n}.weight": torch.randn(o, i) / i**0.5, f"layers.{n}.bias": torch.randn(o) * 0.1}
    return out


def _aesthetic(folder: Path) -> None:
    torch.save(stack(48), folder / "aesthetic-model.pth")


def _imagereward(folder: Path) -> None:
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    package = transformers()
    vision = _wake(
        package.BlipVisionModel(
            package.BlipVisionConfig(**_encoder(image_size=SIDE, patch_size=8, layer_norm_eps=1e-6))
        )
    )
    text = _encoder(vocab_size=258, encoder_hidden_size=64, max_position_embeddings=64, is_decoder=True, pad_token_id=0)
    reader = _wake(BlipTextModel(package.BlipTextConfig(**text), add_pooling_layer=False))
    state = {f"blip.text_encoder.{k}": v for k, v in reader.state_dict().items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    state["blip.vision_proj.weight"] = torch.randn(8, 64)  # of the training, as the published BLIP has it
    state |= {f"blip.visual_encoder.{_timm(k)}": v for k, v in vision.state_dict().items()}
    torch.save(state | {f"mlp.{k}": v for k, v in stack(64).items()}, folder / "ImageReward.pt")
    letters(64).save_pretrained(folder)


def _timm(key: str) -> str:
    """A weight of BlipVisionModel under timm's name."""
    for here, there in (
        ("embeddings.class_embedding", "cls_token"), ("embeddings.position_embedding", "pos_embed"), ("embeddings.patch_embedding", "patch_embed.proj"),
        ("post_layernorm", "norm"), ("encoder.layers", "blocks"), ("layer_norm", "norm"), ("self_attn.projection", "attn.proj"), ("self_attn", "attn"),
    ):  # fmt: skip
        key = key.replace(here, there)
    return key


def _dino(folder: Path) -> None:
    package = transformers()
    _wake(package.Dinov2Model(package.Dinov2Config(**_encoder(image_size=28, patch_size=14)))).save_pretrained(folder)  # type: ignore[operator]
    _pixels(
        "Bit",
        folder,
        size={"shortest_edge": 32},
        crop_size={"height": 28, "width": 28},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def _classes(folder: Path) -> None:
    package = transformers()
    config = package.ViTConfig(**_encoder(image_size=SIDE, patch_size=8, id2label=dict(enumerate(COCO))))
    _wake(package.ViTForImageClassification(config)).save_pretrained(folder)  # type: ignore[operator]
    _pixels("ViT", folder, size={"height": SIDE, "width": SIDE}, resample=2)


def _imagenet(folder: Path) -> None:
    from secondlook.eyes.imagenet import CLASSES, Classifier
    from secondlook.models import checkpoint

    network = _wake(Classifier("mobilenet_v2"))
    checkpoint.save(network, folder / "weights.safetensors", {"network": "mobilenet_v2"})
    names = [
        "a red cup, cup",
        "two dogs",
        "a cat left of a chair",
        "a clock",
        *(f"class {i}" for i in range(4, CLASSES)),
    ]
    (folder / "names.txt").write_text("\n".join(names))


def _owlv2(folder: Path) -> None:
    vision, text = {"image_size": SIDE, "patch_size": 8}, {"vocab_size": 258, "max_position_embeddings": 32}
    package = transformers()
    config = package.Owlv2Config(vision_config=_encoder(**vision), text_config=_encoder(**text), projection_dim=64)
    _wake(package.Owlv2ForObjectDetection(config)).save_pretrained(folder)  # type: ignore[operator]
    _pixels("Owlv2", folder, size={"height": SIDE, "width": SIDE})
    letters(32).save_pretrained(folder)


def _resnet() -> Any:
    return transformers().ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )


def _detr(folder: Path) -> None:
    package = transformers()
    config = package.DetrConfig(backbone_config=_resnet(), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
                                encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=9, id2label=dict(enumerate(COCO)))  # fmt: skip
    _wake(package.DetrForObjectDetection(config)).save_pretrained(folder)  # type: ignore[operator]
    _pixels("Detr", folder, size={"shortest_edge": 48, "longest_edge": 80})


def _swin() -> Any:
    return transformers().SwinConfig(image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4, patch_size=4,
                                     out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip


def _grounding_dino(folder: Path) -> None:
    package = transformers()
    text = package.BertConfig(
        vocab_size=258,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
    )
    swin = _swin()
    swin.out_features = ["stage2", "stage3", "stage4"]
    config = package.GroundingDinoConfig(backbone_config=swin, text_config=text, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                                         decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=9, max_text_len=64)  # fmt: skip
    _wake(package.GroundingDinoForObjectDetection(config)).save_pretrained(folder)  # type: ignore[operator]
    _pixels("GroundingDino", folder, size={"shortest_edge": 48, "longest_edge": 80})
    letters(64).save_pretrained(folder)


def _mask2former(folder: Path) -> None:
    package = transformers()
    config = package.Mask2FormerConfig(backbone_config=_swin(), feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=48, dim_feedforward=48,
                                       encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=9, id2label=dict(enumerate(COCO)))  # fmt: skip
    _wake(package.Mask2FormerForUniversalSegmentation(config)).save_pretrained(folder)  # type: ignore[operator]
    _pixels("Mask2Former", folder, size={"shortest_edge": 64, "longest_edge": 96})


KINDS: dict[str, Callable[[Path], None]] = {
    "clip": _clip, "pickscore": _clip, "siglip": _siglip, "hpsv2": _hpsv2, "aesthetic": _aesthetic, "imagereward": _imagereward, "dino": _dino,
    "classes": _classes, "imagenet": _imagenet, "owlv2": _owlv2, "grounding_dino": _grounding_dino, "detr": _detr, "mask2former": _mask2former,
}  # fmt: skip


def verifiers(folder: str | Path) -> dict[str, str]:
    """All judges of published weights with tiny ones, by name, as call-strings; written into ``folder``."""
    at = {kind: str(save(kind, Path(folder) / kind)) for kind in KINDS}
    found = {n: f"{n}(model={at[n]!r})" for n in ("clip", "siglip", "pickscore", "hpsv2", "imagereward", "classes")}
    found["imagenet"] = (
        f"imagenet(weights={str(Path(at['imagenet']) / 'weights.safetensors')!r}, names={str(Path(at['imagenet']) / 'names.txt')!r})"
    )
    found["hpsv2"] = f"hpsv2(model={at['hpsv2']!r}, processor={at['hpsv2']!r})"
    found["aesthetic"] = f"aesthetic(model={at['clip']!r}, head={at['aesthetic']!r})"
    found["objects"] = f"objects(model={at['owlv2']!r}, colours={at['clip']!r})"
    for kind in ("grounding_dino", "detr", "mask2former"):
        found[f"objects, {kind}"] = f"objects(detector={kind!r}, model={at[kind]!r}, colours={at['clip']!r})"
    return found
