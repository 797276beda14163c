"""Reflect-DiT's released transformer, number by number: predictions of the official code (commit e2d5ccf) on one tiny network.

The file of vectors is named by SECONDLOOK_PARITY_REFLECT; without one the tests skip.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from secondlook.adapters.reflect_sana import NULL, ReflectSana
from secondlook.errors import DamagedError
from secondlook.models.context import Tries

FILE = Path(
    os.environ.get(
        "SECONDLOOK_PARITY_REFLECT", Path(__file__).parents[2] / "shared/parity/reflect_sana_tiny.safetensors"
    )
)
needs_file = pytest.mark.skipif(not FILE.is_file(), reason=f"there is no file of parity vectors at {FILE}")
TIMES = ("37", "512", "981")


def tiny(config: dict[str, int], drop_last: bool, null: int = NULL) -> ReflectSana:
    diffusers = pytest.importorskip("diffusers")
    own = {
        k: v
        for k, v in config.items()
        if k not in ("reflection", "vision_feature_dim", "num_reflection_transformer_layers")
    }
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(**own)
    return (
        ReflectSana(transformer, config["vision_feature_dim"], null=null, drop_last=drop_last)
        .eval()
        .requires_grad_(False)
    )


def vectors(drop_last: bool = True) -> tuple[ReflectSana, dict[str, Tensor]]:
    with safe_open(FILE, "pt") as file:
        config = json.loads(file.metadata()["config"])
    held = load_file(FILE)
    network = tiny(config, drop_last, null=held["image_tokens"].shape[1] + 4)  # as many as of a picture, and four
    network.load_released({k.removeprefix("model."): v for k, v in held.items() if k.startswith("model.")})
    return network, held


def both(held: dict[str, Tensor], there: bool = True) -> Tries:
    shown = torch.full((1, 2), there)
    return Tries(held["image_tokens"][None], held["feedback"][None], held["feedback_mask"][None].bool(), shown, shown)


def predicted(network: ReflectSana, held: dict[str, Tensor], time: str, tries: Tries | None) -> Tensor:
    return network(held["x"], torch.tensor([float(time)]), held["caption"], held["caption_mask"], tries)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@needs_file
@pytest.mark.parametrize("time", TIMES)
def test_parity_reflect_with_two_tries_in_context(time: str) -> None:
    network, held = vectors()
    assert gap(predicted(network, held, time, both(held)), held[f"context.{time}.out"]) < 1e-5


@needs_file
@pytest.mark.parametrize("time", TIMES)
def test_parity_reflect_with_the_null_context(time: str) -> None:
    network, held = vectors()
    assert gap(predicted(network, held, time, both(held, there=False)), held[f"null.{time}.out"]) < 1e-5


@needs_file
def test_by_default_the_last_token_is_attended_to() -> None:
    network, held = vectors(drop_last=False)
    assert gap(predicted(network, held, "512", both(held)), held["context.512.out"]) > 1e-4


SIZES = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2,
         "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 24,
         "mlp_ratio": 2.5, "sample_size": 8, "patch_size": 1, "vision_feature_dim": 20}  # fmt: skip


def some(rows: int, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(rows, 4, 8, 8, generator=g), "caption": torch.randn(rows, 5, 24, generator=g),
        "caption_mask": torch.ones(rows, 5), "image_tokens": torch.randn(rows, 2, 3, 20, generator=g),
        "feedback": torch.randn(rows, 2, 4, 24, generator=g),
    }  # fmt: skip


def test_a_row_of_sana_does_not_depend_on_its_batch_mates() -> None:
    network = tiny(SIZES, False)
    torch.nn.init.ones_(network.context.reflection_norm.weight)
    held = some(2)
    spoken = torch.tensor([[[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]]], dtype=torch.bool)
    there = torch.tensor([[False, True], [True, True]])
    tries = Tries(held["image_tokens"], held["feedback"], spoken, there, there)
    time = torch.tensor([300.0, 700.0])
    together = network(held["x"], time, held["caption"], held["caption_mask"], tries)
    for i in range(2):
        alone = Tries(**{k: v[i : i + 1] for k, v in vars(tries).items()})
        one = network(
            held["x"][i : i + 1], time[i : i + 1], held["caption"][i : i + 1], held["caption_mask"][i : i + 1], alone
        )
        assert torch.allclose(one, together[i : i + 1], atol=1e-5)


def test_without_tries_it_is_the_transformer_itself_and_the_hook_is_gone() -> None:
    network = tiny(SIZES, False)
    held = some(1)
    own = network.transformer(
        held["x"], held["caption"], torch.tensor([9.0]), encoder_attention_mask=held["caption_mask"]
    )[0]
    assert torch.equal(network(held["x"], torch.tensor([9.0]), held["caption"], held["caption_mask"], None), own)
    there = torch.ones(1, 2, dtype=torch.bool)
    tries = Tries(held["image_tokens"], held["feedback"], torch.ones(1, 2, 4, dtype=torch.bool), there, there)
    network(held["x"], torch.tensor([9.0]), held["caption"], held["caption_mask"], tries)
    assert torch.equal(network(held["x"], torch.tensor([9.0]), held["caption"], held["caption_mask"], None), own)


def test_other_weights_are_a_sentence() -> None:
    network = tiny(SIZES, False)
    state = {**network.transformer.state_dict(), **network.context.state_dict()}
    network.load_released(state)
    state.pop("reflection_norm.weight")
    with pytest.raises(DamagedError, match="context lacks"):
        network.load_released(state)


def test_the_added_modules_have_the_papers_size() -> None:
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        transformer = diffusers.SanaTransformer2DModel(num_layers=1, caption_channels=2304, num_attention_heads=70, attention_head_dim=32,
                                                       num_cross_attention_heads=20, cross_attention_head_dim=112,
                                                       cross_attention_dim=2240)  # fmt: skip
        network = ReflectSana(transformer)
    assert sum(p.numel() for p in network.context.parameters()) == 132_941_760
    assert NULL == 68
