"""Paths: coefficients, the four views of an estimate, mixing and going back in time."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from secondlook.errors import ConfigError
from secondlook.flow.path import GVP, KINDS, PATHS, VP, Kind, Linear, Path, complete, mix, renoise
from secondlook.noise import Key, normal
from secondlook.worlds.mixture import default_mixture

ALL: list[Path] = [Linear(), GVP(), VP()]
each_path = pytest.mark.parametrize("path", ALL, ids=lambda p: p.name)
WORLD = default_mixture()


def full(t: float, n: int = 1) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def draw(seed: int, n: int) -> Tensor:
    return normal([Key.root(seed)], (n, 2))[0].double()


@cache
def some_data() -> Tensor:
    return WORLD.sample([Key.root(8).child(i) for i in range(3000)])


def test_table_holds_every_path() -> None:
    assert {name: cls().name for name, cls in PATHS.items()} == {"linear": "linear", "gvp": "gvp", "vp": "vp"}


@each_path
def test_derivatives_against_automatic_differentiation(path: Path) -> None:
    t = torch.linspace(0.0, 0.999, 41, dtype=torch.float64, requires_grad=True)
    c = path.coefs(t)
    for value, derivative in ((c.alpha, c.d_alpha), (c.sigma, c.d_sigma)):
        (want,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(derivative.detach(), want, rtol=1e-10, atol=1e-10)


@each_path
def test_derivatives_against_finite_differences(path: Path) -> None:
    t, h = torch.linspace(0.05, 0.95, 19, dtype=torch.float64), 1e-6
    c, ahead, behind = path.coefs(t), path.coefs(t + h), path.coefs(t - h)
    torch.testing.assert_close(c.d_alpha, (ahead.alpha - behind.alpha) / (2 * h), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(c.d_sigma, (ahead.sigma - behind.sigma) / (2 * h), rtol=1e-7, atol=1e-7)


@each_path
def test_a_path_leads_from_noise_to_data(path: Path) -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    c = path.coefs(t)
    assert (c.alpha.diff() > 0).all()
    assert (c.sigma.diff() < 0).all()
    assert float(c.alpha[-1]) == pytest.approx(1, abs=1e-12)
    assert float(c.sigma[-1]) == pytest.approx(0, abs=1e-12)
    assert float(c.alpha[0]) == pytest.approx(0, abs=0.01)
    assert float(c.sigma[0]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("path", [GVP(), VP()], ids=lambda p: p.name)
def test_variance_preserving_paths_do(path: Path) -> None:
    c = path.coefs(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close(c.alpha**2 + c.sigma**2, torch.ones(101, dtype=torch.float64))


def test_vp_is_songs_schedule() -> None:
    """d log alpha / dt = beta(u) / 2 with beta(u) = 0.1 + 19.9 u (2011.13456, eq. 33 and app. C)."""
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    c = VP().coefs(t)
    torch.testing.assert_close(c.d_alpha / c.alpha, 0.5 * (0.1 + 19.9 * (1 - t)))


@each_path
def test_coefficients_are_finite_in_float32_at_both_ends(path: Path) -> None:
    c = path.coefs(torch.tensor([0.0, 1.0]))
    for part in (c.alpha, c.sigma, c.d_alpha, c.d_sigma):
        assert part.dtype == torch.float32
        assert torch.isfinite(part).all()


@pytest.mark.parametrize("kind", KINDS)
@each_path
def test_any_view_gives_all_four(path: Path, kind: Kind) -> None:
    """From each exact view of the mixture, complete must find the other three exact ones."""
    t = torch.linspace(0.03, 0.97, 24, dtype=torch.float64)
    x = 1.5 * draw(1, 24)
    given = WORLD.predict(kind, path, x, t)
    estimate = complete(path, x, t, kind, given)
    assert torch.equal(getattr(estimate, kind), given)
    for view in KINDS:
        torch.testing.assert_close(getattr(estimate, view), WORLD.predict(view, path, x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@each_path
def test_views_agree_for_estimates_that_no_density_has(path: Path, kind: Kind) -> None:
    t, x, value = full(0.4, 6), draw(2, 6), draw(3, 6)
    first = complete(path, x, t, kind, value)
    torch.testing.assert_close(mix(path, first.data, first.noise, t), x)
    for other in KINDS:
        again = complete(path, x, t, other, getattr(first, other))
        for view in KINDS:
            torch.testing.assert_close(getattr(again, view), getattr(first, view), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_path
def test_complete_is_finite_at_both_ends(path: Path, dtype: torch.dtype, kind: Kind) -> None:
    x, value = draw(2, 6).to(dtype), draw(3, 6).to(dtype)
    for end in (0.0, 1.0):
        if path.name == "vp" and end == 1.0 and kind != "data":
            continue  # VP's d_sigma is unbounded there
        estimate = complete(path, x, full(end, 6).to(dtype), kind, value)
        for view in KINDS:
            assert torch.isfinite(getattr(estimate, view)).all(), (view, end)


def test_complete_refuses_an_unknown_kind() -> None:
    with pytest.raises(ConfigError, match="'score'"):
        complete(Linear(), draw(0, 1), full(0.5), "score", draw(1, 1))  # type: ignore[arg-type]


def test_mix_on_the_linear_path_and_many_axes() -> None:
    data, noise = torch.ones(3, 2, 4, dtype=torch.float64), torch.full((3, 2, 4), 3.0, dtype=torch.float64)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    assert mix(Linear(), data, noise, t)[:, 0, 0].tolist() == [3.0, 2.5, 1.0]


@each_path
def test_mix_recovers_its_parts(path: Path) -> None:
    data, noise, t = draw(4, 9), draw(5, 9), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    x = mix(path, data, noise, t)
    torch.testing.assert_close(complete(path, x, t, "data", data).noise, noise)
    torch.testing.assert_close(complete(path, x, t, "noise", noise).data, data)


@pytest.mark.parametrize(("t", "earlier"), [(1.0, 0.0), (1.0, 0.6), (0.8, 0.3), (0.5, 0.5), (0.3, 0.05), (0.2, 0.0)])
@each_path
def test_renoise_keeps_the_marginals_exactly(path: Path, t: float, earlier: float) -> None:
    """x' = a x + b noise carries alpha data + sigma noise to alpha' data + sigma' noise: a alpha = alpha' and
    (a sigma)^2 + b^2 = sigma'^2, with a and b read off the function."""
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    a = float(renoise(path, one, full(t), full(earlier), zero)[0, 0])
    b = float(renoise(path, zero, full(t), full(earlier), one)[0, 0])
    c, e = path.coefs(full(t)), path.coefs(full(earlier))
    assert b >= 0
    assert a * float(c.alpha) == pytest.approx(float(e.alpha), abs=1e-12)
    assert (a * float(c.sigma)) ** 2 + b**2 == pytest.approx(float(e.sigma) ** 2, abs=1e-12)


@each_path
def test_renoise_in_two_hops_has_the_law_of_one(path: Path) -> None:
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    hop = [renoise(path, one, full(s), full(e), zero)[0, 0] for s, e in ((0.9, 0.6), (0.6, 0.2), (0.9, 0.2))]
    var = [renoise(path, zero, full(s), full(e), one)[0, 0] ** 2 for s, e in ((0.9, 0.6), (0.6, 0.2), (0.9, 0.2))]
    torch.testing.assert_close(hop[0] * hop[1], hop[2])
    torch.testing.assert_close(hop[1] ** 2 * var[0] + var[1], var[2])


@each_path
def test_renoised_samples_have_the_earlier_law(path: Path) -> None:
    data = some_data()
    n = len(data)
    x = mix(path, data, draw(9, n), full(0.8, n))
    back = renoise(path, x, full(0.8, n), full(0.4, n), draw(10, n))
    law = WORLD.marginal(path, 0.4)
    assert ((back.mean(0) - law.mean()).abs() < 4 * back.std(0) / n**0.5).all()
    centred = back - law.mean()
    products = torch.einsum("bi,bj->bij", centred, centred)
    assert ((products.mean(0) - law.covariance()).abs() < 4 * products.std(0) / n**0.5).all()


def test_renoise_to_the_same_time_changes_nothing() -> None:
    x, t = draw(1, 5), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    for path in ALL:
        torch.testing.assert_close(renoise(path, x, t, t, 100 * draw(2, 5)), x, rtol=0, atol=1e-5)


@each_path
def test_renoise_takes_each_row_to_its_own_time(path: Path) -> None:
    x, noise = draw(1, 3), draw(2, 3)
    t, earlier = (torch.tensor(v, dtype=torch.float64) for v in ([0.9, 0.5, 0.0], [0.1, 0.5, 0.0]))
    whole = renoise(path, x, t, earlier, noise)
    for i in range(3):
        one = slice(i, i + 1)
        assert torch.equal(renoise(path, x[one], t[one], earlier[one], noise[one]), whole[one])


def test_renoise_refuses_to_go_forward() -> None:
    x = draw(1, 2)
    with pytest.raises(ValueError, match="back in time"):
        renoise(Linear(), x, full(0.5, 2), torch.tensor([0.4, 0.6], dtype=torch.float64), x)
