"""The library's front door, on the shipped weights with very few steps."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

import secondlook
from secondlook import api
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.report.html import write_report


def test_results_come_in_order_with_both_pictures_and_what_they_cost(tmp_path: Path) -> None:
    prompts = ["a circle", "three squares", "a circle"]
    found = secondlook.draw(prompts, "random(n=2)", tmp_path / "run", steps=2)
    assert [r.prompt for r in found] == prompts
    assert all(r.picture.shape == (64, 64, 3) and r.spent.evals == 8 for r in found)
    assert not np.array_equal(
        found[0].plain, found[2].plain
    )  # noise is keyed by the line, so a repeat is another sample
    again = secondlook.open_run(tmp_path / "run")
    assert [r.outcome for r in again] == [r.outcome for r in found]


def test_a_budget_that_buys_nothing_leaves_the_unsearched_picture(tmp_path: Path) -> None:
    [r] = secondlook.draw("a red circle", "paths()", tmp_path / "run", steps=4, seconds=1e-6)
    assert np.array_equal(r.picture, r.plain)
    assert r.outcome < 0


def test_the_configuration_is_resolved(tmp_path: Path) -> None:
    secondlook.draw("a circle", "zero_order()", tmp_path / "run", steps=2, nfe=4)
    config = Store.open(tmp_path / "run").config
    assert config["plan"] == "zero_order(neighbours=4, radius=0.7, patience=1)"
    assert set(config["weights"]) == {"model", "verifier", "judge"}
    assert config["oracle"] is False


def test_the_checker_as_a_guide_is_labelled_by_whatever_name_it_is_asked_for(tmp_path: Path) -> None:
    guide = "secondlook.worlds.scenes.world:Checker"
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=2, verifier=guide)
    assert Store.open(tmp_path / "run").config["oracle"] is True
    assert "oracle: upper bound" in write_report(tmp_path / "run").read_text()


def test_other_weights_cannot_go_on_with_a_run(tmp_path: Path) -> None:
    secondlook.draw("a circle", "random(n=1)", tmp_path / "run", steps=2)
    with sqlite3.connect(tmp_path / "run" / "run.sqlite") as db:
        config = json.loads(db.execute("SELECT value FROM meta WHERE key='config'").fetchone()[0])
        config["weights"]["model"] = "0" * 64
        db.execute("UPDATE meta SET value=? WHERE key='config'", (json.dumps(config),))
        db.execute("DROP TRIGGER hold_events")
        db.execute("DELETE FROM events WHERE kind='done'")
    with pytest.raises(ConfigError, match="weights are not those"):
        api.resume(tmp_path / "run")


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'stepps'"):
        secondlook.draw("a circle", out=tmp_path / "run", stepps=3)
    assert not (tmp_path / "run").exists()


def test_half_made_states_are_gone_when_a_run_is_done(tmp_path: Path) -> None:
    secondlook.draw("a circle", "paths(n=2)", tmp_path / "run", steps=4, nfe=30)
    assert list((tmp_path / "run" / "states").iterdir()) == []
    record = api.Record.read(Store.open(tmp_path / "run"))
    rewound = next(i for i, o in record.outcomes.items() if o.proposal.move.name == "rewind")
    assert api.replay_outcome(tmp_path / "run", rewound).same
