"""Pipelines at work: what is encoded, asked and decoded how often, and every way in which diffusers lets one be changed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secondlook
from secondlook import cli
from secondlook.api import replay_outcome
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.testing import parity
from tests.helpers import Redness, essence

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from secondlook.adapters import tiny  # noqa: E402
from secondlook.adapters.weights import digest_of  # noqa: E402

PROMPT, TWO = "a red cube", ("a red cube", "two blue balls")
TINY = 1e-4  # between our pictures and pipe(...)'s, of values from 0 to 1
CALL = {"flux": {"max_sequence_length": 16}, "sd3": {"max_sequence_length": 16}, "pixart": {"use_resolution_binning": False}}  # fmt: skip


def held(family: str, change: Callable[[Any], Any] = lambda pipe: None, **options: Any) -> Any:
    pipe = tiny.make(family)
    change(pipe)
    short = {"tokens": 16} if family in ("flux", "sd3") else {}
    return secondlook.load(pipe, **{**short, **options})


def draw(model: Any, out: Path, plan: str = "random(n=2)", prompts: Any = PROMPT, **options: Any) -> Any:
    """The results of a light run."""
    given = {"steps": 3, "verifier": "brightness", "threads": 1, **options}
    return secondlook.draw(prompts, plan, out, model=model, **given)


def record(out: Path) -> Record:
    return Record.read(Store.open(out))


def config(out: Path) -> dict[str, Any]:
    return Store.open(out).config


def apart(one: Any, other: Any) -> int:
    """The largest difference of two results' pictures, in levels of 255."""
    return max(int(np.abs(a.picture.astype(int) - b.picture).max()) for a, b in zip(one, other, strict=True))


def counted(module: torch.nn.Module) -> list[Any]:
    """What a module is called with from now on."""
    calls: list[Any] = []
    module.register_forward_pre_hook(lambda m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    return calls


# ---- where pipelines come from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sana", "sdxl", "sd3"])
def test_a_folder_and_an_object_draw_the_same_run(family: str, tmp_path: Path) -> None:
    tiny.make(family).save_pretrained(tmp_path / "pipe")
    runs = {"object": tiny.make(family), "folder": str(tmp_path / "pipe"), "path": tmp_path / "pipe"}
    found = {name: draw(model, tmp_path / name, "zero_order(neighbours=2)", nfe=18) for name, model in runs.items()}
    assert apart(found["object"], found["folder"]) <= 1  # how weights lie in memory may change a CPU's last bits
    assert apart(found["folder"], found["path"]) <= 1
    assert config(tmp_path / "object")["weights"] == config(tmp_path / "folder")["weights"]
    draw(tiny.make(family, seed=1), tmp_path / "other")
    assert config(tmp_path / "other")["weights"] != config(tmp_path / "folder")["weights"]


def test_two_pipelines_side_by_side(tmp_path: Path) -> None:
    models = {"sana": held("sana"), "sdxl": held("sdxl")}
    first = {name: draw(model, tmp_path / name) for name, model in models.items()}
    assert all(apart(draw(m, tmp_path / f"{name}-2"), first[name]) == 0 for name, m in models.items())


# ---- how often -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["random(n=4)", "zero_order(neighbours=2)"])
@pytest.mark.parametrize(("family", "guided"), [("sana", 2), ("pixart", 2), ("sd3", 2), ("flux", 0), ("sdxl", 1)])
def test_each_prompt_is_encoded_once(family: str, guided: int, plan: str, tmp_path: Path) -> None:
    """And the unconditional once in a run; SANA's, SD3's and PixArt's encode_prompt encodes an empty prompt beside it."""
    model = held(family)
    calls = counted(model.pipe.text_encoder)
    draw(model, tmp_path / "run", plan, TWO, nfe=24)
    assert len(calls) == len(TWO) + guided


def test_text_encoders_leave_once_all_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``free_text`` nothing needs them after the first step: they go to "meta" here, where they could do nothing."""
    model = held("flux", free_text=True)
    moves: list[str] = []
    for part in (model.pipe.text_encoder, model.pipe.text_encoder_2):
        inner = part.to

        def to(device: Any, inner: Any = inner) -> Any:
            moves.append(str(device))
            return inner("meta" if len(moves) > 2 * len(TWO) else device)

        monkeypatch.setattr(part, "to", to)
    found = draw(model, tmp_path / "run", prompts=TWO)
    assert moves == ["cpu", "cpu"] * (len(TWO) + 1)
    assert {p.device.type for p in model.pipe.text_encoder_2.parameters()} == {"meta"}
    model.refresh()
    assert model.device.type == "cpu"
    assert apart(found, draw(held("flux"), tmp_path / "kept", prompts=TWO)) == 0
    assert config(tmp_path / "run")["weights"] == config(tmp_path / "kept")["weights"]


def test_rows_of_different_prompts_and_times_share_a_call(tmp_path: Path) -> None:
    calls, results = {}, {}
    for rows in (1, 3):
        model = held("sana")
        calls[rows] = counted(model.module)
        results[rows] = draw(model, tmp_path / str(rows), "paths(n=2, width=2)", TWO, steps=6, nfe=60, rows=rows)
    found = record(tmp_path / "3")
    nfe = sum(found.spent(i).nfe for i in range(2)) + 6 * len(found.baselines)
    assert len(calls[1]) == nfe
    assert len(calls[3]) < nfe / 2
    shared = [kwargs["timestep"] for _, kwargs in calls[3]]
    assert any(len(t.unique()) > 1 for t in shared)
    assert apart(results[1], results[3]) <= 1
    alone = record(tmp_path / "1").outcomes
    assert {i: o.proposal for i, o in alone.items()} == {i: o.proposal for i, o in found.outcomes.items()}


def test_only_what_is_looked_at_is_decoded_and_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = held("sana")
    model._decoding.most = 2
    sizes: list[int] = []
    inner = model.pipe.vae.decode
    monkeypatch.setattr(model.pipe.vae, "decode", lambda z, **k: sizes.append(len(z)) or inner(z, **k))
    draw(model, tmp_path / "run", "paths(n=3, width=2)", steps=6, nfe=70)
    found = record(tmp_path / "run")
    shown = [d for d in found.digests.values() if d is not None]
    assert len(shown) < len(found.outcomes)  # the first runs of paths ask for nothing
    assert sum(sizes) == len(shown) + len(found.baselines)
    assert max(sizes) == 2


@pytest.mark.parametrize("family", ["sana", "sd3", "pixart", "dit", "sdxl"])
def test_guidance_costs_a_second_pass(family: str, tmp_path: Path) -> None:
    model, prompt = held(family), "1" if family == "dit" else PROMPT
    found = {g: draw(model, tmp_path / str(g), prompts=prompt, guidance=g)[0] for g in (1.0, 3.0)}
    assert [(f.spent.nfe, f.spent.evals) for f in found.values()] == [(6, 6), (6, 12)]
    assert not np.array_equal(found[1.0].picture, found[3.0].picture)


def test_distilled_guidance_costs_one_pass_and_true_guidance_two(tmp_path: Path) -> None:
    found = {}
    for name, options, guidance in (("low", {}, 1.0), ("high", {}, 6.0), ("true", {"true_guidance": 3.0, "negative": "blue"}, 6.0)):  # fmt: skip
        [found[name]] = draw(held("flux", **options), tmp_path / name, guidance=guidance)
    assert [(f.spent.nfe, f.spent.evals) for f in found.values()] == [(6, 6), (6, 6), (6, 12)]
    assert not np.array_equal(found["low"].picture, found["high"].picture)
    assert not np.array_equal(found["high"].picture, found["true"].picture)


# ---- precision, compilation, attention, the autoencoder's savings ----------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["sana", "flux", "sd3", "pixart", "sdxl"])
def test_half_precision_is_near(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    full, half = draw(held(family), tmp_path / "full"), draw(held(family, lambda p: p.to(dtype)), tmp_path / "half")
    assert 0 < apart(full, half) < (40 if dtype == torch.bfloat16 else 8)
    assert config(tmp_path / "half")["pipeline"]["dtype"] == str(dtype).removeprefix("torch.")
    assert config(tmp_path / "half")["weights"] != config(tmp_path / "full")["weights"]


def _wrap(pipe: Any, **how: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, **how)


COMPILED: dict[str, Callable[..., Any]] = {
    "wrapped": _wrap,
    "in place": lambda pipe, **how: pipe.transformer.compile(**how),
    "blocks": lambda pipe, **how: pipe.transformer.compile_repeated_blocks(fullgraph=True, **how),
}


def _compiled_draws(how: str, tmp_path: Path, **options: Any) -> None:
    compiled, plain = held("flux", lambda p: COMPILED[how](p, **options)), held("flux")
    assert (compiled.compiled(), plain.compiled()) == (True, False)
    calls = counted(compiled.module)
    fast = draw(compiled, tmp_path / "fast", "random(n=3)", rows=2)
    assert {len(kwargs["hidden_states"]) for _, kwargs in calls} == {2}  # the last row too is padded
    assert apart(fast, draw(plain, tmp_path / "plain", "random(n=3)", rows=2)) <= 1
    assert config(tmp_path / "fast")["weights"] == config(tmp_path / "plain")["weights"]
    assert replay_outcome(tmp_path / "fast", 2, model=compiled).same


@pytest.mark.parametrize("how", COMPILED)
def test_compiled_networks_are_given_batches_of_one_size(how: str, tmp_path: Path) -> None:
    _compiled_draws(how, tmp_path, backend="eager")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_networks_compiled_by_inductor(how: str, tmp_path: Path) -> None:
    _compiled_draws(how, tmp_path)


def _tiled(vae: Any) -> None:
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16


FP8 = {"storage_dtype": torch.float8_e4m3fn, "compute_dtype": torch.float32}
BACK = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
BLOCKS = {**BACK, "offload_type": "block_level", "num_blocks_per_group": 1}
CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "attention native": ("flux", lambda p: p.transformer.set_attention_backend("native")),
    "attention math": ("sd3", lambda p: p.transformer.set_attention_backend("_native_math")),
    "attention slicing": ("sdxl", lambda p: p.enable_attention_slicing(1)),
    "attention processor": ("sdxl", lambda p: p.unet.set_default_attn_processor()),
    "channels last": ("sdxl", lambda p: p.unet.to(memory_format=torch.channels_last)),
    "vae slicing": ("sdxl", lambda p: p.vae.enable_slicing()),
    "vae tiling": ("sdxl", lambda p: _tiled(p.vae)),
    "vae tiling, dc": ("sana", lambda p: p.vae.enable_tiling(16, 16, 12, 12)),
    "free u": ("sdxl", lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.3, b2=1.4)),
    "layerwise casting": ("sana", lambda p: p.transformer.enable_layerwise_casting(**FP8)),
    "layerwise casting, flux": ("flux", lambda p: p.transformer.enable_layerwise_casting(**FP8)),
    "group offload": ("sana", lambda p: p.enable_group_offload(**BACK, offload_type="leaf_level")),
    "group offload, blocks": ("flux", lambda p: p.transformer.enable_group_offload(**BLOCKS)),
    "model offload": ("sd3", lambda p: p.enable_model_cpu_offload(device="cpu")),
}
SAME_WEIGHTS = ("attention", "channels", "vae", "free", "group", "model")


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_pipeline_draws_as_its_own_call_does(change: str, tmp_path: Path) -> None:
    """Offloading is to the CPU and back, so what it does to devices is not seen here: no accelerator is at hand, and no second
    device. Sequential offloading refuses a CPU altogether (in ``pipe(...)`` too); its weights are looked at below."""
    family, made = CHANGES[change]
    model = held(family, made)
    assert parity(model, PROMPT, **CALL.get(family, {})) < TINY
    assert draw(model, tmp_path / "run")[0].picture.std() > 1
    assert (model.digest() == held(family).digest()) == change.startswith(SAME_WEIGHTS)
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)


def test_quantised_text_encoders(tmp_path: Path) -> None:
    """torch's dynamic quantisation, whose layers keep their weights as packed tuples; torchao's and bitsandbytes' are not here."""

    def quantise(pipe: Any) -> None:
        with pytest.warns((DeprecationWarning, UserWarning)):
            pipe.text_encoder = torch.ao.quantization.quantize_dynamic(pipe.text_encoder, {torch.nn.Linear}, dtype=torch.qint8)  # fmt: skip

    model = held("sana", quantise)
    assert apart(draw(model, tmp_path / "run"), draw(held("sana"), tmp_path / "full")) < 60
    assert config(tmp_path / "run")["weights"] != config(tmp_path / "full")["weights"]
    other = held("sana", lambda p: (p.text_encoder.layers[0].mlp.up_proj.weight.data.mul_(1.5), quantise(p)))
    assert other.digest() != model.digest()


def test_weights_of_sequentially_offloaded_networks_are_seen() -> None:
    """They stand on "meta" and lie in a map beside; another checkpoint there must not pass for this one."""
    model = held("sana", lambda p: p.enable_sequential_cpu_offload(device="cpu"))
    assert {v.device.type for v in model.module.state_dict().values()} == {"meta"}
    assert model.digest() == held("sana").digest()
    assert digest_of("", {"n": model.module}) != digest_of("", {"n": tiny.make("sana", seed=1).transformer})


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def _lora(module: Any) -> None:
    config = pytest.importorskip("peft").LoraConfig
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.add_adapter(config(r=4, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))


@pytest.mark.parametrize("family", ["sana", "flux", "sd3", "sdxl"])
def test_lora_shows_in_pictures_and_record(family: str, tmp_path: Path) -> None:
    """Added, switched off, saved and loaded by the pipeline, at half its strength, and fused: each as ``pipe(...)`` draws it."""
    seen: dict[str, Any] = {}

    def see(name: str, model: Any) -> None:
        assert parity(model, PROMPT, **CALL.get(family, {})) < TINY
        seen[name] = draw(model, tmp_path / name)

    model = held(family)
    see("plain", model)
    _lora(model.module)
    see("added", model)
    model.module.disable_adapters()
    see("off", model)
    peft_utils = pytest.importorskip("peft.utils")
    layers = {f"{model.core}_lora_layers": peft_utils.get_peft_model_state_dict(model.module)}
    type(model.pipe).save_lora_weights(tmp_path / "lora", **layers)
    again = held(family, lambda p: p.load_lora_weights(tmp_path / "lora"))
    see("loaded", again)
    again.pipe.set_adapters(again.pipe.get_active_adapters(), [0.5])
    see("half", again)
    again.pipe.fuse_lora()
    see("fused", again)
    weights = {name: config(tmp_path / name)["weights"]["model"] for name in seen}
    assert apart(seen["plain"], seen["off"]) == apart(seen["added"], seen["loaded"]) == 0
    assert min(apart(seen["plain"], seen["added"]), apart(seen["loaded"], seen["half"])) > 0
    assert apart(seen["half"], seen["fused"]) <= 1
    assert len(set(weights.values())) == len(weights)
    _stopped(held(family), tmp_path / "stopped")
    with pytest.raises(ConfigError, match="cannot go on as one run"):
        secondlook.resume(tmp_path / "stopped", model=again)


# ---- guides, resuming, the recorded command --------------------------------------------------------------------------


class Stop(Exception):
    pass


def _stopped(model: Any, out: Path, after: int = 2, **options: Any) -> None:
    """A run that ends after so many outcomes."""

    def progress(driver: Any) -> None:
        if driver.drawn >= after:  # not the log, which is written beside it
            raise Stop

    with pytest.raises(Stop):
        draw(model, out, "random(n=6)", rows=2, progress=progress, **options)


def test_a_run_with_objects_is_resumed_and_replayed_with_them(tmp_path: Path) -> None:
    model = held("sana")
    whole = draw(model, tmp_path / "whole", "random(n=6)", rows=2, verifier=Redness())
    _stopped(model, tmp_path / "cut", verifier=Redness())
    run = tmp_path / "cut"
    assert config(run)["verifier"] == "object:redness"
    with pytest.raises(ConfigError, match='has the Python object "redness" as its verifier; give it again'):
        secondlook.resume(run, model=model)
    with pytest.raises(ConfigError, match=r"came from no folder; give it again: secondlook.resume\(out, model=pipe\)"):
        secondlook.resume(run, verifier=Redness())
    for other, pattern in ((held("sdxl"), "drawn with .*, the model now has .*load it as it was"), (tiny.make("sana", seed=1), "cannot go on as one run"),
                           (held("sana", height=64), "drawn with height 32, the model now has 64"),
                           (tiny.make("sana", flow_shift=5.0), "drawn with flow shift 3.0, the model now has 5.0"),
                           (held("sana", lambda p: p.to(torch.bfloat16)), "drawn with dtype float32, the model now has bfloat16")):  # fmt: skip
        with pytest.raises(ConfigError, match=pattern):
            secondlook.resume(run, model=other, verifier=Redness())
    found = secondlook.resume(run, model=tiny.make("sana"), verifier=Redness())  # the same weights in another object
    assert essence(record(run)) == essence(record(tmp_path / "whole"))
    assert apart(found, whole) == 0
    assert replay_outcome(run, 3, model=model).difference <= 1
    with pytest.raises(ConfigError, match="weights are not those"):
        replay_outcome(run, 3, model=tiny.make("sana", seed=1))


def test_a_guide_by_its_name(tmp_path: Path) -> None:
    [one] = draw(held("sana"), tmp_path / "a", verifier="tests.helpers:Redness")
    [two] = draw(held("sana"), tmp_path / "b", verifier=Redness())
    assert (one.score, config(tmp_path / "a")["verifier"]) == (two.score, "tests.helpers:Redness")


@pytest.mark.parametrize(
    ("family", "words", "recorded"),
    [
        ("sana", "--height 32 --width 24 --negative blue --tokens 40 --dtype float32 --device cpu --free-text --pad --seed 7 --rows 3",
         {"height": 32, "width": 24, "negative": "blue", "tokens": 40, "dtype": "float32", "device": "cpu", "free_text": True, "pad": True, "seed": 7, "rows": 3}),
        ("flux", "--height 32 --width 32 --true-guidance 2 --negative red --tokens 16 --dtype bfloat16 --no-pad",
         {"height": 32, "width": 32, "true_guidance": 2.0, "negative": "red", "tokens": 16, "dtype": "bfloat16", "pad": False}),
        ("sana", "--adapter secondlook.adapters.sana:Sana --shift 2", {"height": 32, "shift": 2.0, "device": "cpu"}),
    ],
)  # fmt: skip
def test_options_end_in_the_record_and_the_recorded_command_repeats_them(family: str, words: str, recorded: dict[str, Any], tmp_path: Path) -> None:  # fmt: skip
    folder, run = tmp_path / "pipe", tmp_path / "run"
    tiny.make(family).save_pretrained(folder)
    light = ["--steps", "2", "--plan", "random(n=3)", "--verifier", "brightness", "--threads", "1", "--quiet"]
    assert cli.main(["draw", PROMPT, "--model", str(folder), *words.split(), *light, "--out", str(run)]) == 0
    s = config(run)
    assert {k: {**s, **s["pipeline"]}[k] for k in recorded} == recorded
    assert cli.main(["resume", str(run)]) == 0
    assert cli.main(["replay", str(run), "1"]) == 0
    options = {k: v for k, v in recorded.items() if k != "pad" or v is not None}
    draw(folder, tmp_path / "python", "random(n=3)", steps=2, **options)
    assert essence(record(tmp_path / "python")) == essence(record(run))
    command = shlex.split(config(tmp_path / "python")["command"])
    assert cli.main([*command[1:], "--quiet"]) == 0
    assert essence(record(tmp_path / "python-again")) == essence(record(run))
    assert {**config(tmp_path / "python-again"), "command": "", "budget": 0} == {**config(tmp_path / "python"), "command": "", "budget": 0}  # fmt: skip


def test_the_command_of_a_run_with_objects_says_where_they_belong(tmp_path: Path) -> None:
    draw(held("sana"), tmp_path / "run", verifier=Redness())
    command = config(tmp_path / "run")["command"]
    assert "--model FOLDER_OR_ID" in command
    assert "--verifier MODULE:ATTR" in command
