"""`secondlook calibrate`: its numbers against closed forms, its plan, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from secondlook.bench.calibrate import Found, cut, read, spearman, summary, survives, told
from secondlook.cli import main
from secondlook.engine.store import Store
from secondlook.models.text import TextSiT
from secondlook.testing import simulate
from tests.helpers import PROMPTS, STEPS, drive, tiny_rig


def test_every_time_of_the_grid_is_looked_at_both_ways_and_charged() -> None:
    played = simulate("calibrate(n=3)", steps=5)
    looks = [(round(o.proposal.stop, 6), o.proposal.look) for o in played.outcomes if not o.finished]
    times = sorted({t for t, _ in looks})
    assert len(times) == 4
    assert sorted(looks) == sorted([(t, look) for t in times for look in ("free", "paid")] * 3)
    assert played.spent.nfe == 3 * 5  # a paid look is the first evaluation of what goes on
    assert played.spent.verdicts == 3 * (2 * 4 + 1)
    assert sum(o.finished for o in played.outcomes) == 3
    assert simulate("calibrate(n=3)", steps=1).spent.nfe == 3


def test_looks_take_nothing_from_the_pictures(network: TextSiT, tmp_path: Path) -> None:
    plain = drive(tmp_path / "plain", tiny_rig(network), "random(n=2)", prompts=PROMPTS[:2])
    record = drive(tmp_path / "run", tiny_rig(network), "calibrate(n=2)", prompts=PROMPTS[:2])
    for task in (0, 1):
        ends = [record.digests[o.id] for o in record.of(task) if o.finished]
        assert ends == [plain.digests[o.id] for o in plain.of(task)]
        assert record.spent(task).nfe == plain.spent(task).nfe == 2 * STEPS
        assert record.spent(task).verdicts == 2 * (2 * (STEPS - 1) + 1)


def test_what_a_run_holds_is_read_row_by_row(network: TextSiT, tmp_path: Path) -> None:
    record = drive(tmp_path / "run", tiny_rig(network), "calibrate(n=3)", prompts=PROMPTS[:2])
    found = read(Store.open(tmp_path / "run"))
    assert len(found.times) == STEPS - 1
    assert set(found.early) == {(t, look) for t in found.times for look in ("free", "paid")}
    done = [o for o in record.of(1) if o.finished]
    assert found.final[1].tolist() == [o.score for o in done]
    for place, values in found.early.items():
        seen = [o.score for o in record.of(1) if (o.proposal.stop, o.proposal.look) == place]
        assert sorted(values[1].tolist()) == sorted(s for s in seen if s is not None)
    last = record.outcomes[done[2].proposal.move.parents[0]]  # the last look at the third row
    assert found.early[last.proposal.stop, "paid"][1][2] == last.score


def test_ranks_and_cuts_by_hand() -> None:
    final = np.array([0.1, 0.9, 0.5, 0.3])
    assert spearman(final, final) == pytest.approx(1)
    assert spearman(-final, final) == pytest.approx(-1)
    assert spearman(np.array([1, 2, 4, 3.0]), np.array([1, 2, 3, 4.0])) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert math.isnan(spearman(np.ones(4), final))
    assert math.isnan(spearman(np.array([math.nan, math.nan, 1, 2]), final))
    assert survives(np.array([0.0, 0.4, 0.5, 0.1]), final, 0.5) == 1
    assert survives(np.array([0.0, 0.4, 0.5, 0.1]), final, 0.25) == 0
    assert survives(np.zeros(4), final, 0.25) == 0  # equal: the first stays
    assert survives(np.array([math.nan, 0.4, math.nan, math.nan]), final, 0.25) == 1


def test_chance_keeps_its_share_and_perfect_scores_keep_all() -> None:
    rng = np.random.default_rng(0)
    final = [rng.random(8) for _ in range(600)]
    early = {(0.5, "free"): [rng.random(8) for _ in final], (0.5, "paid"): final}
    right = [(f > 0.7).astype(float) for f in final]
    s = summary(Found((0.2, 0.5, 0.8), final=final, early=early, right=right, by="checker"))
    chance, perfect = s["rows"]
    for share in (0.5, 0.25):
        low, high = chance["kept"][share]["interval"]
        assert low - 0.02 < share < high + 0.02
        assert perfect["kept"][share]["mean"] == 1
    assert abs(chance["spearman"]["mean"]) < 0.05
    assert abs(chance["auc"]["mean"] - 0.5) < 0.05
    assert perfect["spearman"]["mean"] == pytest.approx(1)
    assert perfect["auc"]["mean"] == s["final_auc"]["mean"] == 1
    assert perfect["auc"]["prompts"] < 600  # of those with right and wrong rows
    assert (s["cut"]["t"], s["cut"]["look"], s["cut"]["share"]) == (0.5, "paid", 0.25)


def _row(t: float, look: str, spent: int, whole: int, half: float, quarter: float) -> dict[str, object]:
    return {
        "t": t,
        "look": look,
        "spent": spent,
        "left": whole - spent,
        "kept": {0.5: {"mean": half}, 0.25: {"mean": quarter}},
    }


def test_the_cheapest_cut_that_keeps_enough_is_recommended() -> None:
    rows = [
        _row(0.2, "free", 1, 10, 0.6, 0.4),
        _row(0.2, "paid", 2, 10, 0.95, 0.6),
        _row(0.6, "paid", 6, 10, 0.99, 0.95),
    ]
    found = cut(rows, 10, 0.9)
    assert found is not None
    assert found["call"] == "halving(first=0.2, share=0.5, looks=1, look='paid')"
    assert found["evaluations"] == 2 + 0.5 * 8
    assert found["more"] == pytest.approx(10 / 6)
    other = cut(rows, 10, 0.97)
    assert other is not None
    assert other["t"] == 0.6
    assert cut(rows, 10, 1.0) is None


def test_the_recommended_call_is_a_plan_that_cuts_there() -> None:
    found = cut([_row(0.6, "paid", 6, 10, 0.95, 0.5)], 10, 0.9)
    assert found is not None
    played = simulate(found["call"], steps=10, budget={"nfe": 400}, score=lambda o: float(o.id))
    stops = {round(o.proposal.stop, 3) for o in played.outcomes if not o.finished}
    assert stops == {0.6}


def test_a_solver_s_own_evaluations_are_counted() -> None:
    heun = Found((0.3, 0.6), step=2, last=1, reuses=False)
    assert (heun.whole, heun.spent((0.6, "free")), heun.left((0.6, "free"))) == (5, 4, 1)
    assert (heun.spent((0.6, "paid")), heun.left((0.6, "paid"))) == (5, 1)
    euler = Found((0.3, 0.6))
    assert (euler.spent((0.3, "paid")), euler.left((0.3, "paid"))) == (2, 1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "P").write_text("7\n3\n1\n5\n")
    words = [
        "--prompts",
        str(tmp_path / "P"),
        "--world",
        "digits",
        "--steps",
        "3",
        "--draws",
        "4",
        "--every",
        "2",
        "--quiet",
    ]
    assert main(["calibrate", *words, "--json", str(tmp_path / "j"), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 prompts, 4 draws each, 3 steps.")
    assert "AUC against the judge" in said
    found = json.loads((tmp_path / "j").read_text())
    assert [(round(r["t"], 3), r["look"], r["spent"]) for r in found["rows"]] == [
        (0.333, "free", 1), (0.333, "paid", 2), (0.667, "free", 2), (0.667, "paid", 3)]  # fmt: skip
    for wrong, why in ((["--draws", "1"], "--draws must be"), (["--keep", "0"], "--keep"), (["--every", "0"], "--every"),
                       (["--plan", "random(n=2)"], "leave --plan out")):  # fmt: skip
        assert main(["calibrate", *words, *wrong]) == 2
        assert why in capsys.readouterr().err
    assert main(["calibrate"]) == 2


def test_where_no_cut_is_safe_it_is_said() -> None:
    rng = np.random.default_rng(1)
    final = [rng.random(8) for _ in range(60)]
    lines = told(summary(Found((0.5,), final=final, early={(0.5, "free"): [rng.random(8) for _ in final]})))
    assert "No cut keeps 90%" in lines[-1]
