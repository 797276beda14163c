"""Brightness, sharpness, compressibility: exact numbers, what they rank how, and a search that each guides."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secondlook import api, cli
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, ShapeError
from secondlook.registry import VERIFIERS, resolve
from secondlook.settings import make_named
from secondlook.types import Condition, Verifier

ALL = ["brightness", "sharpness", "compressibility", "compressibility(sign=-1)"]
SIZES = [(1, 1), (1, 7), (9, 1), (2, 2), (3, 5), (8, 8), (64, 64), (513, 2), (2, 1200), (768, 1024)]  # (height, width)


def measured(name: str, *pictures: np.ndarray) -> list[float]:
    samples = torch.from_numpy(np.stack(pictures))
    found = make_named("verifier", name)(samples, [Condition("anything")] * len(pictures))
    assert found.dtype == torch.float64
    assert found.shape == (len(pictures),)
    return list(found.tolist())


def flat(value: int | tuple[int, int, int], height: int = 8, width: int = 8) -> np.ndarray:
    return np.broadcast_to(np.array(value, np.uint8), (height, width, 3)).copy()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def ramp(height: int, width: int, slope: int) -> np.ndarray:
    """Grey that grows by ``slope`` a column."""
    return np.broadcast_to((np.arange(width) * slope)[None, :, None], (height, width, 3)).astype(np.uint8)


def blurred(picture: np.ndarray) -> np.ndarray:
    padded = np.pad(picture.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = picture.shape[:2]
    return (sum(padded[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9).astype(np.uint8)


def test_brightness_of_known_pictures() -> None:
    found = measured(
        "brightness", flat(0), flat(255), flat((255, 0, 0)), flat((0, 255, 0)), flat((0, 0, 255)), flat(51)
    )
    assert found == [0.0, 1.0, 0.299, 0.587, 0.114, 0.2]
    assert measured("brightness", ramp(4, 256, 1)) == [0.5]


def test_sharpness_of_known_pictures() -> None:
    """A ramp bends at its two edge columns only; a chessboard bends by four everywhere, but where its edge is repeated."""
    assert measured("sharpness", flat(0), flat(255), flat((10, 200, 30))) == [0.0, 0.0, 0.0]
    [found] = measured("sharpness", ramp(5, 50, 5))
    assert found == pytest.approx(5 / 255 * math.sqrt(2 / 50), rel=1e-12)
    board = flat(0, 512, 512)
    board[::2, ::2] = board[1::2, 1::2] = 255
    [found] = measured("sharpness", board)
    assert 3.99 < found <= 4.0


def test_sharpness_of_a_picture_at_twice_the_size_is_that_of_the_small_one() -> None:
    small = noise(400, 512)
    large = small.repeat(2, 0).repeat(2, 1)
    assert measured("sharpness", large)[0] == pytest.approx(measured("sharpness", small)[0], rel=1e-6)
    assert measured("sharpness", small.repeat(3, 0).repeat(3, 1))[0] == pytest.approx(measured("sharpness", small)[0], rel=1e-6)  # fmt: skip


def test_compressibility_is_the_size_of_the_file() -> None:
    picture = noise(40, 50)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", quality=95)
    assert measured("compressibility", picture) == [-len(buffer.getvalue()) / 1000]
    assert measured("compressibility(sign=-1)", picture) == [len(buffer.getvalue()) / 1000]
    assert make_named("verifier", "compressibility(-1)").name == "incompressibility"


def test_what_ranks_above_what() -> None:
    plain, rough = flat(128, 64, 64), noise(64, 64)
    soft = blurred(rough)
    assert measured("sharpness", rough, soft, blurred(soft), plain) == sorted(
        measured("sharpness", plain, blurred(soft), soft, rough), reverse=True
    )
    for name, sign in (("compressibility", 1), ("compressibility(sign=-1)", -1)):
        order = measured(name, rough, soft, blurred(soft), plain)
        assert order == sorted(order, reverse=sign < 0)
        assert len(set(order)) == 4
    dim, bright = measured("brightness", rough // 2, rough)
    assert dim < bright


@pytest.mark.parametrize("name", ALL)
def test_a_row_does_not_depend_on_its_company(name: str) -> None:
    rows = [noise(33, 57, i) for i in range(7)]
    alone = [measured(name, row)[0] for row in rows]
    assert measured(name, *rows) == alone
    assert measured(name, *rows[::-1]) == alone[::-1]
    strided = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert make_named("verifier", name)(strided, [Condition("x")] * 7).tolist() == alone


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_any_size_has_a_number(name: str, size: tuple[int, int]) -> None:
    plain, rough = measured(name, flat(7, *size), noise(*size))
    assert math.isfinite(plain)
    assert math.isfinite(rough)


@pytest.mark.parametrize("name", ALL)
def test_no_rows_have_no_numbers(name: str) -> None:
    assert make_named("verifier", name)(torch.zeros(0, 8, 8, 3, dtype=torch.uint8), []).shape == (0,)


@pytest.mark.parametrize("samples", [torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 8, 1, dtype=torch.uint8), torch.zeros(8, 8, 3, dtype=torch.uint8), torch.zeros(1, 0, 8, 3, dtype=torch.uint8)], ids=["float", "grey", "no rows", "no pixels"])  # fmt: skip
@pytest.mark.parametrize("name", ALL[:3])
def test_what_is_no_picture_is_refused(name: str, samples: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=f"{name} reads uint8 pictures"):
        make_named("verifier", name)(samples, [Condition("x")])


@pytest.mark.parametrize("text", ["compressibility(sign=0)", "compressibility(2)"])
def test_a_sign_is_plus_or_minus_one(text: str) -> None:
    with pytest.raises(ConfigError, match="sign is 1"):
        make_named("verifier", text)


@pytest.mark.parametrize("name", ALL[:3])
def test_each_says_that_it_knows_nothing_of_the_prompt(name: str) -> None:
    assert "knows nothing of the prompt" in VERIFIERS[name].about
    assert resolve("verifier", name)().name == name


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("world", "prompt"), [("scenes", "a red circle"), ("digits", "3"), ("glyphs", "4")])
def test_a_search_that_it_guides(name: str, world: str, prompt: str, tmp_path: Path) -> None:
    """The winner's score is the highest, and is that of its picture on disk."""
    [result] = api.draw(prompt, "random(n=4)", tmp_path / "run", world=world, verifier=name, steps=2)
    store = Store.open(tmp_path / "run")
    record = Record.read(store)
    scores = {i: o.score for i, o in record.outcomes.items()}
    assert len(scores) == 4
    assert result.score == max(scores.values()) == scores[result.outcome]
    guide: Verifier = make_named("verifier", name)
    for i, score in scores.items():
        assert guide(torch.tensor(store.picture(i))[None], [Condition(prompt)]).tolist() == [score]
    store.close()


def test_the_command_line_takes_them_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["draw", "a red circle", "--verifier", "brightness", "--steps", "2", "--plan", "random(n=3)", "--quiet"]
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert "a red circle" in capsys.readouterr().out
    assert "brightness score, mean" in (tmp_path / "run" / "report.html").read_text()
    again = [*words, "--out", str(tmp_path / "again")]
    again[3] = "brightnes"
    assert cli.main(again) != 0
    assert 'did you mean "brightness"' in capsys.readouterr().err
