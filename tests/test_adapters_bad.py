"""What is wrong with a pipeline, or with what is asked of it: one sentence that says what to do, and no folder made for nothing."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import secondlook
from secondlook import cli, notes
from secondlook.errors import ConfigError, MissingExtra
from secondlook.notes import Note
from tests.helpers import Brightness, Redness

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from secondlook.adapters import load as loading  # noqa: E402
from secondlook.adapters import tiny  # noqa: E402

PROMPT = "a red cube"
LIGHT = ("--verifier", "brightness", "--steps", "2", "--plan", "random(n=1)", "--quiet")
CLASSES = "SanaPipeline, FluxPipeline, .*StableDiffusionXLPipeline.*docs/adapters.md"
CLIPS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each family, as save_pretrained writes it."""
    home = tmp_path_factory.mktemp("pipelines")
    for family in tiny.PIPELINES:
        tiny.make(family).save_pretrained(home / family)
    return {family: home / family for family in tiny.PIPELINES}


class Shell:
    """Draws through the command line, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], out: Path):
        self.capsys, self.out = capsys, out

    def draw(self, prompt: str, *words: str) -> tuple[int, str]:
        self.capsys.readouterr()
        given = [w for w in zip(LIGHT[::2], LIGHT[1::2], strict=False) if w[0] not in words]
        code = cli.main(
            ["draw", prompt, *words, *(w for pair in given for w in pair), "--quiet", "--out", str(self.out)]
        )
        return code, self.capsys.readouterr().err

    def refuses(self, pattern: str, prompt: str, *words: str, code: int = 2) -> None:
        """The exit code, one line that holds ``pattern``, and nothing left behind."""
        found, err = self.draw(prompt, *words)
        _one_sentence(err, pattern)
        assert found == code, err
        assert not self.out.exists()


def _one_sentence(err: str, pattern: str) -> None:
    assert err.startswith("secondlook: "), err
    assert len(err.strip().splitlines()) == 1, err
    assert "should not have happened" not in err, err
    assert len(err) < 700, err
    assert err.strip().endswith((".", "?", "]'")), err
    assert re.search(pattern, err), err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    return Shell(capsys, tmp_path / "run")


def held(family: str, **options: Any) -> Any:
    short = {"tokens": 16} if family in ("flux", "sd3") else {}
    return secondlook.load(tiny.make(family), **{**short, **options})


# ---- folders and names that are no pipeline --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "pattern"),
    [
        (None, "holds no model_index.json. Name a folder that pipe.save_pretrained"),
        (b"", "cannot be read as a pipeline's index.*save the pipeline again"),
        (b'{"_class', "cannot be read as a pipeline's index"),
        (b"\xff\xfe\x00", "cannot be read as a pipeline's index"),
        (b"[" * 100_000, "cannot be read as a pipeline's index"),
        (b"[]", "cannot be read as a pipeline's index"),
        (b"{}", "cannot be read as a pipeline's index"),
        (b'{"_class_name": "StableDiffusionPipeline"}', "no adapter for StableDiffusionPipeline; .*" + CLASSES),
        (b'{"_class_name": ["pipeline", "Mine"]}', r"no adapter for \['pipeline', 'Mine'\]; .*" + CLASSES),
        (b'{"_class_name": null}', "no adapter for None; .*" + CLASSES),
    ],
    ids=range(10),
)
def test_a_folder_that_is_no_pipeline(shell: Shell, tmp_path: Path, index: bytes | None, pattern: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    if index is not None:
        (folder / "model_index.json").write_bytes(index)
    shell.refuses(pattern, PROMPT, "--model", str(folder))
    with pytest.raises(ConfigError, match=pattern):
        secondlook.load(folder)


@pytest.mark.parametrize("name", ["../nothing", "/no/such/folder", "a/b/c"])
def test_names_that_are_nothing(shell: Shell, name: str) -> None:
    shell.refuses("There is no folder .* no hub id either", PROMPT, "--model", name)
    shell.refuses("There is no model .*nor the folder or hub id .* of a pipeline", PROMPT, "--model", "sanna")


def test_a_hub_that_cannot_be_reached(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    shell.refuses("nobody/nothing.*Check the name and the network, or fetch it with `hf download", PROMPT, "--model", "nobody/nothing")  # fmt: skip


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (shutil.rmtree, r"lacks its \w+ \(\w+\), which model_index.json names.*Copy the folder whole"),
    "empty": (lambda p: [f.unlink() for f in p.iterdir()], "no file named|Couldn't instantiate"),
    "no config": (lambda p: (p / "config.json").write_text("{"), "config file .*is not a valid JSON"),
    "no weights": (lambda p: [f.unlink() for f in p.glob("*.safetensors")], "no file named .*safetensors"),
    "half": (lambda p: _rewrite(p, lambda c: c[: len(c) // 2]), r"\w\.safetensors is damaged"),
    "shape": (lambda p: _retensor(p, lambda v: torch.zeros(3, 3)), "expected shape|has another shape than config.json"),
    "lacking": (lambda p: _retensor(p, lambda v: None), "lacks"),
}


def _rewrite(part: Path, change: Callable[[bytes], bytes]) -> None:
    for path in part.glob("*.safetensors"):
        path.write_bytes(change(path.read_bytes()))


def _retensor(part: Path, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    for path in part.glob("*.safetensors"):
        tensors = load_file(path)
        key = sorted(tensors)[3]
        made = change(tensors.pop(key))
        save_file(tensors if made is None else {**tensors, key: made}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("part", "damage"),
    [(part, damage) for part in ("text_encoder", "transformer", "vae") for damage in DAMAGE]
    + [(part, damage) for part in ("scheduler", "tokenizer") for damage in ("gone", "empty")],
)
def test_a_folder_with_a_damaged_part(shell: Shell, saved: dict[str, Path], tmp_path: Path, part: str, damage: str) -> None:  # fmt: skip
    folder = tmp_path / "copy"
    shutil.copytree(saved["sana"], folder)
    harm, pattern = DAMAGE[damage]
    harm(folder / part)
    if (part, damage) == ("text_encoder", "lacking"):  # transformers puts chance in its place
        code, err = shell.draw(PROMPT, "--model", str(folder))
        assert code == 0
        _one_sentence(err, "note: The Gemma2Model of .* lacks layers.*pictures will be wrong")
        return
    shell.refuses(pattern, PROMPT, "--model", str(folder))


@pytest.mark.parametrize(
    ("family", "part"),
    [(f, p) for f in tiny.PIPELINES for p in ("vae", "scheduler")]
    + [(f, "transformer") for f in ("sana", "flux", "sd3", "pixart", "dit")]
    + [(f, p) for f in ("flux", "sd3", "sdxl") for p in (*CLIPS, "tokenizer", "tokenizer_2")]
    + [(f, p) for f in ("sana", "pixart") for p in ("text_encoder", "tokenizer")],
)
def test_an_object_without_a_part(family: str, part: str) -> None:
    pipe = tiny.make(family)
    setattr(pipe, part, None)
    with pytest.raises(ConfigError, match=rf"This {type(pipe).__name__} has no {part}; load the pipeline with it"):
        secondlook.load(pipe)


def test_sd3_without_t5_draws(tmp_path: Path) -> None:
    pipe = tiny.make("sd3")
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        secondlook.draw(
            " ".join(["red"] * 18), "random(n=1)", tmp_path / "r", model=pipe, steps=2, verifier="brightness"
        )


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_packages_that_are_not_installed(shell: Shell, saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch, package: str) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, package, None)
    shell.refuses(r"pip install 'secondlook\[hub\]'", PROMPT, "--model", str(saved["sana"]), code=1)
    with pytest.raises(MissingExtra, match=r"pip install 'secondlook\[hub\]'"):
        tiny.make("sana")


# ---- what is asked of a pipeline -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "words", "pattern"),
    [
        ("sana", "--height 0", "from 1 to 16384; got 0"),
        ("sana", "--width -32", "from 1 to 16384; got -32"),
        ("sana", "--height 999999999", "from 1 to 16384"),
        ("sana", "--height 31", "--height must divide by 2 .* Try 30 or 32"),
        ("flux", "--width 30", "--width must divide by 4 .* Try 28 or 32"),
        ("sdxl", "--height 6", "--height must divide by 4 .* Try 4 or 8"),
        ("sd3", "--height 388", "--height must be at most 384"),
        ("sd3", "--width 512", "--width must be at most 384"),
        ("dit", "--height 64", "DiT draws 32 x 32 only"),
        ("sana", "--dtype float23", 'no dtype "float23" here; did you mean "float32"'),
        ("sana", "--dtype int8", "known: bfloat16, float16, float32"),
        ("sana", "--device tpu9", 'The device "tpu9" cannot be used here.*leave --device out'),
        ("sana", "--device meta", 'The device "meta" cannot be used here'),
        ("sana", "--adapter nowhere:Thing", 'The adapter "nowhere:Thing" cannot be imported'),
        ("sana", "--adapter os:system", '"os:system" is not an adapter: expected a class derived'),
        ("sana", "--adapter secondlook.adapters.base:Adapter", "is not an adapter"),
        ("sana", "--adapter os", "wanted module:attr"),
        ("sana", "--adapter secondlook.adapters.flux:Flux", "The adapter Flux is for FluxPipeline; this is a SanaPipeline"),
        ("sana", "--adapter secondlook.adapters.dit:DiT", "The adapter DiT is for DiTPipeline; this is a SanaPipeline"),
        ("sana", "--vae somewhere", "--vae belongs to SiT weights"),
        ("sana", "--true-guidance 2", "--true-guidance means nothing to sana pipelines"),
        ("sdxl", "--tokens 32", "--tokens means nothing to sdxl pipelines"),
        ("dit", "--negative red", "--negative means nothing to dit pipelines"),
        ("flux", "--negative red", "--negative acts on this pipeline only with --true-guidance above 1"),
        ("flux", "--tokens 5000", "--tokens must be from 3 to 512"),
        ("sd3", "--tokens 2", "--tokens must be from 3 to 512"),
        ("sana", "--tokens 1", "--tokens must be from 3 to 16384"),
        ("sana", "--bf16", "--bf16 belongs to the built-in worlds.*--dtype bfloat16"),
        ("sana", "--world digits", 'The world "digits" has models of its own; leave --world out'),
        ("sana", "--steps 1000000000", "--steps must be from 1 to 10000"),
        ("sana", "--steps 0", "--steps must be from 1 to 10000"),
        ("pixart", "--steps 2000", "not as many times as 2000 steps want; choose fewer"),
        ("sdxl", "--steps 2000", "not as many times as 2000 steps want; choose fewer"),
        ("dit", "--steps 2000", "DDIMScheduler refuses 2000 steps here"),
        ("sdxl", "--shift 3", "--shift moves the times of flow models; .*Leave it out"),
        ("sana", "--verifier learned", '"learned" belongs to the built-in worlds'),
        ("sana", "--verifier oracle", '"oracle" belongs to the built-in worlds'),
        ("sana", "--verifier nowhere:thing", "cannot be imported"),
        ("sana", "--verifier brightnes", 'did you mean "brightness"'),
        ("sana", "--solver dopri5", "dopri5 chooses its own number of steps"),
    ],
)  # fmt: skip
def test_what_a_pipeline_cannot_do(shell: Shell, saved: dict[str, Path], family: str, words: str, pattern: str) -> None:
    prompt = "1" if family == "dit" else PROMPT
    shell.refuses(pattern, prompt, "--model", str(saved[family]), *words.split())


@pytest.mark.parametrize("words", ["--height 32", "--width 32", "--negative x", "--tokens 9", "--dtype float32",
                                   "--free-text", "--adapter a:B", "--vae x"])  # fmt: skip
@pytest.mark.parametrize("world", ["scenes", "digits"])
def test_options_of_pipelines_given_to_a_world(shell: Shell, world: str, words: str) -> None:
    prompt = "3" if world == "digits" else "a red circle"
    shell.refuses(rf'{words.split()[0]} belongs to (pipelines|SiT or DiT weights); "{world}" ', prompt, "--world", world, *words.split())  # fmt: skip
    shell.refuses("Which pipeline", prompt, "--world", "diffusers")


def test_prompts_and_classes(shell: Shell, saved: dict[str, Path]) -> None:
    for empty in ("", "  "):
        shell.refuses("The prompt is empty", empty, "--model", str(saved["sana"]))
    for word in ("1000", "-1", "tenchh"):
        with pytest.raises(ConfigError, match="draws classes, 0 to 999"):
            held("dit").condition(word)
    with pytest.raises(ConfigError, match='did you mean "goldfish"'):
        held("dit").condition("goldfsh")
    pipe = tiny.make("dit")
    pipe.labels = {f"name {i}": i for i in range(1000)}
    with pytest.raises(ConfigError) as error:
        secondlook.load(pipe).condition("zzzzzzz")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"heigth": 32}, 'no option "heigth" here; did you mean "height"'),
        ({"height": "32"}, "height must be a whole number"),
        ({"height": 32.0}, "height must be a whole number"),
        ({"negative": 3}, "negative must be a text; got 3"),
        ({"true_guidance": "two"}, "true_guidance must be from 0 to 1000"),
        ({"dtype": "bfloat16"}, "A pipeline object keeps its own dtype"),
        ({"device": torch.device("cpu")}, "A pipeline object keeps its own"),
        ({"adapter": Brightness}, "is not an adapter"),
    ],
    ids=str,
)
def test_python_only_slips(given: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        secondlook.load(tiny.make("sana"), **given)


def test_other_python_slips(tmp_path: Path) -> None:
    made = held("sana")

    def draw(**options: Any) -> Any:
        return secondlook.draw(PROMPT, "random(n=1)", tmp_path / "r", **{"model": made, "steps": 2, **options})

    for options, pattern in (({"model": 42}, "no adapter for int"), ({"height": 32}, "loaded already; give height to secondlook.load"),
                             ({"verifier": Redness}, "with a name that can be called"), ({"verifier": lambda *a: 0}, "A verifier is a call-string"),
                             ({"world": "digits"}, "has models of its own"), ({"hight": 3}, "There is no option 'hight'"),
                             ({"verifier": "judge"}, "belongs to the built-in worlds")):  # fmt: skip
        with pytest.raises(ConfigError, match=pattern):
            draw(**options)
    with pytest.raises(ConfigError, match="loaded already"):
        secondlook.load(made)
    assert not (tmp_path / "r").exists()


def test_what_can_be_refused_before_the_pipeline_is_loaded_is(shell: Shell, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(loading, "load", lambda *a, **k: pytest.fail("the pipeline was loaded"))
    model = ("--model", str(saved["sana"]))
    shell.refuses('no plan "randm"', PROMPT, *model, "--plan", "randm")
    shell.refuses("at most 1; got 2.0", PROMPT, *model, "--plan", "zero_order(radius=2)")
    shell.refuses("must be above 0; got nfe = 0", PROMPT, *model, "--nfe", "0")
    for verifier in ("nowhere:thing", "learned", "compressibility(sing=1)"):
        shell.refuses("cannot be imported|built-in worlds|no option", PROMPT, *model, "--verifier", verifier)
    shell.out.mkdir()
    (shell.out / "diary.txt").write_text("mine")
    code, err = shell.draw(PROMPT, *model)
    assert code == 2
    _one_sentence(err, "is not empty.*nothing was written")


# ---- schedulers ------------------------------------------------------------------------------------------------------


def rescheduled(family: str, name: str, **changes: Any) -> Any:
    pipe = tiny.make(family)
    pipe.scheduler = getattr(diffusers, name).from_config({**pipe.scheduler.config, **changes})
    return pipe


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "LCMScheduler", "TCDScheduler", "DDIMInverseScheduler", "IPNDMScheduler",
                                  "KarrasVeScheduler", "RePaintScheduler", "CMStochasticIterativeScheduler", "ScoreSdeVeScheduler",
                                  "SCMScheduler", "DDPMWuerstchenScheduler"])  # fmt: skip
def test_schedulers_without_a_counterpart(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"The scheduler {name} has no counterpart here.*DPMSolverMultistepScheduler"):
        secondlook.draw(PROMPT, "random(n=1)", tmp_path / "r", model=rescheduled("sdxl", name), verifier="brightness")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["DDIMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler"])
def test_noise_schedules_are_not_taken_for_a_flow(name: str) -> None:
    with pytest.raises(ConfigError, match=f"The scheduler {name} has no counterpart here"):
        secondlook.load(rescheduled("sana", name)).schedule(4)


@pytest.mark.parametrize(
    ("family", "name", "changes"),
    [
        ("sdxl", "UniPCMultistepScheduler", {}),
        ("sana", "UniPCMultistepScheduler", {}),
        ("sdxl", "PNDMScheduler", {}),
        ("sdxl", "PNDMScheduler", {"skip_prk_steps": True}),
        ("sdxl", "HeunDiscreteScheduler", {}),
        ("sdxl", "KDPM2DiscreteScheduler", {}),
        ("sdxl", "DEISMultistepScheduler", {}),
        ("sdxl", "DPMSolverSinglestepScheduler", {"timestep_spacing": "linspace"}),
        ("pixart", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("sana", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_schedulers_with_a_near_counterpart_are_named_once_and_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, name: str, changes: dict[str, Any]) -> None:  # fmt: skip
    monkeypatch.setattr(notes, "_said", set())
    made = secondlook.load(rescheduled(family, name, **changes))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        [found] = secondlook.draw(PROMPT, "random(n=2)", tmp_path / "r", model=made, steps=4, verifier="brightness")
    assert [str(w.message) for w in said if w.category is Note and name in str(w.message)] == [
        f"{name} as it is set has no exact counterpart here; drawing with dpmpp(order=2) at its times instead."
    ]
    assert found.picture.std() > 1
    assert len(made.schedule(4).levels) >= 4
