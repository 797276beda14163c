"""What each command of the command line does. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import argparse
import builtins
import json
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from secondlook import api, registry
from secondlook.backends import pipelines
from secondlook.cli.progress import Progress, table
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, SecondlookError, nearest
from secondlook.types import Outcome
from secondlook.worlds.scenes.grammar import from_metadata, parse
from secondlook.worlds.scenes.prompts import SETS, prompt_set

Args = argparse.Namespace
NEAR = 3  # levels of 255: what other company in a batch may change in a picture; rounding, not another picture
_SAMPLING = ("model", "steps", "solver", "guidance", "shift", "seed", "rows", "bf16", "threads")


def draw(args: Args, words: Sequence[str]) -> int:
    if (args.prompt is None) == (args.prompts is None):
        raise ConfigError(
            'Give either one prompt in quotes or --prompts FILE, e.g. secondlook draw "a red circle" --out DIR.'
        )
    own = args.world or ("" if pipelines.meant(args.model, args.vae) else "scenes")
    prompts = [args.prompt] if args.prompts is None else read_prompts(Path(args.prompts), own)
    out = Path(args.out)
    limits = {k: getattr(args, k) for k in ("nfe", "evals", "verdicts", "seconds")}
    named = (*_SAMPLING, "verifier", "world", "pad", *pipelines.OPTIONS)
    options = {k: v for k in named if (v := getattr(args, k)) is not None}
    progress = None if args.quiet else Progress(len(prompts))
    with interruptible(out):
        found = api.draw(prompts, args.plan, out, **limits, progress=progress, command=_again(words), **options)
    return _finish(out, found, progress)


def resume(args: Args, words: Sequence[str]) -> int:
    out = Path(args.dir)
    store = Store.open(out)
    if Record.read(store).done:
        print(f'The run "{out}" is finished; there is nothing to resume.')
        return 0
    progress = None if args.quiet else Progress(len(store.config["prompts"]))
    with interruptible(out):
        found = api.resume(out, progress)
    return _finish(out, found, progress)


def _finish(out: Path, found: builtins.list[api.Result], progress: Progress | None) -> int:
    from secondlook.report.html import write_report

    if progress:
        progress.close()
    print(table(found))
    print(f"report: {write_report(out)}")
    if found and all(math.isnan(r.score) for r in found):
        print("secondlook: No picture has a score, so nothing was searched: the verifier failed or could not judge. Mend it and "
              "draw anew.", file=sys.stderr)  # fmt: skip
        return 1
    return 0


class interruptible:
    """Ctrl-C inside leaves a resumable run and says how to go on."""

    def __init__(self, out: Path):
        self.out = out

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is KeyboardInterrupt and (self.out / "run.sqlite").exists():
            print(f"\nStopped; nothing reported done is lost. Go on with: secondlook resume {shlex.quote(str(self.out))}",
                  file=sys.stderr)  # fmt: skip


def _again(words: Sequence[str]) -> str:
    return shlex.join(["secondlook", *words])


def replay(args: Args, words: Sequence[str]) -> int:
    if args.out and not (args.out.lower().endswith(".png") and Path(args.out).resolve().parent.is_dir()):
        raise ConfigError(f'--out wants a .png file in an existing folder; got "{args.out}".')
    done = api.replay_outcome(args.dir, args.outcome)
    if args.out:
        Image.fromarray(done.picture).save(args.out)
    if not done.same and done.difference <= NEAR:
        print(f"Outcome {done.outcome}: drawn again from its derivation; the same picture to {done.difference} of 255 levels. Other rows "
              "ran beside it then, which changes a network's last bits; --pad prevents that.")  # fmt: skip
        return 0
    if done.same:
        print(f"Outcome {done.outcome}: drawn again from its derivation; the same picture, bit for bit.")
        return 0
    print(f"Outcome {done.outcome}: NOT the same picture. The run was made with other weights, another library or "
          "another machine, or its log was changed; compare its configuration in report.html.", file=sys.stderr)  # fmt: skip
    return 1


def report(args: Args, words: Sequence[str]) -> int:
    from secondlook.report.html import write_report

    print(write_report(Path(args.dir)))
    return 0


def sample(args: Args, words: Sequence[str]) -> int:
    from secondlook.cli import classes as class_commands
    from secondlook.disk.sheets import contact_sheet
    from secondlook.sample.plain import plain_samples
    from secondlook.settings import Settings

    if args.prompt is None:
        return class_commands.sample(args)
    outside = pipelines.meant(args.model, args.vae)
    own = ("vae", "device") if outside else ()
    misplaced = [o for o in class_commands.CLASS_ONLY if getattr(args, o) is not None and o not in own]
    if misplaced:
        flag = misplaced[0].replace("cls", "class").replace("_", "-")
        raise ConfigError(f"--{flag} is for class-conditional models, which take no prompt; leave one of the two out.")
    if args.count < 1:
        raise ConfigError(f"--count must be at least 1; got {args.count}.")
    out = Path(args.out)
    if out.suffix.lower() != ".png" or not out.resolve().parent.is_dir():
        raise ConfigError(f'--out wants a .png file in an existing folder; got "{out}".')
    options = {k: v for k in (*_SAMPLING, *own) if (v := getattr(args, k)) is not None}
    held = pipelines.hold(args.model, options) if outside else None
    if held is not None:
        options = pipelines.usual(held, {"verifier": pipelines.GUIDES[0], **options})
    pictures = plain_samples(Settings([args.prompt], **options).fill(), args.count, held)
    contact_sheet(pictures, args.prompt, zoom=2 if pictures.shape[2] <= 128 else 1).save(out)
    print(out)
    return 0


def import_weights(args: Args, words: Sequence[str]) -> int:
    from secondlook.cli import classes as class_commands

    return class_commands.import_weights(args)


def encode(args: Args, words: Sequence[str]) -> int:
    from secondlook.cli import classes as class_commands

    return class_commands.encode(args)


def evaluate(args: Args, words: Sequence[str]) -> int:
    from secondlook.cli import classes as class_commands

    return class_commands.evaluate(args)


def export(args: Args, words: Sequence[str]) -> int:
    if args.format != "geneval":
        raise ConfigError(f'There is no export format "{args.format}"; known: geneval.')
    out, store = Path(args.out), Store.open(Path(args.dir))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f'"{out}" is not an empty folder. Choose another --out; nothing was written.')
    record, prompts = Record.read(store), store.config["prompts"]
    if not record.done:
        raise SecondlookError(f"The run is not finished; finish it first: secondlook resume {args.dir}")
    lines = _metadata(prompts, store.config.get("world", "scenes"), args.metadata)
    winners = [record.winner(i) for i in range(len(prompts))]
    for winner in winners:  # every picture is read before the first is written
        if winner is None:
            raise SecondlookError(
                "The budget of this run ended before some prompt had a picture; draw with a larger one."
            )
        store.checked(winner.id, record.digests[winner.id])
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _write_geneval(part, store, lines, winners)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        raise
    print(f"{len(prompts)} prompts written to {out}")
    return 0


def _metadata(prompts: builtins.list[str], world: str, file: str | None) -> builtins.list[str]:
    """A JSON line for each prompt: the Scenes grammar's, or those of ``file`` (GenEval's own, in the run's order), or the prompt
    alone."""
    if file is None:
        return [json.dumps(parse(p).metadata() if world == "scenes" else {"prompt": p}) for p in prompts]
    try:
        lines = [line for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        named = [json.loads(line)["prompt"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'--metadata wants JSON lines with a "prompt" each; "{file}" cannot be read so ({error}).'
        ) from None
    if named != prompts:
        raise ConfigError(
            f'The prompts of "{file}" are not those of the run, in their order; give the file that was drawn.'
        )
    return lines


def _write_geneval(out: Path, store: Store, lines: builtins.list[str], winners: builtins.list[Outcome | None]) -> None:
    """GenEval's layout: 00000/metadata.jsonl and 00000/samples/0000.png for each prompt."""
    for i, (line, winner) in enumerate(zip(lines, winners, strict=True)):
        folder = out / f"{i:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(line + "\n")
        assert winner is not None
        shutil.copyfile(store.picture_path(winner.id), folder / "samples" / "0000.png")


def prompts(args: Args, words: Sequence[str]) -> int:
    if args.set not in SETS:
        raise ConfigError(f'There is no prompt set "{args.set}"; {nearest(args.set, SETS)}')
    for prompt in prompt_set(args.set):
        print(json.dumps(prompt.metadata()))
    return 0


def list(args: Args, words: Sequence[str]) -> int:
    tables = {"plans": registry.PLANS, "verifiers": registry.VERIFIERS, "worlds": registry.WORLDS,
              "models": registry.MODELS, "solvers": registry.SOLVERS, "pipelines": registry.PIPELINES}  # fmt: skip
    if args.what not in tables:
        raise ConfigError(f'There is nothing called "{args.what}" to list; {nearest(args.what, tables)}')
    about = {"models": registry.ABOUT_MODELS, "pipelines": registry.PIPELINES}.get(args.what, registry.ABOUT)
    for name in tables[args.what]:
        options = f": {registry.written(name)}" if args.what == "plans" else ""
        print(f"{name:<16}{about[name]}{options}")
    return 0


def train(args: Args, words: Sequence[str]) -> int:
    from secondlook.train.command import run

    return run(args)


def read_prompts(path: Path, world: str = "scenes") -> builtins.list[str]:
    """The prompts of a file: one a line, or GenEval JSON lines; ConfigError with the line's number."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # newlines of every system are read as one
    except FileNotFoundError:
        raise ConfigError(f'There is no prompts file "{path}".') from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'The prompts file "{path}" cannot be read as text: {error}.') from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(_prompt_of(line, world == "scenes"))
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from None
    if not found:
        raise ConfigError(f'The prompts file "{path}" holds no prompt.')
    return found


def _prompt_of(line: str, scenes: bool) -> str:
    if not line.lstrip().startswith("{"):
        return parse(line.strip()).text if scenes else line.strip()
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this is no JSON ({error}).") from None
    if not isinstance(record.get("prompt"), str):
        raise ConfigError('this record has no "prompt".')
    return from_metadata(record).text if scenes else str(record["prompt"])
