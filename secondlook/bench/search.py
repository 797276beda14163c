"""`make bench-search`: search plans at equal cost on expert prompts, in six studies, each a `secondlook bench`.

tune: best of n at several numbers of steps and guidances, on dev prompts; what did best at each budget is the baseline of all else.
screen: plans that ship, on dev prompts, one seed. search: the best of them on test prompts, four seeds. seconds: the same
as far as it tells of seconds; for a machine that does nothing else. rivals: others there, two seeds. guides: two plans under verifiers of known quality, and under the exact checker (labelled: oracle).

A stopped study goes on where it was. Written: a table and all numbers of each, in OUT and (--docs) in docs/results.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

from secondlook.cli.app import main as secondlook
from secondlook.disk.atomic import write_whole

N = "random(n=9999)"
TUNE = (
    f"{N} --steps 3", f"{N} --steps 4", f"{N} --steps 3 --cfg-interval 0 0.3", f"{N} --steps 5 --most 640",
    f"{N} --steps 4 --cfg-interval 0 0.4 --most 320", f"{N} --steps 5 --cfg-interval 0 0.5 --most 320", f"{N} --steps 8 --most 320",
    f"{N} --steps 5 --guidance 1.5 --most 320", f"{N} --steps 5 --guidance 4 --most 320", f"{N} --steps 3 --solver heun --most 320",
)  # fmt: skip
SHORT, STOCHASTIC = "--steps 3 --cfg-interval 0 0.3", "--steps 8 --solver sde"
SCREEN = (
    f"{N} {SHORT}", f"{N} --steps 5", f"evolve() {SHORT}", "evolve() --steps 5", "evolve(steps=3) --steps 5", f"evosearch() {SHORT}",
    f"zero_order() {SHORT}", f"eps_greedy() {SHORT}", f"trust_region() {SHORT}", f"low_band() {SHORT}", f"mcmc() {SHORT}",
    "paths() --steps 8", "draft(n=8, keep=1, steps=3) --steps 5", "halving(n=8) --steps 5", f"fk() {STOCHASTIC}", f"das() {STOCHASTIC}",
    f"bfs() {STOCHASTIC}", f"funnel() {STOCHASTIC}", f"svdd() {STOCHASTIC}", f"code() {STOCHASTIC}", f"rollover() {STOCHASTIC}",
    f"threshold() {STOCHASTIC}", "depth_first() --steps 5", "beam() --steps 5", "tree() --steps 5",
)  # fmt: skip
SEARCH = (f"evolve() {SHORT} --most 640",)
RIVALS = (
    *SEARCH, "evolve() --steps 5 --most 320", f"evosearch() {SHORT} --most 320", f"zero_order() {SHORT} --most 320",
)  # fmt: skip
GUIDES = tuple(
    f"{plan} {SHORT} --verifier {guide}"
    for guide in ("learned", "detector", "weak", "oracle")
    for plan in (N, "evolve()")
)


@dataclass(frozen=True)
class Study:
    """One table. every: one prompt in so many; tuned: whether the study ``tune`` gives the baseline."""

    name: str
    methods: Sequence[str]
    prompts: str
    every: int
    budgets: str
    seeds: int
    tuned: bool = False

    def words(self, out: Path, workers: int, quick: bool) -> list[str]:
        """The command that carries it out."""
        every, budgets, seeds = (20 * self.every, "40,80", 1) if quick else (self.every, self.budgets, self.seeds)
        words = [
            *self.methods,
            "--prompts",
            self.prompts,
            "--every",
            str(every),
            "--budgets",
            budgets,
            "--seeds",
            str(seeds),
        ]
        words += ["--tuned", str(out / "tune" / "results.json")] if self.tuned else []
        return [*words, "--workers", str(workers), "--out", str(out / self.name)]


STUDIES = (
    Study("tune", TUNE, "scenes-expert-dev", 6, "40,80,160,320,640,1280", 1),
    Study("screen", SCREEN, "scenes-expert-dev", 12, "80,160", 1),
    Study("search", SEARCH, "scenes-expert-test", 6, "40,80,160,320,640,1280", 4, tuned=True),
    Study("seconds", (f"evolve() {SHORT} --most 320",), "scenes-expert-test", 6, "40,80,160,320,640", 4, tuned=True),
    Study("rivals", RIVALS, "scenes-expert-test", 6, "40,80,160,320,640,1280", 2, tuned=True),
    Study("guides", GUIDES, "scenes-expert-test", 6, "80,160", 1),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry the studies out, in order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/bench-search", metavar="DIR")
    parser.add_argument(
        "--docs", metavar="DIR", help="a copy of each table with its command, as DIR/results/search-NAME.md"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="a few prompts at small budgets: whether it runs, not what it finds"
    )
    parser.add_argument("--only", metavar="NAMES", help="some of the studies, with commas between them")
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else [s.name for s in STUDIES]
    unknown = [n for n in names if n not in {s.name for s in STUDIES}]
    if unknown:
        parser.error(f'there is no study "{unknown[0]}"; known: {", ".join(s.name for s in STUDIES)}')
    out = Path(args.out)
    for study in STUDIES:
        if study.name not in names:
            continue
        words = study.words(out, args.workers, args.quick)
        code = secondlook(["bench", *words])
        if code:
            return code
        if args.docs:
            _publish(study, out / study.name, Path(args.docs) / "results")
    return 0


def _publish(study: Study, made: Path, docs: Path) -> None:
    """The study's table behind its command, and its numbers."""
    told = json.loads((made / "results.json").read_text())
    head = (
        f"# {study.name.capitalize()}: plans on expert prompts\n\n```\n{_wrapped(told['command'])}\n```\n\n"
        f"Drawn at commit {', '.join(told['drawn_at'])}; {told['prompts']} prompts, {told['seeds']} seed{'s' * (told['seeds'] > 1)}. "
        "Budgets are network passes a prompt.\n\n"
    )
    docs.mkdir(parents=True, exist_ok=True)
    areas = "\n".join(
        fill(_area(a, told["baseline"]), 105, subsequent_indent="  ", break_on_hyphens=False)
        for a in told["areas"]
        if "area" in a
    )
    audits = "\n".join(
        fill(f"- `{name}`: {' '.join(a['said'])}", 105, subsequent_indent="  ", break_on_hyphens=False)
        for name, a in told["audit"].items()
    )
    text = (
        head
        + (made / "table.md").read_text()
        + f"\nArea under the curve, over the logarithm of the budget:\n\n{areas}\n\nHack audit, at each method's largest budget:\n\n{audits}\n"
    )
    write_whole(docs / f"search-{study.name}.md", text.encode())
    shutil.copyfile(made / "results.csv", docs / f"search-{study.name}.csv")


def _area(found: dict[str, Any], baseline: str) -> str:
    low, high = found["interval"]
    line = f"- `{found['method']}`: {found['area']:.3f} ({low:.3f} to {high:.3f})"
    if "ratio" not in found:
        return line
    low, high = found["ratio_interval"]
    line += f", {found['ratio']:.3f} times that of {baseline} ({low:.3f} to {high:.3f})"
    if "seconds" not in found:
        return line
    (begin, end), (low, high) = found["seconds"], found["seconds_ratio_interval"]
    rival = "" if found["seconds_against"] == baseline else f" that of `{found['seconds_against']}`"
    return f"{line}; over seconds, from {begin:.2f} to {end:.2f}, {found['seconds_ratio']:.3f} times{rival} ({low:.3f} to {high:.3f})"


def _wrapped(command: str) -> str:
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if len(lines[-1]) + len(word) > 95:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
