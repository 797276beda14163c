"""Several verifiers as one: rank(of="pickscore, clip, aesthetic"), mean(of=...), min(of=...).

A verifier judges a row alone, and a rank needs a set. So the combination gives each member's number as a component, and as its
own score what a row alone allows: the mean (or the smallest) of the members' z-scores, (number - centre) / spread. With ``rank`` the run's
selector is rank_mean unless another is named, which ranks a prompt's finished pictures in each component and takes the best mean rank (the
verifier ensemble of 2501.09732, sec. 3.2): there centres and spreads do not matter. They do for the plan on its way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secondlook.calls import parse_call
from secondlook.errors import ConfigError
from secondlook.settings import make_named
from secondlook.types import Condition, Verifier
from secondlook.verify import answers

OF = "pickscore, clip, aesthetic"
# Centre and spread of scores over a text-to-image model's pictures: round numbers near what papers report, not measured here
# but for imagereward, whose authors brought it to 0 and 1. Whoever has numbers of his own gives ``scales``.
SCALES: dict[str, tuple[float, float]] = {
    "clip": (26.0, 4.0), "siglip": (0.0, 5.0), "pickscore": (21.0, 1.3), "hpsv2": (0.27, 0.03), "aesthetic": (5.5, 0.6), "imagereward": (0.0, 1.0),
    "objects": (0.5, 0.25), "brightness": (0.5, 0.2), "sharpness": (0.05, 0.03), "learned": (0.5, 0.4), "detector": (0.5, 0.4),
}  # fmt: skip


class Combined:
    """A ``types.Verifier`` of several. least: the smallest z-score in place of their mean. NaN where a member could not judge."""

    def __init__(
        self, name: str, members: Sequence[Verifier], scales: Sequence[tuple[float, float]], least: bool = False
    ):
        names = [m.name for m in members]
        if len(members) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"{name} combines two verifiers or more, each once; got {', '.join(names) or 'none'}.")
        self.name, self.members, self.scales, self.least = name, list(members), [tuple(s) for s in scales], least
        self.inline = all(getattr(m, "inline", False) for m in members)

    @property
    def network(self) -> torch.nn.ModuleList:
        """All that the members look with."""
        return torch.nn.ModuleList(
            n for m in self.members if isinstance(n := getattr(m, "network", None), torch.nn.Module)
        )

    @property
    def oracle(self) -> bool:
        """Whether a member reads what the result is measured with."""
        return any(getattr(m, "oracle", False) for m in self.members)

    def beside(self, device: torch.device | None) -> None:
        """Told where the generator works, before the first picture."""
        for member in self.members:
            tell = getattr(member, "beside", None)
            if tell is not None:
                tell(device)

    def __call__(self, samples: Tensor, conditions: Sequence[Condition]) -> Mapping[str, Tensor]:
        """uint8 [B, *I]; "score" and each member's number by its name, [B] float64."""
        found = {m.name: answers.scores(m(samples, conditions), len(samples))[0] for m in self.members}
        rows = [self._of([found[m.name][i] for m in self.members]) for i in range(len(samples))]
        columns = {"score": rows, **found}
        return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}

    def _of(self, numbers: Sequence[float]) -> float:
        z = [(n - centre) / spread for n, (centre, spread) in zip(numbers, self.scales, strict=True)]
        if any(math.isnan(v) for v in z):
            return math.nan
        return min(z) if self.least else math.fsum(z) / len(z)


def parts(text: str) -> list[str]:
    """Call-strings separated by commas outside brackets and quotes."""
    found, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not depth and not quote:
            found.append("")
        else:
            found[-1] += letter
    return [p.strip() for p in found if p.strip()]


def _combined(name: str, of: str, scales: Any, least: bool = False) -> Combined:
    if scales is not None and not (isinstance(scales, Mapping) and all(_is_scale(v) for v in scales.values())):
        raise ConfigError(f"{name}: scales is {{'verifier': (centre, spread)}} with spreads above 0; got {scales!r}.")
    texts = parts(of)
    members = [make_named("verifier", text) for text in texts]
    known = {**SCALES, **(scales or {})}
    for text, member in zip(texts, members, strict=True):
        if member.name not in known:
            raise ConfigError(
                f'{name}: no centre and spread are known of "{parse_call(text, "verifier").name}"; give them, scales={{{member.name!r}: (centre, spread)}}.'
            )
    return Combined(name, members, [known[m.name] for m in members], least)


def _is_scale(value: Any) -> bool:
    numbers = (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value)
    )
    return bool(numbers and value[1] > 0)


def rank(of: str = OF, scales: Any = None) -> Verifier:
    """Members by name with the mean of their z-scores on the way, and rank_mean as the usual selector."""
    return _combined("rank", of, scales)


rank.selector = "rank_mean"  # type: ignore[attr-defined]


def mean(of: str = OF, scales: Any = None) -> Verifier:
    """The mean of the members' z-scores."""
    return _combined("mean", of, scales)


def least(of: str = OF, scales: Any = None) -> Verifier:
    """The smallest of the members' z-scores: what is bad to one of them is bad."""
    return _combined("min", of, scales, least=True)
