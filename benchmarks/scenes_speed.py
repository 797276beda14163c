"""Pictures a second on one core, training mixture: python benchmarks/scenes_speed.py"""

from __future__ import annotations

import random
import time

import torch

from secondlook.worlds.scenes.checker import check
from secondlook.worlds.scenes.prompts import sample_training
from secondlook.worlds.scenes.render import render, sample_scene

COUNT, BATCH = 2048, 128


def main() -> None:
    torch.set_num_threads(1)
    rng = random.Random(0)
    prompts = [sample_training(rng) for _ in range(COUNT)]
    begin = time.process_time()
    scenes = [sample_scene(p, rng) for p in prompts]
    placed = time.process_time()
    pictures = [render(scenes[i : i + BATCH]) for i in range(0, COUNT, BATCH)]
    drawn = time.process_time()
    right = [check(p, prompts[i * BATCH : (i + 1) * BATCH]).mean() for i, p in enumerate(pictures)]
    checked = time.process_time()
    print(f"place {COUNT / (placed - begin):.0f}/s, render {COUNT / (drawn - placed):.0f}/s, "
          f"check {COUNT / (checked - drawn):.0f}/s, right {sum(right) / len(right):.4f}; CPU seconds, one thread, seed 0")  # fmt: skip


if __name__ == "__main__":
    main()
