"""Commands about searches: draw, resume, replay, rescore, report. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from pathlib import Path

from PIL import Image

from secondlook import api
from secondlook.cli.options import given
from secondlook.cli.progress import Progress, table
from secondlook.cli.prompts import read_prompts
from secondlook.engine.record import Record
from secondlook.engine.rescore import Rescored
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.runs.results import Result

Args = argparse.Namespace
NEAR = 3  # levels of 255: what other company in a batch may change in a picture; rounding, not another picture


def draw(args: Args) -> int:
    if (args.prompt is None) == (args.prompts is None):
        raise ConfigError(
            'Give either one prompt in quotes or --prompts FILE, e.g. secondlook draw "a red circle" --out DIR.'
        )
    options, out = given(args), Path(args.out)
    s, _, _ = api.asked(options)
    asked = [args.prompt] if args.prompts is None else read_prompts(Path(args.prompts), s)
    progress = None if args.quiet else Progress(len(asked))
    with interruptible(out):
        found = api.draw(asked, out=out, progress=progress, **options)
    return _finish(out, found, progress)


def resume(args: Args) -> int:
    out = Path(args.dir)
    store = Store.open(out)
    before = len(list(store.events()))
    progress = None if args.quiet else Progress(len(store.config["prompts"]))
    with interruptible(out):
        found = api.resume(out, progress, device=args.device, changed_judges=args.changed_judges)
    if Record.read(store).done and len(list(store.events())) == before:
        print(f'The run "{out}" is finished; there is nothing to resume.')
        return 0
    return _finish(out, found, progress)


def rescore(args: Args) -> int:
    done = api.rescore(args.dir, verifier=args.verifier)
    if isinstance(done, Rescored):
        print(f"{done.scored} picture{'s' * (done.scored != 1)} scored that had no score; {done.failed} still without.")
        return int(done.failed > 0)
    print(f'{done} picture{"s" * (done != 1)} judged by "{args.verifier}", into the log of {args.dir}.')
    return 0


def _finish(out: Path, found: list[Result], progress: Progress | None) -> int:
    from secondlook.report.html import write_report

    if progress:
        progress.close()
    print(table(found))
    print(f"report: {write_report(out)}")
    if found and all(math.isnan(r.score) for r in found) and _scores_were_asked(out):
        print("secondlook: No picture has a score, so nothing was searched: the verifier failed or could not judge. Fix it and "
              "run again: secondlook resume.", file=sys.stderr)  # fmt: skip
        return 1
    return 0


def _scores_were_asked(out: Path) -> bool:
    """Whether the verifier was to judge what is handed over; a plan may listen to a critic or a comparer alone."""
    record = Record.read(Store.open(out))
    return any("score" in o.proposal.asks and o.finished for o in record.outcomes.values())


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


def replay(args: Args) -> int:
    if args.out and not (args.out.lower().endswith(".png") and Path(args.out).resolve().parent.is_dir()):
        raise ConfigError(f'--out expects a .png file in an existing folder; got "{args.out}".')
    done = api.replay(args.dir, args.outcome, device=args.device)
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


def report(args: Args) -> int:
    from secondlook.report.html import write_report

    print(write_report(Path(args.dir)))
    return 0
