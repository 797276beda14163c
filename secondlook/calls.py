"""Call-strings: `zero_order(neighbours=4, radius=0.3)`. Parsed, never executed; literals only."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from secondlook.errors import ConfigError, nearest

MOST = 100_000  # of anything a plan is asked for: beyond it a slip of the hand would fill the memory


@dataclass(frozen=True)
class Call:
    """A name (`random`, or `package.module:attribute`) and literal arguments."""

    name: str
    args: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        inside = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.options]
        return f"{self.name}({', '.join(inside)})"


def parse_call(text: str, what: str = "plan") -> Call:
    """Read `name`, `name(a=1)` or `module:attr(a=1)`; ConfigError for anything that is not a literal."""
    head, bracket, tail = text.strip().partition("(")
    head = head.strip()
    module, colon, attr = head.partition(":")
    names = [*module.split("."), attr] if colon else [head]
    if not all(n.isidentifier() for n in names):
        raise ConfigError(f'A {what} is written name(option=value, …); "{text}" is not.')
    if not bracket:
        return Call(head)
    refusal = ConfigError(f'The {what} "{text}" cannot be read: write {head}(option=value, …) with plain values only.')
    try:
        node = ast.parse(f"f({tail}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise refusal
        args = tuple(ast.literal_eval(a) for a in node.args)
        pairs = tuple((k.arg, ast.literal_eval(k.value)) for k in node.keywords)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise refusal from None
    if any(k is None for k, _ in pairs):
        raise refusal
    return Call(head, args, tuple((str(k), v) for k, v in pairs))


def bind(call: Call, target: Callable[..., Any], skip: int = 0) -> dict[str, Any]:
    """The options a call gives to ``target`` (whose first ``skip`` parameters the engine fills), checked against its
    signature and annotations; ConfigError with the nearest option and the signature otherwise."""
    parameters = [p for p in list(inspect.signature(target).parameters.values())[skip:] if _literal(p)]
    names = [p.name for p in parameters]
    shown = f"{call.name}({', '.join(str(p).split(':')[0] + _default(p) for p in parameters)})"
    if len(call.args) > len(names):
        raise ConfigError(
            f"{call.name} takes {len(names)} options; got {len(call.args)} values. It is written {shown}."
        )
    options = dict(zip(names, call.args, strict=False))
    for name, value in call.options:
        if name not in names:
            raise ConfigError(f'{call.name} has no option "{name}"; {nearest(name, names)} It is written {shown}.')
        if name in options:
            raise ConfigError(f'{call.name} was given "{name}" twice.')
        options[name] = value
    try:
        hints = get_type_hints(target if inspect.isfunction(target) else target.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # annotations of another package that name what only its type checker sees
        hints = {}
    for name, value in options.items():
        options[name] = _fit(call.name, name, value, hints.get(name))
    missing = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.name not in options]
    if missing:
        raise ConfigError(f"{call.name} needs {', '.join(missing)}. It is written {shown}.")
    return options


def _literal(p: inspect.Parameter) -> bool:
    """Whether a call-string can give this parameter: named, and not a function."""
    named = p.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return named and (p.default is inspect.Parameter.empty or not callable(p.default))


def _default(p: inspect.Parameter) -> str:
    return "" if p.default is inspect.Parameter.empty else f"={p.default!r}"


def _fit(call: str, name: str, value: Any, hint: Any) -> Any:
    """The value as the annotation expects it; bool is no int, and an int serves as a float."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{call}: {name} expects {_A[hint]}; got {value!r}.")
    return value


_A = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "True or False"}


def positive(call: str, **values: float) -> None:
    """ConfigError naming the first value that is not above zero, or beyond MOST."""
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{call}: {name} must be above 0; got {value!r}.")
        if value > MOST:
            raise ConfigError(f"{call}: {name} must be at most {MOST}; got {value!r}.")
