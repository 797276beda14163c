"""What judges of every kind answer, checked and brought into one form. Each error says what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from secondlook.types import Condition, Remark


class BadAnswer(Exception):
    """An answer that cannot be read."""


def told(verifier: Callable[..., Any], samples: Tensor, conditions: Sequence[Condition], times: Sequence[float]) -> Any:
    """What a verifier says of samples uint8 [B, *I], one condition and one time in [0, 1] a row; ``times`` reach those alone
    that say ``reads_time = True``. A time is that of the data estimate shown: 1 for a finished picture, NaN where it is unknown."""
    if getattr(verifier, "reads_time", False):
        return verifier(samples, conditions, times=list(times))
    return verifier(samples, conditions)


def numbers(found: Any, count: int) -> list[float]:
    """``count`` floats, one a picture, from a tensor, an array or a sequence of numbers."""
    expected = f"expected {count} number{'s' * (count != 1)}, one a picture"
    if isinstance(found, (str, bytes, Mapping, Set)) or found is None or not hasattr(found, "__len__"):
        raise BadAnswer(f"{expected}; got {_kind(found)}")
    if isinstance(found, (Tensor, np.ndarray)):
        if found.ndim != 1:
            raise BadAnswer(f"{expected}; got shape {list(found.shape)}")
        found = found.tolist()
    if len(found) != count:
        raise BadAnswer(f"{expected}; got {len(found)}")
    try:
        values = [float(v) for v in found]
    except (TypeError, ValueError):
        raise BadAnswer(f"{expected}; got {_kind(next(v for v in found if not _is_number(v)))} among them") from None
    return values


def scores(found: Any, count: int) -> tuple[list[float], list[dict[str, float]]]:
    """A verifier's scores, and each picture's named components where it gives any."""
    if not isinstance(found, Mapping):
        return numbers(found, count), [{} for _ in range(count)]
    if "score" not in found:
        raise BadAnswer(f'expected components with "score" among them; got {", ".join(map(str, found)) or "none"}')
    columns = {str(name): numbers(column, count) for name, column in found.items()}
    total = columns.pop("score")
    return total, [{name: column[i] for name, column in columns.items()} for i in range(count)]


def remarks(found: Any, count: int) -> list[Remark | None]:
    """A critic's remarks; None where it could not say."""
    expected = f"expected {count} remark{'s' * (count != 1)}, one a picture"
    if isinstance(found, (str, bytes)) or not isinstance(found, Sequence):
        raise BadAnswer(f"{expected}; got {_kind(found)}")
    if len(found) != count:
        raise BadAnswer(f"{expected}; got {len(found)}")
    return [_remark(remark, expected) for remark in found]


def _remark(found: Any, expected: str) -> Remark | None:
    """A remark whose score is a float, as the log keeps it."""
    if found is None:
        return None
    if not (isinstance(found, Remark) and isinstance(found.text, str)):
        raise BadAnswer(f"{expected}; got {_kind(found)} among them")
    if found.score is None:
        return found
    if isinstance(found.score, (str, bytes)) or not _is_number(found.score):
        raise BadAnswer(f"expected a number as a remark's score; got {_kind(found.score)}")
    return replace(found, score=float(found.score))


def shares(found: Any, count: int) -> list[float]:
    """A comparer's shares for the first picture of each pair, in [0, 1]."""
    values = numbers(found, count)
    if any(not math.isnan(v) and not 0 <= v <= 1 for v in values):
        raise BadAnswer(f"expected shares from 0 to 1; got {next(v for v in values if not 0 <= v <= 1)}")
    return values


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _kind(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
