"""The report of runs with large pictures and free prompts: how heavy, what is escaped and clipped, what is linked."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secondlook.engine.record import outcome_body
from secondlook.engine.store import Store, sha256
from secondlook.noise import Key
from secondlook.plans.random import random
from secondlook.plans.zero_order import zero_order
from secondlook.report.html import write_report
from secondlook.report.pictures import BIG_SIZES, Album
from secondlook.report.text import clip, esc
from secondlook.types import Condition, Cost, Outcome, Plan, Task
from tests.helpers import judged
from tests.test_report import CHROMIUM, MEASURE, Page, browse, config

LONG = (
    'A photograph of a "quiet" harbour at dawn, <b>bold</b> & bright, with 🚢🌅\nand a second line: '
    + "gulls, nets, " * 30
)[:400]
FREE = [LONG, "a red circle", "an astronaut, oil on canvas"]


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """Noise whose amplitude falls with frequency as in photographs, a gradient and fine grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width
    reach = np.maximum(np.hypot(rows, columns), 1)[..., None]
    spectrum = (rng.normal(size=(*reach.shape[:2], 3)) + 1j * rng.normal(size=(*reach.shape[:2], 3))) / reach
    waves = np.fft.irfft2(spectrum, s=(height, width), axes=(0, 1))
    ground = 120 + np.linspace(-50, 50, height)[:, None, None] * np.array([1.0, 0.3, -1.0])
    grain = rng.normal(size=waves.shape) * 4
    return (ground + 45 * waves / waves.std() + grain).clip(0, 255).astype(np.uint8)


def make(
    folder: Path,
    search: Callable[[Task], Plan],
    prompts: Sequence[str],
    pictures: Sequence[np.ndarray],
    judges: Sequence[str] = (),
    rounds: int = 1,
    **changes: object,
) -> Path:
    """A run written by hand, whose outcomes show ``pictures`` in turn."""
    store = Store.create(folder, config(list(prompts), **{"verifier": "reward", "world": "pipeline"} | changes))
    rng = np.random.default_rng(3)
    files: list[bytes] = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "png")
        files.append(buffer.getvalue())
    for index, prompt in enumerate(prompts):
        running, n, answer = search(Task(index, Condition(prompt), Key(index))), 0, None
        for _ in range(rounds):
            proposals = next(running) if answer is None else running.send(answer)
            answer = []
            for proposal in proposals:
                number = n * len(prompts) + index
                which = number % len(pictures)
                store.picture_path(number).write_bytes(files[which])
                said = {j: float(rng.uniform(0.2, 0.4)) + 5 * (j == "aesthetic") for j in judges}
                outcome = Outcome(number, proposal, float(rng.normal()))
                body = outcome_body(
                    outcome, n, Cost(nfe=4, evals=8, verdicts=1, decodes=1, seconds=2.5), sha256(pictures[which])
                )
                store.append([("outcome", index, number, body), judged(index, number, said)])
                answer.append(outcome)
                n += 1
        store.append(
            [
                (
                    "ended",
                    index,
                    None,
                    {"winner": None, "named": None, "out_of_budget": False, "left": {}, "baseline": False},
                )
            ]
        )
    store.append([("done", None, None, {})])
    store.close()
    return folder


def embedded(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for _, data in found]


def seen(text: str) -> str:
    """What a reader sees: the words of the page, without style and script."""
    return " ".join(Page(re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)).words)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = [photo(1024, 1024, i) for i in range(3)]
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("heavy") / "run"
    return make(folder, partial(random, n=16), FREE, [*pictures, noise], ["clip"])


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    pictures = [photo(832, 1216, i) for i in range(2)]
    return make(tmp_path / "run", zero_order, FREE, pictures, ["clip", "aesthetic"], 3)


def test_a_run_of_large_pictures_stays_light(heavy: Path) -> None:
    begin = time.process_time()
    text = write_report(heavy).read_text()
    assert time.process_time() - begin < 10  # about 3 where nothing else runs
    assert len(text.encode()) < 6e6
    pictures = embedded(text)
    assert len(pictures) == 48 + 6
    assert {max(p.size) for p in pictures} == set(BIG_SIZES)
    assert {p.format for p in pictures} == {"JPEG"}
    assert 'class="crisp"' not in text


def test_large_pictures_link_to_their_files(wide: Path) -> None:
    text = write_report(wide).read_text()
    page = Page(text)
    links = {str(a["href"]) for a in page.all("a") if not str(a["href"]).startswith("#")}
    assert links == {p.relative_to(wide).as_posix() for p in (wide / "pictures").glob("*.png")}
    assert "full size, 1216 × 832" in text
    assert all((a["width"], a["height"]) == ("1216", "832") for a in page.all("img"))
    assert {p.size for p in embedded(text)} == {(192, 131), (768, 525)}
    assert '<main class="large" style="--w:128px;--h:88px">' in text


def test_a_large_picture_that_is_gone_is_not_linked(wide: Path) -> None:
    gone = sorted((wide / "pictures").glob("*.png"))[:2]
    for path in gone:
        path.unlink()
    text = write_report(wide).read_text()
    assert "2 pictures could not be shown" in text
    assert not [p for p in gone if f"pictures/{p.name}" in text]
    assert 'class="large"' in text


def test_small_pictures_are_as_they_were(tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    text = write_report(make(tmp_path / "run", partial(random, n=3), ["a"], [small], ["judge"])).read_text()
    assert "pictures/" not in text
    assert 'class="large"' not in text
    assert text.count('class="crisp"') == 5
    assert all(p.format == "PNG" and np.array_equal(np.asarray(p), small) for p in embedded(text))


def test_pages_with_many_large_pictures_hold_smaller_ones(tmp_path: Path) -> None:
    pictures = [photo(300, 400, 0)]
    folder = make(tmp_path / "run", partial(random, n=5), [f"prompt {i}" for i in range(48)], pictures)
    assert {max(p.size) for p in embedded(write_report(folder).read_text())} == {128, 384}
    store = Store.open(folder)
    album = Album(store, {})
    album.expect(10_000, 10_000)
    assert max(embedded(album.large(0, "x"))[0].size) == 256
    store.close()


@pytest.mark.parametrize(("size", "room"), [((2048, 2048), (128, 128)), ((2000, 100), (42, 128)), ((100, 300), (128, 43)), ((256, 256), None)])  # fmt: skip
def test_the_room_of_a_thumbnail_follows_the_picture(
    size: tuple[int, int], room: tuple[int, int] | None, tmp_path: Path
) -> None:
    store = Store.create(tmp_path / "run", config(["a"]))
    store.save_picture(3, np.zeros((*size, 3), np.uint8))
    assert Album(store, {}).frame([1, 3]) == room
    assert Album(store, {}).frame([1]) is None
    store.close()


def test_a_long_prompt_is_clipped_and_stands_whole_below(heavy: Path) -> None:
    text = write_report(heavy).read_text()
    page = Page(text)
    whole = [w for w in page.words if w == LONG]
    assert len(whole) == 1
    assert clip(LONG, 160) in " ".join(page.words)
    assert "<b>bold" not in text
    assert [a for a in page.all("details") if a.get("class") == "whole"] == [{"class": "whole"}]
    assert all(len(a["alt"] or "") < 220 for a in page.all("img"))


@pytest.mark.parametrize(("text", "most", "short"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("one two three four", 15, "one two three…"), ("aaaaaaaaa b", 11, "aaaaaaaaa b"), ("a bbbbbbbbbbbbb", 10, "a bbbbbbb…")])  # fmt: skip
def test_clipping(text: str, most: int, short: str) -> None:
    assert clip(text, most) == short
    assert len(short) <= most


def test_judges_may_have_any_name(tmp_path: Path) -> None:
    """Each has its number at each picture and its mean; those within [0, 1] have lines, two at most; nothing of a name is
    markup."""
    odd = '<b onload=x>"clip"</b>'
    folder = make(tmp_path / "run", partial(random, n=4), FREE, [photo(300, 300, 0)], [odd, "aesthetic", "hps", "pick"])
    text = write_report(folder).read_text()
    page = Page(text)
    assert not [a for t, a in page.elements if "onload" in a]
    for name in (odd, "aesthetic", "hps", "pick"):
        assert text.count(f"<dt>{esc(name)}</dt>") >= 6
        assert f"{esc(name)}, mean</p>" in text
    kinds = re.findall(r'<path class="line (\w+)" d="M\d+\.', text)
    assert {k: kinds.count(k) for k in set(kinds)} == {"score": 4, "judge": 4, "second": 4}
    assert "the judge" not in seen(text)
    assert "checker" not in seen(text)


def test_a_run_without_judges_speaks_of_none(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", partial(random, n=4), FREE, [photo(300, 300, 0)], verifier="pack.age:Reward(x=1)")
    words = seen(write_report(folder).read_text())
    assert not re.search("judge,|judge's|second verifier|checker", words)
    assert "Reward score, mean" in words
    assert "pack.age:Reward(x=1)" in words


def test_a_judge_named_as_a_measure_takes_nothing_over(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", partial(random, n=4), ["a"], [photo(300, 300, 0)], ["score"])
    text = write_report(folder).read_text()
    assert text.count(", mean</p>") == 1
    assert "<dt>score</dt>" in text


def test_a_candidate_without_score_or_picture(tmp_path: Path) -> None:
    folder = make(tmp_path / "run", partial(random, n=2), ["a"], [photo(300, 300, 0)], ["clip"])
    store = Store.open(folder)
    [proposal] = next(random(Task(0, Condition("a"), Key(9)), n=1))
    outcome = Outcome(7, proposal, math.nan)
    store.append([("outcome", 0, 7, outcome_body(outcome, 2, Cost(nfe=1, evals=1, verdicts=1, decodes=1, seconds=1.0), None)),
                  judged(0, 7, {"clip": math.nan})])  # fmt: skip
    store.close()
    text = write_report(folder).read_text()
    assert "Outcome 7; new noise; could not be scored; clip –" in text
    assert "pictures/000007.png" not in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_shows_large_pictures_on_a_phone(wide: Path, tmp_path: Path) -> None:
    report = write_report(wide)
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<!doctype html>{MEASURE}<iframe style='width:360px;height:800px;border:0' src='{report.as_uri()}'></iframe>"
    )
    plain = browse(report, tmp_path / "p1")
    assert "CONSOLE" not in plain.stderr, plain.stderr
    framed = browse(frame, tmp_path / "p2", "--allow-file-access-from-files", "--disable-web-security")
    width = re.search(r"<title>width (\d+)</title>", framed.stdout)
    assert width is not None, framed.stdout[:400]
    assert int(width[1]) <= 360
