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
from dataclasses import dataclass

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
    words = np.array([key.value & (2**64 - 1), key.value >> 64], dtype=np.uint64)
    raw: np.ndarray = np.random.Philox(key=words).random_raw(count)
    return raw


def uniform(key: Key, count: int) -> np.ndarray:
    """``count`` float64 strictly inside (0, 1): 53 random bits and a half."""
    u: np.ndarray = ((integers(key, count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return u.clip(max=1.0 - 2.0**-53)  # 53 ones and a half round to 1


def normal(keys: Sequence[Key], shape: Sequence[int]) -> Tensor:
    """Standard normals, float32 [len(keys), *shape], on the CPU. Row i depends on ``keys[i]`` and ``shape`` only."""
    count = math.prod(shape)
    rows = np.empty((len(keys), count), dtype=np.float32)
    for row, key in zip(rows, keys, strict=True):
        row[:] = inverse_normal_cdf(uniform(key, count))
    return torch.from_numpy(rows).reshape(len(keys), *shape)


_LN2 = 0.693147180559945309417232121458176568


def _log(x: np.ndarray) -> np.ndarray:
    """Natural logarithm of positive float64 by exact arithmetic steps: x = m 2^e, log m = 2 atanh((m-1)/(m+1))."""
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m = np.where(low, 2.0 * m, m)
    e = np.where(low, e - 1, e)
    z = (m - 1.0) / (m + 1.0)
    z2 = z * z
    series = np.zeros_like(z)
    for k in range(23, 0, -2):  # |z| < 0.1716: the first term left out is under 1e-19
        series = series * z2 + 1.0 / k
    out: np.ndarray = e * _LN2 + 2.0 * z * series
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


def _ratio(x: np.ndarray, top: Sequence[float], bottom: Sequence[float]) -> np.ndarray:
    num = np.full_like(x, top[-1])
    den = np.full_like(x, bottom[-1])
    for a, b in zip(reversed(top[:-1]), reversed(bottom[:-1]), strict=True):
        num = num * x + a
        den = den * x + b
    ratio: np.ndarray = num / den
    return ratio


def inverse_normal_cdf(p: np.ndarray) -> np.ndarray:
    """The standard normal's quantile at p in (0, 1), float64, the same bits on every IEEE machine."""
    q = p - 0.5
    out: np.ndarray = q * _ratio(0.180625 - q * q, _A, _B)
    tail = np.abs(q) > 0.425
    qt = q[tail]
    r = np.sqrt(-_log(np.where(qt < 0, p[tail], 1.0 - p[tail])))
    value = np.where(r <= 5.0, _ratio(r - 1.6, _C, _D), _ratio(r - 5.0, _E, _F))
    out[tail] = np.where(qt < 0, -value, value)
    return out
