"""From pictures to a report: features of a stream of pictures, held against a reference.

The layout of reference files is ADM's (2105.05233): ``mu``, ``sigma`` of pool features, ``mu_s``, ``sigma_s`` of spatial
ones, and perhaps ``arr_0``, pictures from which the features for precision and recall are taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from secondlook.errors import ConfigError, ShapeError
from secondlook.metrics.gauss import Gaussian, Moments, frechet, gaussian_in, read_npz, write_npz
from secondlook.metrics.pictures import Pictures, batches, holds_pictures
from secondlook.metrics.scores import Manifold, Spread, inception_score, manifold

KEYS = ("mu", "sigma", "mu_s", "sigma_s", "count", "features", "by")


@dataclass(frozen=True)
class Extracted:
    """What a network says of B pictures. pool: [B, D]. spatial: [B, S], for sFID. logits: [B, C], for the Inception
    score. The last two may be None."""

    pool: Tensor
    spatial: Tensor | None = None
    logits: Tensor | None = None


class Features(Protocol):
    """A network to evaluate with. ``name`` stands in reports and must differ between networks."""

    @property
    def name(self) -> str: ...

    def __call__(self, pictures: Tensor) -> Extracted:
        """Features of pictures uint8 [B, H, W, 3 or 1], on the CPU or elsewhere."""
        ...


@dataclass(frozen=True)
class Reference:
    """What pictures are held against. pool: Gaussian of the pool features. spatial: of the spatial ones, for sFID.
    features: [N, D] pool features of single pictures, for precision and the like; they need not be all that ``pool``
    was made of. by: the name of the features, None for files of other tools."""

    pool: Gaussian
    spatial: Gaussian | None = None
    features: Tensor | None = None
    by: str | None = None

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` in ADM's layout, with ``count``, ``features`` and ``by`` beside it."""
        arrays = self.pool.arrays()
        if self.spatial is not None:
            arrays |= self.spatial.arrays("_s")
        if self.features is not None:
            arrays["features"] = self.features.cpu().numpy()
        if self.pool.count is not None:
            arrays["count"] = np.array(self.pool.count)
        if self.by is not None:
            arrays["by"] = np.array(self.by)
        write_npz(path, arrays)

    @staticmethod
    def load(path: str | Path) -> Reference:
        """From an ``.npz`` of ours, ADM's or a standard FID code's. ConfigError where it holds no statistics; pictures
        in it are left alone, ``Evaluation.reference`` reads them too."""
        found = read_npz(path, KEYS)
        pool = gaussian_in(found)
        if pool is None:
            raise ConfigError(f"The file {path} holds no mu and sigma; give a reference, or pictures to make one of.")
        features = torch.from_numpy(found["features"]) if "features" in found else None
        return Reference(pool, gaussian_in(found, "_s"), features, str(found["by"]) if "by" in found else None)


@dataclass(frozen=True)
class Report:
    """The scores of some pictures; None, shown as "-", where the features or the reference do not give one.

    pictures, reference, reference_features: how many were scored, how many the reference's Gaussian comes from (None:
    its file does not say), how many of its pictures precision, recall, density and coverage use (0: none).
    """

    features: str
    pictures: int
    reference: int | None
    reference_features: int
    fid: float
    sfid: float | None
    inception_score: float | None
    inception_score_std: float | None
    precision: float | None
    recall: float | None
    density: float | None
    coverage: float | None
    k: int
    k_density: int
    splits: int

    @property
    def text(self) -> str:
        """Two lines: the scores, and what they were measured with and on."""
        known = "an unstated number of" if self.reference is None else f"{self.reference:,}"
        scores = (
            f"FID {show(self.fid)}, sFID {show(self.sfid)}, "
            f"Inception score {show(self.inception_score)} (std {show(self.inception_score_std)} over {self.splits} "
            f"splits), precision {show(self.precision)}, recall {show(self.recall)} (k = {self.k}), "
            f"density {show(self.density)}, coverage {show(self.coverage)} (k = {self.k_density})"
        )
        sizes = f"{self.pictures:,} pictures against {known} reference pictures"
        if self.reference_features not in (0, self.reference):
            sizes += f" ({self.reference_features:,} for precision, recall, density and coverage)"
        return f"{scores}\n{sizes}; features: {self.features}"

    def __str__(self) -> str:
        return self.text


def show(value: float | None) -> str:
    """A score with four digits, "-" for none."""
    return "-" if value is None else f"{value:.4g}"


@dataclass
class _Gathered:
    """What one pass over a stream keeps: moments, pool features [N, D] and logits [N, C] in parts, on the CPU."""

    pool: Moments = field(default_factory=Moments)
    spatial: Moments | None = None
    features: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def take(self, found: Extracted, size: int) -> None:
        parts = [part for part in (found.pool, found.spatial, found.logits) if part is not None]
        if any(part.ndim != 2 or len(part) != size for part in parts):
            got = ", ".join(str(list(part.shape)) for part in parts)
            raise ShapeError(f"Features of {size} pictures must be [{size}, ...] with two axes each; got {got}.")
        self.pool.update(found.pool)
        self.features.append(found.pool.detach().float().cpu())
        if found.spatial is not None:
            self.spatial = (self.spatial or Moments()).update(found.spatial)
        if found.logits is not None:
            self.logits.append(found.logits.detach().float().cpu())

    def reference(self, by: str) -> Reference:
        spatial = None if self.spatial is None else self.spatial.gaussian()
        return Reference(self.pool.gaussian(), spatial, torch.cat(self.features), by)


@dataclass(frozen=True)
class Evaluation:
    """Pictures in, report out. k: neighbours for precision and recall; k_density: for density and coverage; splits: of
    the Inception score; batch: the most pictures the features see at once."""

    features: Features
    batch: int = 64
    k: int = 3
    k_density: int = 5
    splits: int = 10

    def reference(self, source: Pictures) -> Reference:
        """A reference from pictures (batches or an ``.npz``), or from a file of statistics.

        Where a file holds both, as ADM's do, the statistics are the file's and the single features those of its
        pictures.
        """
        if not isinstance(source, str | Path):
            return self._gather(source).reference(self.features.name)
        if not read_npz(source, ("mu",)):
            return self._gather(source).reference(self.features.name)
        found = Reference.load(source)
        if found.features is not None or not holds_pictures(source):
            return found
        return Reference(found.pool, found.spatial, torch.cat(self._gather(source).features), found.by)

    def report(self, pictures: Pictures, reference: Reference | Pictures) -> Report:
        """Score ``pictures`` against a reference, or against what ``reference()`` makes of one.

        ConfigError where the reference was made with other features, or where there are too few pictures for k or
        splits.
        """
        held = reference if isinstance(reference, Reference) else self.reference(reference)
        self._fits(held)
        seen = self._gather(pictures)
        made = seen.reference(self.features.name)
        if made.pool.mu.shape != held.pool.mu.shape:
            got, want = len(made.pool.mu), len(held.pool.mu)
            raise ShapeError(f"{self.features.name} gives {got} features, the reference has {want}: use one network.")
        score = inception_score(torch.cat(seen.logits), self.splits) if seen.logits else None
        return self._report(made, held, score, self._manifold(held, made))

    def _report(self, made: Reference, held: Reference, score: Spread | None, balls: Manifold | None) -> Report:
        sfid = None
        if made.spatial is not None and held.spatial is not None:
            sfid = frechet(made.spatial, held.spatial)
        return Report(
            features=self.features.name,
            pictures=made.pool.count or 0,
            reference=held.pool.count,
            reference_features=0 if held.features is None else len(held.features),
            fid=frechet(made.pool, held.pool),
            sfid=sfid,
            inception_score=score.mean if score else None,
            inception_score_std=score.std if score else None,
            precision=balls.precision if balls else None,
            recall=balls.recall if balls else None,
            density=balls.density if balls else None,
            coverage=balls.coverage if balls else None,
            k=self.k,
            k_density=self.k_density,
            splits=self.splits,
        )

    def _manifold(self, held: Reference, made: Reference) -> Manifold | None:
        if held.features is None or made.features is None:
            return None
        return manifold(held.features, made.features, self.k, self.k_density)

    def _fits(self, held: Reference) -> None:
        if held.by is not None and held.by != self.features.name:
            raise ConfigError(
                f'The reference was made with the features "{held.by}", not "{self.features.name}"; scores of '
                "different networks cannot be compared."
            )

    def _gather(self, pictures: Pictures) -> _Gathered:
        gathered = _Gathered()
        for batch in batches(pictures, self.batch):
            with torch.no_grad():
                gathered.take(self.features(batch), len(batch))
        if gathered.pool.count < 2:
            raise ConfigError(f"Evaluation expects at least two pictures; got {gathered.pool.count}.")
        return gathered
