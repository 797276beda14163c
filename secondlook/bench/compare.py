"""Two runs compared over the prompts that both drew: by score, by judges and by the checker, with paired intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.bench.stats import Bootstrap, sign_flip
from secondlook.disk.atomic import write_whole
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.report.html import document
from secondlook.report.pictures import Album
from secondlook.report.text import clip, esc, plural
from secondlook.types import Outcome

LEAST = 8  # prompts below which an interval over them would say nothing, as in an audit
MOST_SHOWN = 200  # prompts with pictures on the page
Pair = tuple[int, int, str]  # a prompt's place in either run, and its text


@dataclass(frozen=True)
class Line:
    """One measure: the means of both runs' winners over ``count`` prompts that have it in both, the mean paired difference (second less
    first), its 95 % interval over prompts (NaN below LEAST) and the two-sided p of a sign-flip test."""

    measure: str
    count: int
    first: float
    second: float
    gap: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Compared:
    """pairs: the prompts that both runs have. said: what a reader must know of the comparison."""

    folders: tuple[str, str]
    pairs: Sequence[Pair]
    lines: Sequence[Line]
    said: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """Literals; numbers that are not finite are None."""
        rows = [
            {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in vars(x).items()}
            for x in self.lines
        ]
        return {"folders": list(self.folders), "prompts": len(self.pairs), "measures": rows, "said": list(self.said)}


def compare(first: str | Path, second: str | Path) -> Compared:
    """Compare two runs. ConfigError where they have no prompt in common."""
    stores = [Store.open(first), Store.open(second)]
    try:
        return _compare(stores)
    finally:
        for store in stores:
            store.close()


def _compare(stores: Sequence[Store]) -> Compared:
    configs, records = [s.config for s in stores], [Record.read(s) for s in stores]
    pairs = list(paired(configs[0]["prompts"], configs[1]["prompts"]))
    names = (str(stores[0].folder), str(stores[1].folder))
    if not pairs:
        raise ConfigError(
            f'The runs "{names[0]}" and "{names[1]}" have no prompt in common, so there is nothing to compare.'
        )
    said = [f"{plural(len(pairs), 'prompt')} in both; {len(configs[0]['prompts']) - len(pairs)} only in the first, "
            f"{len(configs[1]['prompts']) - len(pairs)} only in the second."]  # fmt: skip
    places = ([p[0] for p in pairs], [p[1] for p in pairs])
    values = [[_measures(r, task) for task in own] for r, own in zip(records, places, strict=True)]
    heard = list(dict.fromkeys(n for run in values for each in run for n in each))
    if configs[0].get("verifier") != configs[1].get("verifier"):
        heard = [n for n in heard if n != "score"]
        said.append(f"The scores are of different verifiers ({configs[0].get('verifier')}, {configs[1].get('verifier')}) and are not compared; "
                    "`secondlook rescore DIR --verifier NAME` on both gives numbers that are.")  # fmt: skip
    lines = [_line(n, *([each.get(n, math.nan) for each in run] for run in values)) for n in _ordered(heard)]
    if len(pairs) < LEAST:
        said.append(f"Intervals need {LEAST} prompts in both.")
    open_runs = [name for name, record in zip(names, records, strict=True) if not record.done]
    said += [f'The run "{name}" is not finished.' for name in open_runs]
    return Compared(names, pairs, [x for x in lines if x.count], said)


def paired(first: Sequence[str], second: Sequence[str]) -> Iterator[Pair]:
    """Places of the same prompt in two lists; a prompt that comes several times is paired in order."""
    had: Counter[str] = Counter()
    places: dict[tuple[str, int], int] = {}
    for i, prompt in enumerate(second):
        places[prompt, had[prompt]] = i
        had[prompt] += 1
    had.clear()
    for i, prompt in enumerate(first):
        j = places.get((prompt, had[prompt]))
        had[prompt] += 1
        if j is not None:
            yield i, j, prompt


def _measures(record: Record, task: int) -> dict[str, float]:
    """What is said of a prompt's winner, and what its search cost; nothing where there is no judged picture."""
    winner = record.winner(task)
    if winner is None:
        return {}
    score = {} if winner.score is None else {"score": winner.score}
    return {**score, **record.said(winner.id), "evals": float(record.spent(task).evals)}


def _ordered(names: Sequence[str]) -> list[str]:
    """The score first, then judges, then the checker, the cost last."""
    last = {"score": 0, "checker": 2, "evals": 3}
    return sorted(names, key=lambda n: last.get(n, 1))


def _line(measure: str, first: Sequence[float], second: Sequence[float]) -> Line:
    a, b = np.asarray(first), np.asarray(second)
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    if not len(a):
        return Line(measure, 0, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
    gaps = b - a
    low, high, p = math.nan, math.nan, math.nan
    if len(a) >= LEAST and measure != "evals":
        low, high = Bootstrap([""] * len(a), 1).gap(gaps[None])
        p = sign_flip(gaps)
    return Line(measure, len(a), float(a.mean()), float(b.mean()), float(gaps.mean()), low, high, p)


HEAD = ("measure", "prompts", "first", "second", "second - first", "95 % interval", "p")


def cells(line: Line) -> list[str]:
    """A line as a table prints it."""
    spread = "" if math.isnan(line.low) else f"{line.low:+.3f} to {line.high:+.3f}"
    p = "" if math.isnan(line.p) else f"{line.p:.3g}"
    return [line.measure, str(line.count), f"{line.first:.3f}", f"{line.second:.3f}", f"{line.gap:+.3f}", spread, p]


def table(found: Compared) -> str:
    """As text, with what must be known of it."""
    rows = [HEAD, *(cells(x) for x in found.lines)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]).rstrip()
        for r in rows
    ]
    return "\n".join([f"first:  {found.folders[0]}", f"second: {found.folders[1]}", *lines, *found.said])


def write_page(found: Compared, path: Path) -> Path:
    """The table and both runs' pictures of each prompt, as one self-contained page; returns its path."""
    stores = [Store.open(f) for f in found.folders]
    try:
        records = [Record.read(s) for s in stores]
        albums = [Album(s, r.digests) for s, r in zip(stores, records, strict=True)]
        body = _page(found, records, albums)
    finally:
        for store in stores:
            store.close()
    write_whole(path, document("Two runs compared", body).encode())
    return path


def _page(found: Compared, records: Sequence[Record], albums: Sequence[Album]) -> str:
    head = "".join(f"<th>{esc(h)}</th>" for h in HEAD)
    rows = "".join(f"<tr>{''.join(f'<td>{esc(c)}</td>' for c in cells(x))}</tr>" for x in found.lines)
    told = "".join(f'<p class="note">{esc(t)}</p>' for t in found.said)
    names = "".join(
        f"<p>{esc(which)}: {esc(Path(f).name)}</p>" for which, f in zip(("First", "Second"), found.folders, strict=True)
    )
    shown = "".join(_pictures(pair, records, albums) for pair in found.pairs[:MOST_SHOWN])
    more = len(found.pairs) - MOST_SHOWN
    rest = f'<p class="note">and {plural(more, "more prompt")}</p>' if more > 0 else ""
    return f"<main><h1>Two runs compared</h1>{names}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{told}{shown}{rest}</main>"


def _pictures(pair: Pair, records: Sequence[Record], albums: Sequence[Album]) -> str:
    winners = [r.winner(i) for r, i in zip(records, pair[:2], strict=True)]
    tags = [_picture(w, album, which) for w, album, which in zip(winners, albums, ("first", "second"), strict=True)]
    return f'<section><h2>{esc(clip(pair[2], 200))}</h2><div class="pair">{"".join(tags)}</div></section>'


def _picture(winner: Outcome | None, album: Album, which: str) -> str:
    if winner is None:
        return f"<figure><figcaption>{which}: no picture</figcaption></figure>"
    known = winner.score is not None and not math.isnan(winner.score)
    score = f"score {winner.score:.3f}" if known else "not scored"
    return f"<figure>{album.large(winner.id, which)}<figcaption>{which}: {score}</figcaption></figure>"
