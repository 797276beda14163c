"""The Digits world as a backend."""

from __future__ import annotations

from secondlook.backends.classes import Classes
from secondlook.worlds.digits import Digits as World


class Digits(Classes):
    name = "digits"
    world = World()
    channels = 1
