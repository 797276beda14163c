"""The figures of 2501.09732 in small: python benchmarks/search_classes.py --world digits --out runs/search-classes

At equal numbers of pictures: Frechet distance, Inception score, precision and recall (in Glyphs also the exact checker's share) against
evaluations for random search, zero-order search and paths under each verifier. Candidates of random search are drawn once, with all
verifiers' words on each (nested best of n); the other plans are runs of the engine. Every finished cell is a file in the folder, so the
same command goes on.

Digits: a small network is trained first (under three minutes), because the shipped one has an Inception score of 9.99 of 10 and leaves a
search nothing to win. Glyphs: the shipped network, whose pictures the checker accepts seven times in eight. --seeds 1 2: the rows of
Digits that carry a claim, once more with those seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from secondlook.bench import classes
from secondlook.bench.classes import Measure, Pool
from secondlook.disk.versions import commit
from secondlook.models.checkpoint import shipped
from secondlook.models.threads import threads

SMALL = "sit(width=48, depth=2, heads=2, patch=2)"
PATHS = "paths(n=2, width=8, start=0.25, back=0.125, ahead=0.25, rounds=2)"
EVERYONE = ("learned", "oracle_is", "judge")
# As published, cosine 0.95 and no parking of pivots; and as this project has it.
ZERO_ORDER = {"paper": "zero_order(neighbours={m}, radius=0.31, patience=1000)", "own": "zero_order(neighbours={m})"}
CLIMBS = (
    ("paper", 4, ("learned",), 1.0),
    ("own", 4, ("learned",), 1.0),
    ("paper", 4, ("oracle_is", "judge"), 1.0),
    ("own", 4, ("oracle_is", "judge"), 1.0),
    ("paper", 2, ("learned",), 1.0),
    ("paper", 8, ("learned",), 1.0),
    ("paper", 4, ("learned",), 1.5),
)  # form, neighbours, verifiers, guidance


@dataclass(frozen=True)
class Size:
    """each: pictures a class. pool: steps and candidates a picture of each pool. plans: evaluations a picture of the engine's plans.
    training: steps of the small network's. lone: steps without search. sets: disjoint sets that a mean is taken over."""

    each: int
    pool: tuple[tuple[int, int], ...]
    plans: int
    neighbours: tuple[int, ...]
    training: int
    lone: tuple[int, ...]
    sets: int


FULL = Size(20, ((4, 64), (8, 64), (16, 64), (32, 32)), 256, (2, 4, 8), 800, (2, 4, 8, 16, 32, 64, 128), 8)
QUICK = Size(5, ((4, 8), (8, 16)), 64, (4,), 100, (4, 16), 2)
BUDGETS = (16, 32, 64, 128, 256)
GLYPHS_FULL = Size(7, ((8, 32), (8, 16)), 128, (2, 4, 8), 0, (2, 4, 8, 16, 32, 64), 8)
GLYPHS_QUICK = Size(1, ((4, 4), (4, 2)), 24, (2,), 0, (2, 4), 2)
SIZES = {"digits": (FULL, QUICK), "glyphs": (GLYPHS_FULL, GLYPHS_QUICK)}
GLYPHS_PATHS = "paths(n=2, width=4, start=0.25, back=0.125, ahead=0.25, rounds=2)"


def train_small(folder: Path, steps: int) -> str:
    """The small network's weights, trained as the preset of Digits has it; a training that was stopped goes on."""
    asked = ["train", "digits", "--model", SMALL, "--steps", str(steps), "--seed", "0", "--out", str(folder)]
    subprocess.run([sys.executable, "-m", "secondlook", *asked], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return str(folder / "weights.safetensors")


def flops(model: str, world: str = "digits") -> float:
    """Of one network pass of one row."""
    rig = classes.rig_of(model, 1.0, 1, world)
    keys = [classes.key_of(0, t, 0) for t in range(rig.rows)]
    with FlopCounterMode(display=False) as counted:
        classes.drawn(rig, classes.fresh(rig, keys), keys, [0] * rig.rows)
    return counted.get_total_flops() / rig.rows


class Cells:
    """Finished parts, one file each. read: what is not finished is None, and is not made."""

    def __init__(self, folder: Path, about: dict[str, Any], read: bool = False):
        self.folder, self.about, self.read = folder, about, read
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        file = self.folder / f"{name}.json"
        if file.exists() and (had := json.loads(file.read_text()))["about"] == self.about:
            return had["found"]
        if self.read:
            return None
        wall, cpu = time.time(), time.process_time()
        found = make()
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"about": self.about, "found": found}))
        part.replace(file)
        print(f"{name}: {time.time() - wall:.0f} s, {time.process_time() - cpu:.0f} s of the processor", flush=True)
        return found


class Parts:
    """What is measured, by name; each finished part is a cell."""

    def __init__(self, out: Path, size: Size, seed: int, read: bool, world: str = "digits", cells: str = "cells"):
        self.out, self.size, self.seed, self.measure = out, size, seed, Measure(world)
        self.labels = [k for k in range(len(self.measure.world.classes)) for _ in range(size.each)]
        about = {"size": json.loads(json.dumps(asdict(size))), "seed": seed}
        self.cell = Cells(out / cells, about if world == "digits" else {**about, "world": world}, read)
        self.large = str(shipped(f"{world}-base.safetensors"))
        small = self.cell("small", lambda: train_small(out / "small", size.training)) if size.training else None
        self.searched = small or self.large  # the network that searches are made with

    def pool(self, model: str, guidance: float, steps: int, count: int) -> Pool:
        return Pool.draw(self.measure, model, guidance, steps, self.labels, count, self.seed)

    def alone(self, name: str, model: str, guidance: float, steps: int, sets: int) -> dict[str, Any]:
        """No search: disjoint sets of plain samples."""

        def make() -> dict[str, Any]:
            pool = self.pool(model, guidance, steps, sets)
            at = [np.full(len(self.labels), j) for j in range(sets)]
            return {"steps": steps, "guidance": guidance, **classes.over([pool.scores(self.measure, a) for a in at])}

        return dict(self.cell(f"steps-{name}-{steps}", make) or {})

    def random(self, name: str, model: str, guidance: float, steps: int, count: int) -> dict[str, Any]:
        """Best of n under every verifier."""

        def make() -> dict[str, Any]:
            pool = self.pool(model, guidance, steps, count)
            first = (model, guidance, steps) == (self.searched, 1.0, 8)
            more = classes.influence_against_exact(self.measure, pool) if first else None
            return {"guidance": guidance, "steps": steps, "rows": classes.random_search(self.measure, pool, steps, self.size.sets),
                    "agreement": classes.agreement(pool), "greedy": more}  # fmt: skip

        found = self.cell(f"random-{name}", make)
        return {"name": name, **found} if found else {}

    def plan(
        self, name: str, plan: str, verifier: str, guidance: float, nfe: int, budgets: Sequence[int], runs: str = "runs"
    ) -> list[dict[str, Any]]:
        """A run of the engine with 8 steps a picture."""
        folder = self.out / runs / name
        rows = self.cell(name, lambda: classes.engine(self.measure, folder, self.searched, plan, verifier, guidance, 8, self.labels,
                                                      nfe, self.seed, budgets))  # fmt: skip
        return [{"guidance": guidance, **r} for r in rows or []]

    def by_sets(self, neighbours: int, radius: float = 0.7) -> list[dict[str, Any]]:
        """Zero-order search by the oracle of FID; with radius 1 neighbours are new noise, and it is random search chosen in rounds."""
        name = f"zero-{neighbours}-fid-1.0" if radius < 1 else f"fresh-{neighbours}-fid"
        rows = self.cell(name, lambda: classes.zero_order_fid(
            self.measure, self.searched, 1.0, 8, self.labels, self.size.plans, self.seed, neighbours, radius))  # fmt: skip
        return [{"guidance": 1.0, **r} for r in rows or []]


def carry(out: Path, size: Size, seed: int, read: bool = False) -> dict[str, Any]:
    p = Parts(out, size, seed, read)
    found: dict[str, Any] = {"noise": p.cell("noise", lambda: classes.noise(p.measure, len(p.labels), size.sets)),
                             "flops": p.cell("flops", lambda: {"small": flops(p.searched), "shipped": flops(p.large)})}  # fmt: skip
    found["steps"] = [p.alone("small", p.searched, 1.0, k, 4 if k < 64 else 2) for k in size.lone]
    found["steps guided"] = [p.alone("guided", p.searched, 1.5, k, 2) for k in size.lone if k <= 32]
    found["steps shipped"] = [p.alone("shipped", p.large, 1.0, k, 2) for k in size.lone if k <= 32]
    found["random"] = [p.random(f"small-{k}", p.searched, 1.0, k, c) for k, c in size.pool]
    found["random"] += [
        p.random("guided-8", p.searched, 1.5, 8, size.pool[1][1]),
        p.random("shipped-8", p.large, 1.0, 8, 8),
    ]
    plans: list[Any] = []
    budgets = [b for b in BUDGETS if b <= size.plans]
    for i, (form, m, who, guidance) in enumerate(CLIMBS):
        for verifier in who if m in size.neighbours else ():
            name = f"zero-{m}-{form}-{verifier}-{guidance}"
            plans += p.plan(name, ZERO_ORDER[form].format(m=m), verifier, guidance, size.plans, budgets)
        if i == 1:  # in this order, what is looked at first is there first
            plans += [row for k in size.neighbours for row in p.by_sets(k)]
            plans += p.by_sets(4, 1.0)
            if size.plans >= 256:
                plans += p.plan("paths-8-learned", PATHS, "learned", 1.0, 256, (256,))
    for verifier in EVERYONE[1:] if size.plans >= 256 else ():
        plans += p.plan(f"paths-8-{verifier}", PATHS, verifier, 1.0, 256, (256,))
    return {**{k: list(filter(None, v)) if isinstance(v, list) else v for k, v in found.items()}, "plans": plans}


def carry_glyphs(out: Path, size: Size, seed: int, read: bool = False) -> dict[str, Any]:
    """The figures of Glyphs, with the shipped network; what carries the claims comes first."""
    p = Parts(out, size, seed, read, "glyphs")
    found: dict[str, Any] = {
        "noise": p.cell("noise", lambda: classes.noise(p.measure, len(p.labels), size.sets)),
        "flops": p.cell("flops", lambda: {"shipped": flops(p.large, "glyphs")}),
    }
    (steps, count), (guided_steps, guided_count) = size.pool
    found["random"] = [p.random("shipped-8", p.large, 1.0, steps, count)]
    found["steps shipped"] = [p.alone("shipped", p.large, 1.0, k, 2) for k in size.lone]
    plans: list[Any] = []
    budgets = [b for b in BUDGETS if b <= size.plans]
    for m in sorted(size.neighbours, key=lambda m: m != 4):  # four neighbours are the paper's own choice
        name = f"zero-{m}-paper-learned-1.0"
        plans += p.plan(name, ZERO_ORDER["paper"].format(m=m), "learned", 1.0, size.plans, budgets)
        plans += p.by_sets(m)
        plans += p.by_sets(m, 1.0) if m == 4 else []
    found["random"].append(p.random("guided-8", p.large, 1.5, guided_steps, guided_count))
    if size.plans >= 128:
        plans += p.plan("paths-8-learned", GLYPHS_PATHS, "learned", 1.0, size.plans, (size.plans,))
    found["steps guided"] = [p.alone("guided", p.large, 1.5, k, 2) for k in size.lone if k <= 16]
    return {**{k: list(filter(None, v)) if isinstance(v, list) else v for k, v in found.items()}, "plans": plans}


def again(out: Path, size: Size, seeds: Sequence[int], read: bool = False) -> list[dict[str, Any]]:
    """The rows of Digits that carry a claim, with several seeds: each row's means and deviations over the seeds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    steps, count = size.pool[1]
    count = min(count, size.plans // steps)
    for seed in seeds:
        p = Parts(out, size, seed, read, cells=f"cells-seed-{seed}")
        some = p.by_sets(4)[-1:] + p.by_sets(4, 1.0)[-1:]
        pool = p.cell("random-claims", lambda p=p: classes.random_search(
            p.measure, p.pool(p.searched, 1.0, steps, count), steps, 1))  # fmt: skip
        some += [r for r in pool or [] if r["n"] == count and r["verifier"] in ("learned", "oracle_fid")]
        for form in ZERO_ORDER:
            name, plan = f"zero-4-{form}-learned-1.0", ZERO_ORDER[form].format(m=4)
            some += p.plan(name, plan, "learned", 1.0, size.plans, (size.plans,), f"runs-seed-{seed}")
        for row in some:
            found.setdefault((row["plan"], row["verifier"]), []).append(row)
    numbers = ("nfe", "fid", "is", "precision", "recall")
    return [{"plan": plan, "verifier": verifier, **classes.over([{k: r[k] for k in numbers} for r in rows])}
            for (plan, verifier), rows in found.items()]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=tuple(SIZES), default="digits")
    parser.add_argument("--out", type=Path, help="default: runs/search-classes, for Glyphs runs/search-classes-glyphs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", help="Digits: only the rows that carry a claim, with each seed")
    parser.add_argument(
        "--quick", action="store_true", help="less than a minute of a processor: too small to tell anything"
    )
    parser.add_argument("--read", action="store_true", help="write the tables of what is finished; draw nothing")
    args = parser.parse_args()
    if args.seeds and args.world != "digits":
        parser.error("--seeds repeats rows of Digits; leave --world out.")
    size = SIZES[args.world][args.quick]
    out = args.out or Path("runs/search-classes" + ("" if args.world == "digits" else f"-{args.world}"))
    asked = "" if args.world == "digits" else f" --world {args.world}"
    asked += " --quick" if args.quick else ""
    asked += f" --seeds {' '.join(map(str, args.seeds))}" if args.seeds else f" --seed {args.seed}"
    start = time.process_time()
    found: dict[str, Any]
    with threads(1):
        if args.seeds:
            found = {"seeds": args.seeds, "again": again(out, size, args.seeds, args.read)}
        else:
            found = {
                "seed": args.seed,
                **(carry if args.world == "digits" else carry_glyphs)(out, size, args.seed, args.read),
            }
    told = {
        "command": f"python benchmarks/search_classes.py{asked}",
        "commit": commit(),
        "processor seconds of this call": time.process_time() - start,
        **found,
    }
    name = "again" if args.seeds else "results"
    (out / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")
    (out / ("again.md" if args.seeds else "tables.md")).write_text(repeats(told) if args.seeds else tables(told))


# ---- what is written ---------------------------------------------------------------------------------------------------------


def tables(told: dict[str, Any]) -> str:
    """All rows in Markdown."""
    right = "right" in told["noise"]
    head = HEAD + (" | checker" if right else "")
    bars = head.count("|") + 2  # of a table with one column before these
    parts = [f"Real test pictures, {told['noise']['sets']} sets: " + cells_of(told["noise"], right)]
    for title, key in (
        ("small, no search", "steps"),
        ("guided" if right else "small, guidance 1.5, no search", "steps guided"),
        ("shipped, no search", "steps shipped"),
    ):
        if key in told:
            rows = "\n".join(f"| {r['steps']} | {cells_of(r, right)} |" for r in told[key])
            parts.append(f"{title}\n\n| steps | {head} |\n|{'---|' * bars}\n{rows}")
    for pool in told["random"]:
        rows = "\n".join(f"| {r['verifier']} | {r['n']} | {r['nfe']} | {cells_of(r, right)} |" for r in pool["rows"])
        parts.append(f"{pool['name']}: random, {pool['steps']} steps, guidance {pool['guidance']:g}; agreement {pool['agreement']}; "
                     f"greedy {pool['greedy']}\n\n| verifier | n | NFE | {head} |\n|{'---|' * (bars + 2)}\n{rows}")  # fmt: skip
    rows = "\n".join(
        f"| {r['plan']} | {r['verifier']} | {r['guidance']:g} | {r['nfe']:.0f} | {cells_of(r, right)} |"
        for r in told["plans"]
    )
    parts.append(f"plans, 8 steps\n\n| plan | verifier | guidance | NFE | {head} |\n|{'---|' * (bars + 3)}\n{rows}")
    return "\n\n".join([*parts, f"FLOPs of a pass: {told['flops']}"]) + "\n"


def repeats(told: dict[str, Any]) -> str:
    """Rows with several seeds in Markdown."""
    rows = "\n".join(
        f"| {r['plan']} | {r['verifier']} | {r['nfe']:.0f} | {r['sets']} | {cells_of(r)} |" for r in told["again"]
    )
    return f"| plan | verifier | NFE | seeds | {HEAD} |\n|{'---|' * 10}\n{rows}\n"


HEAD = "FID | IS | precision | recall | p classifier 1 | p classifier 2"


def cells_of(row: dict[str, Any], right: bool = False) -> str:
    """The row's numbers under HEAD; right: and the checker's share after them."""

    def one(name: str, digits: int) -> str:
        sd = row["sd"].get(name)
        return "" if name not in row else f"{row[name]:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")

    names = [("fid", 1), ("is", 2), ("precision", 2), ("recall", 2), ("p learned", 2), ("p judge", 2)]
    return " | ".join(one(name, digits) for name, digits in [*names, *([("right", 2)] if right else [])])


if __name__ == "__main__":
    main()
