"""Data from disk: what a folder of pictures is, ADM's preparation, keyed epochs, latents made once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secondlook import cli
from secondlook.errors import ConfigError, DamagedError
from secondlook.worlds.folder import Images, Latents, coins, open_data, places, prepared


def picture(seed: int, width: int = 20, height: int = 17) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def folder(path: Path, classes: dict[str, int], ending: str = ".png") -> Path:
    seed = 0
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for i in range(count):
            picture(seed).save(path / name / f"{i}{ending}")
            seed += 1
    return path


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_classes_are_sub_folders_in_order(tmp_path: Path) -> None:
    data = Images(folder(tmp_path / "d", {"zebra": 2, "ant": 3}), 8)
    (tmp_path / "d/ant/notes.txt").write_text("not a picture")
    (tmp_path / "d/.cache").mkdir()
    data = Images(tmp_path / "d", 8)
    assert (data.classes, data.names, len(data), data.shape) == (2, ("ant", "zebra"), 5, (3, 8, 8))
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    (tmp_path / "d/zebra/deep").mkdir()
    picture(9).save(tmp_path / "d/zebra/deep/x.JPEG")
    assert Images(tmp_path / "d", 8).labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_flat_folder_is_one_class(tmp_path: Path) -> None:
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    data = Images(tmp_path, 8)
    assert (data.classes, data.names, data.labels.tolist()) == (1, (tmp_path.name,), [0, 0, 0])


def test_preparation_is_adms() -> None:
    size = 8
    image = picture(
        1, 50, 35
    )  # halved twice: 50 x 35, 25 x 17, 12 x 8 would be at size, so one halving leaves 17 >= 16
    by_hand = image.resize((25, 17), Image.Resampling.BOX).resize((12, 8), Image.Resampling.BOX)
    by_hand = by_hand.resize((12, 8), Image.Resampling.BICUBIC).crop((2, 0, 10, 8))
    assert np.array_equal(prepared(image, size), np.asarray(by_hand))
    small = picture(2, 5, 7)
    by_hand = small.resize((8, 11), Image.Resampling.BICUBIC).crop((0, 1, 8, 9))
    assert np.array_equal(prepared(small, size), np.asarray(by_hand))
    exact = picture(3, 8, 8)
    assert np.array_equal(prepared(exact, size), np.asarray(exact))


def test_any_mode_becomes_three_channels(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1", "LA"):
        assert prepared(picture(1).convert(mode), 8).shape == (8, 8, 3)


def test_batches_are_pure_and_go_by_epochs(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", {"a": 4, "b": 3})
    data = Images(path, 8)
    x, y = data.batch(3, 5, 6)
    again, labels = Images(path, 8).batch(3, 5, 6)
    assert torch.equal(x, again)
    assert torch.equal(y, labels)
    assert (x.shape, x.dtype, y.dtype) == ((6, 3, 8, 8), torch.float32, torch.int64)
    assert float(x.min()) >= -1
    assert float(x.max()) <= 1
    assert not torch.equal(x, data.batch(4, 5, 6)[0])
    some, few = data.part(3, 5, 6, slice(2, 5))
    assert torch.equal(some, x[2:5])
    assert torch.equal(few, y[2:5])
    stream = np.concatenate([places(3, s, 6, 7)[0] for s in range(7)])  # six epochs of seven
    epochs = [stream[i * 7 : (i + 1) * 7].tolist() for i in range(6)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert len({tuple(e) for e in epochs}) == 6
    assert np.array_equal(places(3, 2, 6, 7)[0], places(3, 1, 12, 7)[0][:6])  # batch size does not change the order


def test_flips_are_fair_and_pixels_exact(tmp_path: Path) -> None:
    index = np.arange(4000)
    assert abs(coins(0, index, index * 0, 4000).mean() - 0.5) < 0.03
    pixels = np.array(picture(1, 8, 8))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data, plain = Images(tmp_path, 8), Images(tmp_path, 8, flip=False)
    straight = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    seen = {bool(torch.equal(data.batch(0, s, 1)[0][0], straight)) for s in range(20)}
    assert seen == {True, False}
    assert all(any(torch.equal(data.batch(0, s, 1)[0][0], v) for v in (straight, straight.flip(-1))) for s in range(20))
    assert torch.equal(plain.batch(0, 3, 1)[0][0], straight)


def test_unreadable_pictures_are_named_before_anything(tmp_path: Path) -> None:
    path = folder(tmp_path / "d", {"a": 2})
    (path / "a/zz.jpg").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r'zz.jpg" cannot be read as a picture'):
        Images(path, 8)
    (path / "a/zy.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r'zy.png" and 1 more of 4'):
        Images(path, 8)
    for name in ("zz.jpg", "zy.png"):
        (path / "a" / name).unlink()
    whole = (path / "a/1.png").read_bytes()
    (path / "a/1.png").write_bytes(whole[: len(whole) // 2])
    data = Images(path, 8)
    with pytest.raises(DamagedError, match=r'a/1.png" cannot be decoded'):
        data.batch(0, 0, 2)


def test_folders_that_are_no_data(tmp_path: Path) -> None:
    for change, pattern in (
        (lambda: None, "There is no folder"),
        (lambda: (tmp_path / "d").mkdir(), "holds no picture"),
        (lambda: (tmp_path / "d/a").mkdir(), r'class folder ".*a" holds no picture'),
        (lambda: picture(0).save(tmp_path / "d/x.png"), "beside folders"),
    ):
        change()
        with pytest.raises(ConfigError, match=pattern):
            Images(tmp_path / "d", 8)
    with pytest.raises(ConfigError, match="want a size"):
        open_data(tmp_path / "d")
    with pytest.raises(ConfigError, match="size must be at least 1"):
        Images(tmp_path, 0)


# ---- latents ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vae(tmp_path_factory.mktemp("vae"))


def tiny_vae(path: Path, shift: float | None = 0.25) -> Path:
    """A random autoencoder of factor 2 and four latent channels, saved as diffusers saves one."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    made = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        sample_size=16, scaling_factor=0.18215, shift_factor=shift,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    made.save_pretrained(path)
    return path


def encode(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = cli.main(["encode", *(str(w) for w in words)])
    return code, capsys.readouterr().err


def test_latents_are_the_posterior_drawn_afresh(tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from secondlook.adapters.vae import load_vae

    source = folder(tmp_path / "d", {"a": 3, "b": 2})
    assert encode(capsys, source, "--vae", vae, "--size", "16", "--part", "2", "--out", tmp_path / "z")[0] == 0
    data = open_data(tmp_path / "z")
    assert isinstance(data, Latents)
    assert (data.classes, data.names, data.shape, len(data), data.scale, data.shift) == (
        2,
        ("a", "b"),
        (4, 8, 8),
        5,
        0.18215,
        0.25,
    )
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    pixels, autoencoder = Images(source, 16, flip=False), load_vae(str(vae))
    for flipped in (False, True):
        x = pixels.pictures(range(5), [flipped] * 5).permute(0, 3, 1, 2).float() / 127.5 - 1
        want = autoencoder.moments(x)
        got = data.moments(np.arange(5), np.full(5, flipped))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)  # float16
    x, y = data.batch(0, 0, 5)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert sorted(y.tolist()) == [0, 0, 0, 1, 1]
    assert torch.equal(x, Latents(tmp_path / "z").batch(0, 0, 5)[0])
    assert torch.equal(data.part(0, 0, 5, slice(1, 3))[0], x[1:3])
    # drawn many times, a latent has the posterior's mean and deviation, mirrored or not
    many, labels = data.batch(1, 0, 5 * 400)
    assert torch.equal(labels.bincount(), torch.tensor([1200, 800]))
    mean, std = (
        torch.stack(v) for v in zip(*(data.moments(np.arange(5), np.full(5, f)) for f in (False, True)), strict=True)
    )
    second = (std.square() + mean.square()).mean((0, 1))  # over pictures and their mirror images
    expected = (mean.mean((0, 1)) - 0.25) * 0.18215
    spread = (second - mean.mean((0, 1)).square()).sqrt() * 0.18215
    assert float((many.mean(0) - expected).abs().max()) < 5 * float(spread.max()) / 2000**0.5
    torch.testing.assert_close(many.std(0), spread, rtol=0.15, atol=0)


def test_encoding_goes_on_where_it_was(tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "d", {"a": 5})
    words = ["--vae", vae, "--size", "16", "--part", "2", "--float32", "--no-mirrored"]
    assert encode(capsys, source, *words, "--out", tmp_path / "whole")[0] == 0
    assert encode(capsys, source, *words, "--out", tmp_path / "cut")[0] == 0
    (tmp_path / "cut/latents.json").unlink()
    (tmp_path / "cut/000001.npy").unlink()
    stamp = (tmp_path / "cut/000000.npy").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="not finished"):
        open_data(tmp_path / "cut")
    assert encode(capsys, source, *words, "--out", tmp_path / "cut")[0] == 0
    assert (tmp_path / "cut/000000.npy").stat().st_mtime_ns == stamp
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes(), file.name
    assert np.load(tmp_path / "cut/000002.npy").shape == (1, 1, 2, 4, 8, 8)
    assert np.load(tmp_path / "cut/000002.npy").dtype == np.float32
    for change, pattern in (
        (["--size", "8"], "made with size 16, not 8"),
        (["--mirrored"], "made with mirrored false, not true"),
    ):
        code, err = encode(capsys, source, *words, *change, "--out", tmp_path / "cut")
        assert (code, pattern in err) == (2, True), err
    picture(99).save(source / "a/more.png")
    code, err = encode(capsys, source, *words, "--out", tmp_path / "cut")
    assert (code, "made with count 5, not 6" in err) == (2, True), err


def test_damaged_latents_and_wrong_sizes(tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = folder(tmp_path / "d", {"a": 3}), tmp_path / "z"
    words = [source, "--vae", vae, "--size", "16", "--part", "2", "--out", out]
    assert encode(capsys, *words)[0] == 0
    with pytest.raises(ConfigError, match="of 16 pixels, not 32"):
        open_data(out, 32)
    (out / "000001.npy").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"000001.npy cannot be read.*encode again"):
        open_data(out)
    (out / "000001.npy").unlink()
    assert encode(capsys, *words)[0] == 0  # as that sentence says
    assert len(open_data(out, 16)) == 3
    about = json.loads((out / "latents.json").read_text())
    (out / "latents.json").write_text(json.dumps({**about, "scale": None}))
    with pytest.raises(DamagedError, match="encode them again"):
        open_data(out)


def test_encode_refuses_in_one_sentence(tmp_path: Path, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "d", {"a": 1})
    (tmp_path / "full").mkdir()
    (tmp_path / "full/diary.txt").write_text("mine")
    for words, pattern in (
        ([source, "--vae", tmp_path / "nowhere"], "cannot be loaded as an autoencoder"),
        ([source, "--vae", vae, "--size", "15"], "--size must divide by 2"),
        ([source, "--vae", vae, "--size", "0"], "--size must be from 1"),
        ([tmp_path / "no", "--vae", vae], "There is no folder"),
        ([source, "--vae", vae, "--size", "16", "--device", "abacus"], 'device "abacus" cannot be used'),
    ):
        code, err = encode(capsys, *words, "--out", tmp_path / "z")
        assert (code, len(err.strip().splitlines()), pattern in err) == (2, 1, True), err
        assert not (tmp_path / "z").exists()
    code, err = encode(capsys, source, "--vae", vae, "--size", "16", "--out", tmp_path / "full")
    assert (code, "is not empty" in err) == (2, True), err
