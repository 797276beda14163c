"""The command sample: plain samples of prompts or of classes, as a contact sheet or as many as an evaluation needs."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from secondlook import api
from secondlook.backends.find import find
from secondlook.cli.data import within
from secondlook.cli.options import given
from secondlook.disk.team import Team
from secondlook.errors import ConfigError
from secondlook.models.threads import threads

Args = argparse.Namespace


def sample(args: Args) -> int:
    out = Path(args.out)
    kind = out.suffix.lower()
    if kind not in (".png", ".npz") or not out.resolve().parent.is_dir():
        raise ConfigError(f'--out must be a .png or .npz file in an existing folder; got "{out}".')
    within("count", args.count, 10**8)
    within("part", args.part, 10**6)
    if args.labels is not None and args.cls is not None:
        raise ConfigError("--class and --labels say the same; give one of them.")
    labels = args.cls or args.labels or ("balanced" if kind == ".png" else "random")
    if args.prompt is not None and (args.cls or args.labels):
        raise ConfigError("--class and --labels are for samples without a prompt; leave one of the two out.")
    return _many(args, out, labels) if kind == ".npz" else _sheet(args, out, labels)


def _sheet(args: Args, out: Path, labels: str) -> int:
    from secondlook.disk.sheets import contact_sheet
    from secondlook.sample.draws import sampler

    if Team.here().world > 1:
        raise ConfigError("A contact sheet is drawn by one process; give --out FILE.npz for several.")
    s, model, _ = api.asked(given(args))
    s.prompts = [] if args.prompt is None else [args.prompt]
    backend = find(s.model if model is None else model, s)
    s = s.filled(backend.usual(s))
    with backend.session(), threads(s.threads):
        made = sampler(s, backend, args.count, labels)
        pictures, spent = made.draw(range(made.count))
    small = 2 if pictures.shape[2] <= 128 else 1
    zoom = small if made.labels is None else max(1, 96 // pictures.shape[1])
    contact_sheet(pictures, args.prompt or "", zoom=zoom).save(out)
    print(f"{out}: {spent.nfe / made.count:.4g} evaluations a sample, {spent.passes / made.count:.4g} network passes")
    return 0


def _many(args: Args, out: Path, labels: str) -> int:
    from secondlook.sample.draws import evaluating, sampler
    from secondlook.sample.npz import PER_PART, produce

    s, model, _ = api.asked(given(args))
    s.prompts = [] if args.prompt is None else [args.prompt]
    team = Team.here()
    backend = find(s.model if model is None else model, s)
    classes = not s.prompts and backend.name != "diffusers"
    s = s.filled(
        {**backend.usual(s), **(evaluating(s) if classes else {}), "rows": 64 if _on_gpu(team, s.device) else 16}
    )
    if classes:
        s.device = str(team.device(s.device))
    if _on_gpu(team, s.device):
        torch.set_float32_matmul_precision("high")  # TF32, as the released code samples
    with backend.session(), threads(s.threads):
        made = sampler(s, backend, args.count, labels)
        numbers = made.labels if made.labels is not None else torch.zeros(made.count, dtype=torch.int64).numpy()
        facts = produce(
            out, made.facts(), numbers, made.draw_plain, per=args.part or PER_PART, team=team, quiet=args.quiet
        )
    if facts is not None:
        print(f"{out}: {made.count} pictures, {facts['nfe per sample']:.4g} evaluations a sample, "
              f"{facts['network passes per sample']:.4g} network passes")  # fmt: skip
    return 0


def _on_gpu(team: Team, asked: str | None) -> bool:
    return team.device(asked).type == "cuda"
