"""The command line. Exit 0: done; 1: something failed while working; 2: something typed was not understood."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from secondlook import __version__
from secondlook.errors import ConfigError, SecondlookError, nearest

# Read when torch loads: threads that wait for a busy core should sleep, not spin, or small batches crawl on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
COMMANDS = ("draw", "resume", "replay", "report", "sample", "train", "export", "prompts", "list")


class Parser(argparse.ArgumentParser):
    """argparse, with errors as one sentence."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            raise ConfigError(unknown(message.split(": ", 1)[1]))
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")


def unknown(words: str) -> str:
    """What to say of words that no command takes."""
    word = words.split()[0]
    if not word.startswith("-"):
        return f'"{words}" is one word too many; a prompt of several words goes in quotes. See `secondlook --help`.'
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices.values()
    flags = {f for c in commands for a in c._actions for f in a.option_strings if f.startswith("--")}
    return f'There is no option "{word}" here; {nearest(word.split("=")[0], flags)} See `secondlook COMMAND --help`.'


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wants a whole number, got {text!r}") from None


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wants a number, got {text!r}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"wants a finite number, got {text!r}")
    return value


def parser() -> Parser:
    """All commands and their options. Building it imports nothing heavy."""
    top = Parser(prog="secondlook", description="Spend compute at inference time to get better pictures.")
    top.add_argument("--version", action="version", version=f"secondlook {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    draw = commands.add_parser("draw", help="search for the best picture of a prompt, or of a file of them")
    draw.add_argument("prompt", nargs="?", help="what to draw, in quotes")
    draw.add_argument("--prompts", metavar="FILE", help="one prompt a line, or GenEval metadata (JSON lines)")
    draw.add_argument("--plan", default="random(n=20)", help="default: %(default)s; see `secondlook list plans`")
    draw.add_argument("--out", required=True, metavar="DIR", help="the run's folder, new or empty")
    budget = draw.add_argument_group("budget for each prompt (an endless plan without one may spend 20 samples' worth)")
    budget.add_argument("--nfe", type=_number, help="solver evaluations")
    budget.add_argument("--evals", type=_number, help="network passes (guidance takes two for each evaluation)")
    budget.add_argument("--verdicts", type=_number, help="pictures shown to the verifier")
    budget.add_argument("--seconds", type=_real, help="seconds of work")
    _sampling(draw)
    draw.add_argument("--verifier", default="learned", help="what guides: learned, oracle, or package.module:attribute")
    draw.add_argument("--quiet", action="store_true", help="no progress on stderr")

    sample = commands.add_parser("sample", help="plain samples of one prompt on a contact sheet, without search")
    sample.add_argument("prompt")
    sample.add_argument("--count", type=_number, default=16)
    sample.add_argument("--out", required=True, metavar="FILE.png")
    _sampling(sample)

    resume = commands.add_parser("resume", help="finish an interrupted run")
    resume.add_argument("dir", metavar="DIR")
    resume.add_argument("--quiet", action="store_true", help="no progress on stderr")
    commands.add_parser("report", help="write a run's report.html").add_argument("dir", metavar="DIR")
    replay = commands.add_parser("replay", help="draw one outcome again and compare it, bit for bit")
    replay.add_argument("dir", metavar="DIR")
    replay.add_argument("outcome", type=_number)
    replay.add_argument("--out", metavar="FILE.png", help="also write the picture")

    export = commands.add_parser("export", help="write each prompt's winner for another program")
    export.add_argument("dir", metavar="DIR")
    export.add_argument("--format", default="geneval", help="geneval (the only one yet)")
    export.add_argument("--out", required=True, metavar="DIR2")

    prompts = commands.add_parser("prompts", help="print a prompt set as GenEval metadata")
    prompts.add_argument("set", help="scenes-dev, scenes-test, scenes-hard-dev or scenes-hard-test")
    listing = commands.add_parser("list", help="plans, verifiers, worlds, models or solvers")
    listing.add_argument("what")
    _training(commands.add_parser("train", help="train a world's model, verifier or judge"))
    return top


def _sampling(p: argparse.ArgumentParser) -> None:
    from secondlook.registry import DEFAULTS

    group = p.add_argument_group("sampling")
    group.add_argument("--model", default="scenes", help="a shipped model's name or a weights file (default: scenes)")
    group.add_argument("--steps", type=_number, default=DEFAULTS["steps"], help="default: %(default)s")
    group.add_argument("--solver", default="euler", help="default: euler; see `secondlook list solvers`")
    group.add_argument("--guidance", type=_real, default=DEFAULTS["guidance"], help="1 is none; default: %(default)s")
    group.add_argument("--shift", type=_real, default=DEFAULTS["shift"], help="time shift; default: %(default)s")
    group.add_argument("--seed", type=_number, default=0)
    group.add_argument("--rows", type=_number, help="micro-batch (default: chosen by the number of prompts)")
    group.add_argument("--threads", type=_number, help="CPU threads (default: all)")
    group.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="default: where the CPU has it")


def _training(p: argparse.ArgumentParser) -> None:
    p.add_argument("world", help="scenes, digits, glyphs or folder:PATH; or WORLD-verifier, WORLD-judge, WORLD-features")
    p.add_argument("--out", required=True, metavar="DIR", help="holds the state; the same command again goes on exactly")
    p.add_argument("--steps", type=_number, help="defaults of all options depend on the world")
    p.add_argument("--batch", type=_number)
    p.add_argument("--seed", type=_number)
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="bf16 products, float32 weights")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help="needs a C++ compiler")
    p.add_argument("--samples", metavar="FILE.npz", help="labelled base samples, for Scenes' verifier and judge")
    p.add_argument("--data", metavar="PATH", help="with `train folder`: the same as `train folder:PATH`")
    p.add_argument("--size", type=_number, help="with a folder of pictures: their side in pixels")
    what = p.add_argument_group("what is learnt")
    what.add_argument("--model", help="SiT-S/2 and the like, or sit(width=128, depth=6, heads=4, patch=2)")
    what.add_argument("--path", help="linear, gvp or vp")
    what.add_argument("--predicts", help="velocity, noise, data or score")
    what.add_argument("--weight", help="of the loss: none, velocity or likelihood")
    what.add_argument("--times", help="uniform, or logit_normal(mean=0.0, std=1.0)")
    what.add_argument("--interval", help="of times: paper or official")
    what.add_argument("--eps", type=_real, help="left out at both ends of the interval, whatever the path")
    what.add_argument("--dropout", type=_real, help="share of labels dropped for guidance")
    how = p.add_argument_group("how")
    how.add_argument("--optimizer", help="muon or adamw")
    how.add_argument("--lr", type=_real, help="of AdamW")
    how.add_argument("--muon-lr", type=_real)
    how.add_argument("--decay", type=_real, help="weight decay")
    how.add_argument("--warmup", type=_number, help="steps")
    how.add_argument("--hold", type=_real, help="share of the run before the rate falls")
    how.add_argument("--ema", type=_real, help="decay of the averaged weights")
    how.add_argument("--clip", type=_real, help="largest norm of the gradient; 0 is none")
    how.add_argument("--accumulate", type=_number, help="micro-batches of a batch, for memory")
    how.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="recompute blocks, for memory")
    how.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    logs = p.add_argument_group("logs")
    logs.add_argument("--look-every", type=_number, help="steps between samples and validation; 0 is never")
    logs.add_argument("--log-every", type=_number, help="steps between readings of the loss")
    logs.add_argument("--save-every", type=_number)
    logs.add_argument("--tensorboard", action="store_true", default=None, help="also write DIR/tensorboard")


def _visible(text: str) -> str:
    """The text with control characters spelled out: a prompts file may hold anything, a terminal obeys some of it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise ConfigError(f'There is no command "{words[0]}"; {nearest(words[0], COMMANDS)}')
        args = parser().parse_args(words)
        if args.command is None:
            parser().print_help()
            return 0
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # so that --plan mine:plan finds mine.py here, as with `python -m`
        from secondlook import commands

        code: int = getattr(commands, args.command)(args, words)
        sys.stdout.flush()
        return code
    except SecondlookError as error:
        print(f"secondlook: {_visible(str(error))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("secondlook: stopped.", file=sys.stderr)
        return 130
    except OSError as error:
        full = " The disk is full: free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        print(f"secondlook: {error}.{full} What was reported done is kept.", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("SECONDLOOK_TRACEBACK"):
            raise
        kind = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"secondlook: this should not have happened ({kind}). What was reported done is kept. Set "
              "SECONDLOOK_TRACEBACK=1 to see where, and please report it.", file=sys.stderr)  # fmt: skip
        return 1


if __name__ == "__main__":
    sys.exit(main())
