"""Backends under their contract: every world, weights without a world, latents with an autoencoder, a pipeline, and one of a
user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import secondlook
from examples.own_backend import Blobs, OwnBackend, Tints
from secondlook.api import replay_outcome
from secondlook.backends.base import GUIDES, Backend, is_backend
from secondlook.backends.classes import Weights
from secondlook.backends.find import find, found_again
from secondlook.backends.latents import Latents
from secondlook.backends.pipelines import Pipeline
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.models import checkpoint
from secondlook.models.sit import SiT, SiTConfig
from secondlook.registry import WORLDS
from secondlook.settings import Settings, make_named
from secondlook.testing import BackendContract
from secondlook.types import Condition, Verifier

REQUESTS = {"scenes": ("a red circle", "two blue squares")}
NONSENSE = {"scenes": ("seven", ""), "digits": ("10", "seven", ""), "glyphs": ("32", "blue triangel")}


def sit(channels: int = 4, side: int = 8) -> SiT:
    torch.manual_seed(0)
    made = SiT(SiTConfig(side=side, patch=2, channels=channels, width=32, depth=1, heads=1, classes=10))
    for p in made.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return made.eval()


def of(world: str) -> type[BackendContract]:
    class Of(BackendContract):
        requests = REQUESTS.get(world, ("1", "2"))
        refused = NONSENSE.get(world, ())

        def made(self) -> Backend:
            return find(None, Settings(world=world))

    return type(f"Test{world.title()}", (Of,), {})


globals().update({f"Test{w.title()}": of(w) for w in WORLDS})  # a new world is tested without a line here


class TestWeightsWithoutAWorld(BackendContract):
    requests = ("1", "2")
    refused = ("10", "a cat")

    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.file = tmp_path / "weights.safetensors"
        network = sit(3)
        checkpoint.save(network, self.file, network.describe())

    def made(self) -> Backend:
        return Weights(str(self.file))


class TestLatents(BackendContract):
    requests = ("1", "2")
    refused = ("10", "a cat")

    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        diffusers = pytest.importorskip("diffusers", reason="needs secondlook[hub]")
        self.file, self.vae = tmp_path / "SiT.safetensors", tmp_path / "vae"
        save_file(sit().state_dict(), self.file)
        torch.manual_seed(1)
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8), latent_channels=4, norm_num_groups=2, sample_size=16, **blocks
        ).save_pretrained(self.vae)

    def made(self) -> Backend:
        return Latents(str(self.file), str(self.vae))

    def test_it_is_found_again_where_it_was_unless_told_otherwise(self) -> None:
        s = Settings(model=str(self.file), vae=str(self.vae), world="latents", device="cpu:0")
        assert [found_again(s, None, where).device for where in (None, "cpu")] == ["cpu:0", "cpu"]  # type: ignore[attr-defined]


class TestPipeline(BackendContract):
    requests = ("a red cat", "two blue dogs")
    pipe: ClassVar[Any] = None

    def made(self) -> Backend:
        pytest.importorskip("diffusers", reason="needs secondlook[hub]")
        from secondlook.adapters import tiny

        type(self).pipe = self.pipe or tiny.make("sd3")
        return Pipeline(secondlook.load(self.pipe))


# ---- one of a user's own -----------------------------------------------------------------------------------------------


class TestOwn(BackendContract):
    refused = ("", " ")

    def made(self) -> Backend:
        return OwnBackend()


def test_a_run_of_a_users_own_backend_says_so_when_it_is_not_given_again(tmp_path: Path) -> None:
    secondlook.draw("a red circle", "random(n=2)", tmp_path / "run", model=OwnBackend())
    with pytest.raises(ConfigError, match='a backend of its own, "blobs"; give it again: model='):
        replay_outcome(tmp_path / "run", 0)
    other = OwnBackend()
    other.name = "others"
    with pytest.raises(ConfigError, match='drawn with "blobs", and the backend given is "others"'):
        replay_outcome(tmp_path / "run", 0, model=other)
    with pytest.raises(ConfigError, match="is not the backend's"):
        secondlook.draw("a red circle", model=OwnBackend(), world="scenes")
    with pytest.raises(ConfigError, match='means nothing to the backend "blobs"'):
        secondlook.draw("a red circle", model=OwnBackend(), negative="grey")


@pytest.mark.parametrize("guide", GUIDES)
def test_the_guide_of_a_pipeline_is_not_its_judge_too(guide: str) -> None:
    pytest.importorskip("diffusers", reason="needs secondlook[hub]")
    from secondlook.adapters import tiny

    backend = Pipeline(secondlook.load(tiny.make("sana")))
    s = Settings(["a red cube"], verifier=guide, steps=2)
    rig = backend.rig(s.filled(backend.usual(s)), make_named("verifier", guide))
    assert set(rig.judges) == set(GUIDES) - {guide}


@pytest.mark.parametrize("thing", [None, "scenes", OwnBackend, object(), np.zeros(3)])
def test_what_is_no_backend_is_not_taken_for_one(thing: Any) -> None:
    assert not is_backend(thing)


# ---- the contract can fail ---------------------------------------------------------------------------------------------


class Forgetful(OwnBackend):
    def condition(self, text: str) -> Condition:
        return Condition("always the same")


class Open(OwnBackend):
    def usual(self, s: Settings) -> dict[str, Any]:
        return {"world": self.name}


class Judging(OwnBackend):
    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        rig = super().rig(s, guide)
        rig.judges = {"b": make_named("verifier", "brightness")}
        return rig


class Company(OwnBackend):
    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        rig = super().rig(s, guide)

        class Shy(Blobs):
            def __call__(self, x: Tensor, t: Tensor, cond: Tints) -> Tensor:
                return super().__call__(x - x.mean(), t, cond)

        rig.flow.network = Shy()
        return rig


class Floats(OwnBackend):
    def rig(self, s: Settings, guide: Verifier | None, scoring: bool = True) -> Rig:
        rig = super().rig(s, guide)
        rig.decode = lambda x: x.permute(0, 2, 3, 1)
        return rig


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Forgetful, "test_a_request_is_a_condition_that_can_be_compared"),
        (Open, "test_usual_settings_leave_nothing_open_that_a_run_needs"),
        (Judging, "test_a_rig_without_scoring_has_nobody_who_scores"),
        (Company, "test_rows_in_padded_batches_do_not_depend_on_company"),
        (Floats, "test_pictures_are_bytes_of_three_channels_on_the_cpu"),
    ],
)
def test_the_contract_can_fail(kind: Callable[[], Backend], test: str) -> None:
    class Broken(BackendContract):
        def made(self) -> Backend:
            return kind()

    with pytest.raises((AssertionError, ConfigError)):
        getattr(Broken(), test)()
