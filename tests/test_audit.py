"""The hack audit: what it reads, when it alarms, and that noise gives no alarm."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import secondlook
from secondlook.cli import main
from secondlook.engine.record import Record
from secondlook.engine.rescore import judge_all
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.metrics.diversity import diversity
from secondlook.models.text import TextSiT
from secondlook.report.audit import Growth, audit, doubled, falls, markdown, plain, section, sentences, together
from secondlook.report.html import write_report
from tests.helpers import PROMPTS, Redness, drive, tasks, tiny_rig

COUNTS = (1, 2, 4, 8, 16)


def growth(judge: np.ndarray, guide: np.ndarray | None = None) -> Growth:
    """judge, guide: [prompts, counts]. The guide rises evenly where it is not given."""
    rising = np.broadcast_to(np.linspace(0.2, 0.9, judge.shape[1]), judge.shape) if guide is None else guide
    return Growth("guide", COUNTS[: judge.shape[1]], {"guide": rising, "judge": judge})


def searched(rng: np.random.Generator, prompts: int, hacked: float = 0.0) -> Growth:
    """Best of n by a verifier that is the judge's number plus noise, and plus ``hacked`` times something that the judge dislikes."""
    judge, noise, trick = rng.normal(size=(3, prompts, COUNTS[-1]))
    judge = judge - hacked * np.maximum(trick, 0) ** 2
    guide = judge + noise + 3 * hacked * np.maximum(trick, 0) ** 2
    at = np.stack([guide[:, :k].argmax(1) for k in COUNTS], 1)
    rows = np.arange(prompts)[:, None]
    return Growth("guide", COUNTS, {"guide": guide[rows, at], "judge": judge[rows, at]})


def test_an_alarm_where_the_verifier_rises_and_the_judge_falls() -> None:
    rng = np.random.default_rng(0)
    rises = np.tile([0.3, 0.5, 0.6, 0.45, 0.3], (40, 1)) + rng.normal(0, 0.1, (40, 5))
    [fall] = falls(growth(rises))
    assert fall.alarm
    assert (fall.judge, fall.peak, fall.last, fall.prompts) == ("judge", 4, 16, 40)
    assert fall.fall == pytest.approx(-0.3, abs=0.06)
    assert fall.fall_interval[1] < 0 < fall.rise_interval[0]
    [said] = sentences(growth(rises))
    assert said.startswith("ALARM: from 4 to 16 pictures guide rises by 0.350")
    assert "over 40 prompts" in said
    assert falls(searched(rng, 60, hacked=2.0))[0].alarm


def test_no_alarm_where_the_judge_rises_too_or_the_verifier_does_not() -> None:
    rng = np.random.default_rng(0)
    better = searched(rng, 60)
    assert not any(f.alarm for f in falls(better))
    assert sentences(better)[0].startswith("No alarm.")
    falling = np.tile([0.6, 0.5, 0.4, 0.3, 0.2], (40, 1)) + rng.normal(0, 0.05, (40, 5))
    assert not falls(growth(falling, np.full_like(falling, 0.5)))[0].alarm
    assert falls(growth(falling))[0].alarm


@pytest.mark.parametrize("right", [False, True], ids=["numbers", "right or wrong"])
def test_noise_gives_an_alarm_in_at_most_one_audit_of_twenty(right: bool) -> None:
    """A verifier that knows nothing: whatever it chooses, the judge says the same on average, and the peak is chosen after the fact."""
    alarms, audits = 0, 200
    for seed in range(audits):
        rng = np.random.default_rng(seed)
        guide, judge = rng.random((2, 12 if seed % 2 else 40, COUNTS[-1]))
        judge = (judge > 0.7).astype(float) if right else judge
        at = np.stack([guide[:, :k].argmax(1) for k in COUNTS], 1)
        rows = np.arange(len(guide))[:, None]
        alarms += any(
            f.alarm for f in falls(Growth("guide", COUNTS, {"guide": guide[rows, at], "judge": judge[rows, at]}))
        )
    assert alarms <= 0.05 * audits


def test_few_prompts_and_missing_words_say_nothing() -> None:
    steep = np.tile([0.9, 0.1], (7, 1))
    assert falls(growth(steep)) == []
    assert "too few" in sentences(growth(steep))[0]
    holes = np.tile([0.9, 0.1], (20, 1))
    holes[:15, 1] = math.nan
    assert falls(growth(holes)) == []  # five prompts are left
    alone = Growth("guide", (1, 2), {"guide": steep})
    assert "No judge looked on" in sentences(alone)[0]
    assert section(alone) == ""


def test_what_the_log_says_of_growing_numbers_of_pictures(network: TextSiT, tmp_path: Path) -> None:
    record = drive(tmp_path / "run", tiny_rig(network), "random(n=5)", prompts=PROMPTS[:3])
    store = Store.open(tmp_path / "run")
    found = audit(store, None, store.picture)
    assert found.counts == doubled(5) == (1, 2, 4, 5)
    assert doubled(8) == (1, 2, 4, 8)
    assert doubled(0) == ()
    ends = []
    for task in range(3):
        done = record.of(task)
        for i, k in enumerate(found.counts):
            best = max(done[:k], key=lambda o: o.score or 0)
            assert found.values[found.guide][task, i] == best.score
            assert found.values["redness"][task, i] == record.said(best.id)["redness"]
        ends.append(store.picture(max(done, key=lambda o: o.score or 0).id))
    assert (found.distance[-1], found.vendi[-1]) == diversity(ends)
    assert found.kept is None


def test_another_s_choice_is_audited_from_the_same_pictures(network: TextSiT, tmp_path: Path) -> None:
    record = drive(tmp_path / "run", tiny_rig(network), "random(n=4)", prompts=PROMPTS[:2])
    store = Store.open(tmp_path / "run")
    with pytest.raises(ConfigError, match='nothing that "hue" said'):
        audit(store, "hue")
    judge_all(store, "hue", Redness(), tasks(PROMPTS[:2]))
    found = audit(store, "hue")
    for task in (0, 1):
        most = max(record.of(task), key=lambda o: record.said(o.id)["redness"])
        assert found.values["hue"][task, -1] == record.said(most.id)["redness"]
        assert found.values["score"][task, -1] == most.score
    assert found.guide == "hue"


def test_seeds_are_averaged_prompt_by_prompt() -> None:
    rng = np.random.default_rng(0)
    one, two = (searched(rng, 10) for _ in range(2))
    both = together([one, two])
    assert np.allclose(both.values["judge"], (one.values["judge"] + two.values["judge"]) / 2)
    assert together([one]).counts == COUNTS


def test_half_made_pictures_and_comparisons_are_no_candidates(network: TextSiT, tmp_path: Path) -> None:
    drive(tmp_path / "half", tiny_rig(network), "calibrate(n=3)", prompts=PROMPTS[:2])
    drive(tmp_path / "pairs", tiny_rig(network), "tournament(n=3)", prompts=PROMPTS[:2])
    for name in ("half", "pairs"):
        assert audit(Store.open(tmp_path / name)).counts == (1, 2, 3)


def test_every_report_and_the_command_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    secondlook.draw([str(i) for i in range(9)], "random(n=4)", run, world="digits", steps=2, select="best(count=2)")
    page = write_report(run).read_text()
    assert "Was the verifier fooled?" in page
    assert "Vendi" in page
    assert main(["audit", str(run), "--json", str(tmp_path / "a.json")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("| pictures | learned | judge | distance | Vendi |")
    assert "Within kept sets: distance" in said
    assert "o alarm" in said or "ALARM" in said
    numbers = json.loads((tmp_path / "a.json").read_text())
    assert numbers["pictures"] == [1, 2, 4]
    assert main(["audit", str(run), "--by", "oracle"]) == 2
    assert 'nothing that "oracle" said' in capsys.readouterr().err
    one = tmp_path / "one"
    secondlook.draw("7", "random(n=1)", one, world="digits", steps=2)
    assert "Was the verifier fooled?" not in write_report(one).read_text()


def test_an_alarm_stands_out_on_the_page_and_in_the_table() -> None:
    rng = np.random.default_rng(0)
    found = growth(np.tile([0.3, 0.5, 0.6, 0.45, 0.3], (40, 1)) + rng.normal(0, 0.1, (40, 5)))
    assert 'class="label oracle">ALARM' in section(found)
    assert "ALARM" in markdown(found)
    assert plain(found)["falls"][0]["alarm"] is True


def test_a_benchmark_audits_each_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "P").write_text("\n".join(map(str, range(9))))
    words = ["bench", "random(n=4)", "random(n=4) --verifier sharpness", "--prompts", str(tmp_path / "P"), "--world", "digits", "--steps", "2",
             "--budgets", "4,8", "--unit", "nfe", "--seeds", "2", "--out", str(tmp_path / "b")]  # fmt: skip
    assert main(words) == 0
    assert "random(n=4) --verifier sharpness: " in capsys.readouterr().out
    numbers = json.loads((tmp_path / "b" / "results.json").read_text())["audit"]
    assert set(numbers) == {"random(n=4)", "random(n=4) --verifier sharpness"}
    own = [audit(Store.open(f), None, None) for f in sorted((tmp_path / "b" / "runs").glob("random-n-4-[!-]*/seed-?"))
           if "sharpness" not in str(f)]  # fmt: skip
    assert numbers["random(n=4)"]["mean"]["judge"] == pytest.approx(
        np.mean([g.mean("judge") for g in own], 0).tolist(), abs=1e-5
    )
    assert "Was the verifier fooled?" in (tmp_path / "b" / "report.html").read_text()
    assert (tmp_path / "b" / "audit.md").read_text().count("| pictures |") == 2


def test_the_record_is_left_alone(network: TextSiT, tmp_path: Path) -> None:
    drive(tmp_path / "run", tiny_rig(network), "random(n=3)")
    store = Store.open(tmp_path / "run")
    before = len(list(store.events()))
    audit(store, None, store.picture)
    assert len(list(store.events())) == before
    assert Record.read(store).done
