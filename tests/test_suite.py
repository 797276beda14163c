"""`secondlook bench`: what its numbers mean, and that it measures what it says."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from secondlook.bench.curves import Curve, Latency, winner_within
from secondlook.bench.methods import Method, runs_of
from secondlook.bench.stats import Bootstrap, area, at_cost, holm, pass_at, sign_flip, wilson
from secondlook.bench.suite import Plan, results
from secondlook.cli import main
from secondlook.cli.bench import _results
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.types import Cost

WORDS = [
    "--prompts",
    "P",
    "--budgets",
    "4,8,12",
    "--seeds",
    "2",
    "--world",
    "digits",
    "--steps",
    "2",
    "--guidance",
    "1",
]


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_intervals_cover_as_often_as_they_say_over_prompts_and_draws() -> None:
    """Prompts of different difficulty, four draws each: the true mean is inside in about 95 of 100 studies."""
    rng = np.random.default_rng(0)
    hits = 0
    for study in range(120):
        chance = rng.beta(0.7, 1.3, 60)
        values = (rng.random((4, 60)) < chance).astype(float)
        low, high = Bootstrap(["a"] * 60, 4, draws=400, seed=study).interval(values)
        hits += low <= 0.35 <= high
    assert 108 <= hits <= 120


def test_seeds_alone_do_not_narrow_an_interval_to_nothing() -> None:
    """A hundred seeds of four prompts know four prompts."""
    values = np.repeat([[0.0, 0.0, 1.0, 1.0]], 100, 0)
    low, high = Bootstrap(["a"] * 4, 100).interval(values)
    assert high - low > 0.5


def test_classes_count_alike_and_are_drawn_again_within_themselves() -> None:
    values = np.array([[1.0, 1.0, 1.0, 0.0]])
    boot = Bootstrap(["a", "a", "a", "b"], 1)
    assert boot.mean(values) == 0.5
    assert set(boot.means(values)) == {0.5}


def test_where_all_are_right_the_interval_is_wilson_s_over_prompts() -> None:
    low, high = Bootstrap(["a"] * 40, 4).interval(np.ones((4, 40)))
    assert (low, high) == wilson(1.0, 40)
    assert high == 1.0
    assert low == pytest.approx(40 / (40 + 1.96**2))
    jeffreys = beta.ppf([0.025, 0.975], 12 + 0.5, 28 + 0.5)
    assert wilson(0.3, 40) == pytest.approx(tuple(jeffreys), abs=0.02)


def test_where_all_tie_the_difference_may_lie_to_either_side() -> None:
    low, high = Bootstrap(["a"] * 40, 4).gap(np.zeros((4, 40)))
    assert low == -high
    assert high == wilson(0.0, 40)[1] > 0


def test_p_values_are_uniform_where_nothing_differs_and_small_where_all_do() -> None:
    rng = np.random.default_rng(1)
    found = [sign_flip(rng.choice([-1.0, 0.0, 1.0], 40), 400, seed=i) for i in range(200)]
    assert 0.01 <= np.mean(np.array(found) <= 0.05) <= 0.1
    assert sign_flip(np.full(20, 0.25)) < 1e-3
    assert sign_flip(np.zeros(20)) == 1.0


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_areas_and_costs_are_read_over_logarithms() -> None:
    assert area([10, 100], np.array([0.0, 1.0])) == pytest.approx(0.5)
    assert area([10, 100, 10_000], np.array([0.0, 1.0, 1.0])) == pytest.approx(2.5 / 3)
    assert area([10], np.array([0.3])) == 0.3
    read = at_cost(np.array([1.0, 100.0]), np.array([0.0, 1.0]), [10.0, 1000.0])
    assert read[0] == pytest.approx(0.5)
    assert read[1] == 1.0
    assert at_cost(np.array([100.0, 1.0]), np.array([1.0, 0.0]), [10.0])[0] == pytest.approx(0.5)


def test_areas_over_seconds_favour_what_is_as_good_in_less_time() -> None:
    rng = np.random.default_rng(0)
    budgets = (10, 20, 40, 80)
    right = np.stack([(rng.random((2, 40)) < p).astype(float) for p in (0.2, 0.4, 0.6, 0.8)])
    seconds = np.array([1.0, 2.0, 4.0, 8.0])[:, None, None] * np.ones((1, 2, 40))

    def curve(name: str, took: np.ndarray) -> Curve:
        return Curve(
            name, "evals", budgets, {"checker": right, "evals": took, "seconds": took, "nfe": took, "pictures": took}
        )

    found = [
        curve("base", seconds),
        curve("twin", seconds.copy()),
        curve("fast", seconds / 2),
        curve("apart", seconds / 1000),
    ]
    told = results(
        Plan([Method(c.method, {}) for c in found], ["p"] * 40, ["all"] * 40, "evals", budgets, 2), found, "checker"
    )
    areas = {a["method"]: a for a in told["areas"]}
    assert areas["twin"]["seconds_ratio"] == 1.0
    assert areas["twin"]["seconds_ratio_interval"] == (1.0, 1.0)
    assert areas["fast"]["ratio"] == 1.0
    assert areas["fast"]["seconds"] == (1.0, 4.0)
    heights = [right[i].mean() for i in range(4)]
    expected = (sum(heights[1:]) - (heights[1] + heights[3]) / 2) / (sum(heights[:3]) - (heights[0] + heights[2]) / 2)
    assert areas["fast"]["seconds_ratio"] == pytest.approx(expected, abs=0.01)
    assert areas["fast"]["seconds_ratio_interval"][0] > 1
    assert "seconds_ratio" not in areas["apart"]  # nothing is known of the same seconds


def test_over_seconds_a_tuned_baseline_is_as_strong_as_its_strongest_member() -> None:
    """Chosen at budgets, the slow one stands for the second budget, though the quick one has as much in less time."""
    rng = np.random.default_rng(1)
    right = np.stack([(rng.random((2, 60)) < p).astype(float) for p in (0.2, 0.4, 0.6)])
    one = np.ones((3, 2, 60)) * np.array([1.0, 2.0, 4.0])[:, None, None]

    def curve(name: str, height: np.ndarray, took: np.ndarray) -> Curve:
        return Curve(
            name,
            "evals",
            (10, 20, 40),
            {"checker": height, **dict.fromkeys(("evals", "seconds", "nfe", "pictures"), took)},
        )

    slow = one * np.array([1.0, 1.75, 2.0])[:, None, None]
    found = [curve("quick", right, one), curve("slow", right, slow), curve("new", right, one.copy())]
    tuned = curve("tuned best of n", right, np.stack([one[0], slow[1], one[2]]))
    plan = Plan(
        [Method(c.method, {}) for c in found],
        ["p"] * 60,
        ["all"] * 60,
        "evals",
        (10, 20, 40),
        2,
        0,
        {10: 0, 20: 1, 40: 0},
    )
    areas = {a["method"]: a for a in results(plan, [*found, tuned], "checker")["areas"]}
    assert areas["new"]["seconds_against"] == "quick"
    assert areas["new"]["seconds_ratio"] == 1.0


def test_pass_at_counts_without_replacement() -> None:
    assert pass_at(1, 4, 1) == pytest.approx(0.25)
    assert pass_at(1, 4, 2) == pytest.approx(0.5)
    assert pass_at(0, 4, 3) == 0.0
    assert pass_at(2, 4, 3) == 1.0


def test_the_better_method_is_told_from_its_twin_and_ties_are_counted() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random((2, 4, 80)) < 0.4).astype(float)
    better = np.maximum(base, rng.random(base.shape) < 0.3)
    shape = Curve("x", "nfe", (10, 20)).budgets
    found = [Curve(n, "nfe", shape, {"checker": v, "nfe": v, "evals": v, "seconds": v + 1}) for n, v in
             (("base", base), ("better", better), ("twin", base.copy()))]  # fmt: skip
    methods = [Method(c.method, {}) for c in found]
    told = results(Plan(methods, ["p"] * 80, ["all"] * 80, "nfe", (10, 20), 4), found, "checker")
    rows = {(r["method"], r["budget"]): r for r in told["rows"]}
    assert rows["better", 10]["gain"] > 0.1
    assert rows["better", 10]["gain_interval"][0] > 0
    assert rows["better", 10]["p"] < 0.01
    assert rows["twin", 20]["gain"] == 0
    assert rows["twin", 20]["gain_interval"][0] == -rows["twin", 20]["gain_interval"][1] < 0
    assert rows["twin", 20]["p"] == 1.0
    assert rows["twin", 20]["ties"] == 1.0
    assert "gain" not in rows["base", 10]
    areas = {a["method"]: a for a in told["areas"]}
    assert areas["better"]["ratio_interval"][0] > 1 == areas["twin"]["ratio"]


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "P").write_text("7\n3\n1\n")
    words = [str(folder / "P") if w == "P" else w for w in WORDS]
    assert (
        main(["bench", "random(n=99)", "random(n=99) --steps 4", "paths(n=1)", *words, "--out", str(folder / "out")])
        == 0
    )
    return folder


def told(bench: Path) -> dict[tuple[str, float], dict[str, float]]:
    found = json.loads((bench / "out" / "results.json").read_text())
    return {(r["method"], r["budget"]): r for r in found["rows"]}


def test_every_method_is_charged_what_its_budget_allows(bench: Path) -> None:
    rows = told(bench)
    assert [rows["random(n=99)", b]["evals"] for b in (4, 8, 12)] == [4, 8, 12]
    assert [rows["random(n=99)", b]["pictures"] for b in (4, 8, 12)] == [2, 4, 6]
    assert [rows["random(n=99) --steps 4", b]["pictures"] for b in (4, 8, 12)] == [1, 2, 3]


def test_smaller_budgets_are_read_from_one_run_only_where_the_plan_does_not_ask(bench: Path) -> None:
    folders = {f.name.split("-")[0]: sorted(p.name for p in f.iterdir()) for f in (bench / "out" / "runs").iterdir()}
    assert folders["random"] == ["seed-0", "seed-1"]
    assert folders["paths"] == ["seed-0", "seed-0-8", "seed-1", "seed-1-8"]
    assert ("paths(n=1)", 4) not in told(bench)  # which buys it no picture


def test_a_method_may_be_drawn_at_the_smaller_budgets_alone(bench: Path, tmp_path: Path) -> None:
    words = [str(bench / "P") if w == "P" else w for w in WORDS]
    out = tmp_path / "out"
    assert main(["bench", "random(n=99)", "random(n=98) --most 8", *words, "--out", str(out)]) == 0
    rows = {(r["method"], r["budget"]): r for r in json.loads((out / "results.json").read_text())["rows"]}
    assert [("random(n=98) --most 8", b) in rows for b in (4, 8, 12)] == [True, True, False]
    assert rows["random(n=98) --most 8", 8]["gain"] == 0
    told = json.loads((out / "results.json").read_text())
    assert told["audit"]["random(n=98) --most 8"]["pictures"] == [1, 2, 4]  # where it ends, the others where they do
    assert told["audit"]["random(n=99)"]["pictures"][-1] == 6
    assert told["drawn_at"] == [Store.open(next((out / "runs").iterdir()) / "seed-0").config["commit"]]
    [folder] = [f for f in (out / "runs").iterdir() if "most" in f.name]
    assert Store.open(folder / "seed-0").config["budget"] == {"evals": 8}
    with pytest.raises(ConfigError, match="below all budgets"):
        runs_of(Method.parse("random --most 3", {}), 0, "evals", (4, 8), out, ("1",))


def test_a_row_is_what_a_run_of_that_budget_alone_gives(bench: Path, tmp_path: Path) -> None:
    import secondlook

    alone = secondlook.draw(
        ["7", "3", "1"], "random(n=99)", tmp_path / "run", world="digits", steps=2, guidance=1.0, evals=8, seed=1
    )
    whole = next((bench / "out" / "runs").glob("random-n-99-??????")) / "seed-1"
    record = Record.read(Store.open(whole))
    for task, result in enumerate(alone):
        winner, cost, count = winner_within(record, task, "evals", 8)
        assert winner is not None
        assert (winner.id, winner.score) == (result.outcome, result.score)
        assert (cost.evals, count) == (8, 4)


def test_files_and_page_say_the_same(bench: Path) -> None:
    rows = list(csv.DictReader((bench / "out" / "results.csv").open()))
    found = told(bench)
    assert len(rows) == len(found)
    assert all(
        float(r["score"]) == pytest.approx(found[r["method"], float(r["budget"])]["score"], abs=1e-5) for r in rows
    )
    page = (bench / "out" / "report.html").read_text()
    assert page.count("<polyline") >= 6
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads((bench / "out" / "results.json").read_text())["command"].startswith(
        "secondlook bench 'random(n=99)'"
    )


def test_it_goes_on_where_it_was_and_refuses_another_study_in_its_folder(
    bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(bench / "P") if w == "P" else w for w in WORDS]
    before = (bench / "out" / "results.json").read_text()
    again = ["random(n=99)", "random(n=99) --steps 4", "paths(n=1)", *words, "--out", str(bench / "out")]
    assert main(["bench", *again]) == 0
    assert json.loads(before)["rows"] == json.loads((bench / "out" / "results.json").read_text())["rows"]
    capsys.readouterr()
    (bench / "Q").write_text("7\n3\n2\n")
    other = [str(bench / "Q") if w == "P" else w for w in WORDS]
    assert main(["bench", "random(n=99)", *other, "--out", str(bench / "out")]) == 2
    assert "holds the results of another benchmark" in capsys.readouterr().err


def test_a_benchmark_s_table_names_the_same_baseline_as_its_results(bench: Path) -> None:
    (rows, measure), (table, by) = (_results(bench / "out" / n) for n in ("results.json", "results.csv"))
    assert measure == by
    assert [r["method"] for r in rows] == [r["method"] for r in table]
    assert [r[by] for r in rows] == pytest.approx([r[by] for r in table])


def test_the_tuned_baseline_is_the_best_of_another_study_at_each_budget(bench: Path, tmp_path: Path) -> None:
    dev = json.loads((bench / "out" / "results.json").read_text())
    for row in dev["rows"]:
        row[dev["measure"]] = float((row["method"] == "random(n=99)") == (row["budget"] == 4)) - (
            "paths" in row["method"]
        )
    (tmp_path / "dev.json").write_text(json.dumps(dev))
    words = [str(bench / "P") if w == "P" else w for w in WORDS]
    out = tmp_path / "out"
    assert main(["bench", "zero_order()", *words, "--tuned", str(tmp_path / "dev.json"), "--out", str(out)]) == 0
    found = json.loads((out / "results.json").read_text())
    rows = {(r["method"], r["budget"]): r for r in found["rows"]}
    assert found["baseline"] == "tuned best of n"
    assert [rows["tuned best of n", b]["pictures"] for b in (4, 8, 12)] == [2, 2, 3]
    drawn = {Store.open(f / "seed-0").config["budget"]["evals"] for f in (out / "runs").iterdir() if "random" in f.name}
    assert drawn == {4, 12}  # each no further than it stands for the baseline
    assert "gain" in rows["zero_order()", 8]


def test_a_latency_of_another_model_stands_in_for_the_clock(bench: Path) -> None:
    assert Latency(evals=2.0, decodes=1.0, verdicts=0.5).seconds(Cost(evals=3, decodes=2, verdicts=2, nfe=3)) == 9.0


@pytest.mark.parametrize(("words", "said"), [
    (["random(n=2) --stepps 3"], "unrecognized arguments"),
    (["--steps 3"], "A method is a plan and then flags"),
    (["randm()"], 'did you mean "random"'),
    (["random()", "--budgets", "4,x"], "--budgets are numbers"),
    (["random()", "--unit", "evels"], 'did you mean "evals"'),
    (["random()", "--latency", "network=3"], "--latency is evals=SECONDS"),
    (["random()", "--tuned", "nowhere.json"], "names the results.json"),
    (["random()", "--baseline", "4"], "--baseline is a method's place"),
    (["random()", "--seeds", "0"], "--seeds must be"),
    (["random()", "--every", "0"], "--every must be"),
    (["random()", "--workers", "0"], "--workers must be"),
])  # fmt: skip
def test_mistakes_are_sentences(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "P").write_text("7\n")
    usual = {"--prompts": str(tmp_path / "P"), "--budgets": "4", "--world": "digits", "--out": str(tmp_path / "out")}
    for name, value in usual.items():
        words = words if name in words else [*words, name, value]
    assert main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_method_takes_what_draw_takes_and_nothing_else() -> None:
    found = Method.parse("random(n=5) --steps 8 --cfg-interval 0.2 0.8 --verifier oracle", {"steps": 20, "rows": 4})
    assert found.options == {
        "plan": "random(n=5)", "steps": 8, "rows": 4, "cfg_interval": (0.2, 0.8), "verifier": "oracle"
    }  # fmt: skip
    spaced = Method.parse(" draft(n=8, keep=1, steps=4) --steps 10", {})
    assert spaced.options == {"plan": "draft(n=8, keep=1, steps=4)", "steps": 10}
    with pytest.raises(ConfigError, match="nfe"):
        Method.parse("random(n=5) --nfe 8", {})


def test_workers_end_with_the_process_that_started_them() -> None:
    """Killed, it cannot tell them; one that went on would hold its run."""
    code = (
        "import multiprocessing, os, signal, time\n"
        "from secondlook.bench.methods import _begin\n"
        "def work():\n    _begin(1)\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n"
        "child = multiprocessing.get_context('fork').Process(target=work)\n"
        "child.start()\ntime.sleep(0.5)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    pid = int(done.stdout.readline())
    done.wait()
    end = time.monotonic() + 20
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_budgets_that_buy_nothing_are_a_sentence_and_slips_show_before_anything_is_drawn(
    bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(bench / "P") if w == "P" else w for w in WORDS]
    words = [*named]
    words[words.index("--budgets") + 1] = "0.5"
    assert main(["bench", "random(n=2)", *words, "--out", str(tmp_path / "few")]) == 2
    assert "nothing to compare" in capsys.readouterr().err
    assert main(["bench", "random(n=2)", "randomm(n=2)", *named, "--out", str(tmp_path / "slip")]) == 2
    assert "randomm" in capsys.readouterr().err
    assert not (tmp_path / "slip").exists()
