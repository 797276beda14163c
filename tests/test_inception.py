"""The FID network's architecture and loading, and evaluation from pictures to report."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.metrics import Evaluation, Extracted, Inception, Moments, Reference, frechet, inception_score, manifold
from secondlook.metrics.inception import BLOCKS, InceptionNetwork, filled, resize


@pytest.fixture(scope="module")
def network() -> InceptionNetwork:
    """Random weights and statistics under which activations neither vanish nor explode."""
    torch.manual_seed(0)
    net = InceptionNetwork()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
            nn.init.normal_(layer.bias, 0, 0.1)
    return net


@pytest.fixture(scope="module")
def state(network: InceptionNetwork) -> dict[str, Tensor]:
    return {k: v for k, v in network.state_dict().items() if "num_batches" not in k}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# The network


def test_parameters_are_counted_by_hand(network: InceptionNetwork) -> None:
    """The trunk's well-known 21,785,568, and a last layer for 1008 classes. Blocks: kernels, and two numbers a channel
    for normalisation."""
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert count["Conv2d_1a_3x3"] == 3 * 32 * 9 + 2 * 32
    assert count["Mixed_5b"] == (
        192 * 64 + 192 * 48 + 48 * 64 * 25 + 192 * 64 + 64 * 96 * 9 + 96 * 96 * 9 + 192 * 32
    ) + 2 * (64 + 48 + 64 + 64 + 96 + 96 + 32)
    assert count["Mixed_6a"] == 288 * 384 * 9 + 288 * 64 + 64 * 96 * 9 + 96 * 96 * 9 + 2 * (384 + 64 + 96 + 96)
    assert count["Mixed_6d"] == (
        2 * 768 * 192 + 2 * 768 * 160 + 160 * 160 * 7 * 4 + 2 * 160 * 192 * 7 + 2 * (4 * 192 + 6 * 160)
    )
    assert count["Mixed_7a"] == (
        768 * 192 * 2 + 192 * 320 * 9 + 2 * 192 * 192 * 7 + 192 * 192 * 9 + 2 * (5 * 192 + 320)
    )
    assert count["Mixed_7c"] == (
        2048 * (320 + 384 + 448 + 192) + 4 * 384 * 384 * 3 + 448 * 384 * 9 + 2 * (320 + 384 * 6 + 448 + 192)
    )
    assert count["fc"] == 2048 * 1008 + 1008
    assert sum(count.values()) == 21_785_568 + 2_065_392


def test_keys_are_the_ports(state: dict[str, Tensor]) -> None:
    want = {
        "Conv2d_1a_3x3.conv.weight": [32, 3, 3, 3],
        "Conv2d_4a_3x3.bn.running_mean": [192],
        "Mixed_5b.branch1x1.conv.weight": [64, 192, 1, 1],
        "Mixed_5d.branch3x3dbl_3.bn.bias": [96],
        "Mixed_6b.branch7x7_2.conv.weight": [128, 128, 1, 7],
        "Mixed_6e.branch7x7dbl_2.conv.weight": [192, 192, 7, 1],
        "Mixed_7a.branch7x7x3_4.conv.weight": [192, 192, 3, 3],
        "Mixed_7b.branch3x3_2a.conv.weight": [384, 384, 1, 3],
        "Mixed_7b.branch3x3dbl_3b.conv.weight": [384, 384, 3, 1],
        "Mixed_7c.branch_pool.bn.running_var": [192],
        "fc.weight": [1008, 2048],
        "fc.bias": [1008],
    }
    assert {key: list(state[key].shape) for key in want} == want
    assert len(state) == 94 * 5 + 2, "94 convolutions, each with a kernel and four vectors, and the last layer"


@pytest.mark.parametrize("name", list(BLOCKS))
def test_pool_branches_leave_padding_out_or_take_the_maximum(network: InceptionNetwork, name: str) -> None:
    block = network.get_submodule(name)
    x = torch.rand(2, BLOCKS[name][0], 9, 9, generator=torch.Generator().manual_seed(1)) - 2  # a zero is no small value
    out = block(x)
    if name in ("Mixed_6a", "Mixed_7a"):
        want = x.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    else:
        rows = [x[:, :, max(i - 1, 0) : i + 2] for i in range(9)]
        windows = [[row[..., max(j - 1, 0) : j + 2] for j in range(9)] for row in rows]
        reduce = torch.amax if name == "Mixed_7c" else torch.mean
        pooled = torch.stack([torch.stack([reduce(w, (2, 3)) for w in line], -1) for line in windows], -2)
        want = block.get_submodule("branch_pool")(pooled)
    torch.testing.assert_close(out[:, -want.shape[1] :], want, rtol=1e-4, atol=1e-5)


def test_layers_are_convolution_normalisation_rectifier(network: InceptionNetwork) -> None:
    layer = network.get_submodule("Mixed_6c.branch7x7_2")
    x = torch.randn(1, 160, 6, 6, generator=torch.Generator().manual_seed(2))
    y = F.conv2d(x, layer.conv.weight, padding=(0, 3))
    shift = layer.bn.running_mean[:, None, None], layer.bn.bias[:, None, None]
    want = (y - shift[0]) / (layer.bn.running_var[:, None, None] + 1e-3).sqrt() + shift[1]
    torch.testing.assert_close(layer.eval()(x), want.clamp_min(0), rtol=1e-4, atol=1e-4)


def test_features_are_taken_from_the_stated_layers(network: InceptionNetwork) -> None:
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
        for name in ("Conv2d_1a_3x3", "Mixed_6d.branch1x1", "Mixed_7c")
    ]
    entering = network.register_forward_pre_hook(lambda _, args: seen.update(input=args[0]))
    pictures = noise(2, 40, 24, 3)
    found = Inception(network, "random")(pictures)
    for hook in (*hooks, entering):
        hook.remove()
    assert [list(v.shape) for v in (found.pool, found.spatial, found.logits)] == [[2, 2048], [2, 2023], [2, 1008]]
    assert list(seen["Conv2d_1a_3x3"].shape) == [2, 32, 149, 149]
    # TensorFlow's order: rows, columns, channels.
    spatial = seen["Mixed_6d.branch1x1"][:, :7].permute(0, 2, 3, 1).reshape(2, 17 * 17 * 7)
    assert torch.equal(found.spatial, spatial)
    assert float(found.spatial.std()) > 0
    torch.testing.assert_close(found.pool, F.adaptive_avg_pool2d(seen["Mixed_7c"], 1)[:, :, 0, 0])
    torch.testing.assert_close(found.logits, found.pool @ network.fc.weight.T, rtol=1e-4, atol=1e-4)
    assert float(network.fc.bias.abs().max()) > 0, "without a bias the line above proves nothing"
    corner = pictures[:, 0, 0].float()
    torch.testing.assert_close(seen["input"][:, :, 0, 0], (corner - 128) / 128)
    assert float((found.pool[0] - found.pool[1]).abs().max()) > 1e-3


def test_grey_pictures_are_three_equal_channels(network: InceptionNetwork) -> None:
    inception, grey = Inception(network, "random"), noise(1, 32, 32, 1)
    assert torch.equal(inception(grey).pool, inception(grey.expand(-1, -1, -1, 3)).pool)
    with pytest.raises(ConfigError, match="uint8"):
        inception(grey.float())
    with pytest.raises(ShapeError, match=r"\[B, H, W, 3\]"):
        inception(grey.permute(0, 3, 1, 2))


@pytest.mark.parametrize(("height", "width"), [(8, 5), (299, 299), (300, 512)])
def test_resizing_is_that_of_tensorflow_1(height: int, width: int) -> None:
    x = noise(1, 1, height, width).double()
    found = resize(x)
    assert found.shape == (1, 1, 299, 299)
    for row, column in ((0, 0), (1, 298), (150, 77), (298, 298)):
        y, z = row * height / 299, column * width / 299
        top, left = int(y), int(z)
        below, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = x[0, 0, top, left] * (1 - (z - left)) + x[0, 0, top, right] * (z - left)
        lower = x[0, 0, below, left] * (1 - (z - left)) + x[0, 0, below, right] * (z - left)
        assert float(found[0, 0, row, column]) == pytest.approx(
            float(upper * (1 - y + top) + lower * (y - top)), abs=0.02
        )


# Loading


def test_weights_are_read_from_both_kinds_of_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    small = {key: value.flatten()[0].expand(value.shape) for key, value in state.items()}  # one number a tensor on disk
    torch.save(small, tmp_path / "port.pth")
    loaded = Inception.load(tmp_path / "port.pth")
    for key, value in small.items():
        assert torch.equal(loaded.network.state_dict()[key], value), key
    assert not loaded.network.training
    assert not any(p.requires_grad for p in loaded.network.parameters())
    half = {key: value.half() for key, value in state.items()}
    save_file(half, tmp_path / "port.safetensors")
    again = Inception.load(tmp_path / "port.safetensors")
    torch.testing.assert_close(again.network.fc.weight.data, half["fc.weight"].float(), rtol=0, atol=0)
    assert again.name != loaded.name
    (tmp_path / "port.safetensors").unlink()


def test_counters_are_neither_needed_nor_refused(network: InceptionNetwork, state: dict[str, Tensor]) -> None:
    for given in (state, network.state_dict()):
        assert torch.equal(filled(dict(given), "here").fc.bias, network.fc.bias)


def test_other_networks_weights_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(
        ConfigError, match=r"here lack Mixed_5b.branch1x1.conv.weight and 4 more; give those of pt_incep"
    ):
        filled({k: v for k, v in state.items() if not k.startswith("Mixed_5b.branch1x1")}, "here")
    with pytest.raises(ConfigError, match=r"have unknown AuxLogits.fc.bias; give"):
        filled({**state, "AuxLogits.fc.bias": torch.zeros(3)}, "here")
    with pytest.raises(ConfigError, match=r"another shape in fc.weight;"):
        filled({**state, "fc.weight": torch.zeros(1000, 2048)}, "here")


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Inception weights at"):
        Inception.load(tmp_path / "none.pth")
    for name in ("bad.pth", "bad.safetensors"):
        (tmp_path / name).write_bytes(b"not weights")
        with pytest.raises(DamagedError, match="cannot be read"):
            Inception.load(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DamagedError, match="no dictionary of tensors"):
        Inception.load(tmp_path / "list.pth")
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(DamagedError, match="cannot be read"):
        Inception.load(tmp_path / "code.pth")


# Evaluation


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Features that can be checked by eye: means of quarters, the corner, the top row as logits."""

    name: str = "tiny"
    whole: bool = True

    def __call__(self, pictures: Tensor) -> Extracted:
        x = pictures.float() / 32
        pool = x.unflatten(1, (2, -1)).unflatten(3, (2, -1)).mean((2, 4)).flatten(1)
        return Extracted(pool, x[:, :2, :2, 0].flatten(1), x[:, 0, :, 0]) if self.whole else Extracted(pool)


REAL, FAKE = noise(60, 4, 4, 3), noise(45, 4, 4, 3, seed=1) // 2


def test_a_report_holds_the_scores_of_its_parts() -> None:
    evaluation = Evaluation(Tiny(), batch=8, splits=4)
    report = evaluation.report(FAKE.split(10), [REAL.numpy()])
    real, fake = Tiny()(REAL), Tiny()(FAKE)
    assert report.fid == pytest.approx(frechet(Moments.of(fake.pool), Moments.of(real.pool)), rel=1e-9)
    assert report.sfid == pytest.approx(frechet(Moments.of(fake.spatial), Moments.of(real.spatial)), rel=1e-9)
    assert (report.inception_score, report.inception_score_std) == pytest.approx(inception_score(fake.logits, 4))
    balls = manifold(real.pool, fake.pool, 3, 5)
    got = (report.precision, report.recall, report.density, report.coverage)
    assert got == (balls.precision, balls.recall, balls.density, balls.coverage)
    assert (report.pictures, report.reference, report.reference_features) == (45, 60, 60)
    assert "45 pictures against 60 reference pictures; features: tiny" in str(report)
    assert "over 4 splits" in report.text
    assert "(k = 3)" in report.text
    assert "(k = 5)" in report.text


def test_a_reference_survives_its_file(tmp_path: Path) -> None:
    evaluation, path = Evaluation(Tiny()), tmp_path / "ref.npz"
    evaluation.reference([REAL]).save(path)
    assert evaluation.report([FAKE], path) == evaluation.report([FAKE], [REAL])
    assert Reference.load(path).by == "tiny"
    with pytest.raises(ConfigError, match='features "tiny", not "other"'):
        Evaluation(Tiny("other")).report([FAKE], path)


def test_scores_that_are_not_to_be_had_are_dashes(tmp_path: Path) -> None:
    path = tmp_path / "stats.npz"
    found = Moments.of(Tiny()(REAL).pool)
    np.savez(path, mu=found.mu.numpy(), sigma=found.sigma.numpy())
    report = Evaluation(Tiny()).report([FAKE], path)
    assert report.fid == pytest.approx(Evaluation(Tiny()).report([FAKE], [REAL]).fid, rel=1e-9)
    assert (report.sfid, report.precision, report.recall, report.density, report.coverage) == (None,) * 5
    assert (report.reference, report.reference_features) == (None, 0)
    assert "sFID -" in report.text
    assert "precision -, recall - " in report.text
    assert "an unstated number of reference pictures" in report.text
    bare = Evaluation(Tiny(whole=False)).report([FAKE], [REAL])
    assert (bare.sfid, bare.inception_score) == (None, None)
    assert bare.precision is not None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adm_references_give_both_statistics_and_pictures(save: object, tmp_path: Path) -> None:
    """mu and sigma, of more pictures than the file holds, stand for FID; precision comes from the pictures."""
    path, tiny = tmp_path / "adm.npz", Tiny()
    pool, spatial = Moments.of(tiny(REAL).pool), Moments.of(tiny(REAL).spatial)
    arrays = {"mu": pool.mu, "sigma": pool.sigma, "mu_s": spatial.mu, "sigma_s": spatial.sigma}
    save(path, arr_0=REAL[:20].numpy(), **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[operator]
    report = Evaluation(tiny, batch=7).report([FAKE], path)
    whole, part = Evaluation(tiny).report([FAKE], [REAL]), Evaluation(tiny).report([FAKE], [REAL[:20]])
    assert (report.fid, report.sfid) == pytest.approx((whole.fid, whole.sfid), rel=1e-9)
    assert (report.precision, report.coverage) == (part.precision, part.coverage)
    assert "unstated number of reference pictures (20 for precision" in report.text


def test_pictures_stream_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.npz"
    np.savez(path, FAKE.numpy(), np.arange(45))
    evaluation = Evaluation(Tiny(), batch=7)
    read: list[int] = []
    plain = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: read.append(n) or plain(self, n))
    assert evaluation.report(path, [REAL]) == evaluation.report([FAKE], [REAL])
    assert max(read) == 7 * 4 * 4 * 3, "never more than a batch at once"
    assert min(read) > 0


def test_bad_pictures_are_refused(tmp_path: Path) -> None:
    evaluation, path = Evaluation(Tiny()), tmp_path / "bad.npz"
    with pytest.raises(ConfigError, match="at least two pictures; got 0"):
        evaluation.report([], [REAL])
    with pytest.raises(ConfigError, match="more samples than k"):
        evaluation.report([FAKE[:20]], [REAL[:4]])
    with pytest.raises(ConfigError, match="no file"):
        evaluation.report(path, [REAL])
    for wrong in (FAKE.numpy() / 255, FAKE.numpy()[0], np.asfortranarray(FAKE.numpy())):
        np.savez(path, wrong)
        with pytest.raises(ConfigError, match=r"must be uint8 \[N, H, W, 3 or 1\]"):
            evaluation.report(path, [REAL])
    np.savez(path, other=FAKE.numpy())
    with pytest.raises(ConfigError, match="holds no arr_0"):
        evaluation.report(path, [REAL])
    np.savez(path, FAKE.numpy())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DamagedError, match="cannot be read"):
        evaluation.report(path, [REAL])
    with pytest.raises(ShapeError, match="reference has 3: use one network"):
        evaluation.report([FAKE], Reference(Moments.of(torch.rand(9, 3)).gaussian()))
