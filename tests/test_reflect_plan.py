"""The plan that reads remarks, as a run has it; pairs made of runs, and training from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import secondlook
from secondlook.cli.app import main
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.models.checkpoint import load, save
from secondlook.models.reflect import ReflectSiT
from secondlook.testing.simulate import simulate
from secondlook.train.tries import from_runs
from secondlook.types import Remark
from secondlook.worlds.scenes.prompts import prompt_set
from tests.test_reflect import small

# ---- the plan --------------------------------------------------------------------------------------------------------


def paper(plan: str, remarks: list[str | None]) -> list[list[tuple[int, ...]]]:
    """The contexts of each round of a plan whose pictures get these remarks in order, then all are wrong."""
    told = iter(remarks)
    ended = simulate(plan, remark=lambda o: None if (said := next(told, "still wrong")) is None else Remark(said))
    return [[tuple(c.outcome for c in o.proposal.condition.context) for o in some] for some in ended.rounds]


def test_it_answers_the_try_with_the_fewest_faults_and_stops_when_nothing_is_wrong() -> None:
    assert paper("reflect(n=9)", ["a; b", "a", "a; b; c", ""]) == [[()], [(0,)], [(1,)], [(1,)]]


def test_it_begins_afresh_after_answers_that_made_nothing_better() -> None:
    assert paper("reflect(n=7, mends=2)", ["a"] * 9) == [[()], [(0,)], [(1,)], [()], [(3,)], [(4,)], [()]]


def test_a_remark_that_cannot_be_read_is_none_and_never_right() -> None:
    assert paper("reflect(n=4)", [None, "a", ""]) == [[()], [()], [(1,)]]


def test_its_memory_holds_distinct_remarks_with_the_answered_try_last() -> None:
    rounds = paper("reflect(n=5, memory=3, mends=9)", ["a; b", "a; c", "a; b", "a", ""])
    assert rounds == [[()], [(0,)], [(0, 1)], [(1, 2)], [(0, 1, 3)]]


def test_it_never_draws_more_than_n_and_chains_go_side_by_side() -> None:
    rounds = paper("reflect(n=7, width=3, mends=9)", ["a"] * 9)
    assert [len(r) for r in rounds] == [3, 3, 1]
    assert rounds[1] == [(0,), (1,), (2,)]


def test_redrawing_shows_nothing() -> None:
    assert paper("reflect(n=3, answer='redraw')", ["a"] * 9) == [[()], [()], [()]]


def test_what_has_earned_more_is_done_next() -> None:
    # Answers that rid the try of nothing lose to fresh draws, and fresh draws as bad as the first lose to answers.
    assert paper("reflect(n=6, mends=9, answer='earned')", ["a; b"] * 9) == [[()], [(0,)], [()], [(2,)], [()], [(4,)]]
    # Answers that help are gone on with where fresh draws are no better than the first one, and left where those are.
    assert paper("reflect(n=4, answer='earned')", ["a; b; c; d", "a", "a; b; c; d", ""]) == [[()], [(0,)], [()], [(2,)]]
    assert paper("reflect(n=4, answer='earned')", ["a; b; c; d", "a; b", "a", ""]) == [[()], [(0,)], [()], [()]]


def test_the_last_or_the_accepted_picture_is_kept_or_the_best() -> None:
    wrong = simulate("reflect(n=3, keep='accepted')", remark=lambda o: Remark("a"))
    assert wrong.returned.id == 2
    assert all(o.proposal.ask == "remark" for o in wrong.outcomes)
    best = simulate("reflect(n=3)", remark=lambda o: Remark("a"))
    assert best.returned is None
    right = simulate("reflect(n=3)", remark=lambda o: Remark("" if o.id == 1 else "a"), score=lambda o: -o.id)
    assert right.returned.id == 1
    assert all(o.proposal.ask == "score+remark" for o in best.outcomes)


@pytest.mark.parametrize("slip", ["answer='edit'", "keep='all'", "back=1", "n=0", "mends=0"])
def test_slips_are_sentences(slip: str) -> None:
    with pytest.raises(ConfigError, match="reflect"):
        simulate(f"reflect({slip})", remark=lambda o: Remark("a"))


def test_a_run_shows_the_model_its_tries_and_can_be_replayed(tmp_path: Path) -> None:
    network = small(gain=1.0)
    save(network, tmp_path / "w.safetensors", network.describe())
    secondlook.draw("two red circles", "reflect(n=3)", tmp_path / "run", model=str(tmp_path / "w.safetensors"), critic="oracle",
                          steps=2, bf16=False)  # fmt: skip
    assert Store.open(tmp_path / "run").config["oracle"]
    outcomes = Record.read(Store.open(tmp_path / "run")).outcomes
    assert [[c.outcome for c in o.proposal.condition.context] for o in outcomes.values()][:2] == [[], [0]]
    assert outcomes[1].proposal.condition.context[0].remark == outcomes[0].remark
    for number in outcomes:
        assert secondlook.replay(tmp_path / "run", number).same


def test_pairs_are_made_of_runs_and_train_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secondlook.draw("two circles and a cross", "random(n=3)", tmp_path / "run", steps=1, bf16=False)
    items, trained = tmp_path / "items.pt", tmp_path / "trained"
    assert main(["pairs", str(tmp_path / "run"), "--out", str(items), "--pool", "12", "--workers", "1"]) == 0
    assert "3 pictures of 1 runs" in capsys.readouterr().err
    words = [
        "train",
        "reflect",
        "--items",
        str(items),
        "--out",
        str(trained),
        "--steps",
        "1",
        "--batch",
        "4",
        "--device",
        "cpu",
    ]
    assert main(words) == 0
    network = load(trained / "weights.safetensors")
    assert isinstance(network, ReflectSiT)
    assert network.config.edit
    assert main(["pairs", str(tmp_path / "none"), "--out", str(items)]) == 2
    assert main(["train", "reflect", "--out", str(trained), "--form", "edits"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "invalid choice" in said


def test_prompts_kept_for_evaluation_are_not_made_into_pairs(tmp_path: Path) -> None:
    held = next(p.text for p in prompt_set("scenes-expert-dev") if p.held_out)
    secondlook.draw(held, "random(n=1)", tmp_path / "run", steps=1, bf16=False)
    with pytest.raises(ConfigError, match="held out for evaluation"):
        from_runs([tmp_path / "run"])


def test_a_model_that_reads_no_tries_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not read them"):
        secondlook.draw("a circle", "reflect(n=2)", tmp_path / "run", model="scenes", critic="oracle", steps=1)
    assert not (tmp_path / "run").exists()
    secondlook.draw(
        "a circle", "reflect(n=2, answer='redraw')", tmp_path / "run", model="scenes", critic="oracle", steps=1
    )


def test_the_shipped_model_and_critic_are_taken_where_none_is_named(tmp_path: Path) -> None:
    secondlook.draw("two crosses and a circle", "reflect(n=2)", tmp_path / "run", steps=2)
    config = Store.open(tmp_path / "run").config
    assert (config["model"], config.get("critic")) == ("scenes-edit", "learned")
    secondlook.draw("two crosses and a circle", "random(n=1)", tmp_path / "other", steps=1)
    config = Store.open(str(tmp_path / "other")).config
    assert (config["model"], config.get("critic")) == ("scenes", None)


def test_the_report_shows_the_conversation(tmp_path: Path) -> None:
    network = small(gain=1.0)
    save(network, tmp_path / "w.safetensors", network.describe())
    secondlook.draw(
        "two red circles",
        "reflect(n=2)",
        tmp_path / "run",
        model=str(tmp_path / "w.safetensors"),
        critic="oracle",
        steps=2,
    )
    page = secondlook.write_report(tmp_path / "run").read_text()
    first = Record.read(Store.open(tmp_path / "run")).outcomes[0].remark
    assert first is not None
    assert "<h3>Conversation</h3>" in page
    assert f'<p class="said">{first.text}</p>' in page
    assert "an answer to #0" in page
    secondlook.draw("two red circles", "random(n=1)", tmp_path / "plain", steps=1)
    assert "Conversation" not in secondlook.write_report(tmp_path / "plain").read_text()
