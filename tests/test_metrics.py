"""Scores against closed forms, naive definitions, scipy and torchmetrics, all on the same features."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, DamagedError, ShapeError
from secondlook.metrics import (
    Gaussian,
    Moments,
    density_coverage,
    frechet,
    inception_score,
    kid,
    manifold,
    memorisation,
    nearest,
    precision_recall,
)
from secondlook.metrics.scores import squared_blocks


def cloud(n: int, d: int = 6, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=draw, dtype=torch.float64)
    return scale * torch.randn(n, d, generator=draw, dtype=torch.float64) @ mixing + shift


def gaussian(mu: list[float], sigma: list[list[float]]) -> Gaussian:
    return Gaussian(torch.tensor(mu, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))


# Moments and the Fréchet distance


def test_moments_of_a_stream_are_those_of_all_of_it() -> None:
    x = cloud(101) + 1e6
    streamed, other = Moments(), Moments()
    for batch in x[:40].split(7):
        streamed.update(batch)
    for batch in x[40:].split(13):
        other.update(batch)
    streamed.merge(other).merge(Moments()).update(x[:0])
    torch.testing.assert_close(streamed.mu, torch.from_numpy(np.mean(x.numpy(), 0)), rtol=1e-14, atol=0)
    torch.testing.assert_close(streamed.sigma, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), rtol=1e-8, atol=1e-8)
    assert (streamed.count, other.count) == (101, 61)


def test_merging_leaves_the_other_side_alone() -> None:
    empty, full = Moments(), Moments.of(cloud(9))
    before = full.sigma.clone()
    empty.merge(full).update(cloud(5, seed=1))
    torch.testing.assert_close(full.sigma, before, rtol=0, atol=0)


def test_moments_say_what_they_lack() -> None:
    with pytest.raises(ConfigError, match="no samples"):
        _ = Moments().mu
    with pytest.raises(ConfigError, match="two samples; got 1"):
        _ = Moments.of(torch.zeros(1, 3)).sigma
    with pytest.raises(ShapeError, match=r"\[B, D\]; got \[3\]"):
        Moments.of(torch.zeros(3))
    with pytest.raises(ShapeError, match="3 features cannot take in 4"):
        Moments.of(torch.zeros(2, 3)).update(torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="finite"):
        Moments.of(torch.tensor([[0.0], [math.nan]])).gaussian()


def test_frechet_has_its_closed_forms() -> None:
    # Commuting covariances: |gap|^2 + sum (s_a - s_b)^2 of the standard deviations.
    a, b = (
        gaussian([1, 2, 3], [[4, 0, 0], [0, 9, 0], [0, 0, 0]]),
        gaussian([1, 0, 3], [[1, 0, 0], [0, 25, 0], [0, 0, 4]]),
    )
    assert frechet(a, b) == pytest.approx(4 + 1 + 4 + 4, rel=1e-12)
    # Two-dimensional, not commuting: Tr (AB)^(1/2) = (Tr AB + 2 det(AB)^(1/2))^(1/2).
    a, b = gaussian([0, 0], [[2, 1], [1, 3]]), gaussian([3, 4], [[5, -1], [-1, 1]])
    product = a.sigma @ b.sigma
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    assert frechet(a, b) == pytest.approx(25 + 5 + 6 - 2 * root, rel=1e-12)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-12)
    assert frechet(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_is_scipys() -> None:
    a, b = Moments.of(cloud(300, 20)), Moments.of(cloud(200, 20, seed=1, shift=0.5))
    root = scipy.linalg.sqrtm(a.sigma.numpy() @ b.sigma.numpy())
    want = (a.mu - b.mu).square().sum() + (a.sigma + b.sigma).trace() - 2 * np.trace(root).real
    assert frechet(a, b) == pytest.approx(float(want), rel=1e-9)


def test_frechet_holds_with_fewer_samples_than_features() -> None:
    """Then Tr (AB)^(1/2) is the sum of the singular values of X Y^T, centred, with no root of a rounding error."""
    x, y = cloud(12, 64), cloud(17, 64, seed=1)
    a, b = Moments.of(x), Moments.of(y)
    gram = (x - x.mean(0)) @ (y - y.mean(0)).T / math.sqrt(11 * 16)
    want = (a.mu - b.mu).square().sum() + (a.sigma + b.sigma).trace() - 2 * torch.linalg.svdvals(gram).sum()
    assert frechet(a, b) == pytest.approx(float(want), rel=1e-6)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_refuses_other_sizes() -> None:
    with pytest.raises(ShapeError, match="3 and 4 features"):
        frechet(Moments.of(torch.rand(9, 3)), Moments.of(torch.rand(9, 4)))


def test_statistics_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "stats"
    found = Moments.of(cloud(30))
    found.save(path)
    with np.load(path) as file:
        assert sorted(file) == ["count", "mu", "sigma"]
    loaded = Gaussian.load(path)
    torch.testing.assert_close(loaded.sigma, found.sigma, rtol=0, atol=0)
    torch.testing.assert_close(loaded.mu, found.mu, rtol=0, atol=0)
    assert loaded.count == 30


def test_statistics_of_adm_are_read(tmp_path: Path) -> None:
    path = tmp_path / "adm.npz"
    np.savez(path, mu=np.ones(3), sigma=np.eye(3), mu_s=np.zeros(2, np.float32), sigma_s=2 * np.eye(2))
    assert Gaussian.load(path).count is None
    assert Gaussian.load(path, "_s").sigma.tolist() == [[2, 0], [0, 2]]
    assert Gaussian.load(path, "_s").mu.dtype == torch.float64


def test_bad_statistics_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    with pytest.raises(ConfigError, match="no file"):
        Gaussian.load(path)
    np.savez(path, mean=np.ones(3))
    with pytest.raises(ConfigError, match="holds no mu and sigma"):
        Gaussian.load(path)
    path.write_bytes(b"PK\3\4 nothing")
    with pytest.raises(DamagedError, match="cannot be read"):
        Gaussian.load(path)
    np.savez(path, mu=np.ones(3), sigma=np.eye(4))
    with pytest.raises(ShapeError, match=r"\[3\] and \[4, 4\]"):
        Gaussian.load(path)


# Inception score


def test_inception_score_has_its_extremes() -> None:
    certain = torch.eye(5).repeat(4, 1)
    assert inception_score(certain, 2, kind="probabilities").mean == pytest.approx(5)
    assert inception_score(torch.full((20, 5), 0.2), 2, kind="probabilities").mean == pytest.approx(1)
    assert inception_score(100 * certain, 1).mean == pytest.approx(5)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_inception_score_is_its_definition(splits: int) -> None:
    logits = 2 * cloud(47, 7)
    p = logits.softmax(1)
    parts = []
    for i in range(splits):
        part = p[i * 47 // splits : (i + 1) * 47 // splits]
        kl = [float((row * (row / part.mean(0)).log()).sum()) for row in part]
        parts.append(math.exp(sum(kl) / len(kl)))
    found = inception_score(logits, splits)
    assert found.mean == pytest.approx(np.mean(parts), rel=1e-12)
    assert found.std == pytest.approx(np.std(parts), rel=1e-9, abs=1e-12)
    assert inception_score(p, splits, kind="probabilities") == pytest.approx(found, rel=1e-12, abs=1e-12)


def test_inception_score_wants_the_right_kind() -> None:
    logits = cloud(20, 4)
    with pytest.raises(ConfigError, match='look like logits; say kind="logits"'):
        inception_score(logits, kind="probabilities")
    with pytest.raises(ConfigError, match="look like probabilities"):
        inception_score(logits.softmax(1))
    with pytest.raises(ConfigError, match="21 splits"):
        inception_score(logits, 21)
    with pytest.raises(ConfigError, match="finite"):
        inception_score(logits / 0)


# Neighbourhoods


def naive(real: Tensor, fake: Tensor, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage, written down from their definitions."""

    def d(a: Tensor, b: Tensor) -> float:
        return math.dist(a.tolist(), b.tolist())

    def radii(x: Tensor) -> list[float]:
        return [sorted(d(x[i], x[j]) for j in range(len(x)) if j != i)[k - 1] for i in range(len(x))]

    r, s = radii(real), radii(fake)
    n, m = len(real), len(fake)
    gaps = [[d(real[i], fake[j]) for j in range(m)] for i in range(n)]
    precision = sum(any(gaps[i][j] <= r[i] for i in range(n)) for j in range(m)) / m
    recall = sum(any(gaps[i][j] <= s[j] for j in range(m)) for i in range(n)) / n
    density = sum(gaps[i][j] < r[i] for i in range(n) for j in range(m)) / (k * m)
    coverage = sum(any(gaps[i][j] < r[i] for j in range(m)) for i in range(n)) / n
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [4, 7, 100])
def test_neighbourhood_scores_are_their_definitions(k: int, chunk: int) -> None:
    real, fake = cloud(23, 2), cloud(31, 2, seed=5, shift=0.4)
    want = naive(real, fake, k)
    assert (*precision_recall(real, fake, k, chunk), *density_coverage(real, fake, k, chunk)) == pytest.approx(want)
    assert len(set(want)) == 4, "the four scores must differ for this test to tell them apart"


def test_one_pass_gives_all_four_with_their_own_k() -> None:
    real, fake = cloud(40, 3), cloud(30, 3, shift=0.8)
    found = manifold(real, fake, 3, 5)
    assert (found.precision, found.recall) == precision_recall(real, fake, 3)
    assert (found.density, found.coverage) == density_coverage(real, fake, 5)


def test_real_samples_score_one_against_themselves() -> None:
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0) ** 1.5)
    one = manifold(grid, grid, 3, 4)
    assert (one.precision, one.recall, one.coverage) == (1, 1, 1)
    spread = cloud(60, 3)  # without ties each of 60 balls holds its centre and k - 1 others
    assert density_coverage(spread, spread.flip(0), 5, 7).density == pytest.approx(1, abs=1e-15)


def test_points_on_a_ball_belong_to_closed_balls_only() -> None:
    real = torch.tensor([[0.0], [1.0], [10.0]]).double() + 0.1
    fake = torch.tensor([[2.0], [-1.0], [30.0], [40.0]]).double() + 0.1
    assert precision_recall(real, fake, 1).precision == 0.5
    assert density_coverage(real, fake, 1) == (0.25, 1 / 3), "only the far ball, of radius 9, holds 2 and not -1"


def test_scores_do_not_mind_far_away_float32_features() -> None:
    real, fake = cloud(40, 3), cloud(40, 3, shift=0.5)
    want = manifold(real.float(), fake.float())
    assert manifold(real.float() + 4096, fake.float() + 4096).density == pytest.approx(want.density, rel=0.05)
    near = torch.tensor([[1e4], [1e4 + 1e-3]], dtype=torch.float64)
    [(_, _, gap)] = squared_blocks(near, near)
    assert float(gap[0, 1]) == pytest.approx(1e-6, rel=0.05)


def test_too_few_samples_have_no_neighbourhood() -> None:
    with pytest.raises(ConfigError, match="more samples than k"):
        precision_recall(cloud(3), cloud(9), 3)
    with pytest.raises(ConfigError, match="more samples than k"):
        precision_recall(cloud(9), cloud(3), 3)
    assert density_coverage(cloud(9), cloud(2), 3).density > 0
    with pytest.raises(ConfigError, match="k = 1; got 0"):
        precision_recall(cloud(9), cloud(9), 0)
    with pytest.raises(ShapeError, match=r"\[9, 6\] and \[9, 5\]"):
        manifold(cloud(9), cloud(9, 5))
    with pytest.raises(ConfigError, match="finite"):
        manifold(cloud(9), cloud(9) / 0)


# KID


def test_kid_is_its_definition() -> None:
    x, y = cloud(14, 3), cloud(14, 3, seed=1)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    pairs = [(i, j) for i in range(14) for j in range(14)]
    want = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / (14 * 13)
    want -= 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / 14**2
    assert kid(x, y, 1, 14).mean == pytest.approx(want, rel=1e-10)


def test_kid_draws_are_without_bias_and_repeatable() -> None:
    x, y = cloud(400, 4), cloud(400, 4, scale=1.0)[torch.randperm(400, generator=torch.Generator().manual_seed(5))]
    found = kid(x, y, 50, 60)
    assert abs(found.mean) < 4 * found.std / math.sqrt(50)
    assert found == kid(x, y, 50, 60)
    assert found != kid(x, y, 50, 60, seed=1)
    with pytest.raises(ConfigError, match="2 to 400 samples"):
        kid(x, y)


# Independent implementations


class Flat(nn.Module):
    """Pictures [B, 3, 8, 8] to the 6 features, or logits, of their first pixels."""

    num_features = 6

    def forward(self, x: Tensor) -> Tensor:
        return x.double().flatten(1)[:, :6] / 64


def pixels(n: int, seed: int, scale: float = 30.0) -> Tensor:
    flat = torch.zeros(n, 192)
    flat[:, :6] = 128 + scale * cloud(n, 6, seed=seed).float() / 3
    return flat.round().clamp(0, 255).to(torch.uint8).view(n, 3, 8, 8)


def test_torchmetrics_agrees_on_fid() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    metric = fid.FrechetInceptionDistance(Flat(), input_img_size=(3, 8, 8)).set_dtype(torch.float64)
    real, fake = pixels(300, 0), pixels(250, 1)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = frechet(Moments.of(Flat()(real)), Moments.of(Flat()(fake)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)
    assert ours > 0.1


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance.")
def test_torchmetrics_agrees_on_kid() -> None:
    module = pytest.importorskip("torchmetrics.image.kid")
    metric = module.KernelInceptionDistance(Flat(), subsets=2, subset_size=150)
    real, fake = pixels(150, 0), pixels(150, 1)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert kid(Flat()(real), Flat()(fake), 2, 150).mean == pytest.approx(float(metric.compute()[0]), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric .InceptionScore.")
def test_torchmetrics_agrees_on_the_inception_score(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("torchmetrics.image.inception")
    metric = module.InceptionScore(Flat(), splits=2)
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n))  # theirs draws its splits at random
    seen = pixels(200, 0, 60)
    metric.update(seen)
    ours, std = inception_score(Flat()(seen), 2)
    mean, wider = metric.compute()  # its deviation divides by splits - 1
    assert ours == pytest.approx(float(mean), rel=1e-6)
    assert std * math.sqrt(2) == pytest.approx(float(wider), rel=1e-6)
    assert ours > 1.05


# Memorisation


@pytest.mark.parametrize("chunk", [3, 1000])
def test_nearest_is_found_and_exact(chunk: int) -> None:
    train, samples = cloud(50, 12).view(50, 3, 4), cloud(20, 12, seed=1).view(20, 3, 4)
    samples[4] = train[33]
    distance, index = nearest(train, samples, chunk)
    everything = (samples.flatten(1)[:, None] - train.flatten(1)).square().sum(-1).sqrt()
    torch.testing.assert_close(distance, everything.min(1).values, rtol=1e-15, atol=0)
    assert index.tolist() == everything.argmin(1).tolist()
    assert (float(distance[4]), int(index[4])) == (0, 33)


def test_nearest_of_far_away_neighbours_keeps_its_digits() -> None:
    train = torch.tensor([[0.0, 0.0], [1e8, 0.0], [1e8 + 1e-6, 0.0]], dtype=torch.float64)
    distance, index = nearest(train, train[[2, 1]] + torch.tensor([1e-7, 0.0]))
    assert index.tolist() == [2, 1]
    assert bool((distance < 2e-7).all())


def test_nearest_reads_uint8_pictures() -> None:
    train = torch.tensor([0, 200, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    distance, index = nearest(train, torch.tensor([[[[230]]], [[[90]]]], dtype=torch.uint8))
    assert (distance.tolist(), index.tolist()) == ([25, 90], [2, 0])
    with pytest.raises(ShapeError, match="of one shape"):
        nearest(train, torch.zeros(2, 1, 1, 3))


def test_memorisation_counts_what_is_too_near() -> None:
    train = torch.tensor([[0.0], [100.0]])
    test = torch.arange(1.0, 42.0)[:, None]  # distances 1 ... 41, of which the 5 % quantile is 3
    samples = torch.tensor([[0.0], [2.5], [103.5], [110.0]])
    found = memorisation(train, test, samples)
    assert found.threshold == pytest.approx(3)
    assert found.share == 0.5
    assert found.ratio == pytest.approx((0 + 2.5 + 3.5 + 10) / 4 / 21)
    assert "50.0% of 4 samples" in found.text
    assert "2 training" in found.text
    assert "41 test" in found.text


def test_memorisation_tells_copies_from_fresh_samples() -> None:
    train, test, fresh = cloud(1500, 4).view(3, 500, 4)
    honest, copied = memorisation(train, test, fresh), memorisation(train, test, train[:100])
    assert honest.share == pytest.approx(0.05, abs=0.03)
    assert honest.ratio == pytest.approx(1, abs=0.1)
    assert (copied.share, copied.ratio) == (1, 0)
    with pytest.raises(ConfigError, match="hold other pictures out"):
        memorisation(train, train, fresh)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        memorisation(train, test, fresh, 5)
