"""Plain sampling, without search, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from secondlook.api import build_rig, tasks_of
from secondlook.engine.rig import Rig
from secondlook.settings import Settings
from secondlook.types import Condition, State


def run_all(rig: Rig, states: Sequence[State], conditions: Sequence[Condition]) -> np.ndarray:
    """One-row states, all run to data in batches of ``rig.rows``: uint8 [len(states), H, W, 3]."""
    pictures = []
    for i in range(0, len(states), rig.rows):
        live, asked = list(states[i : i + rig.rows]), conditions[i : i + rig.rows]
        while float(live[0].t) < 1.0:
            live, _ = rig.advance(live, [1.0] * len(live), asked)
        pictures.append(rig.decode(torch.cat([s.x for s in live])).numpy())
    return np.concatenate(pictures)


def plain_samples(s: Settings, count: int, held: Any = None) -> np.ndarray:
    """``count`` samples of every prompt, uint8 [prompts * count, H, W, 3]; the first of each is what a search begins
    with. held: the adapter of a pipeline."""
    s.rows = s.rows if len(s.prompts) * count >= (s.rows or 1) else len(s.prompts) * count
    tasks = tasks_of(s, held)
    rig = build_rig(s, scoring=False, held=held)
    states = [rig.start(t.key.child("draw", i)) for t in tasks for i in range(count)]
    return run_all(rig, states, [t.condition for t in tasks for _ in range(count)])
