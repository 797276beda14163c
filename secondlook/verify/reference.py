"""What sets of pictures of a class-conditional world are measured against: its reference pictures, and their moments.

Digits has 1,442 training pictures, and they are its reference. Glyphs has unlimited data: its reference is fresh pictures of its own
generator under a fixed key, which no training reads.
"""

from __future__ import annotations

from functools import cache

from torch import Tensor

from secondlook.metrics.gauss import Moments
from secondlook.verify.classify import features, world_of
from secondlook.worlds.digits import Digits

COUNT = 8192  # reference pictures of Glyphs
KEY = (
    2**40,
    2,
)  # seed and step of Glyphs.pictures; 2**40 is the seed of what nothing is trained on, and other steps are other pictures


def pictures(world: str) -> Tensor:
    """The reference pictures of ``world``: uint8 [1442, 8, 8, 1] of Digits, [8192, 32, 32, 3] of Glyphs. ConfigError for a world
    without classes."""
    found = world_of(world)
    return found.train()[0] if isinstance(found, Digits) else found.pictures(*KEY, COUNT)[0]


@cache
def moments(world: str) -> Moments:
    """Mean and covariance of the reference pictures' features (64, float64) in the world's feature network. Computed once in a
    process: one to two seconds of one thread for Glyphs."""
    return Moments.of(features(world)(pictures(world))[0].double())
