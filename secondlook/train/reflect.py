"""Training of models that draw again, from a base's weights.

    python -m secondlook.train.verifier collect BASE 7200 DIR/tries.npz --seed 401 --mix hard --ways few few euler --per-prompt 4
    secondlook pairs --samples DIR/tries.npz --out DIR/items.pt
    secondlook train reflect --items DIR/items.pt --steps 4000 --out DIR/edit
    python -m secondlook.train.reflect chain DIR/edit/weights.safetensors DIR/tries.npz --out DIR/own.npz
    python -m secondlook.train.reflect steps DIR/edit/weights.safetensors DIR/dev.npz

``chain`` draws again from wrong tries, so that a further training (``--init``) sees the model's own mistakes. ``steps`` prints
how often an answer to a wrong try is right, with the oracle's remarks, beside a fresh draw of the same network; then chains of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from secondlook.disk.team import usable
from secondlook.errors import ConfigError, nearest
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Linear
from secondlook.models.allocator import keep_buffers
from secondlook.models.checkpoint import load, load_text, save, shipped
from secondlook.models.reflect import Recalled, ReflectConfig, ReflectSiT
from secondlook.models.text import Encoded, TextSiT
from secondlook.train.loop import Rows, TrainConfig, Trainer
from secondlook.train.pool import Pool, make_pool, over
from secondlook.train.redraw import Way, collect_chains, compared, one_step
from secondlook.train.samples import Samples
from secondlook.train.scenes import DROPOUT, TIME_MEAN, TIME_STD, _Named
from secondlook.train.tries import PAIRINGS, Tried, from_runs
from secondlook.train.watch import report
from secondlook.worlds.pixels import to_floats
from secondlook.worlds.scenes.remarks import LONGEST, REMARK_WORDS

FORMS = ("context", "edit", "sft", "dpo")
UNSEEN, UNSAID, UNSHOWN = 0.2, 0.15, 0.1  # how often all of a context, its remarks or its pictures are left out
CHANGED = 5.0  # weight of patches that differ between try and target
DIFFERS = 24  # of 255 levels
BETA = 500.0  # Diffusion-DPO's, for squared errors of velocity in units of pixels in [-1, 1]


@dataclass(frozen=True)
class Food:
    """What a step does with an item. changed: see ``CHANGED``."""

    form: str
    changed: float = CHANGED
    said: bool = True  # remarks are given
    seen: bool = True  # pictures are given


def fresh_network(
    form: str, base: Path, memory: int = 1, side: int = 4, depth: int = 2, amplify: str = "prompt"
) -> nn.Module:
    """A network of one of ``FORMS`` that begins as the base model; its eyes are the shipped detector's."""
    if form not in FORMS:
        raise ConfigError(f'There is no form "{form}"; {nearest(form, FORMS)}')
    text = load_text(base).requires_grad_(True)
    if form in ("sft", "dpo"):
        return text
    config = ReflectConfig(text.config, REMARK_WORDS, LONGEST, memory, form == "edit", side, depth, amplify=amplify)
    module = ReflectSiT(config)
    module.base.load_state_dict(text.state_dict())
    seen = load_file(shipped("scenes-detector.safetensors"))
    parts = ("stem", "norms", "attends", "feeds")
    module.eyes.load_state_dict({k: v for k, v in seen.items() if k.split(".")[0] in parts})
    return module


def _text(network: TextSiT, ids: Tensor, drop: Tensor) -> Encoded:
    """Encoded prompts, the null one where dropped."""
    null = torch.zeros_like(ids)
    null[:, 0] = 1
    return network.text(torch.where(drop[:, None], null, ids))


def recalled(module: ReflectSiT, items: dict[str, Tensor], g: torch.Generator, food: Food) -> tuple[Recalled, Tensor]:
    """An item's prompt and tries with some left out, and whether the last try is seen, [N]."""
    device, n = items["shown"].device, len(items["shown"])

    def chance(p: float) -> Tensor:
        return torch.rand(n, generator=g, device=device) < p

    none, unsaid, unshown = chance(UNSEEN), chance(UNSAID), chance(UNSHOWN)
    there = items["shown"] & ~none[:, None]
    shown = there & ~(unshown & ~unsaid)[:, None] if food.seen else torch.zeros_like(there)
    said = there & ~unsaid[:, None] if food.said else torch.zeros_like(there)
    text = _text(module.base, items["ids"].long(), chance(DROPOUT))
    tries = to_floats(items["tries"])
    return module.recall(text, tries, items["remarks"].long(), shown, said), shown[:, -1]


def emphasis(items: dict[str, Tensor], seen: Tensor, patch: int, changed: float) -> Tensor:
    """[N, 1, H, W]: the weight of each pixel's error: ``changed`` in patches where the target is not what the last try shows."""
    away = (items["tries"][:, -1].int() - items["target"].int()).abs().amax(-1)
    differs = F.max_pool2d((away > DIFFERS).float()[:, None], patch)
    weight = 1 + (changed - 1) * differs * seen.view(-1, 1, 1, 1)
    return F.interpolate(weight, scale_factor=patch, mode="nearest")


def loss_over(module: Any, pool: Pool, config: TrainConfig, food: Food) -> Any:
    """The loss of a form, by rows, over a pool's items."""
    before = copy.deepcopy(module).eval().requires_grad_(False) if food.form == "dpo" else None

    def loss(forward: Callable[..., Tensor], items: dict[str, Tensor], g: torch.Generator) -> Rows:
        device = items["target"].device
        data = to_floats(items["target"])
        n = len(data)
        t = torch.sigmoid(TIME_MEAN + TIME_STD * torch.randn(n, generator=g, device=device))
        noise = torch.randn(data.shape, generator=g, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            if food.form in ("context", "edit"):
                cond, seen = recalled(module, items, g, food)
                weight = emphasis(items, seen, module.config.base.patch, food.changed)
                return Rows(Flow(_Named(forward, module), Linear()).loss(data, noise, t, cond, emphasis=weight))
            drop = torch.rand(n, generator=g, device=device) < (DROPOUT if food.form == "sft" else 0.0)
            text = _text(module, items["ids"].long(), drop)
            flow = Flow(_Named(forward, module), Linear())
            if before is None:
                return Rows(flow.loss(data, noise, t, text))
            return Rows(
                _preference(flow, before.to(device), data, to_floats(items["tries"][:, -1]), noise, t, text, items)
            )

    return over(pool, config.batch, loss)


def _preference(flow: Flow, before: TextSiT, better: Tensor, worse: Tensor, noise: Tensor, t: Tensor, text: Any, items: dict[str, Tensor]) -> Tensor:  # fmt: skip
    """Diffusion-DPO's loss (2311.12908, eq. 14), [N], with the same noise and time for both pictures."""
    old = Flow(before, Linear())
    with torch.no_grad():
        said = before.text(items["ids"].long())
        was = [old.loss(x, noise, t, said) for x in (better, worse)]
    now = [flow.loss(x, noise, t, text) for x in (better, worse)]
    gain = (now[0] - was[0]) - (now[1] - was[1])
    return -F.logsigmoid(-BETA / 2 * gain)


def trainer(module: Any, folder: Path, config: TrainConfig, pool: Pool, food: Food) -> Trainer:
    """A trainer of one form, resuming what ``folder`` holds."""
    return Trainer(
        module, loss_over(module, pool, config, food), config, folder, about={"form": food.form, "items": len(pool)}
    )


def _items(args: argparse.Namespace) -> Pool:
    """The items that a file holds (``pairs``), or new ones. A network of a smaller memory reads the last tries alone."""
    began = time.perf_counter()
    if args.items is not None:
        pool = Pool.load(args.items)
        for name in ("tries", "remarks", "shown"):
            pool.columns[name] = pool.columns[name][:, -args.memory :].contiguous()
        target = pool.columns.pop("independent", None)
        if args.pairing == "independent" and target is not None:
            pool.columns["target"] = target
        elif args.pairing != "mended":
            raise ConfigError(
                f"{args.items} holds no {args.pairing} targets; make it with pairs --both, or leave --items out."
            )
    else:
        made = Tried(tuple(map(str, args.samples)), args.memory, args.pairing, args.rendered, args.again)
        pool = make_pool(made, str(args.seed), args.pool, args.workers)
    print(f"{len(pool)} items in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    return pool


def _pairs(args: argparse.Namespace) -> int:
    files = list(args.samples)
    if args.runs:
        found = from_runs(args.runs)
        files.append(args.out.with_name(args.out.name + ".tries.npz"))
        found.save(files[-1])
        print(
            f"{len(found)} pictures of {len(args.runs)} runs, {int((~found.right).sum())} of them wrong",
            file=sys.stderr,
        )
    made = Tried(tuple(map(str, files)), args.memory, "mended", args.rendered, args.again, both=args.both)
    pool = make_pool(made, str(args.seed), args.pool, args.workers)
    pool.save(args.out)
    print(f"{len(pool)} items in {args.out}")
    return 0


def _train(args: argparse.Namespace) -> int:
    device = usable(args.device or "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    pool = _items(args)
    torch.manual_seed(args.seed)
    module: Any = (
        load(args.init)
        if args.init
        else fresh_network(args.form, args.base, args.memory, args.side, args.depth, args.amplify)
    )
    module.requires_grad_(True)
    if isinstance(module, ReflectSiT):
        module.eyes.requires_grad_(False)
    config = TrainConfig(args.steps, args.batch, args.lr, 2 * args.lr, seed=args.seed, hold=0.5, device=args.device, warmup=100,
                         ema=0.998, save_every=args.save_every)  # fmt: skip
    food = Food(args.form, args.changed, not args.mute, not args.blind)
    work = trainer(module, args.out, config, pool.to(device), food)
    report(work.run())
    about = [
        "form",
        "pairing",
        "memory",
        "rendered",
        "steps",
        "batch",
        "seed",
        "lr",
        "changed",
        "side",
        "depth",
        "mute",
        "blind",
    ]
    facts = {k: getattr(args, k) for k in about}
    facts |= {"items": len(pool), "seconds": round(work.seconds), "continued": args.init is not None}
    network: Any = work.ema.module.cpu()
    save(network, args.out / "weights.safetensors", network.describe(), facts)
    return 0


def _network(args: argparse.Namespace) -> Any:
    return load(args.weights).to(usable(args.device or "cpu"))


def _chain(args: argparse.Namespace) -> int:
    network = _network(args)
    way = Way(args.steps, args.guidance, args.rows)
    count = collect_chains(
        network, Samples.load(*args.samples).first(args.most), args.turns, way, args.seed, args.out, _memory(network)
    )
    print(f"{count} wrong tries in {args.out}")
    return 0


def _steps(args: argparse.Namespace) -> int:
    network = _network(args)
    way = Way(args.steps, args.guidance, args.rows, args.strength)
    samples = Samples.load(*args.samples).first(args.most)
    print(json.dumps(compared(network, samples, way, args.seed)), flush=True)
    for row in one_step(network, samples, way, args.seed, args.turns, _memory(network)):
        print(json.dumps(row), flush=True)
    return 0


def _memory(network: Any) -> int:
    return network.config.memory if isinstance(network, ReflectSiT) else 1


def parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    made = kind(prog="secondlook reflect")
    sub = made.add_subparsers(dest="act", required=True)
    p = sub.add_parser("pairs", prog="secondlook pairs", help="tries and targets in a file")
    p.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="runs of the world scenes, whose wrong pictures are the tries"
    )
    p.add_argument("--both", action="store_true", help="independent targets too, for an ablation")
    for name, whole, usual, about in (("memory", int, 1, "tries in an item"), ("pool", int, 30_000, "items"),
                                      ("again", int, 4, "items that the tries of a prompt make"),
                                      ("rendered", float, 0.2, "share of corrupted renders among the tries")):  # fmt: skip
        p.add_argument(f"--{name}", type=whole, default=usual, help=f"{about} (default: %(default)s)")
    _shared(p)
    p = sub.add_parser(
        "train", prog="secondlook train reflect", help="a model that reads its tries, from a base's weights"
    )
    p.add_argument("--items", type=Path, help="a file of pairs")
    p.add_argument("--base", type=Path, default=shipped("scenes-base.safetensors"))
    p.add_argument("--form", choices=FORMS, default="edit", help="sft and dpo are baselines, without context")
    p.add_argument("--init", type=Path, help="weights of the same form to go on from")
    p.add_argument("--pairing", choices=PAIRINGS, default="mended")
    p.add_argument("--amplify", choices=("prompt", "both"), default="prompt", help="what guidance amplifies")
    for name, whole, usual, about in (
        ("memory", int, 1, "tries in a context"), ("side", int, 4, "a picture's tokens along an axis"), ("depth", int, 2, "context blocks"),
        ("steps", int, 2000, ""), ("batch", int, 96, ""), ("pool", int, 30_000, "items, where no file is given"),
        ("again", int, 1, ""), ("lr", float, 1e-3, "of AdamW; Muon's is twice that"), ("changed", float, CHANGED, "weight of what changes"),
        ("rendered", float, 0.25, ""), ("save-every", int, 250, "")):  # fmt: skip
        p.add_argument(f"--{name}", type=whole, default=usual, help=f"{about or 'number'} (default: %(default)s)")
    p.add_argument("--mute", action="store_true", help="no remarks: an ablation")
    p.add_argument("--blind", action="store_true", help="no pictures: an ablation")
    p.add_argument("--device")
    _shared(p)
    for command in ("chain", "steps"):
        p = sub.add_parser(command)
        p.add_argument("weights", type=Path)
        p.add_argument("samples", nargs="+", type=Path)
        if command == "chain":
            p.add_argument("--out", type=Path, required=True)
        p.add_argument("--most", type=int, help="samples to begin from: the first so many")
        for name, kind_, usual_ in (("turns", int, 3), ("steps", int, 8), ("guidance", float, 2.5), ("strength", float, 0.0),
                                    ("rows", int, 64), ("seed", int, 0)):  # fmt: skip
            p.add_argument(f"--{name}", type=kind_, default=usual_)
        p.add_argument("--device")
    return made


def _shared(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--samples", nargs="*", type=Path, default=[], help="base samples, of train.verifier collect")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--workers", type=int, default=2, help="processes that make items")


def run(words: Sequence[str], kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> int:
    """`secondlook pairs` and `secondlook train reflect`; for measurements also chain and steps."""
    args = parser(kind).parse_args(words)
    return {"pairs": _pairs, "train": _train, "chain": _chain, "steps": _steps}[args.act](args)


if __name__ == "__main__":
    keep_buffers()
    sys.exit(run(sys.argv[1:]))
