"""The eyes in a run: one network for all that name it, weights that a run remembers, prompts that are encoded once, several judges as one."""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import secondlook
from secondlook.backends.identity import settings_of
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.eyes import clip, ensemble, heads, load, tiny
from secondlook.eyes.text import Memory
from secondlook.notes import Note
from secondlook.settings import make_named, selector_of
from secondlook.testing import VerifierContract
from secondlook.testing.contracts import noise_pictures
from secondlook.types import Condition, Verifier
from secondlook.verify import answers

pytest.importorskip("transformers")
TWO = "brightness, sharpness"


def test_judges_that_name_the_same_weights_share_one_network(eyes: dict[str, str], eyes_at: Path) -> None:
    some = [make_named("verifier", eyes[n]) for n in ("clip", "aesthetic", "objects")] + [
        make_named("comparer", f"clip(model={str(eyes_at / 'clip')!r})")
    ]
    assert some[0].network is some[1].network is some[2].colours.network is some[3].network
    other = make_named("verifier", eyes["clip"][:-1] + ", dtype='bfloat16')")
    assert other.network is not some[0].network
    assert make_named("verifier", eyes["pickscore"]).network is not some[0].network


def test_published_names_are_found_in_the_hubs_cache_and_told_apart_by_their_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def keep(repository: str, kind: str, commit: str = "a", reference: str = "main") -> None:
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        tiny.save(kind, folder / "snapshots" / (commit * 40), seed=ord(commit))
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / reference).write_text(commit * 40)

    for repository, kind in {clip.CLIP_L: "clip", clip.CLIP_H: "clip", clip.PICKSCORE: "pickscore", clip.HPS: "hpsv2", clip.SIGLIP: "siglip", heads.HEAD: "aesthetic",
                             "google/owlv2-base-patch16-ensemble": "owlv2"}.items():  # fmt: skip
        keep(repository, kind)
    keep("facebook/detr-resnet-50", "detr", reference="no_timm")
    for name in ("clip", "siglip", "pickscore", "hpsv2", "aesthetic", "objects", "objects(detector='detr')", "rank"):
        verifier = make_named("verifier", name)
        assert not math.isnan(answers.scores(verifier(noise_pictures(1), [Condition("a dog")]), 1)[0][0])
    old = make_named("verifier", "clip")
    assert load.identity("clip(model", clip.CLIP_L) == (clip.CLIP_L, "a" * 40)
    keep(clip.CLIP_L, "clip", commit="b")
    assert make_named("verifier", "clip").network is not old.network
    with pytest.raises(ConfigError, match=r"hf download OWNER/NAME --revision other --local-dir DIR"):
        make_named("verifier", "clip(model='OWNER/NAME@other')")


def test_a_network_that_nobody_holds_is_let_go(eyes: dict[str, str]) -> None:
    gc.collect()
    before = len(load._held)
    verifier = make_named("verifier", eyes["siglip"])
    assert len(load._held) == before + 1
    del verifier
    gc.collect()
    assert len(load._held) == before


def test_a_prompt_is_encoded_once(eyes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = make_named("verifier", eyes["clip"])
    calls: list[int] = []
    usual = verifier.network.get_text_features
    monkeypatch.setattr(verifier.network, "get_text_features", lambda **k: calls.append(1) or usual(**k), raising=False)
    for _ in range(3):
        verifier(noise_pictures(4), [Condition("a cat"), Condition("a dog")] * 2)
    assert len(calls) == 2


def test_the_memory_of_prompts_is_bounded() -> None:
    memory: Memory[str] = Memory(2)
    made: list[str] = []
    for text in ("a", "b", "a", "c", "a", "b"):
        memory.get(text, lambda t: made.append(t) or t)  # type: ignore[func-returns-value]
    assert made == ["a", "b", "c", "b"]
    assert len(memory) == 2


def test_what_of_a_long_prompt_is_not_read_is_said_once(eyes: dict[str, str]) -> None:
    verifier, prompt = make_named("verifier", eyes["clip"]), "a cat " * 20 + "under a lamp"
    with pytest.warns(Note, match=r'clip takes 75 of its \d+ tokens and does not see "…'):
        long = verifier(noise_pictures(1), [Condition(prompt)])
    assert torch.equal(long, verifier(noise_pictures(1), [Condition(prompt[:-4] + "hill")]))


def test_offloaded_and_half_precise_judges_agree(eyes: dict[str, str]) -> None:
    conditions = [Condition("a red cup")] * 2
    wanted = make_named("verifier", eyes["clip"])(noise_pictures(2), conditions)
    offloaded = make_named("verifier", eyes["clip"][:-1] + ", offload=True, device='cpu')")(
        noise_pictures(2), conditions
    )
    half = make_named("verifier", eyes["clip"][:-1] + ", dtype='bfloat16')")(noise_pictures(2), conditions)
    assert torch.equal(wanted, offloaded)
    assert torch.allclose(wanted, half, atol=1.0)
    assert not torch.equal(wanted, half)


def test_a_judge_works_where_the_generator_does_unless_it_is_told_otherwise(eyes: dict[str, str]) -> None:
    verifier = make_named("verifier", eyes["clip"])
    held = verifier._use.held
    verifier.beside(torch.device("meta"))
    held.place = None
    assert held.settle() == torch.device("meta")
    held.near, held.place = None, None
    told = make_named("verifier", eyes["clip"][:-1] + ", device='cpu')")
    told.beside(torch.device("meta"))
    assert told._use.held.settle() == torch.device("cpu")


def test_a_judge_that_does_not_fit_beside_the_generator_goes_to_the_cpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = load.Held(torch.nn.Linear(4, 4), "auto")
    held.near = torch.device("cuda:1")
    free = {"bytes": load.SPARE + 60}  # of the 120 that half as much again as the weights are
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["bytes"], 2 * load.SPARE))
    with pytest.warns(Note, match="does not fit beside the generator on cuda:1, so it works on the CPU"):
        assert held.settle() == torch.device("cpu")
    held.place, free["bytes"] = None, 2 * load.SPARE
    assert held.settle() == torch.device("cuda:1")


def test_a_run_tells_its_judges_where_the_generator_works(eyes: dict[str, str], tmp_path: Path) -> None:
    verifier = make_named("verifier", eyes["clip"])
    verifier._use.held.near = None
    secondlook.draw("a red circle", "random(n=1)", tmp_path / "run", steps=2, verifier=verifier)
    assert verifier._use.held.near == torch.device("cpu")


def test_an_offloaded_network_is_on_its_device_only_while_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[str] = []
    for offload, wanted in ((False, ["cuda"]), (True, ["cuda", "cpu"])):
        moves.clear()
        held = load.Held(torch.nn.Linear(4, 4), "auto")
        held.place = torch.device("cuda")
        monkeypatch.setattr(held.network, "to", lambda place: moves.append(str(place)))
        with held.on(offload) as device:
            assert device == torch.device("cuda")
            assert moves == ["cuda"]
        assert moves == wanted


# ---- a run remembers weights ---------------------------------------------------------------------------------------------


def broken_off(out: Path, **options: Any) -> None:
    def stop(driver: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        secondlook.draw("a red circle", "random(n=3)", out, steps=2, rows=1, progress=stop, **options)


@pytest.mark.parametrize("role", ["alone", "in an ensemble", "under a comparer"])
def test_weights_that_changed_under_a_run_are_refused_at_resume(role: str, tmp_path: Path) -> None:
    folder = tiny.save("clip", tmp_path / "clip")
    text = f"clip(model={str(folder)!r})"
    options = {
        "alone": {"verifier": text},
        "in an ensemble": {"verifier": f'mean(of="{text}, brightness")'},
        "under a comparer": {"verifier": "brightness", "comparer": f'by_score(verifier="{text}")'},
    }[role]
    broken_off(tmp_path / "run", **options)
    tiny.save("clip", folder, seed=1)
    who = "comparer" if "comparer" in options else "verifier"
    with pytest.raises(ConfigError, match=f"The {who}'s settings are not what was there when the run"):
        secondlook.resume(tmp_path / "run")
    tiny.save("clip", folder, seed=0)
    assert secondlook.resume(tmp_path / "run")[0].score is not None


@pytest.mark.parametrize("change", ["tokenizer", "processor", "head"])
def test_all_that_decides_a_number_is_part_of_what_a_run_remembers(change: str, tmp_path: Path) -> None:
    folder, head = tiny.save("clip", tmp_path / "clip"), tiny.save("aesthetic", tmp_path / "head")
    text = (
        f"aesthetic(model={str(folder)!r}, head={str(head)!r})" if change == "head" else f"clip(model={str(folder)!r})"
    )
    before = settings_of(make_named("verifier", text))
    assert settings_of(make_named("verifier", text)) == before
    used = make_named("verifier", text)
    used(noise_pictures(1), [Condition("a cat")])
    assert settings_of(used) == before
    file = folder / {"tokenizer": "tokenizer.json", "processor": "preprocessor_config.json", "head": ""}[change]
    if change == "head":
        tiny.save("aesthetic", head, seed=1)
    else:
        had = file.read_text()
        changed = (
            had.replace('"resample": 3', '"resample": 2')
            if change == "processor"
            else had.replace('"!"', '"\\u2603"', 1)
        )
        assert changed != had
        file.write_text(changed)
    assert settings_of(make_named("verifier", text)) != before


def test_a_run_with_a_judge_of_published_weights_is_resumed_bit_for_bit(eyes: dict[str, str], tmp_path: Path) -> None:
    whole = secondlook.draw("a red circle", "random(n=3)", tmp_path / "whole", steps=2, rows=2, verifier=eyes["clip"])
    broken_off(tmp_path / "run", verifier=eyes["clip"])
    again = secondlook.resume(tmp_path / "run")
    scores = [[o.score for o in Record.read(Store.open(tmp_path / n)).of(0)] for n in ("whole", "run")]
    assert scores[0] == scores[1]
    assert again[0].score == whole[0].score


def test_self_supervised_asks_a_likeness_of_features_where_one_is_named(eyes_at: Path, tmp_path: Path) -> None:
    dino = f"dino(model={str(eyes_at / 'dino')!r})"
    secondlook.draw(
        "a red circle", "self_supervised(n=2)", tmp_path / "run", steps=4, verifier="brightness", comparer=dino
    )
    preferences = [o.preference for o in Record.read(Store.open(tmp_path / "run")).of(0) if o.finished]
    assert len(preferences) == 2
    assert all(p is not None and 0 < p < 1 for p in preferences)


def test_a_pipeline_without_a_named_verifier_says_that_none_reads_the_prompt_and_what_to_try(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from secondlook.adapters import tiny as pipelines

    with pytest.warns(
        Note,
        match="No verifier was named, so sharpness guides, .* none reads the prompt .* try pickscore, imagereward or clip first",
    ):
        secondlook.draw("a red cube", "random(n=1)", tmp_path / "run", model=pipelines.make("sana"), steps=2)


# ---- several as one --------------------------------------------------------------------------------------------------------


class TestMean(VerifierContract):
    def made(self) -> Verifier:
        return make_named("verifier", f"mean(of='{TWO}')")  # type: ignore[no-any-return]


def test_an_ensemble_gives_each_members_number_and_the_mean_or_least_z_score() -> None:
    pictures, conditions = noise_pictures(3), [Condition()] * 3
    members = {n: make_named("verifier", n)(pictures, conditions) for n in ("brightness", "sharpness")}
    scales = {"brightness": (0.4, 0.1), "sharpness": (0.6, 0.3)}
    z = torch.stack([(members[n] - c) / s for n, (c, s) in scales.items()])
    for name, wanted in {"mean": z.mean(0), "rank": z.mean(0), "min": z.amin(0)}.items():
        found = make_named("verifier", f"{name}(of={TWO!r}, scales={scales!r})")(pictures, conditions)
        assert list(found) == ["score", "brightness", "sharpness"]
        assert torch.allclose(found["score"], wanted)
        assert all(torch.equal(found[n], members[n]) for n in members)


def test_where_a_member_cannot_judge_the_ensemble_cannot(eyes: dict[str, str]) -> None:
    both = make_named("verifier", f'mean(of="brightness, {eyes["clip"]}")')
    found = both(noise_pictures(2), [Condition("a cat"), Condition()])
    assert not math.isnan(found["score"][0])
    assert math.isnan(found["score"][1])
    assert not math.isnan(found["brightness"][1])


def test_members_are_parted_at_commas_outside_brackets() -> None:
    assert ensemble.parts("clip(model='a, b', batch=2), mean(of='x, y'),z") == [
        "clip(model='a, b', batch=2)",
        "mean(of='x, y')",
        "z",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [("rank(of='brightness')", "two verifiers or more"), ("mean(of='brightness, brightness')", "each once"), ("mean(of='brightness, compressibility')", "no centre and spread"),
     (f"min(of='{TWO}', scales={{'brightness': (0.5, 0)}})", "spreads above 0"), ("rank(of='brightness, sharpnes')", "did you mean")],
)  # fmt: skip
def test_an_ensemble_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_named("verifier", text)


def test_a_rank_is_chosen_from_by_rank_mean_unless_another_selector_is_named(tmp_path: Path) -> None:
    assert selector_of(f"rank(of='{TWO}')") == "rank_mean"
    assert selector_of("mean") is None
    assert selector_of(None) is None
    for select in (None, "best"):
        secondlook.draw(
            "a red circle", "random(n=4)", tmp_path / str(select), steps=2, verifier=f"rank(of='{TWO}')", select=select
        )
        record = Record.read(Store.open(tmp_path / str(select)))
        assert record.selector == (select or "rank_mean")
        assert {tuple(o.components) for o in record.of(0)} == {("brightness", "sharpness")}


def test_an_ensemble_tells_its_members_where_the_generator_works(eyes: dict[str, str]) -> None:
    both = make_named("verifier", f'mean(of="brightness, {eyes["clip"]}")')
    both.beside(torch.device("cpu"))
    assert both.members[1]._use.held.near == torch.device("cpu")
    assert len(both.network) == 1


def test_pictures_and_prompts_of_a_published_score_have_the_published_scale() -> None:
    """What is made of a cosine of 0.26 at CLIP's temperature of 100."""

    class Network(torch.nn.Module):
        logit_scale = math.log(100.0)

    one = clip.TwoEncoders.__new__(clip.TwoEncoders)
    one.network = Network()
    for score, wanted in ((clip.HUNDRED, 26.0), (clip.COSINE, 0.26), (clip.LOGIT, 26.0)):
        one.score = score
        assert one.scaled(torch.tensor([0.26], dtype=torch.float64).numpy())[0] == pytest.approx(wanted)
