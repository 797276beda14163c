"""The command line. Exit 0: done; 1: something failed while working; 2: something typed was not understood."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from secondlook import __version__
from secondlook.errors import ConfigError, SecondlookError, nearest

# Read when torch loads: threads that wait for a busy core should sleep, not spin, or small batches crawl on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
COMMANDS = ("draw", "resume", "replay", "report", "sample", "train", "import", "encode", "evaluate", "export", "prompts",
            "list")  # fmt: skip


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
    draw.add_argument(
        "prompt", nargs="?", help="what to draw, in quotes: a prompt, or a class where the world has classes"
    )
    draw.add_argument("--world", help="scenes (prompts), digits or glyphs (classes); default: scenes, or the --model's")
    draw.add_argument("--prompts", metavar="FILE", help="one prompt a line, or GenEval metadata (JSON lines)")
    draw.add_argument("--plan", default="random(n=20)", help="default: %(default)s; see `secondlook list plans`")
    draw.add_argument("--out", required=True, metavar="DIR", help="the run's folder, new or empty")
    budget = draw.add_argument_group("budget for each prompt (an endless plan without one may spend 20 samples' worth)")
    budget.add_argument("--nfe", type=_number, help="solver evaluations")
    budget.add_argument("--evals", type=_number, help="network passes (guidance takes two for each evaluation)")
    budget.add_argument("--verdicts", type=_number, help="pictures shown to the verifier")
    budget.add_argument("--seconds", type=_real, help="seconds of work")
    _sampling(draw)
    draw.add_argument("--verifier", help="what guides: learned (default), oracle, brightness, sharpness (pipelines' default), "
                      "compressibility, or package.module:attribute")  # fmt: skip
    draw.add_argument("--quiet", action="store_true", help="no progress on stderr")
    _pipeline(draw)

    _plain(commands.add_parser("sample", help="plain samples of a prompt or of classes, without search"))

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
    export.add_argument("--metadata", metavar="FILE", help="GenEval's JSON lines that were drawn, for pipelines")

    prompts = commands.add_parser("prompts", help="print a prompt set as GenEval metadata")
    prompts.add_argument("set", help="scenes-dev, scenes-test, scenes-hard-dev or scenes-hard-test")
    listing = commands.add_parser("list", help="plans, verifiers, worlds, models, solvers or pipelines")
    listing.add_argument("what")
    _training(commands.add_parser("train", help="train a world's model, verifier or judge"))
    _importing(commands.add_parser("import", help="official SiT, REPA or DiT weights into this project's own file"))
    _encoding(commands.add_parser("encode", help="a folder of pictures into latents, once, for training"))
    _evaluating(commands.add_parser("evaluate", help="FID and other scores of sampled pictures"))
    return top


def _sampling(p: argparse.ArgumentParser, classes: bool = False) -> None:
    """No defaults here: they are the world's. classes: the options of plain samples, where those of classes differ."""
    from secondlook.registry import DEFAULTS

    usual = {"model": "scenes", "solver": "euler", **DEFAULTS}
    other = {"steps": " (classes: for about 250 evaluations)", "solver": " (classes: heun)", "guidance": " (classes: 1)",
             "shift": " (classes: 1)"}  # fmt: skip
    also = other if classes else {}

    def option(flags: Sequence[str], kind: Callable[[str], Any], about: str) -> None:
        name = flags[0][2:]
        group.add_argument(*flags, type=kind, help=f"{about}default in scenes: {usual[name]}{also.get(name, '')}")

    group = p.add_argument_group("sampling")
    option(
        ["--model"], str, "a shipped model's name, a weights file, or (draw) a diffusers pipeline's folder or hub id; "
    )
    option(["--steps"], _number, "")
    option(["--solver"], str, "see `secondlook list solvers`; ")
    option(["--guidance", "--cfg"] if classes else ["--guidance"], _real, "1 is none; ")
    option(["--shift"], _real, "time shift; ")
    group.add_argument("--seed", type=_number, default=0)
    group.add_argument("--rows", type=_number, help="micro-batch (default: chosen by the number of prompts)")
    group.add_argument("--threads", type=_number, help="CPU threads (default: all)")
    group.add_argument(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="default: where the CPU has it" + (" (classes: no)" if classes else ""),
    )


def _pipeline(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group(
        "pipelines (--model FOLDER or a hub id; needs secondlook[hub]); defaults are the pipeline's own"
    )
    group.add_argument("--height", type=_number, help="pixels")
    group.add_argument("--width", type=_number, help="pixels")
    group.add_argument("--negative", metavar="PROMPT", help="what guidance leads away from")
    group.add_argument(
        "--true-guidance", type=_real, help="FLUX: classifier-free guidance beside the distilled one (1: none)"
    )
    group.add_argument("--tokens", type=_number, help="of the long text encoder")
    group.add_argument("--dtype", help="float32 (default on a CPU), bfloat16 (default on a GPU) or float16")
    group.add_argument("--device", help="cpu, cuda, cuda:N or mps; default: the GPU where there is one")
    group.add_argument(
        "--free-text",
        action="store_true",
        default=None,
        help="text encoders leave the device once the prompts are encoded",
    )
    group.add_argument("--lora", metavar="FILE", help="LoRA weights: a file, folder or hub id (needs peft)")
    group.add_argument(
        "--offload", action="store_true", default=None, help="parts wait on the CPU for their turn on the GPU"
    )
    group.add_argument("--adapter", metavar="MODULE:ATTR", help="for a pipeline that secondlook does not know")
    group.add_argument("--vae", metavar="DIR", help="with SiT weights: the autoencoder that decodes")
    group.add_argument("--pad", action=argparse.BooleanOptionalAction, default=None,
                       help="pad batches to --rows, for pictures that repeat bit for bit (default: no on pipelines)")  # fmt: skip


def _plain(p: argparse.ArgumentParser) -> None:
    p.add_argument("prompt", nargs="?", help="what to draw, in quotes; none for class-conditional models")
    p.add_argument("--count", type=_number, default=16)
    p.add_argument("--out", required=True, metavar="FILE", help="a contact sheet (.png); of classes also all pictures (.npz), resumed "
                   "where it was stopped and shared by processes (torchrun)")  # fmt: skip
    _sampling(p, classes=True)
    group = p.add_argument_group("class-conditional models (--model or --world, and no prompt); times: 1 is data")
    group.add_argument("--world", help="digits or glyphs: what decodes, and the shipped model where none is given")
    group.add_argument("--class", dest="cls", metavar="CLASS", help="one class for all, by number or name")
    group.add_argument("--labels", help="random (default for .npz), balanced (for .png) or a class")
    group.add_argument("--vae", metavar="DIR", help="the autoencoder that decodes: a diffusers folder or hub id")
    group.add_argument("--cfg-channels", metavar="N", help="how many channels guidance changes: all (default), or 3, as in the numbers of "
                       "the SiT and DiT papers, whose latents have 4")  # fmt: skip
    group.add_argument(
        "--cfg-interval", type=_real, nargs=2, metavar=("LOW", "HIGH"), help="times in which to guide; default: all"
    )
    group.add_argument("--weak", metavar="WEIGHTS", help="guide by a weaker model of the same task (autoguidance)")
    group.add_argument("--weak-scale", type=_real, help="default: 2")
    group.add_argument("--interval", help="time intervals: paper (default) or official, the released code's")
    group.add_argument("--eps", type=_real, help="distance kept from both ends of time (default: the interval's)")
    group.add_argument(
        "--last-step", type=_real, help="of sde and sde_heun, which --steps counts; 0 is none (default: 0.04)"
    )
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="compile the network; needs a C++ compiler"
    )
    group.add_argument("--device", help="default: this process's GPU, or the CPU")
    group.add_argument("--part", type=_number, help="pictures written at once (default: 256)")
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _importing(p: argparse.ArgumentParser) -> None:
    p.add_argument("layout", metavar="LAYOUT", help="sit (SiT and REPA) or dit")
    p.add_argument(
        "file", metavar="FILE", help="safetensors, or a .pt of tensors alone or of the released training code"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="weights.safetensors is written there")
    p.add_argument("--weights", default="ema", help="of a training checkpoint: ema (default) or model")
    p.add_argument(
        "--narrow", action="store_true", help="drop the dead half of a SiT's 8-channel head; changes no prediction"
    )
    p.add_argument(
        "--heads", type=_number, help="attention heads, where the size is no named one (default: width / 64)"
    )
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
    p.add_argument("--size", type=_number, default=256, help="pixels, after a centre crop (default: %(default)s)")
    p.add_argument("--out", required=True, metavar="DIR", help="name it again to go on")
    p.add_argument(
        "--mirrored", action=argparse.BooleanOptionalAction, default=True, help="also mirror images (default: yes)"
    )
    p.add_argument("--float32", action="store_true", help="twice the disk; default: float16")
    p.add_argument("--part", type=_number, help="pictures in a file (default: 2048)")
    p.add_argument("--device", help="default: this process's GPU, or the CPU")


def _evaluating(p: argparse.ArgumentParser) -> None:
    p.add_argument("samples", metavar="SAMPLES.npz", help="pictures, uint8 under arr_0")
    p.add_argument("--reference", required=True, metavar="FILE.npz", help="pictures or statistics, as ADM's")
    p.add_argument("--features", required=True, help="inception=FILE, digits or glyphs")
    p.add_argument("--metrics", default="fid,sfid,is,pr,dc", help="of fid, sfid, is, pr (precision, recall), dc (density, "
                   "coverage); default: all")  # fmt: skip
    p.add_argument("--rows", type=_number, help="batch (default: 64)")
    p.add_argument("--device", help="default: the GPU, or the CPU")
    p.add_argument("--out", metavar="FILE.json", help="also write the scores there")


def _training(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "world", help="scenes, digits, glyphs or folder:PATH; or WORLD-verifier, WORLD-judge, WORLD-features"
    )
    p.add_argument(
        "--out", required=True, metavar="DIR", help="holds the state; the same command again goes on exactly"
    )
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
    what.add_argument("--path", help="linear, gvp, vp, or discrete (DiT, with DDPM's loss)")
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
        from secondlook import notes
        from secondlook.cli import commands

        notes.to_stderr()
        code: int = getattr(commands, {"import": "import_weights"}.get(args.command, args.command))(args, words)
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
