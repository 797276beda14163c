"""Keyed noise: pinned bits, the published generator, an accurate quantile, and rows that do not see each other."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from secondlook import noise
from secondlook.noise import Key, integers, inverse_normal_cdf, normal, uniform

KEY = Key.root(7).child("x", 3)
REFERENCE = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "noise_speed.py"))
MASK = 2**64 - 1


def philox(counter: int, key: int) -> list[int]:
    """Philox4x64-10 as printed in Salmon et al. (SC 2011), sec. 3.3, in Python integers."""
    c = [counter >> (64 * i) & MASK for i in range(4)]
    k = [key & MASK, key >> 64]
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k[0], b & MASK, (a >> 64) ^ c[3] ^ k[1], a & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def test_keys_are_pinned() -> None:
    assert Key.root(0).hex() == "7a5f9e091ca8acceea2f5c568bf0d8cf"
    assert KEY.hex() == "06f539fe884c2d8628afc9341777e7bd"
    assert Key.parse(KEY.hex()) == KEY


def test_normals_are_pinned() -> None:
    golden = ["0x1.c4a5c0p-3", "-0x1.06aeecp-1", "-0x1.04b514p+0", "0x1.8186aep-3", "-0x1.ae9140p-1", "-0x1.1ca8f2p+0"]
    exact = ["0x1.c4a5c0e1565e2p-3", "-0x1.06aeebd4586fap-1", "-0x1.04b51496b3cd3p+0", "0x1.8186ad824dc7ep-3"]
    assert normal([KEY], (6,))[0].tolist() == [float.fromhex(h) for h in golden]
    assert inverse_normal_cdf(uniform(KEY, 4)).tolist() == [float.fromhex(h) for h in exact]


def test_reference_generator_gives_the_published_answer() -> None:
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]  # Random123's kat_vectors
    assert philox(0, 0) == known


def test_integers_are_philox_counting_from_one() -> None:
    assert integers(KEY, 10).tolist() == (philox(1, KEY.value) + philox(2, KEY.value) + philox(3, KEY.value))[:10]


def test_a_longer_stream_begins_with_the_shorter() -> None:
    assert np.array_equal(uniform(KEY, 1001)[:37], uniform(KEY, 37))
    assert torch.equal(normal([KEY], (4, 5)).flatten(), normal([KEY], (20,)).flatten())


@pytest.mark.parametrize(("word", "inside"), [(0, 2.0**-54), (MASK, 1 - 2.0**-53), (2**63, 0.5)])
def test_uniform_stays_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch, word: int, inside: float) -> None:
    monkeypatch.setattr(noise._Stream, "read", lambda self, key, start, count: np.full(count, word, dtype=np.uint64))
    u = uniform(KEY, 3)
    assert np.all((u > 0) & (u < 1))
    np.testing.assert_allclose(u, inside, rtol=1e-15)
    assert torch.isfinite(normal([KEY], (3,))).all()


# The same bits as by the plain formulas, one row at a time


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 2**128 - 1), min_size=1, max_size=5), count=st.integers(0, 3000))
def test_normals_have_the_references_bits(values: list[int], count: int) -> None:
    keys = [Key(v) for v in values]
    assert torch.equal(normal(keys, (count,)), REFERENCE["reference"](keys, (count,)))


@pytest.mark.parametrize(
    ("rows", "count"), [(1, 65537), (1, 4 * 65536), (3, 65535), (3, 70000), (33, 4097), (700, 301)]
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_do_not_depend_on_how_a_draw_is_cut_and_shared_out(rows: int, count: int, threads: int) -> None:
    """Counts at, below and above what is worked on at once, and draws large enough for several threads."""
    keys = [KEY.child(i) for i in range(rows)]
    torch.set_num_threads(threads)
    assert torch.equal(normal(keys, (count,)), REFERENCE["reference"](keys, (count,)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(2.0**-54, 1 - 2.0**-53), min_size=1, max_size=40))
def test_the_quantile_has_the_references_bits(values: list[float]) -> None:
    p = np.array(values)
    assert inverse_normal_cdf(p).tobytes() == REFERENCE["reference_quantile"](p).tobytes()


@pytest.mark.parametrize("edge", [0.075, 0.5, 0.925, math.exp(-25.0), 1 - math.exp(-25.0)])
def test_the_quantiles_pieces_meet_where_the_references_do(edge: float) -> None:
    p = edge + np.spacing(edge) * np.arange(-300, 301)
    assert inverse_normal_cdf(p).tobytes() == REFERENCE["reference_quantile"](p).tobytes()


def test_a_failure_in_a_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*parts: object) -> np.ndarray:
        raise MemoryError("too much")

    monkeypatch.setattr(noise, "_tails", broken)
    torch.set_num_threads(2)
    with pytest.raises(MemoryError, match="too much"):
        normal([KEY] * 8, (65536,))


def test_quantile_matches_scipy_over_the_whole_range() -> None:
    low = np.concatenate([10.0 ** -np.linspace(0.302, 16.2, 300), np.linspace(0.001, 0.499, 400)])
    p = np.concatenate([low, 1 - 2.0 ** -np.arange(2, 54), [0.075, 0.925, math.exp(-25.0)]])
    np.testing.assert_allclose(inverse_normal_cdf(p), stats.norm.ppf(p), rtol=3e-15, atol=1e-16)
    assert inverse_normal_cdf(np.array([0.5]))[0] == 0.0


def test_quantile_is_odd_and_increasing() -> None:
    p = np.arange(1, 2**12) / 2**12  # 1 - p is exact
    z = inverse_normal_cdf(p)
    assert np.array_equal(z, -z[::-1])
    assert np.all(np.diff(z) > 0)


def test_log_is_accurate_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([10.0 ** np.linspace(-300, 300, 801), 1 + np.linspace(-0.3, 0.5, 801), [2.0**-54, 5e-324]])
    want = np.array([math.log(v) for v in x])
    np.testing.assert_allclose(noise._log(x), want, rtol=2 * 2.0**-52, atol=0)


def test_big_draw_is_standard_normal() -> None:
    x = normal([Key.root(1)], (400_000,))[0].double().numpy()
    n = len(x)
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(n)


def test_draws_across_keys_are_independent_standard_normals() -> None:
    x = normal([Key.root(2).child(i) for i in range(4000)], (2,)).double().numpy()
    assert stats.kstest(x[:, 0], "norm").pvalue > 1e-3
    for a, b in ((x[:, 0], x[:, 1]), (x[1:, 0], x[:-1, 0])):
        assert abs((a * b).mean()) < 4 / math.sqrt(len(a))


def test_child_names_are_told_apart() -> None:
    root = Key.root(0)
    assert root.child(1) != root.child("1")
    assert root.child("a", "b") != root.child("b", "a")
    assert root.child("a", "b") != root.child("ab")
    assert root.child("a", "b") == root.child("a").child("b")
    assert root.child(np.int64(5)) == root.child(5)  # type: ignore[arg-type]
    assert Key.root(1).child("a") != root.child("a")


def test_children_do_not_collide() -> None:
    names: list[str | int] = [*range(-1000, 1000), *(str(i) for i in range(-1000, 1000))]
    family = {Key.root(s).child(name) for s in range(2) for name in names}
    assert len(family) == 2 * len(names)
    assert max(k.value for k in family) < 2**128


def test_rows_do_not_depend_on_the_batch() -> None:
    keys = [Key.root(3).child(i) for i in range(7)]
    whole = normal(keys, (2, 3))
    order = [4, 0, 6, 4]
    assert torch.equal(normal([keys[i] for i in order], (2, 3)), whole[order])
    assert torch.equal(torch.cat([normal(keys[:3], (2, 3)), normal(keys[3:], (2, 3))]), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 7


@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (3, 4, 5)])
def test_shapes(shape: tuple[int, ...]) -> None:
    out = normal([KEY, Key.root(1)], shape)
    assert out.shape == (2, *shape)
    assert out.dtype == torch.float32
    assert normal([], shape).shape == (0, *shape)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    first = normal([KEY], (8,))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[index]
    torch.manual_seed(1)
    assert torch.equal(normal([KEY], (8,)), first)
