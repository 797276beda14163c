"""Methods of a benchmark: each is what `secondlook draw` takes, a plan and its flags, and runs of it, one a seed."""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import re
import shlex
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from secondlook import api
from secondlook.cli.options import add_settings, given
from secondlook.engine.record import Record
from secondlook.engine.store import LOG, Store
from secondlook.errors import BudgetError, ConfigError
from secondlook.models.allocator import keep_buffers
from secondlook.settings import Settings, make_plan

GROUPS = ("search", "sampling", "guidance", "times", "pipeline")


@dataclass(frozen=True)
class Method:
    """``text`` is how it was written and what tables call it; ``options`` are `draw`'s, the plan among them. most: the largest budget
    that it is drawn at (None: the benchmark's)."""

    text: str
    options: Mapping[str, Any] = field(hash=False)
    most: float | None = None

    @staticmethod
    def parse(text: str, shared: Mapping[str, Any]) -> Method:
        """From "PLAN --flag value ...", the flags as `secondlook draw` has them; what is not said is as ``shared`` says."""
        plan, *rest = re.split(r"\s+(?=--)", text.strip(), maxsplit=1)
        if not plan or plan.startswith("--"):
            raise ConfigError(f'A method is a plan and then flags, such as "random(n=1000) --steps 8"; got "{text}".')
        parser = _Flags(prog="secondlook bench", add_help=False)
        add_settings(parser, GROUPS)
        parser.add_argument("--most", type=float)
        told = parser.parse_args(shlex.split(rest[0]) if rest else [])
        most, own = told.most, given(told)
        options = {**shared, **own, "plan": plan}
        api.asked(options)
        make_plan(plan)  # a slip in the last method shows before the first is drawn
        return Method(text, options, most)

    @property
    def slug(self) -> str:
        """A folder's name."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.text).strip("-")[:60]
        return f"{name}-{hashlib.sha256(self.text.encode()).hexdigest()[:6]}"


class _Flags(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"A method of the benchmark: {message}.")


@dataclass(frozen=True)
class Job:
    """One run. budget: its limit a prompt, in ``unit``."""

    method: Method
    seed: int
    unit: str
    budget: float
    folder: Path
    prompts: tuple[str, ...]

    def carry(self) -> Path:
        """The run made, or gone on with; ConfigError where its folder holds another one, BudgetError where the budget buys nothing."""
        if not (self.folder / LOG).exists():
            options: dict[str, Any] = {**self.method.options, self.unit: self.budget, "seed": self.seed}
            api.draw(list(self.prompts), out=self.folder, **options)
            return self.folder
        had = Store.open(self.folder).config
        wanted = {"prompts": list(self.prompts), "seed": self.seed, "budget": {self.unit: self.budget}}
        settings, _, _ = api.asked({k: v for k, v in self.method.options.items() if k != "plan"})
        wanted.update({k: v for k, v in settings.given().items() if k in self.method.options})
        wanted["plan"] = Settings(plan=self.method.options["plan"]).resolved().plan
        had = {**had, "plan": Settings(plan=had["plan"]).resolved().plan}
        for key, value in wanted.items():
            if had.get(key) != (list(value) if isinstance(value, tuple) else value):
                raise ConfigError(f'"{self.folder}" holds a run with another {key}; name another --out, or delete it.')
        api.resume(self.folder)
        return self.folder


def carry_all(jobs: Sequence[Job], workers: int, threads: int) -> None:
    """All of them, ``workers`` at a time in processes of ``threads`` threads each; finished ones are only looked at."""
    todo = [j for j in jobs if not _done(j.folder)]
    for job in jobs:
        if job not in todo:
            job.carry()  # tells a folder that holds another run
    if workers == 1:
        for i, job in enumerate(todo):
            _say(i, len(todo), job)
            _try(job.carry)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (threads,)) as pool:
        for i, (job, done) in enumerate([(j, pool.submit(j.carry)) for j in todo]):
            _try(done.result)
            _say(i, len(todo), job)


def _try(carry: Callable[[], Any]) -> None:
    """A budget that buys a method nothing leaves its place in the table empty."""
    try:
        carry()
    except BudgetError as error:
        print(f"secondlook: {error}", file=sys.stderr, flush=True)


def _begin(threads: int) -> None:
    """A worker's start. It ends with the process that started it, however that ends: else it would hold its run for hours."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)  # what was reported done is on the disk

    threading.Thread(target=watch, name="secondlook-parent", daemon=True).start()
    keep_buffers()
    torch.set_num_threads(threads)


def _say(i: int, count: int, job: Job) -> None:
    print(
        f"run {i + 1} of {count}: {job.method.text}, seed {job.seed}, {job.budget:g} {job.unit}",
        file=sys.stderr,
        flush=True,
    )


def _done(folder: Path) -> bool:
    return (folder / LOG).exists() and Store.open(folder).has("done")


def runs_of(method: Method, seed: int, unit: str, budgets: Sequence[float], out: Path, prompts: Sequence[str]) -> Job:
    """The run with the largest budget, from which smaller ones are read where the plan does not look at its budget."""
    return Job(method, seed, unit, max(_own(method, budgets)), out / method.slug / f"seed-{seed}", tuple(prompts))


def _own(method: Method, budgets: Sequence[float]) -> list[float]:
    """The budgets that a method is drawn at."""
    found = [b for b in budgets if method.most is None or b <= method.most]
    if not found:
        raise ConfigError(f'"{method.text}" is drawn at most at {method.most:g}, below all budgets of the benchmark.')
    return found


def apart(job: Job, budgets: Sequence[float]) -> list[Job]:
    """Runs of their own for the smaller budgets, for a plan that asked what was left of its budget; else none."""
    if not (job.folder / LOG).exists():
        return []
    ended = Record.read(Store.open(job.folder)).ended.values()
    if not any(body.get("asked") for body in ended):
        return []
    return [
        Job(job.method, job.seed, job.unit, b, job.folder.with_name(f"{job.folder.name}-{b:g}"), job.prompts)
        for b in budgets
        if b < job.budget
    ]
