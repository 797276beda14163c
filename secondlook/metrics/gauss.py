"""Means and covariances of features, gathered in one pass, and the Fréchet distance between two Gaussians.

Source: GANs Trained by a Two Time-Scale Update Rule (1706.08500), sec. 2, for the distance; Chan, Golub and LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances" (1979), eq. 2.1, for the merging.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, DamagedError, ShapeError


class HasMoments(Protocol):
    """Anything with a mean ``mu`` [D] and a covariance ``sigma`` [D, D], both float64."""

    @property
    def mu(self) -> Tensor: ...

    @property
    def sigma(self) -> Tensor: ...


@dataclass(frozen=True)
class Gaussian:
    """mu: [D] and sigma: [D, D], float64, in the features' units. count: the samples behind them, None where a file
    does not say. ShapeError where the two do not fit, ConfigError where a number is not finite."""

    mu: Tensor
    sigma: Tensor
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)):
            got = f"{list(self.mu.shape)} and {list(self.sigma.shape)}"
            raise ShapeError(f"A Gaussian expects mu [D] and sigma [D, D]; got {got}.")
        if not bool(self.mu.isfinite().all() and self.sigma.isfinite().all()):
            raise ConfigError("A Gaussian's mu and sigma must be finite; look for NaN or infinity in the features.")

    def arrays(self, suffix: str = "") -> dict[str, np.ndarray]:
        """``mu`` and ``sigma`` under the names files use, float64; ``suffix`` is "_s" for spatial features."""
        return {f"mu{suffix}": self.mu.cpu().numpy(), f"sigma{suffix}": self.sigma.cpu().numpy()}

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` with ``mu``, ``sigma`` and, where known, ``count``; other tools read the first two."""
        write_npz(path, self.arrays() | ({} if self.count is None else {"count": np.array(self.count)}))

    @staticmethod
    def load(path: str | Path, suffix: str = "") -> Gaussian:
        """From an ``.npz`` of ours, of the standard FID codes or of ADM. ConfigError where the keys are not there."""
        found = read_npz(path, ("mu" + suffix, "sigma" + suffix, "count"))
        gaussian = gaussian_in(found, suffix)
        if gaussian is None:
            raise ConfigError(f"The file {path} holds no mu{suffix} and sigma{suffix}; give a file of statistics.")
        return gaussian


def gaussian_in(found: dict[str, np.ndarray], suffix: str = "") -> Gaussian | None:
    """The Gaussian under ``mu`` + suffix and ``sigma`` + suffix, or None where a key is missing."""
    if "mu" + suffix not in found or "sigma" + suffix not in found:
        return None
    mu, sigma = (torch.from_numpy(np.asarray(found[key + suffix], np.float64)) for key in ("mu", "sigma"))
    return Gaussian(mu, sigma, int(found["count"]) if "count" in found else None)


class Moments:
    """Mean and scatter of a stream of features, float64, kept where the first batch lies.

    ``update`` takes batches, ``merge`` another stream's moments, in any order: the result is that of one pass.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    @staticmethod
    def of(features: Tensor) -> Moments:
        """The moments of one batch [N, D]."""
        return Moments().update(features)

    def update(self, features: Tensor) -> Moments:
        """Take in features [B, D] of any float dtype; an empty batch changes nothing. Returns itself."""
        if features.ndim != 2:
            raise ShapeError(f"Moments want features [B, D]; got {list(features.shape)}.")
        if not len(features):
            return self
        x = double(features)
        mean = x.mean(0)
        x = x - mean
        return self._join(len(x), mean, x.T @ x)

    def merge(self, other: Moments) -> Moments:
        """Take in what another stream has gathered. Returns itself."""
        if other._mean is None or other._scatter is None:
            return self
        return self._join(other.count, other._mean, other._scatter.clone())

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> Moments:
        """With gap = mean_b - mean_a: S = S_a + S_b + n_a n_b / n gap gap^T, mean = mean_a + n_b / n gap."""
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = count, mean, scatter
            return self
        if mean.shape != self._mean.shape:
            raise ShapeError(f"Moments of {len(self._mean)} features cannot take in {len(mean)} features.")
        total = self.count + count
        gap = mean.to(self._mean) - self._mean
        self._scatter += scatter.to(self._scatter)
        self._scatter.addr_(gap, gap, alpha=self.count * count / total)
        self._mean = self._mean + gap * (count / total)
        self.count = total
        return self

    @property
    def mu(self) -> Tensor:
        """[D] float64. ConfigError before the first sample."""
        if self._mean is None:
            raise ConfigError("The mean of no samples was asked for; give at least one.")
        return self._mean

    @property
    def sigma(self) -> Tensor:
        """[D, D] float64, the scatter over N - 1, as the standard FID codes have it. ConfigError for N < 2."""
        if self._scatter is None or self.count < 2:
            raise ConfigError(f"A covariance needs at least two samples; got {self.count}.")
        return self._scatter / (self.count - 1)

    def gaussian(self) -> Gaussian:
        """What has been gathered, as a Gaussian that knows its count."""
        return Gaussian(self.mu, self.sigma, self.count)

    def save(self, path: str | Path) -> None:
        """Write ``gaussian()`` to an ``.npz``; ``Gaussian.load`` reads it."""
        self.gaussian().save(path)


def frechet(a: HasMoments, b: HasMoments) -> float:
    """The squared Fréchet distance of two Gaussians in float64, FID when the features are Inception's; >= 0.

        |mu_a - mu_b|^2 + Tr(S_a) + Tr(S_b) - 2 Tr((S_a S_b)^(1/2))        (1706.08500, eq. 6)

    With roots S = R R^T from symmetric eigenvalues, the last trace is the sum of the singular values of R_a^T R_b.
    Nothing becomes complex, and a singular covariance (fewer samples than features) needs no ridge.
    """
    if a.mu.shape != b.mu.shape:
        raise ShapeError(f"Gaussians of {len(a.mu)} and {len(b.mu)} features cannot be compared.")
    mu_a, sigma_a = a.mu.double(), a.sigma.double()
    mu_b, sigma_b = b.mu.to(mu_a), b.sigma.to(sigma_a)
    shared = torch.linalg.svdvals(_root(sigma_a).T @ _root(sigma_b)).sum()
    distance = (mu_a - mu_b).square().sum() + sigma_a.trace() + sigma_b.trace() - 2 * shared
    return max(float(distance), 0.0)


def _root(sigma: Tensor) -> Tensor:
    """R [D, D] with R R^T = sigma, up to eigenvalues that rounding has made negative."""
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    return vectors * values.clamp_min(0).sqrt()


def double(x: Tensor) -> Tensor:
    """x in float64, where it lies; on the CPU for devices that have no float64."""
    return (x.cpu() if x.device.type == "mps" else x).detach().double()


def read_npz(path: str | Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of ``keys`` that an ``.npz`` holds, never unpickling. ConfigError where there is no file, DamagedError
    where it cannot be read."""
    if not Path(path).is_file():
        raise ConfigError(f"There is no file {path}; give an .npz.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys if key in file}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise DamagedError(f"The file {path} cannot be read as an .npz ({error}).") from None


def write_npz(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays to an ``.npz`` at exactly ``path``, whole or not at all."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)
