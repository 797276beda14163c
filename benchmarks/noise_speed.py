"""Keyed noise against the plain way to make the same bits, and against torch's own generator, paired in one run.

Each repeat times all of them in turn, so that what else the machine does meets all alike; a ratio is of times within one
repeat, and its median over the repeats is shown with its quartiles.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from secondlook import noise
from secondlook.noise import Key

SHAPES = [(1, (1, 8, 8)), (16, (3, 64, 64)), (256, (4, 32, 32)), (4, (16, 128, 128))]
_SQRT_HALF = math.sqrt(0.5)


def reference(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
    """What ``noise.normal`` must give, one row at a time, each formula written as it is read."""
    count = math.prod(shape)
    rows = np.empty((len(keys), count), dtype=np.float32)
    for row, key in zip(rows, keys, strict=True):
        words = np.array([key.value & (2**64 - 1), key.value >> 64], dtype=np.uint64)
        raw = np.random.Philox(key=words).random_raw(count)
        row[:] = reference_quantile(
            (((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53).clip(max=1 - 2.0**-53)
        )
    return torch.from_numpy(rows).reshape(len(keys), *shape)


def reference_quantile(p: np.ndarray) -> np.ndarray:
    """AS 241's PPND16 at p in (0, 1), float64."""
    q = p - 0.5
    out: np.ndarray = q * _ratio(0.180625 - q * q, noise._A, noise._B)
    tail = np.abs(q) > 0.425
    qt = q[tail]
    r = np.sqrt(-_log(np.where(qt < 0, p[tail], 1.0 - p[tail])))
    value = np.where(r <= 5.0, _ratio(r - 1.6, noise._C, noise._D), _ratio(r - 5.0, noise._E, noise._F))
    out[tail] = np.where(qt < 0, -value, value)
    return out


def _log(x: np.ndarray) -> np.ndarray:
    m, e = np.frexp(x)
    low = m < _SQRT_HALF
    m = np.where(low, 2.0 * m, m)
    e = np.where(low, e - 1, e)
    z = (m - 1.0) / (m + 1.0)
    z2 = z * z
    series = np.zeros_like(z)
    for k in range(23, 0, -2):
        series = series * z2 + 1.0 / k
    out: np.ndarray = e * noise._LN2 + 2.0 * z * series
    return out


def _ratio(x: np.ndarray, top: Sequence[float], bottom: Sequence[float]) -> np.ndarray:
    num = np.full_like(x, top[-1])
    den = np.full_like(x, bottom[-1])
    for a, b in zip(reversed(top[:-1]), reversed(bottom[:-1]), strict=True):
        num = num * x + a
        den = den * x + b
    out: np.ndarray = num / den
    return out


def timed(work: Callable[[], object], threads: int = 1) -> float:
    """Milliseconds."""
    torch.set_num_threads(threads)
    begin = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - begin)


def measured(keys: Sequence[Key], shape: Sequence[int], repeats: int, threads: int) -> list[tuple[float, ...]]:
    """For each repeat the milliseconds of the reference, of ours on one thread and on ``threads``, and of torch.randn."""
    if not torch.equal(reference(keys, shape), noise.normal(keys, shape)):
        raise SystemExit(f"The bits differ at {len(keys)} x {list(shape)}.")
    return [
        (
            timed(lambda: reference(keys, shape)),
            timed(lambda: noise.normal(keys, shape)),
            timed(lambda: noise.normal(keys, shape), threads),
            timed(lambda: torch.randn(len(keys), *shape)),
        )
        for _ in range(repeats)
    ]


def quartiles(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    many = f"new, {args.threads} threads"
    print(f"{platform.machine()}, numpy {np.__version__}, torch {torch.__version__}; {args.repeats} paired repeats.\n")
    print(f"| rows x shape | reference, ms | reference / new, 1 thread | reference / {many} | {many} / torch.randn |")
    print("|---|---|---|---|---|")
    for rows, shape in SHAPES:
        times = measured([Key.root(0).child(i) for i in range(rows)], shape, args.repeats, args.threads)
        cells = [[t[0] for t in times], *([t[a] / t[b] for t in times] for a, b in ((0, 1), (0, 2), (2, 3)))]
        print(f"| {rows} x {list(shape)} | {' | '.join(map(quartiles, cells))} |", flush=True)


if __name__ == "__main__":
    main()
