"""Noise keyed per row: what a row gets does not depend on batch size, order, device, worker or resumption.

A key is a 128-bit number; child keys are hashes of their parent and a name. Numbers come from the counter-based
generator Philox4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and are mapped to normals by
inversion (Wichura's AS 241, Applied Statistics 37, 1988) in float64, then rounded to float32. The map uses only
additions, multiplications, divisions and square roots, its logarithm included, all of which IEEE 754 rounds the same
way everywhere; a library's ``log`` would not do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, order=True)
class Key:
    """A name for a stream of random numbers. ``Key.root(seed)`` begins a family, ``child`` continues it."""

    value: int

    @staticmethod
    def root(seed: int) -> Key:
        return Key._hash(b"root", str(int(seed)).encode())

    def child(self, *names: str | int) -> Key:
        """The key named by this one and ``names`` in order; ints and strings are told apart."""
        key = self
        for name in names:
            tag = b"i" if isinstance(name, (int, np.integer)) else b"s"
            key = Key._hash(key.value.to_bytes(16, "big"), tag + str(name).encode())
        return key

    @staticmethod
    def _hash(parent: bytes, name: bytes) -> Key:
        digest = hashlib.sha256(len(parent).to_bytes(2, "big") + parent + name).digest()
        return Key(int.from_bytes(digest[:16], "big"))

    def hex(self) -> str:
        return f"{self.value:032x}"

    @staticmethod
    def parse(text: str) -> Key:
        return Key(int(text, 16))


NoiseSource = Callable[[Sequence[Key], Sequence[int]], Tensor]


def integers(key: Key, count: int) -> np.ndarray:
    """``count`` uint64 of the key's stream, from its beginning."""
    return _Stream().read(key, 0, count)


def uniform(key: Key, count: int) -> np.ndarray:
    """``count`` float64 strictly inside (0, 1): 53 random bits and a half."""
    return _inside(integers(key, count) >> _SPARE, np.empty(count))


def normal(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
    """Standard normals, float32 [len(keys), *shape], on the CPU. Row i depends on ``keys[i]`` and ``shape`` only.

    Large draws are shared out among as many threads as torch uses.
    """
    count = math.prod(shape)
    out = np.empty((len(keys), count), dtype=np.float32)
    parts = _parts(len(keys), count)
    workers = max(1, min(torch.get_num_threads(), _WORKERS, out.size // _SHARE))
    if workers == 1:
        _fill(keys, out, parts)
    else:
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(_fill, keys, out, parts[i::workers]) for i in range(workers)]:
                done.result()
    return torch.from_numpy(out).reshape(len(keys), *shape)


# Numbers worked on at once, a multiple of 4: few enough for a core's own cache, yet so many that threads seldom wait for
# Python's lock, which each step of the arithmetic gives up and takes again.
_PART = 1 << 16
_SHARE = 1 << 17  # numbers that are worth a thread
_WORKERS = 4  # the generator runs under the lock and takes a fifth of the time
_SPARE = np.uint64(11)  # bits of a word beyond a float64's 53


def _parts(rows: int, count: int) -> list[tuple[slice, slice]]:
    """[rows, count] cut into rows by columns of at most ``_PART`` numbers: several whole rows, or a part of one."""
    high = max(1, _PART // max(1, count))
    return [(slice(r, min(r + high, rows)), slice(c, min(c + _PART, count)))
            for r in range(0, rows, high) for c in range(0, count, _PART)]  # fmt: skip


def _fill(keys: Sequence[Key], out: np.ndarray, parts: Sequence[tuple[slice, slice]]) -> None:
    """Normals into the ``parts`` of out [len(keys), count]."""
    stream, work = _Stream(), np.empty((4, min(_PART, out.size)))
    for rows, columns in parts:
        part = out[rows, columns]
        p, *rest = work[:, : part.size]
        words = rest[0].view(np.uint64)
        np.concatenate([stream.read(key, columns.start, part.shape[1]) for key in keys[rows]], out=words)
        words >>= _SPARE
        part[...] = _quantile(_inside(words, p), *rest).reshape(part.shape)


class _Stream:
    """The generator, put at any place of any key's stream. One for all keys: making it takes as long as 2,000 numbers."""

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._state: Any = self._philox.state  # its buffer is empty: nothing has been drawn

    def read(self, key: Key, start: int, count: int) -> np.ndarray:
        """``count`` uint64 from place ``start``, a multiple of 4, of the key's stream."""
        self._state["state"] = {"counter": (start // 4, 0, 0, 0), "key": (key.value & (2**64 - 1), key.value >> 64)}
        self._philox.state = self._state
        raw: np.ndarray = self._philox.random_raw(count)
        return raw


def _inside(bits: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Into ``out`` float64: 53 bits in uint64 as numbers inside (0, 1)."""
    out[...] = bits.view(np.int64)  # signed integers are converted faster
    out += 0.5
    out *= 2.0**-53
    return np.minimum(out, 1.0 - 2.0**-53, out=out)  # 53 ones and a half round to 1


_LN2 = 0.693147180559945309417232121458176568


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of positive float64 by exact arithmetic steps: x = m 2^e, log m = 2 atanh((m-1)/(m+1))."""
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m *= 1.0 + low
    e -= low
    z = (m - 1.0) / (m + 1.0)
    z2 = z * z
    series = np.full_like(z, 1.0 / 23)
    for k in range(21, 0, -2):  # |z| < 0.1716: the first term left out is under 1e-19
        series *= z2
        series += 1.0 / k
    z *= 2.0
    z *= series
    out: np.ndarray = e * _LN2
    out += z
    return out


# Coefficients of AS 241 (PPND16), relative accuracy about 1e-16.
_A = (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
      4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3)  # fmt: skip
_B = (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3, 2.1213794301586595867e4,
      3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3)  # fmt: skip
_C = (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
      1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4)  # fmt: skip
_D = (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1, 1.48103976427480074590e-1,
      1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9)  # fmt: skip
_E = (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
      2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7)  # fmt: skip
_F = (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
      7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15)  # fmt: skip


def _ratio(x: np.ndarray, top: Sequence[float], bottom: Sequence[float], num: np.ndarray, den: np.ndarray) -> None:
    """Into ``num``: top(x) / bottom(x), polynomials from the constant up, by Horner's rule; ``den`` is overwritten."""
    for out, poly in ((num, top), (den, bottom)):
        np.multiply(x, poly[-1], out=out)
        out += poly[-2]
        for a in poly[-3::-1]:
            out *= x
            out += a
    num /= den


def inverse_normal_cdf(p: np.ndarray) -> np.ndarray:
    """The standard normal's quantile at p in (0, 1), float64, the same bits on every IEEE machine."""
    flat = p.astype(np.float64).ravel()
    return _quantile(flat, *np.empty((3, flat.size))).reshape(p.shape)


def _quantile(p: np.ndarray, q: np.ndarray, num: np.ndarray, den: np.ndarray) -> np.ndarray:
    """The quantiles of p [n], into ``q``: the central formula for all, then the tails, about a seventh, by theirs. All four are
    [n] and overwritten: whatever is allocated again costs the memory's time."""
    np.subtract(p, 0.5, out=q)
    tail = np.flatnonzero(np.abs(q, out=num) > 0.425)
    sign, edge = q[tail], p[tail]
    np.multiply(q, q, out=p)
    np.subtract(0.180625, p, out=p)
    _ratio(p, _A, _B, num, den)
    q *= num
    q[tail] = np.copysign(_tails(np.minimum(edge, 1.0 - edge)), sign)
    return q


def _tails(p: np.ndarray) -> np.ndarray:
    """Minus the quantile at p [n] below 0.075."""
    r = np.sqrt(-_log(p))
    value, den = np.empty_like(r), np.empty_like(r)
    _ratio(r - 1.6, _C, _D, value, den)
    far = np.flatnonzero(r > 5.0)
    if far.size:  # below e^-25: hardly ever
        beyond = np.empty(far.size)
        _ratio(r[far] - 5.0, _E, _F, beyond, den[: far.size])
        value[far] = beyond
    return value
