"""The report: one self-contained page, written from a run's log and pictures alone."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from secondlook.disk.atomic import write_whole
from secondlook.engine.store import Store
from secondlook.report.page import page_body, title
from secondlook.report.pictures import Album
from secondlook.report.script import SCRIPT
from secondlook.report.style import STYLE
from secondlook.report.text import esc
from secondlook.report.view import read_run

NAME = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write FOLDER/report.html, whole or not at all, and return its path. The run may be finished or under way."""
    store = Store.open(folder)
    try:
        run = read_run(store)
        page = document(title(run), page_body(run, Album(store, run.record.digests)))
    finally:
        store.close()
    path = store.folder / NAME
    write_whole(path, page.encode())
    return path


def document(name: str, body: str) -> str:
    """A whole page of a body, which nothing from outside gets into."""
    # The policy lets nothing in from outside and runs this page's script only, whatever a prompt may hold.
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{esc(name)} – secondlook</title>\n<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
