"""The project's own rules, as part of `make check`: ceilings, one direction of imports, no unfinished marks."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES, ROOT_FILES = 400, 60, 12
# A room may import from rooms of its own floor and below, at the top of a file and inside functions alike. Files at the root are
# rooms of their own.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "noise", "notes", "cost", "__init__"),
    ("calls", "registry", "moves"),
    ("flow", "types", "disk", "settings"),
    ("solvers", "models", "metrics", "verify", "eyes", "worlds", "plans", "adapters", "critics"),
    ("engine",),
    ("train", "backends", "sample"),
    ("api", "report", "testing", "runs"),
    ("bench", "cli"),
    ("__main__",),
)
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# Arrows upward that are meant, with the reason.
ALLOWED = {
    ("__init__", "api"),
    ("__init__", "adapters"),
    ("__init__", "backends"),
    ("__init__", "report"),
}  # the front door, on first use
PLANS_KNOW = ("types", "moves", "errors", "calls", "plans")
MARKS = re.compile(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b|# stub|pragma: no cover")


def complaints(path: Path) -> list[str]:
    """What is wrong with one file."""
    text, found = path.read_text(), []
    name = path.relative_to(ROOT)
    lines = text.splitlines()
    if len(lines) > FILE_LINES:
        found.append(f"{name}: {len(lines)} lines, at most {FILE_LINES}")
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES:
            found.append(f"{name}:{node.lineno}: {node.name} is longer than {FUNCTION_LINES} lines")
    if name.parts[0] == "secondlook":
        found += [f"{name}:{i}: {m.group()}" for i, line in enumerate(lines, 1) if (m := MARKS.search(line))]
        found += wrong_imports(name, tree)
    return found


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Rooms that a file imports, wherever in it, with the line. What only a type checker reads is not an import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "secondlook":
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secondlook."):
            yield node.lineno, str(node.module).split(".")[1]
        yield from imports(node)


def wrong_imports(name: Path, tree: ast.AST) -> list[str]:
    """Imports against the direction of the floors."""
    room = name.parts[1] if len(name.parts) > 2 else name.stem
    if room not in FLOOR:
        return [f"{name}: the room {room} has no floor; give it one in tests/house_rules.py"]
    found = []
    for line, target in imports(tree):
        if target not in FLOOR:
            found.append(f"{name}:{line}: the room {target} has no floor")
        elif FLOOR[target] > FLOOR[room] and (room, target) not in ALLOWED:
            found.append(f"{name}:{line}: {room} may not import {target}, which is above it")
        if room == "plans" and target not in PLANS_KNOW:
            found.append(f"{name}:{line}: plans know types and moves only, not {target}")
    return found


def main() -> int:
    files = [p for d in ("secondlook", "tests", "benchmarks", "examples") for p in sorted((ROOT / d).rglob("*.py"))]
    found = [c for p in files for c in complaints(p)]
    root = list((ROOT / "secondlook").glob("*.py"))
    if len(root) > ROOT_FILES:
        found.append(f"secondlook: {len(root)} files at the root, at most {ROOT_FILES}; put new ones into rooms")
    print("\n".join(found) or f"house rules: {len(files)} files, all well")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
