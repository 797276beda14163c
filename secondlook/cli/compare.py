"""`secondlook compare`: two runs over the prompts that both drew."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from secondlook.bench import compare as runs
from secondlook.disk.atomic import write_whole
from secondlook.errors import ConfigError


def compare(args: argparse.Namespace) -> int:
    for name, ends in (("out", ".html"), ("json", ".json")):
        given = getattr(args, name)
        if given and not (given.lower().endswith(ends) and Path(given).resolve().parent.is_dir()):
            raise ConfigError(f'--{name} expects a {ends} file in an existing folder; got "{given}".')
    found = runs.compare(args.first, args.second)
    print(runs.table(found))
    if args.out:
        print(f"page: {runs.write_page(found, Path(args.out))}")
    if args.json:
        write_whole(Path(args.json), (json.dumps(found.as_dict(), indent=1) + "\n").encode())
    return 0
