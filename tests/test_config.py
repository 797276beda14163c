"""Call-strings are read, never run; what does not fit is refused in one sentence that says what would."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from secondlook.calls import Call, bind, parse_call
from secondlook.errors import ConfigError
from secondlook.registry import PLANS, SOLVERS, VERIFIERS, resolve
from secondlook.settings import make_named, make_plan
from secondlook.types import Condition, Plan, Task
from tests.helpers import Brightness, tasks


def options(task: Task, *, count: int, radius: float = 0.5, name: str = "x", flag: bool = False) -> Plan:
    """A plan with one option of every kind."""
    yield []


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("random", Call("random")),
        ("random()", Call("random")),
        (" random ( n = 20 ) ", Call("random", (), (("n", 20),))),
        ("zero_order(4, radius=0.3)", Call("zero_order", (4,), (("radius", 0.3),))),
        (
            "a.b:c(x='(', y=[1, (2, {'k': None})], z=-1.5)",
            Call("a.b:c", (), (("x", "("), ("y", [1, (2, {"k": None})]), ("z", -1.5))),
        ),
    ],
)
def test_reads_names_and_literals(text: str, call: Call) -> None:
    assert parse_call(text) == call


def test_a_call_prints_as_it_is_read() -> None:
    call = parse_call("p(1, a='x', b=[0.5], c=True)")
    assert parse_call(str(call)) == call


HOSTILE = [
    "__import__('os').system('touch {mark}')",
    "random(n=__import__('os').system('touch {mark}'))",
    "random(n=open('{mark}', 'w'))",
    "random(n=(lambda: 1)())",
    "random(n=lambda: 1)",
    "random(n=n)",
    "random(n=os.sep)",
    "random(n=[i for i in (1, 2)])",
    "random(n=f'{{1}}')",
    "random(**{{}})",
    "random(**{{'n': 1}})",
    "random(*[1])",
    "random(n=random(n=1))",
    "random(n=1)(n=2)",
    "random(n=1) + f(n=2)",
    "random(n=1); import os",
    "random(n=1)\nimport os",
    "random(n:=1)",
    "random(n=1",
    "random)n=1(",
    "random(n=)",
    "random(n=2**100)",
    "random(n='\ud800')\udfff",
    "random(n=\0)",
    "random(n=" + "9" * 5000 + ")",
    "random(n=" + "[" * 50_000 + "]" * 50_000 + ")",
    "random(n=" + "-" * 50_000 + "1)",
    "(n=1)",
    "",
    "a.b(n=1)",
    "a:b:c(n=1)",
    "..:x",
    "a b",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda t: ascii(t[:32]))
def test_refuses_whatever_is_not_a_name_and_literals(text: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(ConfigError):
        parse_call(text.format(mark=mark) if "{mark}" in text else text)
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    ["os:system", "subprocess:check_output", "subprocess:Popen", "builtins:eval", "builtins:exec", "shutil:rmtree"],
)
@pytest.mark.parametrize("kind", ["verifier", "solver", "plan"])
def test_a_call_string_cannot_call_what_is_no_part_of_a_search(kind: str, target: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = f"{target}('touch {mark}')"
    with pytest.raises(ConfigError, match=f"is not a {kind}: expected"):
        make_plan(text)(tasks()[0]) if kind == "plan" else make_named(kind, text)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["plan", "solver", "verifier"])
def test_unknown_names_come_with_the_nearest(kind: str) -> None:
    table = {"plan": PLANS, "solver": SOLVERS, "verifier": VERIFIERS}[kind]
    known = sorted(table)[0]
    with pytest.raises(ConfigError, match=f'There is no {kind} "{known}x"; did you mean "{known}"?'):
        resolve(kind, known + "x")
    with pytest.raises(ConfigError, match="known: " + ", ".join(sorted(table))):
        resolve(kind, "qqqqqq")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "p(cuont=1)",
            r'p has no option "cuont"; did you mean "count"\? It is written p\(count, radius=0.5, name=\'x\', flag=False\)',
        ),
        ("p()", r"p needs count\. It is written p\(count, "),
        ("p(1, count=2)", 'was given "count" twice'),
        ("p(count=1, count=2)", 'was given "count" twice'),
        ("p(1, 2.0, 'a', True, 5)", "takes 4 options; got 5 values"),
        ("p(count=1.0)", "count expects a whole number; got 1.0"),
        ("p(count=True)", "count expects a whole number; got True"),
        ("p(count=None)", "count expects a whole number; got None"),
        ("p(1, radius='a')", "radius expects a number; got 'a'"),
        ("p(1, radius=True)", "radius expects a number; got True"),
        ("p(1, name=3)", "name expects a text in quotes; got 3"),
        ("p(1, flag=1)", "flag expects True or False; got 1"),
    ],
)
def test_options_are_checked_against_the_signature(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(parse_call(text), options, skip=1)


def test_options_may_be_given_by_place_and_an_int_serves_as_a_float() -> None:
    found = bind(parse_call("p(3, 1, flag=True)"), options, skip=1)
    assert found == {"count": 3, "radius": 1.0, "flag": True}
    assert type(found["radius"]) is float


def test_a_function_cannot_be_given_as_a_literal() -> None:
    with pytest.raises(ConfigError, match='no option "source"') as error:
        make_named("solver", "sde(source=3)")
    assert "0x" not in str(error.value)  # no addresses of functions in the signature


@pytest.mark.parametrize("text", ["sde(scale=-1)", "sde(cap=-0.5)", "sde(scale=1e999)"])
def test_a_solver_refuses_values_it_cannot_work_with(text: str) -> None:
    with pytest.raises(ConfigError, match="must be 0 or above"):
        make_named("solver", text)


def test_module_and_attribute_reach_other_packages() -> None:
    assert isinstance(make_named("verifier", "tests.helpers:brightness"), Brightness)
    assert isinstance(make_named("verifier", "tests.helpers:Brightness"), Brightness)
    assert (
        make_plan("secondlook.plans.random:random(n=3)")(Task(0, Condition("x"), tasks()[0].key)).send(None)[2].stop
        == 1.0
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:x", "cannot be imported: ModuleNotFoundError"),
        ("tests.helpers:nothing", 'has no "nothing"'),
        ("tests.helpers:PROMPTS", "is not a verifier"),
        ("tests.helpers:tasks", "is not a verifier"),
        ("broken_elsewhere:x", "cannot be imported: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_resolved_is_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "broken" in name:
        (tmp_path / "broken_elsewhere.py").write_text("1 / 0\n")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        resolve("verifier", name)


@pytest.mark.parametrize("name", sorted(PLANS))
def test_every_plan_refuses_what_it_cannot_use(name: str) -> None:
    first = next(p.name for p in inspect.signature(resolve("plan", name)).parameters.values() if type(p.default) is int)
    for value in ("0", "-1", "1000000000000"):
        with pytest.raises(ConfigError, match="must be"):
            next(make_plan(f"{name}({first}={value})")(tasks()[0]))
