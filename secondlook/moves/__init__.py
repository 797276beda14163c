"""Moves: where a proposal begins. A move is a derivation in literals; the engine makes tensors of it (engine/derive.py).

A new kind of move is one class in this room: its parents, the time it begins at, the state it names, and how it reads.
"""

from secondlook.moves.base import Move, Source
from secondlook.moves.noise import THROUGH, Blend, Climb, Fresh, Near, NoiseMove, Turn
from secondlook.moves.path import Clone, Resume, Rewind, Same

__all__ = [
    "THROUGH",
    "Blend",
    "Climb",
    "Clone",
    "Fresh",
    "Move",
    "Near",
    "NoiseMove",
    "Resume",
    "Rewind",
    "Same",
    "Source",
    "Turn",
]
