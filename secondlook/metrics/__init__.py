"""Scores of class-conditional image generation: FID, sFID, Inception score, precision, recall, density, coverage, KID,
memorisation, and the network they are usually measured with."""

from secondlook.metrics.features import Evaluation, Extracted, Features, Reference, Report
from secondlook.metrics.gauss import Gaussian, Moments, frechet
from secondlook.metrics.inception import Inception
from secondlook.metrics.memorise import Memorisation, memorisation, nearest
from secondlook.metrics.scores import density_coverage, inception_score, kid, manifold, precision_recall

__all__ = [
    "Evaluation",
    "Extracted",
    "Features",
    "Gaussian",
    "Inception",
    "Memorisation",
    "Moments",
    "Reference",
    "Report",
    "density_coverage",
    "frechet",
    "inception_score",
    "kid",
    "manifold",
    "memorisation",
    "nearest",
    "precision_recall",
]
