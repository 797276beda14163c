"""The project's own rules, as part of `make check`: ceilings, one direction of imports, no unfinished marks."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES, PLAN_LINES = 400, 60, 80
# A room may import from rooms before it and from itself; mathematics has no room.
LAYERS = {
    "models": 1,
    "worlds": 1,
    "metrics": 1,
    "adapters": 1,
    "verify": 2,
    "critics": 2,
    "plans": 2,
    "train": 3,
    "engine": 3,
    "report": 4,
    "bench": 5,
}
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


def wrong_imports(name: Path, tree: ast.Module) -> list[str]:
    """Imports at the top of a file against the direction of the layers."""
    room = name.parts[1] if len(name.parts) > 2 else None
    found = []
    for node in tree.body:
        if not (isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("secondlook.")):
            continue
        target = node.module.split(".")[1]
        if room in LAYERS and target in LAYERS and target != room and LAYERS[target] > LAYERS[room]:
            found.append(f"{name}:{node.lineno}: {room} may not import {target}")
        if room == "plans" and target not in PLANS_KNOW:
            found.append(f"{name}:{node.lineno}: plans know types and moves only, not {target}")
        if room in LAYERS and target in ("cli", "commands"):
            found.append(f"{name}:{node.lineno}: nothing but the command line imports {target}")
    return found


def main() -> int:
    files = [p for d in ("secondlook", "tests", "benchmarks", "examples") for p in sorted((ROOT / d).rglob("*.py"))]
    found = [c for p in files for c in complaints(p)]
    print("\n".join(found) or f"house rules: {len(files)} files, all well")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
