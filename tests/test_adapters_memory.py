"""Memory, numbers and prompts that overflow: a picture all the same where there is a way, else one sentence and a run to go on with."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import secondlook
from secondlook import cli, notes
from secondlook.adapters.chunks import Chunks, no_memory
from secondlook.adapters.truncation import shorten, unread
from secondlook.engine import rig
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import SecondlookError
from secondlook.notes import Note
from tests.helpers import essence

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from secondlook.adapters import tiny
from secondlook.adapters.sana import Sana

PROMPT = "a red cube"
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ERRORS = [FULL, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes."),
          MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")]  # fmt: skip


@pytest.fixture(autouse=True)
def _again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "_said", set())


def draw(model: Any, out: Path, **options: Any) -> tuple[Any, list[str]]:
    """The results of a light run of eight pictures, and the notes."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        found = secondlook.draw(PROMPT, "random(n=8)", out, model=model, **{"steps": 2, "verifier": "brightness", **options})  # fmt: skip
    return found, [str(w.message) for w in said if w.category is Note]


def outcomes(out: Path) -> Any:
    return essence(Record.read(Store.open(out)))


def pictures(out: Path) -> np.ndarray:
    store = Store.open(out)
    return np.stack([store.picture(i) for i in sorted(Record.read(store).outcomes)]).astype(int)


class Above:
    """A function that fails where it is given more than ``most`` rows, after ``first`` calls that it lets pass."""

    def __init__(self, inner: Callable[..., Any], error: BaseException, most: int, first: int = 0):
        self.inner, self.error, self.most, self.left = inner, error, most, first
        self.sizes: list[int] = []

    def __call__(self, x: Tensor, *rest: Any, **more: Any) -> Any:
        self.left -= 1
        if len(x) > self.most and self.left < 0:
            raise self.error
        self.sizes.append(len(x))
        return self.inner(x, *rest, **more)


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS[:2], ids=lambda e: f"{type(e).__name__} {str(e)[:12]}")
def test_a_network_without_memory_for_its_rows_takes_fewer(error: BaseException, tmp_path: Path) -> None:
    model = secondlook.load(tiny.make("sana"))
    _, said = draw(model, tmp_path / "whole")
    assert not said
    model.ask = limited = Above(model.ask, error, most=5)
    _, said = draw(model, tmp_path / "fewer")
    assert said == [f"Memory did not hold the network for {a} rows at once; going on with {b}." for a, b in ((16, 8), (8, 4))]  # fmt: skip
    assert set(limited.sizes) == {4}  # it does not try again what failed
    assert np.abs(pictures(tmp_path / "fewer") - pictures(tmp_path / "whole")).max() <= 1


def test_a_decoder_without_memory_takes_fewer_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = secondlook.load(tiny.make("sdxl"))
    draw(model, tmp_path / "whole")
    monkeypatch.setattr(model.pipe.vae, "decode", Above(model.pipe.vae.decode, FULL, most=3))
    _, said = draw(model, tmp_path / "fewer")
    assert said == [f"Memory did not hold the autoencoder's decoder for {a} rows at once; going on with {b}." for a, b in ((8, 4), (4, 2))]  # fmt: skip
    assert np.abs(pictures(tmp_path / "fewer") - pictures(tmp_path / "whole")).max() <= 1


@pytest.mark.parametrize(("part", "what"), [("ask", "the network"), ("decode", "the autoencoder's decoder")])
def test_memory_for_not_even_one_row_ends_a_run_that_can_go_on(part: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    model = secondlook.load(tiny.make("sana"))
    draw(model, tmp_path / "whole", rows=4)
    owner = model if part == "ask" else model.pipe.vae
    with monkeypatch.context() as patch:
        first = {"ask": 3, "decode": 1}[part]  # a batch of four is finished, and the next one fails
        patch.setattr(owner, part, Above(getattr(owner, part), FULL, most=0, first=first))
        with pytest.raises(
            SecondlookError,
            match=f"^Memory does not hold {what} for one picture. Draw smaller .*Nothing recorded is lost.$",
        ):
            draw(model, tmp_path / "cut", rows=4)
    kept = outcomes(tmp_path / "cut")
    assert len(kept) == 4
    secondlook.resume(tmp_path / "cut", model=secondlook.load(tiny.make("sana")))
    assert {i: outcomes(tmp_path / "cut")[i] for i in kept} == kept
    assert np.abs(pictures(tmp_path / "cut") - pictures(tmp_path / "whole")).max() <= 1


def test_the_command_line_says_it_in_one_line_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    pipe, run = tmp_path / "pipe", tmp_path / "run"
    tiny.make("sana").save_pretrained(pipe)
    capsys.readouterr()
    words = ["draw", PROMPT, "--model", str(pipe), "--steps", "2", "--plan", "random(n=2)", "--verifier", "brightness", "--rows", "1", "--quiet"]  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(Sana, "ask", _never)
        code = cli.main([*words, "--out", str(run)])
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 1
    assert len(err) == 2, err  # two rows of guidance at once, then one
    assert re.fullmatch("secondlook: note: Memory did not hold the network for 2 rows at once; going on with 1.", err[0])  # fmt: skip
    assert err[1].startswith("secondlook: Memory does not hold the network for one picture. Draw smaller")
    assert cli.main(["resume", str(run), "--quiet"]) == 0
    assert len(outcomes(run)) == 2


def _never(self: Any, x: Tensor, *rest: Any) -> Tensor:
    raise FULL


def test_text_encoders_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = secondlook.load(tiny.make("sana"))
    monkeypatch.setattr(model.pipe, "encode_prompt", lambda *a, **k: (_ for _ in ()).throw(FULL))
    with pytest.raises(SecondlookError, match=r"^Memory does not hold the text encoders. Load them in a smaller dtype"):
        draw(model, tmp_path / "run")


def test_a_run_without_memory_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the noise of pictures far too large."""
    monkeypatch.setattr(rig, "normal", lambda *a: (_ for _ in ()).throw(MemoryError("Unable to allocate 2.00 GiB")))
    with pytest.raises(SecondlookError, match=r"^Memory does not hold this run. Draw fewer rows at once \(--rows\)"):
        draw(tiny.make("sana"), tmp_path / "run")


def test_other_errors_are_not_taken_for_memory() -> None:
    assert all(no_memory(e) for e in ERRORS)
    assert not any(no_memory(e) for e in (RuntimeError("CUDA error: device-side assert"), ValueError("out of memory"), OSError()))  # fmt: skip
    with pytest.raises(RuntimeError, match="shapes"):
        Chunks("the network").run(lambda at: (_ for _ in ()).throw(RuntimeError("shapes differ")), 4)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def half_vae(family: str, loud: float = 3e4) -> Any:
    """A pipeline whose float16 autoencoder overflows where a float32 one of the same weights does not."""
    pipe = tiny.make(family)
    pipe.vae.to(torch.float16)
    pipe.vae.register_to_config(
        force_upcast=False
    )  # as SDXL's own says, which is then decoded in float32 from the first
    weight = pipe.vae.decoder.conv_in.weight.data
    weight.mul_(loud / float(weight.abs().max()))
    return pipe


@pytest.mark.parametrize("family", ["sdxl", "pixart"])
def test_a_float16_autoencoder_that_overflows_goes_on_in_float32(family: str, tmp_path: Path) -> None:
    pipe, same = half_vae(family), half_vae(family)
    same.vae.to(torch.float32)
    found, said = draw(secondlook.load(pipe), tmp_path / "half")
    assert len(said) == 1
    assert re.match("The autoencoder overflowed in float16 and gave NaN; it decodes in float32 .*pipe.vae.to", said[0])
    assert pipe.vae.dtype == torch.float16  # in the run alone: afterwards it is as it was found
    whole, said = draw(secondlook.load(same), tmp_path / "full")
    assert not said
    assert found[0].picture.std() > 1
    assert np.array_equal(found[0].picture, whole[0].picture)


def test_an_autoencoder_that_asks_for_float32_is_given_it_without_a_word(tmp_path: Path) -> None:
    pipe = tiny.make("sdxl")
    pipe.to(torch.float16)
    assert pipe.vae.config.force_upcast
    _, said = draw(secondlook.load(pipe), tmp_path / "run")
    assert not said
    assert (pipe.vae.dtype, pipe.unet.dtype) == (torch.float16, torch.float16)  # as it was found


def test_an_autoencoder_of_nan_ends_a_run_that_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.make("sdxl")
    draw(pipe, tmp_path / "whole", rows=4)
    inner, calls = pipe.vae.decode, []

    def decode(z: Tensor, **more: Any) -> Any:
        calls.append(len(z))
        picture = inner(z, **more)[0]
        return (picture if len(calls) == 1 else picture * torch.nan,)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "decode", decode)
        with pytest.raises(SecondlookError, match=r"^The autoencoder gave NaN, in float32 too: .*nothing recorded is lost.$"):  # fmt: skip
            draw(pipe, tmp_path / "cut", rows=4)
    kept = outcomes(tmp_path / "cut")
    assert len(kept) == 4
    secondlook.resume(tmp_path / "cut", model=pipe)
    assert outcomes(tmp_path / "cut") == outcomes(tmp_path / "whole")


@pytest.mark.parametrize(("dtype", "cure"), [(torch.float16, "float16. Load it in bfloat16 and draw again"), (torch.bfloat16, "bfloat16. Load it in float32 and draw"),
                                             (torch.float32, "float32. Check its weights")])  # fmt: skip
def test_a_network_that_overflows_is_one_sentence(tmp_path: Path, dtype: torch.dtype, cure: str) -> None:
    pipe = tiny.make("sana").to(dtype)
    pipe.transformer.proj_out.weight.data.fill_(torch.inf)
    with pytest.raises(
        SecondlookError, match=r"^Every row drawn so far overflowed .*wider dtype .*Nothing recorded is lost"
    ):
        draw(pipe, tmp_path / "run")
    with pytest.raises(SecondlookError, match=f"^The network's latents are not finite: it overflowed in {cure}"):
        secondlook.load(pipe).decode(torch.full((1, *secondlook.load(pipe).shape), torch.nan))
    record = Record.read(Store.open(tmp_path / "run"))
    assert record.outcomes  # recorded as lost, so that a resumed run goes on behind them
    assert all(digest is None for digest in record.digests.values())
    assert not record.done


# ---- prompts past the tokenizers' limits -----------------------------------------------------------------------------

LONG = {"letters": "a red cube on a blue ball, " * 4 + "and two green cats", "words": "a red cube on the left of two blue balls and " * 12 + "a cat"}  # fmt: skip


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.mark.parametrize(("family", "names", "tokens"), [("sana", ["tokenizer"], 40), ("pixart", ["tokenizer"], 16), ("sdxl", ["tokenizer", "tokenizer_2"], None),
                         ("flux", ["tokenizer", "tokenizer_2"], 16), ("sd3", ["tokenizer", "tokenizer_2", "tokenizer_3"], 16),
                         ("flux", ["tokenizer"], 64), ("sd3", ["tokenizer", "tokenizer_2"], 64)])  # fmt: skip
def test_a_note_says_what_of_a_prompt_is_not_read(monkeypatch: pytest.MonkeyPatch, family: str, names: list[str], tokens: int | None) -> None:  # fmt: skip
    """The part that the note quotes changes nothing; one word more cut off does. The libraries' own lines do not double it."""
    monkeypatch.setattr(notes, "_said", set())
    heard = Heard()
    for library in ("diffusers", "transformers"):
        monkeypatch.setattr(logging.getLogger(library), "handlers", [heard])
    prompt = LONG["words" if family in ("sana", "pixart") else "letters"]
    made = secondlook.load(tiny.make(family), **({"tokens": tokens} if tokens else {}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        whole = made.encode(made.condition(prompt))
        made.encode(made.condition(prompt))
    [line] = [str(w.message) for w in said if w.category is Note]
    assert not [text for text in heard.lines if "truncated" in text or "longer than" in text]
    readers = made._readers()
    cuts = {name: unread(tokenizer, prompt, most)[1] for name, (tokenizer, most) in readers.items()}
    assert [name for name, cut in cuts.items() if cut] == names
    for name, cut in cuts.items():
        tokenizer, most = readers[name]
        has, read = (len(tokenizer(p, add_special_tokens=False).input_ids) for p in (prompt, prompt.removesuffix(cut)))
        assert read == min(most, has)
        assert (f'not see "…{shorten(cut)}"' in line) if cut else (f"{name} read" in line)
    least = min((cut for cut in cuts.values() if cut), key=len)
    if len(names) == len(cuts):  # what no encoder reads may go; a word more may not
        shorter = prompt[: len(prompt) - len(least)]
        assert all(torch.equal(whole[k], v) for k, v in made.encode(made.condition(shorter)).parts.items())
        cut_more = shorter.rstrip().rpartition(" ")[0]
        assert not all(torch.equal(whole[k], v) for k, v in made.encode(made.condition(cut_more)).parts.items())


def test_a_note_quotes_at_most_a_few_lines() -> None:
    assert shorten("x" * 300) == "x" * 300
    assert shorten("x" * 1000) == "x" * 300 + "… (700 letters more)"
