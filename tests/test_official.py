"""Official weights: sizes and names as released, heads of both widths, training checkpoints, and nothing executed."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from secondlook import cli
from secondlook.errors import ConfigError, DamagedError
from secondlook.models import checkpoint
from secondlook.models.official import from_state_dict, layout, load_sit, narrowed, read, read_weights
from secondlook.models.sit import NAMES, Labels, SiT, SiTConfig

# From the fact sheet on the released code: numbers with the positional table and an 8-channel head, 32 x 32 x 4 latents, patch 2.
COUNTS = {"SiT-S/2": (32_963_360, 132), "SiT-B/2": (130_512_416, 132), "SiT-L/2": (458_102_816, 252), "SiT-XL/2": (675_129_632, 292)}  # fmt: skip
TRAINABLE = {"SiT-S/2": 32_865_056, "SiT-B/2": 130_315_808, "SiT-L/2": 457_840_672, "SiT-XL/2": 674_834_720}
TINY = SiTConfig(side=8, patch=2, width=32, depth=2, heads=4, classes=5, variance=True)


def random_state(config: SiTConfig = TINY, seed: int = 0) -> dict[str, Tensor]:
    """A state dict of the official layout, no tensor of it zero."""
    torch.manual_seed(seed)
    state = SiT(config).state_dict()
    return {k: v if k == "pos_embed" else 0.2 * torch.randn_like(v) for k, v in state.items()}


def answer(network: SiT) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, *network.shape, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([0.0, 0.4, 1.0]), Labels(torch.tensor([0, 4, network.config.classes - 1])))


# ---- sizes and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_the_released_ones(name: str) -> None:
    with torch.device("meta"):
        network = SiT(SiTConfig.named(name, variance=True))
    state = network.state_dict()
    form = layout(state)
    assert form.name(network.config.heads) == name
    assert (form.side, form.labels, form.out, form.channels) == (32, 1001, 8, 4)
    if name in COUNTS:
        assert (sum(v.numel() for v in state.values()), len(state)) == COUNTS[name]
        assert sum(p.numel() for p in network.parameters()) == TRAINABLE[name]


def test_names_and_shapes_of_the_tensors() -> None:
    with torch.device("meta"):
        state = SiT(SiTConfig.named("DiT-XL/4", side=64)).state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if not k.startswith("blocks.") or k.startswith("blocks.27.")}
    d, block = 1152, "blocks.27."
    assert shapes == {
        "pos_embed": (1, 256, d),
        "x_embedder.proj.weight": (d, 4, 4, 4), "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256), "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d), "t_embedder.mlp.2.bias": (d,),
        "y_embedder.embedding_table.weight": (1001, d),
        block + "attn.qkv.weight": (3 * d, d), block + "attn.qkv.bias": (3 * d,),
        block + "attn.proj.weight": (d, d), block + "attn.proj.bias": (d,),
        block + "mlp.fc1.weight": (4 * d, d), block + "mlp.fc1.bias": (4 * d,),
        block + "mlp.fc2.weight": (d, 4 * d), block + "mlp.fc2.bias": (d,),
        block + "adaLN_modulation.1.weight": (6 * d, d), block + "adaLN_modulation.1.bias": (6 * d,),
        "final_layer.linear.weight": (64, d), "final_layer.linear.bias": (64,),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d), "final_layer.adaLN_modulation.1.bias": (2 * d,),
    }  # fmt: skip


# ---- heads, times, strictness ----------------------------------------------------------------------------------------


def test_a_narrowed_head_predicts_the_same() -> None:
    state = random_state()
    wide, narrow = from_state_dict(state, heads=4), from_state_dict(state, heads=4, narrow=True)
    assert (wide.out, narrow.out) == (8, 4)
    torch.testing.assert_close(answer(narrow), answer(wide), rtol=1e-5, atol=1e-6)
    keep = narrowed(state, layout(state))["final_layer.linear.weight"]
    rows = [r for r in range(32) if r % 8 < 4]
    assert torch.equal(keep, state["final_layer.linear.weight"][rows])


def test_reversed_time_and_projectors() -> None:
    state = random_state()
    repa = {**state, "projectors.0.0.weight": torch.ones(3, 3), "projectors.0.0.bias": torch.ones(3)}
    network = from_state_dict(repa, heads=4)
    assert network.config.reversed_time
    x, y = torch.randn(2, 4, 8, 8), Labels(torch.tensor([1, 2]))
    with torch.no_grad():
        plain = from_state_dict(state, heads=4)(x, torch.tensor([0.3, 0.9]), y)
        turned = network(x, torch.tensor([0.7, 0.1]), y)
    torch.testing.assert_close(turned, -plain)
    assert not from_state_dict(repa, heads=4, reversed_time=False).config.reversed_time


def test_the_callers_tensors_are_copied() -> None:
    state = random_state()
    before = state["final_layer.linear.bias"].clone()
    with torch.no_grad():
        from_state_dict(state, heads=4).final_layer.linear.bias.zero_()
    assert torch.equal(state["final_layer.linear.bias"], before)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"blocks.1.attn.proj.bias": None}, "lack blocks.1.attn.proj.bias .1 missing, 0 left over"),
        ({"blocks.7.attn.proj.bias": torch.ones(32)}, "lack blocks.2"),
        ({"blocks.1.attn.gate": torch.ones(32)}, "hold blocks.1.attn.gate, which no SiT has"),
        ({"pos_embed": None}, '"pos_embed" is missing'),
        ({"pos_embed": torch.ones(16, 32)}, '"pos_embed" expects 3 axes'),
        ({"pos_embed": torch.ones(1, 15, 32)}, "square grid.*15 tokens"),
        ({"final_layer.linear.weight": torch.ones(20, 32)}, "head of 4 or 8 channels.*20 rows"),
        ({"blocks.0.attn.qkv.weight": torch.ones(32, 32)}, r"want the shape \[96, 32\]; theirs is \[32, 32\]"),
        ({"t_embedder.mlp.0.bias": torch.full((32,), torch.nan)}, "not finite"),
        ({"x_embedder.proj.weight": torch.ones(32, 4, 2, 4)}, "Square patches"),
    ],
)
def test_every_tensor_must_fit(change: dict[str, Tensor | None], pattern: str) -> None:
    state = {k: v for k, v in {**random_state(), **change}.items() if v is not None}
    with pytest.raises(ConfigError, match=pattern):
        from_state_dict(state, heads=4)


def test_heads_that_do_not_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="divide by its heads"):
        from_state_dict(random_state(), heads=5)


# ---- files -----------------------------------------------------------------------------------------------------------


class Malice:
    """Unpickled by Python, it would run a command."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.file}",)


def training_checkpoint(path: Path) -> dict[str, dict[str, Tensor]]:
    found = {"model": random_state(seed=1), "ema": random_state(seed=2)}
    args = argparse.Namespace(model="SiT-XL/2", cfg_scale=4.0, ckpt=None)
    torch.save(
        {**found, "opt": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}, "args": args},
        path,
    )
    return found


def test_training_checkpoints_with_their_namespace(tmp_path: Path) -> None:
    found = training_checkpoint(tmp_path / "0050000.pt")
    for which in ("ema", "model"):
        read_back = read(tmp_path / "0050000.pt", which)
        assert read_back.which == which
        assert all(torch.equal(v, found[which][k]) for k, v in read_back.state.items())
    torch.save({"model": found["model"]}, tmp_path / "half.pt")
    with pytest.raises(ConfigError, match='has no "ema"; it has model'):
        read(tmp_path / "half.pt")


def test_bare_wrapped_and_old_files(tmp_path: Path) -> None:
    state = random_state()
    torch.save(state, tmp_path / "bare.pt")
    torch.save({f"module._orig_mod.{k}": v for k, v in state.items()}, tmp_path / "wrapped.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "s.safetensors")
    for name in ("bare.pt", "wrapped.pt", "old.pt", "s.safetensors"):
        got = read_weights(tmp_path / name)
        assert set(got) == set(state), name
        assert all(torch.equal(v, state[k]) for k, v in got.items()), name
    halves = {k: v.half() for k, v in state.items()}
    assert from_state_dict(halves, heads=4).pos_embed.dtype == torch.float32


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    for name, protocol in (("new.pt", True), ("old.pt", False)):
        mark = tmp_path / "ran"
        torch.save(
            {"model": random_state(), "args": Malice(mark)}, tmp_path / name, _use_new_zipfile_serialization=protocol
        )
        with pytest.raises(DamagedError, match=r"names the object posix.system.*nothing in it was run"):
            read(tmp_path / name, "model")
        assert not mark.exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malice(mark)))
    with pytest.raises(DamagedError, match="cannot be read as weights"):
        read(tmp_path / "plain.pt")
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"hello" * 50, b"PK\x03\x04 no zip"])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_what_is_no_weights_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DamagedError, match="cannot be read as weights"):
        read(tmp_path / name)
    with pytest.raises(ConfigError, match="There is no weights file"):
        read(tmp_path / f"no-{name}")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DamagedError, match=r"no state dict.*got list"):
        read(tmp_path / "list.pt")


# ---- the command -----------------------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = cli.main([str(w) for w in words])
    return (code, *capsys.readouterr())


def test_import_writes_weights_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = training_checkpoint(tmp_path / "0050000.pt")
    code, text, err = run(
        capsys, "import", "sit", tmp_path / "0050000.pt", "--heads", "4", "--narrow", "--out", tmp_path / "a"
    )
    assert code == 0, err
    assert "2 blocks of width 32, 4 heads, patch 2" in text
    assert "4 x 8 x 8, patches of 2; 5 classes and a null one" in text
    assert "8 channels for 4, the others dead weight, dropped" in text
    assert "time: 1 is data; predicts velocity on the linear path" in text
    network = load_sit(tmp_path / "a/weights.safetensors")
    torch.testing.assert_close(answer(network), answer(from_state_dict(found["ema"], heads=4)), rtol=1e-5, atol=1e-6)
    assert checkpoint.read_config(tmp_path / "a/weights.safetensors")["variance"] is False
    code, _, err = run(capsys, "import", "sit", tmp_path / "0050000.pt", "--out", tmp_path / "a")
    assert code == 2
    assert "exists already" in err
    code, _, err = run(capsys, "import", "sit", tmp_path / "a/weights.safetensors", "--out", tmp_path / "b")
    assert code == 2
    assert "own file already" in err


def test_import_of_repa_and_of_dit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = random_state(SiTConfig(side=8, patch=2, width=32, depth=2, heads=4, classes=5))
    torch.save({"ema": {**state, "projectors.0.0.weight": torch.ones(2, 2)}, "steps": 5}, tmp_path / "repa.pt")
    code, text, err = run(capsys, "import", "sit", tmp_path / "repa.pt", "--heads", "4", "--out", tmp_path / "r")
    assert code == 0, err
    assert "time: 0 is data in these weights (told by its projectors, left out); turned here" in text
    assert load_sit(tmp_path / "r/weights.safetensors").config.reversed_time
    torch.save(random_state(), tmp_path / "dit.pt")
    code, text, _ = run(
        capsys, "import", "dit", tmp_path / "dit.pt", "--heads", "4", "--no-null", "--out", tmp_path / "d"
    )
    assert code == 0
    assert "the others its variance" in text
    config = load_sit(tmp_path / "d/weights.safetensors").config
    assert (config.predicts, config.path, config.variance, config.classes, config.null) == (
        "noise",
        "discrete",
        True,
        6,
        False,
    )


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["sti", "w.pt"], 'no weights layout "sti"; did you mean "sit"'),
        (["sit", "nowhere.pt"], "There is no weights file"),
        (["sit", "w.pt", "--weights", "emma"], "--weights expects one of ema, model"),
        (["sit", "w.pt", "--predicts", "x0"], "--predicts expects one of"),
        (["sit", "w.pt", "--path", "cosine"], "--path expects one of"),
        (["dit", "w.pt", "--narrow"], "leave --narrow out"),
        (["sit", "w.pt", "--heads", "0"], "--heads must be at least 1"),
        (["sit", "w.pt", "--heads", "5"], "divide by its heads"),
    ],
)
def test_import_refuses_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(random_state(), "w.pt")
    code, _, err = run(capsys, "import", *words, "--out", "out")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert pattern in err
    assert not Path("out").exists()
