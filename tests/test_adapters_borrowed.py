"""A user's pipeline is left as it was found, and known again by what decides its pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="needs secondlook[hub]: diffusers is missing")
pytest.importorskip("transformers", reason="needs secondlook[hub]: transformers is missing")

import secondlook
from secondlook.adapters import tiny
from secondlook.errors import ConfigError, NotFinite

FAMILIES = ("sana", "flux", "sd3", "pixart", "sdxl", "dit")


def parts_of(pipe: Any) -> dict[str, torch.nn.Module]:
    return {n: p for n, p in pipe.components.items() if isinstance(p, torch.nn.Module)}


def snapshot(pipe: Any) -> dict[str, Any]:
    """All that a user may have set on a pipeline's modules."""
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    for name, part in parts_of(pipe).items():
        for key, module in part.named_modules():
            found[f"{name} {key} mode"] = module.training
            if not name.startswith(
                "text_encoder"
            ):  # transformers hangs its own on an encoder when anyone first calls it
                found[f"{name} {key} hooks"] = (len(module._forward_hooks), len(module._forward_pre_hooks))
        for key, p in part.named_parameters():
            found[f"{name} {key}"] = (p.requires_grad, p.dtype, p.device.type, p.is_inference(), id(p))
        for key, b in part.named_buffers():
            found[f"{name} {key} buffer"] = (b.dtype, b.device.type)
    return found


def in_training(family: str) -> Any:
    """A pipeline some of whose parts are being trained, with an autoencoder that asks to be cast."""
    pipe = tiny.make(family)
    for i, part in enumerate(parts_of(pipe).values()):
        part.train(i % 2 == 0)
        for j, p in enumerate(part.parameters()):
            p.requires_grad_(j % 3 != 0)
    return pipe


class Stop(Exception):
    pass


@pytest.mark.parametrize("end", ["well", "error", "interrupt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_is_left_as_it_was_found(family: str, end: str, tmp_path: Path) -> None:
    pipe = in_training(family)
    if family == "sdxl":  # float16 that asks for float32 is cast on the way
        pipe.vae.to(torch.float16)
        pipe.vae.register_to_config(force_upcast=True)
    before = snapshot(pipe)
    held = secondlook.load(pipe)
    assert snapshot(pipe) == before  # loading alone changes nothing

    def stop(driver: Any) -> None:
        raise {"error": Stop, "interrupt": KeyboardInterrupt}[end]

    def run() -> None:
        prompt = "1" if family == "dit" else "a cat"
        secondlook.draw(prompt, "random(n=3)", tmp_path / "run", model=held, steps=2, rows=2, threads=1, verifier="brightness",
                        progress=None if end == "well" else stop)  # fmt: skip

    if end == "well":
        run()
    else:
        with pytest.raises((Stop, KeyboardInterrupt)):
            run()
    assert snapshot(pipe) == before


def test_what_is_being_trained_goes_on_being_trained() -> None:
    pipe = in_training("sd3")
    weights = [p for p in pipe.transformer.parameters() if p.requires_grad]
    assert weights
    secondlook.draw("a cat", "random(n=1)", model=pipe, steps=2, verifier="brightness")
    loss = sum(p.square().sum() for p in weights)
    loss.backward()  # type: ignore[union-attr]
    assert all(p.grad is not None for p in weights)


def test_layerwise_casting_leaves_no_inference_tensors() -> None:
    pipe = tiny.make("sdxl")
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    secondlook.draw("a cat", "random(n=1)", model=secondlook.load(pipe), steps=2, verifier="brightness")
    assert not any(p.is_inference() for p in pipe.unet.parameters())


def test_dropout_does_not_reach_a_search(tmp_path: Path) -> None:
    """A network in training mode is drawn with in evaluation mode, inside and outside of runs."""
    pipe = tiny.make("sd3")
    held = secondlook.load(pipe)
    x, level = torch.ones(2, *held.shape), torch.full((2,), 500.0)
    cond = held.encode(held.condition("a cat")).rows([0, 0])
    seen: list[bool] = []
    pipe.transformer.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    pipe.transformer.train()
    held.outputs(x, level, cond)
    assert seen == [False]
    assert pipe.transformer.training


# ---- identity ----------------------------------------------------------------------------------------------------------


def shifted(pipe: Any) -> None:
    pipe.scheduler.set_shift(9.0)


def one_value(pipe: Any) -> None:
    with torch.no_grad():
        next(iter(pipe.transformer.parameters())).view(-1)[3] += 1e-3


def most_values(pipe: Any) -> None:
    """All but a few of the largest tensor: a look at values here and there may miss them."""
    largest = max(pipe.transformer.parameters(), key=lambda p: p.numel())
    with torch.no_grad():
        flat = largest.view(-1)
        flat[torch.arange(flat.numel()) % max(1, flat.numel() // 64) != 0] += 5.0


def another_word(pipe: Any) -> None:
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)  # tiny pipelines share theirs
    pipe.tokenizer.add_tokens(["wurzelbrunft"])


def longer(pipe: Any) -> None:
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.model_max_length += 1


def configured(pipe: Any) -> None:
    pipe.vae.register_to_config(scaling_factor=0.5)


CHANGES: dict[str, Callable[[Any], None]] = {
    f.__name__: f for f in (shifted, one_value, most_values, another_word, longer, configured)
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_decides_a_picture_changes_the_digest(change: str) -> None:
    pipe = tiny.make("sd3")
    held = secondlook.load(pipe)
    before = held.digest()
    assert before == held.digest() == secondlook.load(tiny.make("sd3")).digest()
    CHANGES[change](pipe)
    assert held.digest() != before


def test_a_shift_that_is_set_between_stop_and_resume_is_noticed(tmp_path: Path) -> None:
    pipe = tiny.make("sd3")
    held = secondlook.load(pipe)
    times = held.schedule(4).times

    def stop(driver: Any) -> None:
        if driver.drawn:
            raise Stop

    with pytest.raises(Stop):
        secondlook.draw(
            "a cat", "random(n=6)", tmp_path / "run", model=held, steps=4, rows=2, verifier="brightness", progress=stop
        )
    shifted(pipe)
    assert held.schedule(4).times != times
    with pytest.raises(ConfigError, match=r"drawn with shift 3\.0, the model now has 9\.0"):
        secondlook.resume(tmp_path / "run", model=held)


# ---- one bad row -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_cannot_be_decoded_are_named(family: str) -> None:
    held = secondlook.load(tiny.make(family))
    x = torch.randn(4, *held.shape, generator=torch.Generator().manual_seed(0))
    x[2, 0, 0, 0] = torch.inf
    with pytest.raises(NotFinite) as caught:
        held.decode(x)
    assert caught.value.rows == (2,)
    assert held.decode(x[[0, 1, 3]]).shape[0] == 3
