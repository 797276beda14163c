"""The report: what it says of a run, that it needs nothing from outside, and that a browser shows it on a phone."""

from __future__ import annotations

import base64
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from secondlook.engine.record import outcome_body
from secondlook.engine.store import Store, sha256
from secondlook.errors import ConfigError
from secondlook.moves import Fresh
from secondlook.noise import Key
from secondlook.plans.paths import paths
from secondlook.plans.random import random
from secondlook.plans.zero_order import zero_order
from secondlook.report.charts import Frame, Line, _curve, _ticks
from secondlook.report.html import write_report
from secondlook.report.text import esc, score, seconds
from secondlook.report.view import read_run
from secondlook.types import Condition, Cost, Outcome, Plan, Proposal, Task
from tests.helpers import judged

HOSTILE = "<script>alert(1)</script> & \"quotes\" 'single' </style>"
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if p), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--log-level=0",
    "--virtual-time-budget=3000",
]
MEASURE = (
    "<script>addEventListener('load',()=>{const f=document.querySelector('iframe');"
    "document.title='width '+f.contentDocument.documentElement.scrollWidth})</script>"
)


def config(prompts: list[str], **changes: object) -> dict[str, object]:
    usual: dict[str, object] = {
        "command": "secondlook draw --seed 7 'a red circle'",
        "version": "0.0",
        "commit": "abc1234",
        "world": "scenes",
        "prompts": prompts,
        "plan": "random(n=3)",
        "verifier": "learned",
        "model": "m.safetensors",
        "steps": 4,
        "solver": "euler",
        "guidance": 2.0,
        "seed": 7,
        "budget": {"nfe": 40, "evals": None, "verdicts": None, "seconds": None},
        "versions": {"python": "3.11", "torch": "2"},
    }
    return usual | changes


def make(folder: Path, search: Callable[[Task], Plan], prompts: list[str], rounds: int, **changes: object) -> Path:
    """A run written by hand: each plan carried out for some rounds with made-up scores, in which every fifth is NaN."""
    store = Store.create(folder, config(prompts, **changes))
    rng = np.random.default_rng(3)
    for index, prompt in enumerate(prompts):
        task = Task(index, Condition(prompt), Key(index))
        running, n, answer = search(task), 0, None
        for _ in range(rounds):
            try:
                proposals = next(running) if answer is None else running.send(answer)
            except StopIteration:
                break
            answer = []
            for proposal in proposals:
                answer.append(record(store, n * len(prompts) + index, n, index, proposal, rng))
                n += 1
        store.append(
            [
                (
                    "ended",
                    index,
                    None,
                    {"winner": None, "named": None, "out_of_budget": True, "left": {}, "baseline": False},
                )
            ]
        )
    store.append([("done", None, None, {})])
    store.close()
    return folder


def record(store: Store, number: int, n: int, task: int, proposal: Proposal, rng: np.random.Generator) -> Outcome:
    shown = proposal.stop >= 1 or proposal.ask == "score"
    digest, parts, value = None, {}, math.nan
    if shown:
        picture = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        store.save_picture(number, picture)
        digest = sha256(picture)
        value = math.nan if n % 5 == 4 else float(rng.random())
        parts = {"judge": float(rng.random()), "checker": float(rng.random() < 0.5)}
    outcome = Outcome(number, proposal, value if shown else None)
    cost = Cost(nfe=4, evals=8, verdicts=int(shown), decodes=int(shown), seconds=0.5)
    store.append([("outcome", task, number, outcome_body(outcome, n, cost, digest)), judged(task, number, parts)])
    return outcome


def add_baseline(folder: Path) -> None:
    """The unsearched picture of task 0, drawn outside the search."""
    store = Store.open(folder)
    picture = np.full((8, 8, 3), 90, np.uint8)
    store.save_picture("baseline-0000", picture)
    base = Outcome(-1, Proposal(Fresh(Key(0)), Condition("a")), 0.125)
    cost = Cost(nfe=17, evals=34, verdicts=1, decodes=1, seconds=0.3)
    store.append([("baseline", 0, None, outcome_body(base, -1, cost, sha256(picture))),
                  judged(0, -1, {"judge": 0.25, "checker": 0.0})])  # fmt: skip
    store.close()


class Page(HTMLParser):
    """Elements with attributes; HTMLParser undoes escapes, so hostile text that got through shows as an element."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.elements if t == tag]


@pytest.fixture
def random_run(tmp_path: Path) -> Path:
    return make(tmp_path / "run", lambda t: random(t, n=6), [HOSTILE, "two crosses"], 1)


@pytest.fixture
def climb(tmp_path: Path) -> Path:
    return make(tmp_path / "run", zero_order, ["a red circle"], 9, plan="zero_order()")


@pytest.fixture
def path_run(tmp_path: Path) -> Path:
    folder = make(tmp_path / "run", paths, ["a red circle"], 8, plan="paths()")
    add_baseline(folder)
    return folder


def read(folder: Path) -> tuple[str, Page]:
    text = write_report(folder).read_text()
    return text, Page(text)


@pytest.mark.parametrize("run", ["random_run", "climb", "path_run"])
def test_every_outcome_is_there_once_and_the_winner_is_marked(run: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(run)
    _, page = read(folder)
    store = Store.open(folder)
    seen = read_run(store)
    store.close()
    cards = [a["id"] for a in page.all("div") if a.get("data-o")]
    assert sorted(map(str, cards)) == sorted(f"o{i}" for i in seen.record.outcomes)
    won = {a["id"] for a in page.all("div") if "won" in (a.get("class") or "").split() and a.get("data-o")}
    assert won == {f"o{p.winner.id}" for p in seen.prompts if p.winner is not None}
    assert won


@pytest.mark.parametrize("run", ["random_run", "climb", "path_run"])
def test_nothing_comes_from_elsewhere(run: str, request: pytest.FixtureRequest) -> None:
    text, page = read(request.getfixturevalue(run))
    assert not re.search(r"https?://|url\(|@import", text)
    for _, attributes in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))


def test_a_prompt_stays_text(random_run: Path) -> None:
    text, page = read(random_run)
    assert "<script>alert" not in text
    assert len(page.all("script")) == 1
    assert len(page.all("style")) == 1
    assert any(HOSTILE in w for w in page.words)
    assert any(HOSTILE in (a["alt"] or "") for a in page.all("img"))
    assert all("alt" in a for a in page.all("img"))


def test_all_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    odd = "<b onload=x>"
    folder = make(tmp_path / odd, lambda t: random(t, n=1), [odd], 1, **dict.fromkeys(("plan", "model", "commit"), odd))
    store = Store.open(folder)
    store.append([("failure", None, None, {"verifier": odd, "traceback": f"ValueError: {odd}"})])
    store.close()
    text, page = read(folder)
    assert odd not in text
    assert not [a for a in page.all("b") if "onload" in a]
    assert "1 failure" in text


def test_numbers_of_the_ledger_and_the_summary(path_run: Path) -> None:
    text, _page = read(path_run)
    store = Store.open(path_run)
    [prompt] = read_run(store).prompts
    store.close()
    rows = dict(re.findall(r'<tr><th scope="row">([^<]+)</th>(<td>.*?)</tr>', text))
    assert f"<td>{prompt.spent.nfe}</td>" in rows["NFE"]
    assert "<td>40<" in rows["NFE"]
    assert rows["NFE"].endswith("<td>17</td>")
    assert rows["network evaluations"].endswith("<td>34</td>")
    assert f"<td>{prompt.spent.evals}</td>" in rows["network evaluations"]
    assert "not charged" in text
    assert prompt.winner is not None
    assert "0.125<" in text
    assert score(prompt.winner.score) in text


def test_half_made_outcomes_look_so_and_have_a_picture_only_where_one_was_made(path_run: Path) -> None:
    text, _page = read(path_run)
    cards = re.findall(r'<div class="(card[^"]*)" id="o(\d+)".*?</div>', text)
    store = Store.open(path_run)
    run = read_run(store)
    store.close()
    assert {int(i) for kinds, i in cards if "half" in kinds} == {
        i for i, o in run.record.outcomes.items() if not o.finished
    }
    bare = re.findall(r'id="o(\d+)" data-o="\d+">\s*<span class="pic"><span class="blank"', text)
    assert {int(i) for i in bare} == {i for i, d in run.record.digests.items() if d is None}


def test_finished_or_interrupted_is_told(climb: Path, tmp_path: Path) -> None:
    assert "<b>finished</b>" in read(climb)[0]
    folder = tmp_path / "cut off"
    store = Store.create(folder, config(["a", "b"]))
    [proposal] = list(next(random(Task(0, Condition("a"), Key(0)), n=1)))
    record(store, 0, 0, 0, proposal, np.random.default_rng(0))
    store.close()
    text, _ = read(folder)
    assert "<b>interrupted</b> 0 of 2 prompts" in text
    assert esc(f"secondlook resume '{folder}'") in text
    assert "Not begun." in text


def test_an_oracle_is_labelled(tmp_path: Path) -> None:
    assert "oracle: not a method" in read(make(tmp_path / "a", random, ["x"], 1, verifier="oracle"))[0]
    assert "oracle: not a method" not in read(make(tmp_path / "b", random, ["x"], 1))[0]


def test_missing_measures_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    store = Store.create(folder, {"prompts": []})
    move = Fresh(Key(0))
    outcome = Outcome(0, Proposal(move, Condition("plain")), math.nan)
    picture = np.zeros((4, 4, 3), np.uint8)
    store.save_picture(0, picture)
    store.append(
        [
            (
                "outcome",
                0,
                0,
                outcome_body(outcome, 0, Cost(nfe=1, evals=1, verdicts=1, decodes=1, seconds=0.1), sha256(picture)),
            )
        ]
    )
    store.close()
    text, page = read(folder)
    assert "could not be scored" in text
    assert not [w for w in page.words if "judge, mean" in w or "checker right" in w]


def test_an_empty_run_and_no_run(tmp_path: Path) -> None:
    Store.create(tmp_path / "run", config([])).close()
    assert "0 prompts" in read(tmp_path / "run")[0]
    with pytest.raises(ConfigError, match="is not a run"):
        write_report(tmp_path)


def test_a_picture_the_log_does_not_know_is_not_shown(climb: Path) -> None:
    store = Store.open(climb)
    store.save_picture(0, np.zeros((8, 8, 3), np.uint8))
    store.picture_path(1).unlink()
    store.picture_path(2).write_bytes(b"no picture")
    store.close()
    text, _ = read(climb)
    assert "0 (altered)" in text
    assert "1 (missing)" in text
    assert "2 (damaged)" in text


def test_many_prompts_are_folded_behind_an_overview(tmp_path: Path) -> None:
    prompts = [f"prompt {i}" for i in range(14)]
    _text, page = read(make(tmp_path / "run", lambda t: random(t, n=2), prompts, 1))
    links = {a["href"] for a in page.all("a")}
    ids = {a["id"] for _, a in page.elements if "id" in a}
    assert {f"#p{i}" for i in range(14)} <= links
    assert {str(link).removeprefix("#") for link in links} <= ids
    assert len([a for a in page.all("details") if a.get("class") == "prompt"]) == 14


def test_ids_are_unique(climb: Path) -> None:
    _, page = read(climb)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_large_noisy_pictures_become_light_thumbnails(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    store = Store.create(folder, config(["x"]))
    picture = np.random.default_rng(0).integers(0, 256, (256, 128, 3)).astype(np.uint8)
    outcome = Outcome(0, Proposal(Fresh(Key(0)), Condition("x")), 0.5)
    store.save_picture(0, picture)
    store.append(
        [
            (
                "outcome",
                0,
                0,
                outcome_body(outcome, 0, Cost(nfe=1, evals=1, verdicts=1, decodes=1, seconds=0.1), sha256(picture)),
            )
        ]
    )
    store.close()
    text, _ = read(folder)
    sizes = [len(base64.b64decode(d)) for d in re.findall(r"data:image/jpeg;base64,([^\"]+)", text)]
    assert sizes
    assert max(sizes) < 8000


def test_a_curve_has_a_gap_where_nothing_was_judged() -> None:
    nan = math.nan
    drawn = _curve(Line("score", [(0, 0.5), (1, nan), (2, nan), (3, 1.0), (4, 1.0)], ""), Frame(4.0))
    assert drawn.count("M") == 2
    assert "nan" not in drawn
    assert _curve(Line("score", [(0, nan)], ""), Frame(4.0)) == ""


@pytest.mark.parametrize("end", [1, 7, 40, 99, 1000, 123456])
def test_ticks_are_few_and_within(end: float) -> None:
    ticks = _ticks(end)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] == 0
    assert ticks[-1] <= end


def test_numbers_as_words() -> None:
    assert [score(v) for v in (0.5, math.nan, -3.25, 123.456, math.inf)] == ["0.500", "–", "−3.250", "123.5", "∞"]
    assert [seconds(v) for v in (0.25, 59.6, 605, 7325)] == ["0.2 s", "60 s", "10 min 05 s", "2 h 02 min"]
    assert esc('a\x00<"\ud800') == "a\ufffd&lt;&quot;\ufffd"


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *options, "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("run", ["random_run", "climb", "path_run"])
def test_a_browser_shows_it_on_a_phone(run: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue(run)
    report = write_report(folder)
    # The page is measured in a frame of 360 px, since not every headless window can be made that narrow.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<!doctype html>{MEASURE}<iframe style='width:360px;height:800px;border:0' src='{report.as_uri()}'></iframe>"
    )
    plain = browse(report, tmp_path / "p1")
    assert "CONSOLE" not in plain.stderr, plain.stderr
    assert '<aside id="peek"' in plain.stdout  # the script ran, so the policy's digest is right
    framed = browse(frame, tmp_path / "p2", "--allow-file-access-from-files", "--disable-web-security")
    width = re.search(r"<title>width (\d+)</title>", framed.stdout)
    assert width is not None, framed.stdout[:400]
    assert int(width[1]) <= 360
