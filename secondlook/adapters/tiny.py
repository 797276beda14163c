"""Tiny pipelines with random weights, made on the spot: what the adapters are tested on, and something to try them with.

They are diffusers' own classes at a few thousand parameters, with every part that the real ones have (tokenizers, text
encoders, autoencoder, scheduler); pictures are noise. ``tiny.make("flux")`` gives one; ``save_pretrained`` works on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from secondlook.errors import ConfigError, MissingExtra, nearest

WORDS = ("a", "an", "the", "photo", "of", "red", "blue", "green", "cube", "ball", "cat", "dog", "on", "in", "left", "right", "two",
         "three", "four", "and", ",", ".")  # fmt: skip
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


def make(name: str, seed: int = 0, **scheduler: Any) -> Any:
    """A pipeline of a family: sana, flux, sd3, pixart, dit or sdxl, its weights a function of ``seed``. scheduler: options of
    the family's usual one."""
    if name not in PIPELINES:
        raise ConfigError(f'There is no tiny pipeline "{name}"; {nearest(name, PIPELINES)}')
    try:
        import diffusers
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"Pipelines need diffusers and transformers ({error}): pip install 'secondlook[hub]'"
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = PIPELINES[name](diffusers, scheduler)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()  # new modules are in training mode, where T5's dropout is live
                _wake(part)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _wake(module: torch.nn.Module) -> None:
    """Give parameters that begin as zeros a value, so that prompts, times and guidance show in the pictures."""
    for parameter in module.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)


def words(limit: int = 64) -> Any:
    """A tokenizer of WORDS, all others unknown, that adds a first and a last token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<bos>", 2), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
                                   unk_token="<unk>", model_max_length=limit, padding_side="right")  # fmt: skip


def letters(limit: int = 77) -> Any:
    """A tokenizer of bytes, so that no prompt has unknown tokens; its first token is 256 and its last 257, as is its padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    first, last = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {token: i for i, token in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), first, last])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = [(first, 256), (last, 257)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=first, eos_token=last, pad_token=last, unk_token=last,
                                   model_max_length=limit, padding_side="right")  # fmt: skip


def _kl(d: Any, channels: int = 4, scale: float = 0.18215, shift: float | None = None) -> Any:
    """An AutoencoderKL of two levels: two pixels a latent cell."""
    plain = shift is None
    return d.AutoencoderKL(in_channels=3, out_channels=3, latent_channels=channels, block_out_channels=(8, 8),
                           layers_per_block=1, norm_num_groups=4, sample_size=32, scaling_factor=scale, shift_factor=shift,
                           use_quant_conv=plain, use_post_quant_conv=plain, down_block_types=(_DOWN, _DOWN),
                           up_block_types=(_UP, _UP))  # fmt: skip


def _clip(projected: bool = False) -> Any:
    import transformers as t

    config = t.CLIPTextConfig(vocab_size=258, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
                              max_position_embeddings=77, projection_dim=32, bos_token_id=256, eos_token_id=257,
                              pad_token_id=257, hidden_act="gelu")  # fmt: skip
    return (t.CLIPTextModelWithProjection if projected else t.CLIPTextModel)(config)


def _t5(vocabulary: int) -> Any:
    import transformers as t

    config: Any = t.T5Config
    return t.T5EncoderModel(config(vocab_size=vocabulary, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
                                   relative_attention_num_buckets=8, feed_forward_proj="gated-gelu",
                                   decoder_start_token_id=0))  # fmt: skip


def _sana(d: Any, scheduler: dict[str, Any]) -> Any:
    import transformers as t

    tokenizer = words(limit=400)
    config: Any = t.Gemma2Config
    gemma = config(head_dim=16, hidden_size=8, intermediate_size=64, num_attention_heads=2, num_hidden_layers=1,
                           num_key_value_heads=2, vocab_size=len(tokenizer), attn_implementation="eager", pad_token_id=0,
                           eos_token_id=1, bos_token_id=2)  # fmt: skip
    network = d.SanaTransformer2DModel(patch_size=1, in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2,
                                       attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4,
                                       cross_attention_dim=8, caption_channels=8, sample_size=16)  # fmt: skip
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = d.AutoencoderDC(in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=blocks,
                          decoder_block_types=blocks, encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                          encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
                          encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type="conv",
                          upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu",
                          scaling_factor=0.41407)  # fmt: skip
    usual = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_flow_sigmas": True, "flow_shift": 3.0,
             "prediction_type": "flow_prediction"}  # fmt: skip
    return d.SanaPipeline(tokenizer=tokenizer, text_encoder=t.Gemma2Model(gemma), vae=vae, transformer=network,
                          scheduler=d.DPMSolverMultistepScheduler(**{**usual, **scheduler}))  # fmt: skip


def _flux(d: Any, scheduler: dict[str, Any]) -> Any:
    long = words()
    network = d.FluxTransformer2DModel(patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
                                       num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
                                       axes_dims_rope=(4, 4, 8), guidance_embeds=True)  # fmt: skip
    pipe = d.FluxPipeline(scheduler=d.FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **scheduler}),
                          vae=_kl(d, 4, 0.3611, 0.1159), text_encoder=_clip(), tokenizer=letters(),
                          text_encoder_2=_t5(len(long)), tokenizer_2=long, transformer=network)  # fmt: skip
    pipe.default_sample_size = 16
    return pipe


def _sd3(d: Any, scheduler: dict[str, Any]) -> Any:
    long = words()
    network = d.SD3Transformer2DModel(sample_size=16, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8,
                                      num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=32,
                                      pooled_projection_dim=64, out_channels=4)  # fmt: skip
    return d.StableDiffusion3Pipeline(
        scheduler=d.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}), text_encoder=_clip(True),
        tokenizer=letters(), text_encoder_2=_clip(True), tokenizer_2=letters(), text_encoder_3=_t5(len(long)), tokenizer_3=long,
        transformer=network, vae=_kl(d, 4, 1.5035, 0.0609))  # fmt: skip


def _pixart(d: Any, scheduler: dict[str, Any]) -> Any:
    tokenizer = words()
    network = d.PixArtTransformer2DModel(
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        use_additional_conditions=False)  # fmt: skip
    usual = {"beta_schedule": "linear", "algorithm_type": "dpmsolver++", "solver_order": 2}
    return d.PixArtSigmaPipeline(transformer=network, vae=_kl(d), text_encoder=_t5(len(tokenizer)), tokenizer=tokenizer,
                                 scheduler=d.DPMSolverMultistepScheduler(**{**usual, **scheduler}))  # fmt: skip


def _dit(d: Any, scheduler: dict[str, Any]) -> Any:
    network = d.DiTTransformer2DModel(sample_size=16, num_layers=2, patch_size=4, attention_head_dim=8, num_attention_heads=2,
                                      in_channels=4, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
                                      num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
                                      norm_elementwise_affine=False)  # fmt: skip
    return d.DiTPipeline(transformer=network, vae=_kl(d), id2label={0: "tench, Tinca tinca", 1: "goldfish"},
                         scheduler=d.DDIMScheduler(**{"clip_sample": False, **scheduler}))  # fmt: skip


def _sdxl(d: Any, scheduler: dict[str, Any]) -> Any:
    network = d.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=8 * 6 + 32, cross_attention_dim=64)  # fmt: skip
    usual = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": "leading",
             "steps_offset": 1}  # fmt: skip
    return d.StableDiffusionXLPipeline(vae=_kl(d, scale=0.13025), text_encoder=_clip(), text_encoder_2=_clip(True),
                                       tokenizer=letters(), tokenizer_2=letters(), unet=network, add_watermarker=False,
                                       scheduler=d.EulerDiscreteScheduler(**{**usual, **scheduler}))  # fmt: skip


PIPELINES: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "sana": _sana, "flux": _flux, "sd3": _sd3, "pixart": _pixart, "dit": _dit, "sdxl": _sdxl,
}  # fmt: skip
