"""The prompt files of published text-to-image benchmarks, each in the format in which it is published. None ships here.

GenEval (2310.11513), GenEval 2 (2512.16853), DrawBench (2205.11487), PartiPrompts (2206.10789), T2I-CompBench (2307.06350), GenAI-Bench
(2406.13743), DPG-Bench (2403.05135) and WISE (2503.07265).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secondlook.errors import ConfigError, nearest


@dataclass(frozen=True)
class Entry:
    """A prompt of a benchmark. key: its name in the benchmark, after which its files are called; category: the row of the benchmark's
    own table that it belongs to; facts: all that its file says of it; tags: further rows, which may overlap."""

    prompt: str
    key: str
    category: str
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tags: tuple[str, ...] = ()


def read(name: str, path: str | Path) -> list[Entry]:
    """The entries of a benchmark's own file, in its order. ConfigError for another benchmark, or a file of another format."""
    if name not in BENCHMARKS:
        raise ConfigError(f'There is no benchmark "{name}"; {nearest(name, BENCHMARKS)}')
    reader, expected = BENCHMARKS[name]
    path = Path(path)
    if not path.exists():
        raise ConfigError(f'There is no "{path}"; {name} is read from {expected}.')
    try:
        found = reader(path)
    except (OSError, UnicodeDecodeError, csv.Error, RecursionError) as error:
        raise ConfigError(f'"{path}" cannot be read ({error}); {name} is read from {expected}.') from None
    except _Wrong as error:
        raise ConfigError(f'"{path}" is no prompt file of {name}: {error}. Expected: {expected}.') from None
    if not found:
        raise ConfigError(f'"{path}" holds no prompt; {name} is read from {expected}.')
    return found


class _Wrong(Exception):
    """What a file lacks, to be told with its name."""


def _text(record: Any, key: str, where: str) -> str:
    if not isinstance(record, dict):
        raise _Wrong(f"{where} is no JSON object")
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f'{where} has no text under "{key}"')
    return value


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _Wrong(f"{where} is not JSON ({error})") from None


def _json_lines(path: Path) -> list[tuple[str, Any]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [(f"line {n}", _json(line, f"line {n}")) for n, line in enumerate(lines, 1) if line.strip()]


RELATIONS = ("left of", "right of", "above", "below")


def _geneval(path: Path) -> list[Entry]:
    found = []
    for number, (where, record) in enumerate(_json_lines(path)):
        prompt, tag = _text(record, "prompt", where), _text(record, "tag", where)
        for part in ("include", "exclude"):
            clauses = record.get(part, [])
            if not isinstance(clauses, list) or (part == "include" and part not in record):
                raise _Wrong(f'{where} has no list under "{part}"')
            for place, clause in enumerate(clauses):
                _geneval_clause(clause, place, f"{where}, {part} {place}")
        found.append(Entry(prompt, f"{number:05d}", tag, record))
    return found


def _geneval_clause(clause: Any, place: int, where: str) -> None:
    _text(clause, "class", where)
    count = clause.get("count")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise _Wrong(f'{where} has no whole number above 0 under "count"')
    if "color" in clause:
        _text(clause, "color", where)
    if "position" in clause:
        position = clause["position"]
        known = isinstance(position, list) and len(position) == 2 and position[0] in RELATIONS
        if not known or isinstance(position[1], bool) or position[1] not in range(place):
            raise _Wrong(f'{where} has no "position" such as ["left of", 0], the number being of a clause before it')


def _geneval2(path: Path) -> list[Entry]:
    found = []
    for number, (where, record) in enumerate(_json_lines(path)):
        prompt, count = _text(record, "prompt", where), record.get("atom_count")
        if isinstance(count, bool) or not isinstance(count, int):
            raise _Wrong(f'{where} has no whole number under "atom_count"')
        asked, skills = record.get("vqa_list"), record.get("skills")
        pairs = isinstance(asked, list) and all(
            isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) and t for t in p) for p in asked
        )
        if not pairs or not asked:
            raise _Wrong(f'{where} has no pairs of question and answer under "vqa_list"')
        if not isinstance(skills, list) or len(skills) != len(asked) or not all(isinstance(s, str) for s in skills):
            raise _Wrong(f'{where} has not as many "skills" as questions')
        found.append(Entry(prompt, f"{number:05d}", f"{count} atoms", record))
    return found


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """A table with a header, with tabs or commas as the header has them."""
    text = path.read_text(encoding="utf-8-sig")
    head = text.partition("\n")[0]
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in head else ","))
    lacking = [c for c in columns if not rows or c not in rows[0]]
    if lacking:
        raise _Wrong(f'its first line has no column "{lacking[0]}"')
    for number, row in enumerate(rows, 1):
        for column in columns:
            if not (row[column] or "").strip():
                raise _Wrong(f'row {number} has nothing under "{column}"')
    return [{str(k): (v or "") for k, v in row.items() if isinstance(v, (str, type(None)))} for row in rows]


def _drawbench(path: Path) -> list[Entry]:
    rows = _rows(path, ("Prompts", "Category"))
    return [Entry(r["Prompts"].strip(), f"{i:05d}", r["Category"].strip(), r) for i, r in enumerate(rows)]


def _parti(path: Path) -> list[Entry]:
    rows = _rows(path, ("Prompt", "Category", "Challenge"))
    return [
        Entry(r["Prompt"].strip(), f"{i:05d}", r["Category"].strip(), r, (r["Challenge"].strip(),))
        for i, r in enumerate(rows)
    ]


def _compbench(path: Path) -> list[Entry]:
    """A category a file. A prompt is what stands before the first tab, as the released code reads it."""
    files = [path] if path.is_file() else sorted(path.glob("*_val.txt"))
    if not files:
        raise _Wrong("the folder has no file *_val.txt")
    found = []
    for file in files:
        category = re.sub(r"_(val|train)$", "", file.stem)
        lines = [line.split("\t")[0].strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
        prompts = [p for p in lines if p]
        if any(p.startswith(("{", "[")) for p in prompts):
            raise _Wrong(f"{file.name} holds JSON, not a prompt a line")
        found += [Entry(p, f"{i:06d}", category) for i, p in enumerate(prompts)]
    return found


def _genai(path: Path) -> list[Entry]:
    records = _json(path.read_text(encoding="utf-8-sig"), "it")
    if not isinstance(records, dict):
        raise _Wrong("it is no JSON object of prompts by their numbers")
    tags: dict[int, list[str]] = {}
    skills = path.with_name("genai_skills.json")
    if skills.is_file():
        said = _json(skills.read_text(encoding="utf-8-sig"), skills.name)
        if not isinstance(said, dict) or not all(isinstance(v, list) for v in said.values()):
            raise _Wrong(f"{skills.name} beside it is no JSON object of lists of numbers")
        for tag, numbers in said.items():
            for number in numbers:
                tags.setdefault(_number(number, skills.name), []).append(tag)
    found = []
    for key, record in records.items():
        own = tuple(tags.get(_number(key, "it"), ()))
        level = next((t for t in ("advanced", "basic") if t in own), "untagged" if tags else "all")
        found.append(Entry(_text(record, "prompt", f'"{key}"'), key, level, record, own))
    return found


def _number(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise _Wrong(f"{where} has {value!r} where a prompt's number belongs") from None


def _dpg(path: Path) -> list[Entry]:
    if path.is_dir():
        files = sorted(
            path.glob("*.txt"), key=lambda f: (not f.stem.isdigit(), int(f.stem) if f.stem.isdigit() else 0, f.stem)
        )
        if not files:
            raise _Wrong("the folder has no file *.txt")
        texts = [(f.stem, f.read_text(encoding="utf-8-sig").strip()) for f in files]
        empty = [key for key, text in texts if not text]
        if empty:
            raise _Wrong(f"{empty[0]}.txt is empty")
        return [Entry(text, key, "all") for key, text in texts]
    found: dict[str, Entry] = {}
    for row in _rows(path, ("item_id", "text")):
        found.setdefault(row["item_id"], Entry(row["text"].strip(), row["item_id"], "all"))
    return list(found.values())


def _wise(path: Path) -> list[Entry]:
    records = _json(path.read_text(encoding="utf-8-sig"), "it")
    if not isinstance(records, list):
        raise _Wrong("it is no JSON list")
    found = []
    for place, record in enumerate(records):
        prompt = _text(record, "Prompt", f"entry {place}")
        number = _number(record.get("prompt_id"), f'"prompt_id" of entry {place}')
        category = _text(record, "Subcategory" if "Category" not in record else "Category", f"entry {place}")
        found.append(Entry(prompt, str(number), category, record, (str(record.get("Subcategory", category)),)))
    return found


BENCHMARKS: dict[str, tuple[Callable[[Path], list[Entry]], str]] = {
    "geneval": (_geneval, 'evaluation_metadata.jsonl, a JSON object a line with "tag", "include" and "prompt"'),
    "geneval2": (_geneval2, 'geneval2_data.jsonl, a JSON object a line with "prompt", "atom_count", "vqa_list", "skills"'),
    "drawbench": (_drawbench, "a table (CSV or TSV) with the columns Prompts and Category"),
    "t2i-compbench": (_compbench, "a file such as color_val.txt with a prompt a line, or the folder with all *_val.txt"),
    "genai": (_genai, 'genai_image.json, objects with a "prompt" by number; genai_skills.json beside it names the skills'),
    "dpg": (_dpg, "the folder with a text file a prompt, or dpg_bench.csv with the columns item_id and text"),
    "parti": (_parti, "PartiPrompts.tsv with the columns Prompt, Category, Challenge"),
    "wise": (_wise, 'a JSON list of objects with "prompt_id", "Prompt" and "Category" or "Subcategory"'),
}  # fmt: skip
