"""The Glyphs world as a backend: classes with an exact checker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from secondlook.backends.classes import Classes
from secondlook.types import Verifier
from secondlook.worlds.glyphs import Checker
from secondlook.worlds.glyphs import Glyphs as World


class Glyphs(Classes):
    name = "glyphs"
    defaults: ClassVar[Mapping[str, Any]] = {"steps": 20, "guidance": 1.5, "shift": 2.0}
    world = World()

    def verifiers(self) -> Mapping[str, Callable[[], Verifier]]:
        return {**super().verifiers(), "oracle": lambda: Checker("oracle")}

    def checker(self) -> Verifier:
        return Checker()
