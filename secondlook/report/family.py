"""The family tree of a prompt's candidates: fresh draws as roots, each generation a row under the one it came from.

Siblings stand together in a panel with one link to their parent, so that a ring of a hundred neighbours stays readable.
Places are computed here; the page needs no script. The width is that of the widest generation, so long climbs do not
drift sideways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secondlook.report.pictures import Album
from secondlook.report.shown import Shown
from secondlook.report.text import describe, esc, mark, origin, parent, part, score
from secondlook.report.view import Prompted

PAD, LABEL_H, GAP_X, GAP_Y = 6, 18, 10, 26
LEAST_W = 100  # of a panel, for its label
OPEN_FAMILIES = 6  # shown before the rest is folded away
OPEN_CARDS = 48

Card = Callable[[Shown], str]


@dataclass(frozen=True)
class Cell:
    """A card's room in pixels, and the most columns of a panel."""

    width: int = 72
    height: int = 106
    most: int = 10

    @staticmethod
    def around(width: int, height: int) -> Cell:
        """That of cards whose pictures are shown so large."""
        return Cell(width + 8, height + 42, 6)


SMALL = Cell()


@dataclass
class Panel:
    """Siblings in a grid. (x, y) is its corner within the family's box."""

    members: Sequence[Shown]
    parent: int | None
    cell: Cell = SMALL
    x: float = 0.0
    y: float = 0.0

    @property
    def columns(self) -> int:
        n = len(self.members)
        return n if n <= 6 else 6 if n <= 24 else self.cell.most

    @property
    def width(self) -> float:
        return max(LEAST_W, self.columns * self.cell.width + 2 * PAD)

    @property
    def height(self) -> float:
        return math.ceil(len(self.members) / self.columns) * self.cell.height + 2 * PAD + LABEL_H

    def place(self, i: int) -> tuple[float, float]:
        """Corner of the i-th card within the panel."""
        row, column = divmod(i, self.columns)
        left = (self.width - self.columns * self.cell.width) / 2
        return left + column * self.cell.width, PAD + LABEL_H + row * self.cell.height


def family_tree(prompt: Prompted, album: Album, pictured: set[int], cell: Cell = SMALL) -> str:
    """All candidates of a prompt. Those not in ``pictured`` are listed without their picture."""
    if not prompt.outcomes:
        return '<p class="none">No candidate yet.</p>'
    line = prompt.line

    def card(outcome: Shown) -> str:
        return _card(outcome, prompt, album, outcome.id in pictured, outcome.id in line)

    children = _children(prompt.outcomes)
    roots = children.get(None, [])
    lone = [o for o in roots if o.id not in children]
    families = [_family(o, children, line, card, cell) for o in roots if o.id in children]
    # The family that won comes first in what is shown, whatever its number.
    won = [f for f, o in zip(families, (o for o in roots if o.id in children), strict=True) if o.id in line]
    rest = [f for f in families if f not in won]
    room = OPEN_FAMILIES - len(won)
    cards = [f"<li>{card(o)}</li>" for o in sorted(lone, key=lambda o: o.id not in line)]
    parts = [
        *won,
        *rest[:room],
        _fold("".join(rest[room:]), f"{len(rest[room:])} further families"),
        _grid(cards[:OPEN_CARDS]),
        _fold(_grid(cards[OPEN_CARDS:]), f"{len(cards[OPEN_CARDS:])} more draws"),
    ]
    return f'<div class="families">{"".join(parts)}</div>'


def _children(outcomes: Sequence[Shown]) -> dict[int | None, list[Shown]]:
    """Outcomes by parent, in the order proposed; None for those whose parent is not in the log."""
    known = {o.id for o in outcomes}
    table: dict[int | None, list[Shown]] = {}
    for outcome in outcomes:
        up = parent(outcome)
        # A parent is older than its child; anything else in a log would be a circle.
        table.setdefault(up if up in known and up is not None and up < outcome.id else None, []).append(outcome)
    return table


def _family(root: Shown, children: dict[int | None, list[Shown]], line: set[int], card: Card, cell: Cell) -> str:
    """One root and all that came of it, drawn as rows of panels with links."""
    rows = [[Panel([root], None, cell)]]
    while True:
        elders = [o for panel in rows[-1] for o in panel.members]
        row = [Panel(children[o.id], o.id, cell) for o in elders if o.id in children]
        if not row:
            break
        rows.append(row)
    width, height = _arrange(rows)
    where = {o.id: _at(panel, i) for row in rows for panel in row for i, o in enumerate(panel.members)}
    links = "".join(
        _link(where[p.parent], p, any(o.id in line for o in p.members)) for r in rows for p in r if p.parent is not None
    )
    panels = "".join(_panel(p, card) for row in rows for p in row)
    return (
        f'<div class="family" tabindex="0" role="group" aria-label="Family of outcome {root.id}">'
        f'<div class="tree" style="width:{width:.0f}px;height:{height:.0f}px">'
        f'<svg class="links" width="{width:.0f}" height="{height:.0f}" aria-hidden="true">{links}</svg>'
        f"<ol>{panels}</ol></div></div>"
    )


def _arrange(rows: list[list[Panel]]) -> tuple[float, float]:
    """Place every panel under its parent as far as there is room; returns the family's width and height."""
    total = [sum(p.width for p in row) + GAP_X * (len(row) - 1) for row in rows]
    width, y = max(total), 0.0
    where: dict[int, tuple[float, float]] = {}
    for row, needed in zip(rows, total, strict=True):
        x = 0.0
        for panel in row:
            middle = where[panel.parent][0] if panel.parent is not None else width / 2
            panel.x = max(x, min(middle - panel.width / 2, width - needed))
            panel.y = y
            x, needed = panel.x + panel.width + GAP_X, needed - panel.width - GAP_X
            where.update({o.id: _at(panel, i) for i, o in enumerate(panel.members)})
        y += max(p.height for p in row) + GAP_Y
    return width, y - GAP_Y


def _at(panel: Panel, i: int) -> tuple[float, float]:
    """Middle of the lower edge of a panel's i-th card, where links begin."""
    x, y = panel.place(i)
    return panel.x + x + panel.cell.width / 2, panel.y + y + panel.cell.height - 2


def _link(start: tuple[float, float], panel: Panel, won: bool) -> str:
    (x, y), end_x, end_y = start, panel.x + panel.width / 2, panel.y
    middle = max((y + end_y) / 2, end_y - GAP_Y / 2)
    kind = ' class="won"' if won else ""
    return f'<path{kind} d="M{x:.0f} {y:.0f}C{x:.0f} {middle:.0f} {end_x:.0f} {middle:.0f} {end_x:.0f} {end_y:.0f}"/>'


def _panel(panel: Panel, card: Card) -> str:
    label = esc(origin(panel.members[0]))
    cards = []
    for i, outcome in enumerate(panel.members):
        x, y = panel.place(i)
        cards.append(f'<li style="left:{x:.0f}px;top:{y:.0f}px">{card(outcome)}</li>')
    style = f"left:{panel.x:.0f}px;top:{panel.y:.0f}px;width:{panel.width:.0f}px;height:{panel.height:.0f}px"
    head = f'<span class="of" title="{label}">{label}</span>'
    return f'<li class="panel" style="{style}">{head}<ol>{"".join(cards)}</ol></li>'


def _card(outcome: Shown, prompt: Prompted, album: Album, pictured: bool, on_line: bool) -> str:
    """A candidate: its picture, number, score and the checker's mark."""
    won = prompt.winner is not None and outcome.id == prompt.winner.id
    kinds = ["card", *(["won"] if won else ["line"] if on_line else []), *([] if outcome.finished else ["half"])]
    alt = describe(outcome) + ("; the winner" if won else "")
    if pictured:
        picture = album.thumb(outcome.id, alt)
    else:
        picture = f'<span class="blank" role="img" aria-label="{esc(alt)}"></span>'
    time = "" if outcome.finished else f'<span class="time">t {outcome.proposal.stop:.2g}</span>'
    link = album.link(outcome.id) if pictured else None
    number = str(outcome.id)
    if link is not None:
        number = f'<a href="{esc(link[0])}" title="full size, {link[1]}">{number}</a>'
    star = '<span class="star">★ winner</span>' if won else ""
    said = score(outcome.score) if outcome.proposal.ask == "score" else ""
    return (
        f'<div class="{" ".join(kinds)}" id="o{outcome.id}" data-o="{outcome.id}">'
        f'<span class="pic">{picture}{time}{star}</span>'
        f'<span class="id">{number}{mark(part(outcome, "checker"))}</span><span class="val">{said}</span></div>'
    )


def _grid(cards: Sequence[str]) -> str:
    return f'<ol class="draws">{"".join(cards)}</ol>' if cards else ""


def _fold(content: str, title: str) -> str:
    if not content:
        return ""
    return f'<details class="more"><summary>{title}</summary><div class="families">{content}</div></details>'
