"""The options of the commands that compare: bench, probe and calibrate."""

from __future__ import annotations

import argparse

from secondlook.cli.options import add_settings, real, whole


def comparing(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "methods", nargs="+", metavar="METHOD", help='a plan and flags of draw, in quotes: "random(n=1000) --steps 8"'
    )
    p.add_argument(
        "--prompts",
        required=True,
        metavar="FILE",
        help="a file as draw takes it, or the name of a set (scenes-expert-dev)",
    )
    p.add_argument("--every", type=whole, default=1, help="take each EVERY-th prompt")
    p.add_argument("--budgets", required=True, help="limits for each prompt, with commas: 160,320,640")
    p.add_argument("--unit", default="evals", help="what budgets count (default: evals, network passes)")
    p.add_argument("--seeds", type=whole, default=4, help="draws of everything, paired (default: 4)")
    p.add_argument(
        "--baseline", type=whole, default=0, help="the method that others are compared with, by its place (default: 0)"
    )
    p.add_argument("--tuned", metavar="RESULTS", help="another benchmark's results.json or .csv, on other prompts: its best method at each budget is "
                   "the baseline here")  # fmt: skip
    p.add_argument(
        "--measure", help="what methods are compared by (default: the scorer, else checker, else judge, else score)"
    )
    p.add_argument("--suite", metavar="NAME", help="a published benchmark whose own file --prompts names: geneval, geneval2, drawbench, t2i-compbench, "
                   "genai, dpg, parti or wise; its pictures are also written as its scorer reads them")  # fmt: skip
    p.add_argument(
        "--scorer",
        metavar="VERIFIER",
        help="judges what is handed over, and that alone (default with --suite geneval: geneval)",
    )
    p.add_argument(
        "--latency", help="evals=SECONDS,decodes=SECONDS,verdicts=SECONDS instead of the clock's, as of a larger model"
    )
    p.add_argument("--workers", type=whole, default=1, help="runs at once, each a process")
    p.add_argument("--out", required=True, metavar="DIR", help="holds the runs; name it again to go on")
    add_settings(p, ("search", "sampling", "guidance", "times", "pipeline"))


def probing(p: argparse.ArgumentParser) -> None:
    p.add_argument("prompt", nargs="?", help="what to draw, in quotes")
    p.add_argument("--prompts", metavar="FILE", help="a file as draw takes it, or a set's name")
    p.add_argument("--draws", type=whole, default=8, help="of each prompt (default: 8)")
    p.add_argument("--out", metavar="DIR", help="keep the run there")
    p.add_argument("--json", metavar="FILE", help="also write all numbers")
    p.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_settings(p, ("search", "sampling", "guidance", "times", "pipeline"))


def calibrating(p: argparse.ArgumentParser) -> None:
    p.add_argument("prompt", nargs="?", help="what to draw, in quotes")
    p.add_argument("--prompts", metavar="FILE", help="a file as draw takes it, or a set's name")
    p.add_argument("--every", type=whole, default=1, help="take each EVERY-th prompt")
    p.add_argument("--draws", type=whole, default=12, help="of each prompt (default: 12)")
    p.add_argument(
        "--keep",
        type=real,
        default=0.9,
        help="the share of final winners that a cut must keep to be recommended (default: 0.9)",
    )
    p.add_argument("--out", metavar="DIR", help="keep the run there")
    p.add_argument("--json", metavar="FILE", help="also write all numbers")
    p.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_settings(p, ("search", "sampling", "guidance", "times", "pipeline"))
