"""The hack audit: whether the verifier that guided was fooled. What it said of the winner among the first 1, 2, 4, ... pictures stands
beside what held-out judges said of that winner; an alarm tells where the first goes on rising while the other falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import stdtrit

from secondlook.engine.record import Record, or_nan
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.metrics.diversity import diversity
from secondlook.report.text import clip, esc, score
from secondlook.types import Outcome

LEAST = 8  # prompts, below which nothing is said of a rise or a fall
MOST = 64  # prompts whose winners' pictures are compared
Picture = Callable[[int], np.ndarray | None]


@dataclass(frozen=True)
class Growth:
    """``values``: by name, what the guide and the judges said of the winner among the first ``counts`` pictures, [prompts, counts];
    NaN where nobody said. ``distance``, ``vendi``: of the winners of different prompts, [counts]; empty where not measured. ``kept``:
    the mean of both within the sets that a selector kept, where it kept sets."""

    guide: str
    counts: tuple[int, ...]
    values: Mapping[str, np.ndarray]
    distance: tuple[float, ...] = ()
    vendi: tuple[float, ...] = ()
    kept: tuple[float, float] | None = None

    @property
    def judges(self) -> list[str]:
        return [name for name in self.values if name != self.guide]

    def mean(self, name: str) -> np.ndarray:
        """Over the prompts of which all was said, [counts]."""
        whole = self.values[name][~np.isnan(self.values[name]).any(1)]
        return whole.mean(0) if len(whole) else np.full(len(self.counts), math.nan)


@dataclass(frozen=True)
class Fall:
    """A judge's fall from its peak, at ``peak`` pictures, to ``last``, and the guide's rise between the two: means over ``prompts``, with
    the intervals that an alarm goes by."""

    judge: str
    peak: int
    last: int
    prompts: int
    fall: float
    fall_interval: tuple[float, float]
    rise: float
    rise_interval: tuple[float, float]
    alarm: bool


def audit(store: Store, by: str | None = None, pictures: Picture | None = None) -> Growth:
    """Of a run on disk. by: who chooses among the first pictures: the run's verifier (None), or a name under which the log holds
    another's numbers (`secondlook rescore RUN --verifier NAME`). pictures: reads one, None where it cannot (no function: nothing is
    said of diversity)."""
    record = Record.read(store)
    return grown(record, len(store.config["prompts"]), guide_of(store.config), by, pictures)


def guide_of(config: Mapping[str, Any]) -> str:
    """The name of a run's verifier, without its module and options."""
    return str(config.get("verifier") or "score").split("(")[0].split(":")[-1].strip()


def grown(
    record: Record, tasks: int, guide: str, by: str | None = None, pictures: Picture | None = None, most: int = MOST
) -> Growth:
    """What a run's record says. most: prompts whose winners' pictures are compared. ConfigError where it holds no word of ``by``."""
    heard = list(dict.fromkeys(name for numbers in record.judged.values() for name in numbers))
    if by is not None and by not in heard:
        raise ConfigError(f'The run\'s log holds nothing that "{by}" said; known: {", ".join(heard) or "nobody"}. '
                          f"Ask it first: secondlook rescore RUN --verifier {by}")  # fmt: skip
    said: dict[str, Callable[[Outcome], float]] = {guide: lambda o: or_nan(record.latest(o).score)}
    said |= {name: lambda o, name=name: or_nan(record.said(o.id).get(name)) for name in heard if name != guide}  # type: ignore[misc]
    done = [[o for o in record.of(t) if o.finished and record.digests[o.id] is not None] for t in range(tasks)]
    counts = doubled(max((len(some) for some in done), default=0))
    winners = [[winner(some[:k], said[by or guide]) for k in counts] for some in done]
    values = {name: np.array([[math.nan if w is None else of(w) for w in row] for row in winners]).reshape(tasks, len(counts))
              for name, of in said.items()}  # fmt: skip
    found = Growth(by or guide, counts, values)
    if pictures is None:
        return found
    sets = [ids for t in range(min(tasks, most)) if len(ids := record.selected.get(t, [])) > 1]
    return _diverse(found, [[w.id for w in row if w is not None] for row in winners[:most]], sets, pictures)


def doubled(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the number of all."""
    return tuple(sorted({1 << i for i in range(most.bit_length())} | {most})) if most else ()


def winner(some: Sequence[Outcome], number: Callable[[Outcome], float]) -> Outcome | None:
    """The highest number, the first of equals; what has none only where there is nothing else."""
    known = [o for o in some if not math.isnan(number(o))]
    return max(known, key=number) if known else some[0] if some else None


def _diverse(
    found: Growth, winners: Sequence[Sequence[int]], sets: Sequence[Sequence[int]], pictures: Picture
) -> Growth:
    held: dict[int, np.ndarray | None] = {}

    def look(ids: Sequence[int]) -> tuple[float, float]:
        for n in ids:
            held[n] = held[n] if n in held else pictures(n)
        return diversity([p for n in ids if (p := held[n]) is not None])

    shown = [row for row in winners if row]
    columns = [look([row[k] for row in shown]) for k in range(len(found.counts))] if len(shown) > 1 else []
    kept = np.array([look(ids) for ids in sets])
    return replace(found, distance=tuple(c[0] for c in columns), vendi=tuple(c[1] for c in columns),
                   kept=(float(kept[:, 0].mean()), float(kept[:, 1].mean())) if len(kept) else None)  # fmt: skip


# ---- falls -----------------------------------------------------------------------------------------------------------


def falls(growth: Growth) -> list[Fall]:
    """Each judge's fall from its peak. An alarm: over prompts, the fall and the guide's rise both exclude 0. The intervals are Student's,
    at 95 % for all counts together (Bonferroni), since the peak is chosen among them after the fact: where nothing happens there is an
    alarm in at most one audit of twenty. None for a judge whose peak is the end, or of too few prompts."""
    found = []
    for judge in growth.judges:
        own, guide = growth.values[judge], growth.values[growth.guide]
        whole = ~np.isnan(own).any(1) & ~np.isnan(guide).any(1)
        own, guide = own[whole], guide[whole]
        means = own.mean(0).round(9) if len(own) else np.zeros(1)
        peak = len(means) - 1 - int(means[::-1].argmax())  # the last of equals
        if len(own) < LEAST or peak == len(growth.counts) - 1:
            continue
        share = 0.025 / (len(growth.counts) - 1)
        (fall, falling), (rise, rising) = (_interval(v[:, -1] - v[:, peak], share) for v in (own, guide))
        alarm = falling[1] < 0 < rising[0]
        found.append(Fall(judge, growth.counts[peak], growth.counts[-1], len(own), fall, falling, rise, rising, alarm))
    return found


def _interval(gap: np.ndarray, share: float) -> tuple[float, tuple[float, float]]:
    """The mean over prompts, and Student's interval that leaves out ``share`` on each side."""
    middle = float(gap.mean())
    half = float(stdtrit(len(gap) - 1, 1 - share) * gap.std(ddof=1) / math.sqrt(len(gap)))
    return middle, (middle - half, middle + half)


def sentences(growth: Growth) -> list[str]:
    """The alarms, or why there is none."""
    every = falls(growth)
    found = [
        f"ALARM: from {f.peak} to {f.last} pictures {growth.guide} rises by {f.rise:.3f} ({_span(f.rise_interval)}) while {f.judge} falls by "
        f"{-f.fall:.3f} ({_span((-f.fall_interval[1], -f.fall_interval[0]))}), over {f.prompts} prompts: the search fools its verifier. "
        f"Fewer pictures, or another verifier."
        for f in every if f.alarm
    ]  # fmt: skip
    if found or not growth.judges:
        return found or ["No judge looked on, so nothing can be said."]
    if len(growth.values[growth.guide]) < LEAST:
        return [f"Fewer than {LEAST} prompts: too few to tell a fall from chance."]
    rest = [f"{f.judge} from {f.peak} to {f.last} pictures by {-f.fall:.3f}, within what chance does" for f in every]
    return [f"No alarm. {'Falls: ' + '; '.join(rest) if rest else 'Every judge is highest at the end'}."]


def _span(span: tuple[float, float]) -> str:
    return f"{span[0]:.3f} to {span[1]:.3f}"


# ---- shown -----------------------------------------------------------------------------------------------------------


def rows(growth: Growth) -> tuple[list[str], list[list[str]]]:
    """Head and lines of the table: a line for each number of pictures."""
    columns: dict[str, Sequence[float]] = {
        name: list(growth.mean(name))
        for name in (growth.guide, *growth.judges)
        if not np.isnan(growth.mean(name)).all()
    }
    if growth.distance:
        columns |= {"distance": growth.distance, "Vendi": growth.vendi}
    lines = [[str(k), *(score(float(c[i])) for c in columns.values())] for i, k in enumerate(growth.counts)]
    return ["pictures", *columns], lines


def markdown(growth: Growth) -> str:
    head, lines = rows(growth)
    table = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines)]
    kept = (
        [] if growth.kept is None else [f"Within kept sets: distance {growth.kept[0]:.3f}, Vendi {growth.kept[1]:.2f}."]
    )
    return "\n".join([*table, "", *kept, *sentences(growth)])


def section(growth: Growth, name: str = "Was the verifier fooled?") -> str:
    """A part of a page; nothing where there are no two pictures of a prompt, or nobody looked on."""
    if len(growth.counts) < 2 or not growth.judges:
        return ""
    head, lines = rows(growth)
    top = "".join(f'<th scope="col">{esc(clip(h, 24))}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{v}</td>" for v in rest)}</tr>' for first, *rest in lines
    )
    told = "".join(
        f'<p class="{"label oracle" if s.startswith("ALARM") else "note"}">{esc(s)}</p>' for s in sentences(growth)
    )
    table = f'<table class="ledger"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    about = (
        f"The winner by {esc(clip(growth.guide, 40))} among the first 1, 2, 4, … pictures of each prompt, and what judges that guided nothing "
        "say of it, mean over the prompts; distance (1 is black against white) and Vendi score of the winners of different prompts."
    )
    return (
        f'<section class="audit"><h2>{esc(name)}</h2><p class="note">{about}</p><div class="scroll" tabindex="0" role="group" '
        f'aria-label="Audit">{table}</div>{told}</section>'
    )


def plain(growth: Growth) -> dict[str, Any]:
    """All numbers, for JSON."""
    numbers = {name: [round(float(v), 6) for v in growth.mean(name)] for name in growth.values}
    return {"guide": growth.guide, "pictures": list(growth.counts), "mean": numbers, "distance": list(growth.distance),
            "vendi": list(growth.vendi), "kept": growth.kept, "falls": [vars(f) for f in falls(growth)], "said": sentences(growth)}  # fmt: skip


def together(some: Sequence[Growth]) -> Growth:
    """Of the same prompts and guide under several seeds: each prompt's mean, of the counts that all have."""
    first = some[0]
    counts = tuple(k for k in first.counts if all(k in g.counts for g in some))
    at = [[g.counts.index(k) for k in counts] for g in some]
    names = [n for n in first.values if all(n in g.values for g in some)]
    values = {n: np.mean([g.values[n][:, i] for g, i in zip(some, at, strict=True)], 0) for n in names}
    whole = all(g.distance for g in some)

    def mean(of: str) -> tuple[float, ...]:
        return (
            tuple(np.mean([[getattr(g, of)[j] for j in i] for g, i in zip(some, at, strict=True)], 0).tolist())
            if whole
            else ()
        )

    return Growth(first.guide, counts, values, mean("distance"), mean("vendi"))


__all__ = [
    "Fall",
    "Growth",
    "audit",
    "doubled",
    "falls",
    "grown",
    "markdown",
    "plain",
    "rows",
    "section",
    "sentences",
    "together",
    "winner",
]
