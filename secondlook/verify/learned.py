"""The learned verifier and judge: probability that a Scenes picture is what a prompt asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from secondlook.errors import DamagedError, ShapeError
from secondlook.types import Condition
from secondlook.verify.networks import Film, NetworkConfig, Tokens, build, tokenize

FORMAT = "secondlook-verifier-1"
ROWS = 16


def to_network(samples: Tensor) -> Tensor:
    """uint8 [B, 64, 64, 3] to float32 [B, 3, 64, 64] in [-1, 1]; ShapeError for anything else."""
    if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[1:] != (64, 64, 3):
        raise ShapeError(
            f"The verifier reads uint8 pictures [B, 64, 64, 3]; it was given {samples.dtype} {list(samples.shape)}."
        )
    return samples.permute(0, 3, 1, 2).float() / 127.5 - 1


class LearnedVerifier:
    """A ``types.Verifier`` over one network, in float32.

    Every call of the network has ``ROWS`` rows, the last ones padded: a matrix product may round differently at another
    batch size, and a row's score must not depend on its company.
    """

    def __init__(self, network: Tokens | Film, name: str):
        self.name = name
        self.network = network.eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """[B] float64, on the CPU; NaN where a condition has no prompt. ShapeError where the two do not pair up;
        ConfigError for a word the network does not know."""
        pictures = to_network(samples)
        if len(pictures) != len(conditions):
            raise ShapeError(f"{len(pictures)} pictures came with {len(conditions)} conditions; give one for each picture.")
        c, device = self.network.config, next(self.network.parameters()).device
        ids = tokenize(c.words, c.text_length, [k.prompt or "" for k in conditions])
        out = torch.empty(len(pictures), dtype=torch.float64)
        for start in range(0, len(pictures), ROWS):
            x, words = pictures[start : start + ROWS], ids[start : start + ROWS]
            count = len(x)
            x = torch.cat([x, x.new_zeros(ROWS - count, *x.shape[1:])]).to(device)
            words = torch.cat([words, words.new_ones(ROWS - count, words.shape[1])]).to(device)
            out[start : start + count] = self.network(x, words[:, None]).match[:count, 0].double().cpu()
        asked = torch.tensor([k.prompt is not None for k in conditions])
        return torch.where(asked, out, torch.nan)

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Probability of a match, [B] float64; float64 keeps the order of scores that float32 would round to 1."""
        return self.logits(samples, conditions).sigmoid()


def save_verifier(network: Tokens | Film, path: Path, name: str) -> None:
    """Weights as safetensors, the configuration and name in the file's metadata."""
    meta = {"format": FORMAT, "name": name, "config": json.dumps(asdict(network.config))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path, meta)


def load_verifier(path: Path | str) -> LearnedVerifier:
    """The verifier a file holds; DamagedError where it cannot be read or is something else."""
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise ValueError(f"its format is {meta.get('format')!r}, not {FORMAT!r}")
            settings = json.loads(meta["config"])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        network = build(NetworkConfig(**{**settings, "words": tuple(settings["words"])}))
        network.load_state_dict(weights)
        return LearnedVerifier(network, meta["name"])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"The verifier {path} cannot be read ({reason}); fetch or train it again.") from None
