"""What is said of weights files that others made and nothing here can draw with alone."""

from __future__ import annotations

from pathlib import Path

from secondlook.errors import ConfigError

_PART = ("down_blocks.", "transformer_blocks.", "single_transformer_blocks.", "text_model.", "decoder.")
_ONE_FILE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "double_blocks.", "joint_blocks.")


def refuse_foreign_weights(file: Path) -> None:
    """ConfigError for weights files of others, which nothing here can draw with alone."""
    from safetensors import SafetensorError, safe_open

    from secondlook.models.official import is_own

    if file.suffix in (".ckpt", ".pt", ".pth"):
        raise ConfigError(f'"{file}" cannot be drawn with alone. SiT weights: give --vae FOLDER_OR_ID. A checkpoint of a whole '
                          "pipeline: load it with diffusers' from_single_file, and save it as a folder with save_pretrained.")  # fmt: skip
    if file.suffix != ".safetensors" or is_own(file):
        return
    try:
        with safe_open(file, "pt") as opened:
            names = set(opened.keys())
    except (SafetensorError, OSError):
        return  # whoever reads it says what is wrong with it
    if {"x_embedder.proj.weight", "final_layer.linear.weight"} <= names:
        raise ConfigError(
            f'"{file}" holds SiT or DiT weights: give the autoencoder that decodes their latents, --vae FOLDER_OR_ID.'
        )
    if any(n.startswith(_PART) for n in names):
        raise ConfigError(f'"{file}" is one part of a pipeline; name the folder that holds its model_index.json.')
    if any(n.startswith(_ONE_FILE) for n in names):
        raise ConfigError(f'"{file}" is a checkpoint in one file. Load it with diffusers in Python, pipe = '
                      "StableDiffusionXLPipeline.from_single_file(...) or its like, and give it to secondlook.draw(model=pipe), or "
                      "save it as a folder with pipe.save_pretrained.")  # fmt: skip
