"""SiT weights as the released code stores them, with a diffusers autoencoder, under searches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secondlook
from secondlook.adapters.sit import SiTWeights
from secondlook.api import replay_outcome
from secondlook.cli.app import main
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.flow.estimate import Flow
from secondlook.flow.guidance import ClassifierFree
from secondlook.flow.path import Linear
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.noise import Key
from secondlook.solvers.ode import Heun, integrate
from secondlook.testing import ours, start_noise
from secondlook.types import State

diffusers = pytest.importorskip("diffusers", reason="needs secondlook[hub]")


@pytest.fixture(scope="module")
def network() -> SiT:
    torch.manual_seed(0)
    made = SiT(SiTConfig(side=8, patch=2, channels=4, width=32, depth=1, heads=1, classes=10))
    for p in made.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return made.eval()


@pytest.fixture(scope="module")
def files(network: SiT, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The weights in the official layout, without any description, and the autoencoder's folder."""
    folder = tmp_path_factory.mktemp("sit")
    save_file(network.state_dict(), folder / "SiT.safetensors")
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    vae.save_pretrained(folder / "vae")
    return folder / "SiT.safetensors", folder / "vae"


@pytest.fixture(scope="module")
def held(files: tuple[Path, Path]) -> SiTWeights:
    made = secondlook.load(str(files[0]), vae=str(files[1]))
    assert isinstance(made, SiTWeights)
    return made


def test_the_pictures_are_those_of_the_network_and_the_autoencoder_alone(network: SiT, held: SiTWeights) -> None:
    """Heun on the guided flow, and diffusers' decoder, put together here without the adapter."""
    noise = start_noise(held, 2, seed=3)

    def null(rows: int) -> Labels:
        return Labels(torch.full((rows,), 10))

    flow = Flow(network, Linear(), ClassifierFree(4.0, lambda c, rows: Labels.stack([c, null(rows)]), null))
    state = State(noise, torch.zeros(2), (Key(0), Key(1)), torch.zeros(2, dtype=torch.long))
    with torch.no_grad():
        end = integrate(flow, Heun(), state, (0.0, 0.25, 0.5, 0.75, 1.0), Labels(torch.tensor([7, 7])))
        picture = held.pipe.vae.decode(end.x / held.pipe.vae.config.scaling_factor).sample
    wanted = (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert (ours(held, "7", noise, 4, 4.0) - wanted).abs().max() < 1e-5
    assert (ours(held, "6", noise, 4, 4.0) - wanted).abs().max() > 1e-3
    assert (ours(held, "7", noise, 4, 1.0) - wanted).abs().max() > 1e-3


@pytest.mark.parametrize("plan", ["random(n=3)", "zero_order(neighbours=2)", "paths(n=2, width=1)"])
@pytest.mark.parametrize("solver", ["heun", "sde"])
def test_searches_draw_and_replay(held: SiTWeights, plan: str, solver: str, tmp_path: Path) -> None:
    [found] = secondlook.draw("7", plan, tmp_path / "r", model=held, nfe=60, steps=4, solver=solver, pad=True,
                              verifier="brightness")  # fmt: skip
    assert 0 < found.score < 1
    assert found.picture.shape == (16, 16, 3)
    assert replay_outcome(tmp_path / "r", found.outcome, model=held).same


def test_the_command_line_draws_and_replays(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    words = ["draw", "7", "--model", str(files[0]), "--vae", str(files[1]), "--plan", "random(n=2)", "--steps", "3"]
    assert main([*words, "--verifier", "brightness", "--quiet", "--out", out]) == 0
    config = Store.open(Path(out)).config
    assert (config["world"], config["vae"], config["guidance"]) == ("latents", str(files[1]), 4.0)
    assert main(["replay", out, "1"]) == 0
    assert "same picture" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"vae": None}, "give the autoencoder"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
        ({"height": 32}, "16 x 16 only"),
        ({"vae": "nowhere/at/all"}, "cannot be loaded as an autoencoder"),
    ],
)
def test_bad_requests(files: tuple[Path, Path], change: dict[str, object], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        secondlook.load(str(files[0]), **{"vae": str(files[1]), **change})


def test_a_class_that_is_none(held: SiTWeights) -> None:
    with pytest.raises(ConfigError, match='classes, 0 to 9; got "10"'):
        secondlook.draw("10", model=held, verifier="brightness")
