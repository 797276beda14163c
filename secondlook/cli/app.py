"""The command line. Exit 0: done; 1: something failed while working; 2: something typed was not understood."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from secondlook import __version__
from secondlook.cli.comparing import calibrating, comparing, probing
from secondlook.cli.options import add_settings, compare_flags, real, whole
from secondlook.errors import ConfigError, SecondlookError, nearest
from secondlook.models.allocator import keep_buffers

ACTS = {
    **{name: f"secondlook.cli.search:{name}" for name in ("draw", "resume", "replay", "report", "rescore")},
    "export": "secondlook.cli.export:export",
    "sample": "secondlook.cli.sample:sample", "train": "secondlook.train.command:run", "import": "secondlook.cli.data:import_weights",
    "encode": "secondlook.cli.data:encode", "evaluate": "secondlook.cli.data:evaluate", "prompts": "secondlook.cli.data:prompts",
    "list": "secondlook.cli.data:show", "bench": "secondlook.cli.bench:bench", "probe": "secondlook.cli.bench:probe",
    "audit": "secondlook.cli.bench:audit", "compare": "secondlook.cli.compare:compare", "calibrate": "secondlook.cli.bench:calibrate",
}  # fmt: skip
COMMANDS = (*ACTS, "pairs")  # which `_reflect` carries out
SLOW = (
    "draw",
    "resume",
    "replay",
    "rescore",
    "sample",
    "train",
    "bench",
    "probe",
    "calibrate",
)  # to start: a word at once, or a person thinks it hangs


def busy(path: str = "/proc/loadavg") -> bool:
    """Whether other programs are computing right now, by the kernel's count of what runs; False where nothing tells."""
    try:
        running = int(Path(path).read_text().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return 4 * (running - 1) >= (os.cpu_count() or 1)  # one of them is this program


class Parser(argparse.ArgumentParser):
    """argparse, with errors as one sentence. words: what was typed."""

    words: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            raise ConfigError(unknown(message.split(": ", 1)[1], next((w for w in self.words if w in COMMANDS), None)))
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")


def unknown(words: str, command: str | None = None) -> str:
    """What to say of words that a command does not take: the nearest of its own flags, or whose flag it is."""
    word = words.split()[0]
    if not word.startswith("-"):
        return f'"{words}" is one word too many; a prompt of several words goes in quotes. See `secondlook --help`.'
    name = word.split("=")[0]
    commands = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    every = {c: {f for a in p._actions for f in a.option_strings if f.startswith("--")} for c, p in commands.items()}
    elsewhere = [c for c, flags in every.items() if name in flags and c != command]
    if elsewhere:
        return (
            f'There is no option "{name}" in `secondlook {command or "COMMAND"}`; it belongs to {", ".join(elsewhere)}.'
        )
    known = every.get(command or "") or set().union(*every.values())
    return f'There is no option "{name}" here; {nearest(name, known)} See `secondlook {command or "COMMAND"} --help`.'


def parser() -> Parser:
    """All commands and their options. Building it imports nothing heavy."""
    top = Parser(prog="secondlook", description="Spend compute at inference time to get better pictures.")
    top.add_argument("--version", action="version", version=f"secondlook {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _searching(commands)
    _sampling(commands.add_parser("sample", help="plain samples of a prompt or of classes, without search"))
    prompts = commands.add_parser("prompts", help="print a prompt set as GenEval metadata")
    prompts.add_argument("set", help="scenes-dev, scenes-test, and the same after scenes-hard- and scenes-expert-")
    listing = commands.add_parser("list", help="plans, verifiers, selectors, worlds, models, solvers or pipelines")
    listing.add_argument("what")
    _training(
        commands.add_parser(
            "train", help="train a world's model, verifier or judge; `train reflect`: a model that draws again"
        )
    )
    commands.add_parser("pairs", help="wrong pictures of runs with what should have been drawn, to train reflect on")
    _importing(commands.add_parser("import", help="weights that others published into this project's own file"))
    _encoding(commands.add_parser("encode", help="a folder of pictures into latents, once, for training"))
    comparing(commands.add_parser("bench", help="compare plans at equal budgets, on your own prompts and model"))
    compare_flags(commands.add_parser("compare", help="two runs over the prompts that both drew, with intervals"))
    probing(commands.add_parser("probe", help="a few draws, and what they say a search could win"))
    calibrating(commands.add_parser("calibrate", help="how early scores can be trusted, and where to halve"))
    audit = commands.add_parser(
        "audit", help="whether a run's verifier was fooled: what judges say as pictures grow more"
    )
    audit.add_argument("dir", metavar="DIR")
    audit.add_argument(
        "--by", metavar="NAME", help="choose by another's numbers in the log (default: the run's verifier)"
    )
    audit.add_argument("--json", metavar="FILE", help="also write all numbers")
    _evaluating(commands.add_parser("evaluate", help="FID and other scores of sampled pictures"))
    return top


def _searching(commands: Any) -> None:
    draw = commands.add_parser("draw", help="search for the best picture of a prompt, or of a file of them")
    draw.add_argument(
        "prompt", nargs="?", help="what to draw, in quotes: a prompt, or a class where the world has classes"
    )
    draw.add_argument("--prompts", metavar="FILE", help="one prompt a line, or GenEval metadata (JSON lines)")
    draw.add_argument("--out", required=True, metavar="DIR", help="the run's folder, new or empty")
    draw.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_settings(draw, ("search", "results", "budget", "sampling", "guidance", "times", "pipeline"))
    resume = commands.add_parser("resume", help="finish an interrupted run, and score what its verifier failed with")
    resume.add_argument("dir", metavar="DIR")
    resume.add_argument("--device", help="where it goes on (default: as it began)")
    resume.add_argument("--changed-judges", action="store_true", help="go on although a judge's code has changed")
    resume.add_argument("--quiet", action="store_true", help="no progress on stderr")
    commands.add_parser("report", help="write a run's report.html").add_argument("dir", metavar="DIR")
    replay = commands.add_parser("replay", help="draw one outcome again and compare it, bit for bit")
    replay.add_argument("dir", metavar="DIR")
    replay.add_argument("outcome", type=whole)
    replay.add_argument("--device", help="where it is drawn (default: as it was)")
    replay.add_argument("--out", metavar="FILE.png", help="also write the picture")
    rescore = commands.add_parser("rescore", help="judge a run's pictures again, or by another verifier")
    rescore.add_argument("dir", metavar="DIR")
    rescore.add_argument(
        "--verifier", help="another one, for every picture (default: the run's own, for those without a score)"
    )
    export = commands.add_parser("export", help="write each prompt's winner for another program, or the run as a table")
    export.add_argument("dir", metavar="DIR")
    export.add_argument(
        "--format", default="geneval", help="geneval (default) or another of bench's suites, or csv: a row an outcome"
    )
    export.add_argument("--out", required=True, metavar="OUT", help="a folder (a suite's layout), or a file (csv)")
    export.add_argument("--metadata", metavar="FILE", help="the suite's own file that was drawn, for pipelines")
    export.add_argument(
        "--keep", default="1", metavar="N", help="pictures of each prompt, best first, or all (default: 1)"
    )


def _sampling(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "prompt", nargs="?", help="what to draw, in quotes; none for all classes of a class-conditional model"
    )
    p.add_argument("--count", type=whole, default=16)
    p.add_argument("--out", required=True, metavar="FILE", help="a contact sheet (.png), sampled as draw samples; or all pictures (.npz), of "
                   "classes as evaluations sample, resumed where it was stopped and shared by processes (torchrun)")  # fmt: skip
    p.add_argument("--class", dest="cls", metavar="CLASS", help="one class for all, by number or name")
    p.add_argument("--labels", help="random (default for .npz), balanced (for .png) or a class")
    p.add_argument("--part", type=whole, help="pictures written at once (default: 256)")
    p.add_argument("--quiet", action="store_true", help="no progress on stderr")
    add_settings(p, ("sampling", "guidance", "times", "pipeline"))


def _importing(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "layout",
        metavar="LAYOUT",
        help="sit (SiT and REPA), dit, inception (FID's network) or classifier (MobileNetV2, EfficientNet-Lite0)",
    )
    p.add_argument(
        "file", metavar="FILE", help="safetensors, or a .pt of tensors alone or of the released training code"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="weights.safetensors is written there")
    p.add_argument("--weights", default="ema", help="of a training checkpoint: ema (default) or model")
    p.add_argument(
        "--narrow", action="store_true", help="drop the dead half of a SiT's 8-channel head; changes no prediction"
    )
    p.add_argument("--heads", type=whole, help="attention heads, where the size is no named one (default: width / 64)")
    p.add_argument("--predicts", help="velocity (default), noise, logp_grad or data; dit: noise")
    p.add_argument("--path", help="linear (default), gvp, vp; dit: discrete")
    p.add_argument("--reversed-time", action=argparse.BooleanOptionalAction, default=None,
                   help="whether the weights read 0 as data, as REPA's do (default: told by REPA's projectors)")  # fmt: skip
    p.add_argument(
        "--null", action=argparse.BooleanOptionalAction, default=True, help="whether the last label is the null class"
    )


def _encoding(p: argparse.ArgumentParser) -> None:
    p.add_argument("folder", metavar="FOLDER", help="a folder for each class, or pictures alone")
    p.add_argument("--vae", required=True, metavar="DIR", help="a diffusers autoencoder's folder or hub id")
    p.add_argument("--size", type=whole, default=256, help="pixels, after a centre crop (default: %(default)s)")
    p.add_argument("--out", required=True, metavar="DIR", help="name it again to go on")
    p.add_argument(
        "--mirrored", action=argparse.BooleanOptionalAction, default=True, help="also mirror images (default: yes)"
    )
    p.add_argument("--float32", action="store_true", help="twice the disk; default: float16")
    p.add_argument("--part", type=whole, help="pictures in a file (default: 2048)")
    p.add_argument("--device", help="default: this process's GPU, or the CPU")


def _evaluating(p: argparse.ArgumentParser) -> None:
    p.add_argument("samples", metavar="SAMPLES.npz", help="pictures, uint8 under arr_0")
    p.add_argument("--reference", required=True, metavar="FILE.npz", help="pictures or statistics, as ADM's")
    p.add_argument("--features", required=True, help="inception=FILE, digits or glyphs")
    p.add_argument("--metrics", default="fid,sfid,is,pr,dc", help="of fid, sfid, is, pr (precision, recall), dc (density, "
                   "coverage); default: all")  # fmt: skip
    p.add_argument("--rows", type=whole, help="batch (default: 64)")
    p.add_argument("--device", help="default: the GPU, or the CPU")
    p.add_argument("--out", metavar="FILE.json", help="also write the scores there")


def _training(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "world", help="scenes, digits, glyphs or folder:PATH; or WORLD-verifier, WORLD-judge, WORLD-features"
    )
    p.add_argument(
        "--out", required=True, metavar="DIR", help="holds the state; the same command again goes on exactly"
    )
    p.add_argument("--steps", type=whole, help="defaults of all options depend on the world")
    p.add_argument("--batch", type=whole)
    p.add_argument("--seed", type=whole)
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="bf16 products, float32 weights")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, help="needs a C++ compiler")
    p.add_argument("--samples", metavar="FILE.npz", help="labelled base samples, for Scenes' verifier and judge")
    p.add_argument("--data", metavar="PATH", help="with `train folder`: the same as `train folder:PATH`")
    p.add_argument("--size", type=whole, help="with a folder of pictures: their side in pixels")
    own = p.add_argument_group("Scenes' base model")
    for name in ("width", "depth", "heads"):
        own.add_argument(f"--{name}", type=whole, help="of the network")
    own.add_argument("--pool", type=whole, help="renders made beforehand, which steps draw among; needed for --device")
    own.add_argument("--hard", type=real, help="share of hard prompts in the pool (default: 0)")
    own.add_argument("--workers", type=whole, help="processes that make the pool (default: 1)")
    what = p.add_argument_group("what is learnt")
    what.add_argument("--model", help="SiT-S/2 and the like, or sit(width=128, depth=6, heads=4, patch=2)")
    what.add_argument("--path", help="linear, gvp, vp, or discrete (DiT, with DDPM's loss)")
    what.add_argument("--predicts", help="velocity, noise, data or score")
    what.add_argument("--weight", help="of the loss: none, velocity or likelihood")
    what.add_argument("--times", help="uniform, or logit_normal(mean=0.0, std=1.0)")
    what.add_argument("--interval", help="of times: paper or official")
    what.add_argument("--eps", type=real, help="left out at both ends of the interval, whatever the path")
    what.add_argument("--dropout", type=real, help="share of labels dropped for guidance")
    how = p.add_argument_group("how")
    how.add_argument("--optimizer", help="muon or adamw")
    how.add_argument("--lr", type=real, help="of AdamW")
    how.add_argument("--muon-lr", type=real)
    how.add_argument("--decay", type=real, help="weight decay")
    how.add_argument("--warmup", type=whole, help="steps")
    how.add_argument("--hold", type=real, help="share of the run before the rate falls")
    how.add_argument("--ema", type=real, help="decay of the averaged weights")
    how.add_argument("--clip", type=real, help="largest norm of the gradient; 0 is none")
    how.add_argument("--accumulate", type=whole, help="micro-batches of a batch, for memory")
    how.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="recompute blocks, for memory")
    how.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is one)")
    logs = p.add_argument_group("logs")
    logs.add_argument("--look-every", type=whole, help="steps between samples and validation; 0 is never")
    logs.add_argument("--log-every", type=whole, help="steps between readings of the loss")
    logs.add_argument("--save-every", type=whole)
    logs.add_argument("--tensorboard", action="store_true", default=None, help="also write DIR/tensorboard")


def _share_the_machine() -> None:
    """Buffers are kept from step to step. Threads that spin while they wait make small batches up to twice as fast on a machine of our own, and half as fast on a shared
    one, where they take the cores from whom they wait for. PyTorch reads this when it is loaded."""
    if "torch" not in sys.modules and busy():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_buffers()


def _act(command: str) -> Callable[[argparse.Namespace], int]:
    """What a command does; its module is imported here, for some are heavy."""
    module, name = ACTS[command].split(":")
    act: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), name)
    return act


def _reflect(words: Sequence[str]) -> int:
    """`secondlook pairs` and `secondlook train reflect`, which have options of their own."""
    from secondlook.train.reflect import run

    _share_the_machine()
    return run(words, Parser)


def _visible(text: str) -> str:
    """The text with control characters spelled out: a prompts file may hold anything, a terminal obeys some of it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and not words[0].startswith("-") and words[0] not in COMMANDS:
            raise ConfigError(f'There is no command "{words[0]}"; {nearest(words[0], COMMANDS)}')
        reflecting = {("pairs",): ["pairs"], ("train", "reflect"): ["train"]}
        for typed, act in reflecting.items():
            if tuple(words[: len(typed)]) == typed:
                return _reflect([*act, *words[len(typed) :]])
        made = parser()
        made.words = words
        args = made.parse_args(words)
        if args.command is None:
            made.print_help()
            return 0
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # so that --plan mine:plan finds mine.py here, as with `python -m`
        from secondlook import notes

        notes.to_stderr()
        if args.command in SLOW and sys.stderr.isatty() and not getattr(args, "quiet", False):
            print("secondlook: loading the model and its libraries ...", file=sys.stderr, flush=True)
        _share_the_machine()
        code = _act(args.command)(args)
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


def program() -> NoReturn:
    """The command as a process of its own. One of several that train together leaves without the interpreter's end:
    the threads that exchanged gradients live as long as it, and one that lets go of a tensor then aborts the process,
    for which the launcher kills the others."""
    code = main()
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    program()
