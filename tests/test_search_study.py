"""The studies of `make bench-search`: that they run whole in small, and publish what they found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from secondlook.bench import search
from secondlook.bench.methods import Method


@pytest.mark.parametrize("text", sorted({m for s in search.STUDIES for m in s.methods}))
def test_every_method_of_the_studies_is_one_that_can_be_drawn(text: str) -> None:
    Method.parse(text, {})


def test_studies_are_carried_out_in_order_and_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [dataclasses.replace(s, methods=m, every=12) for s, m in
             zip(search.STUDIES[:1] + search.STUDIES[2:3], (("random(n=99) --steps 2", "random(n=99) --steps 3"), ("evolve(n=2) --steps 2",)),
                 strict=True)]  # fmt: skip
    monkeypatch.setattr(search, "STUDIES", tuple(small))
    words = ["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"), "--workers", "1", "--quick"]
    assert search.main(words) == 0
    told = json.loads((tmp_path / "out" / "search" / "results.json").read_text())
    assert told["baseline"] == "tuned best of n"
    assert {r["budget"] for r in told["rows"]} == {40, 80}
    text = (tmp_path / "docs" / "results" / "search-search.md").read_text()
    assert "evolve(n=2) --steps 2" in text
    assert "times that of tuned best of n" in text
    assert told["command"].split()[0] in text
    assert search.main([*words, "--only", "tune"]) == 0  # finished already: read again
    with pytest.raises(SystemExit):
        search.main([*words, "--only", "tun"])
