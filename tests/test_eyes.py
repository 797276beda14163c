"""Each judge of published weights gives what the library's own forward pass, or its paper, gives on the same weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secondlook.errors import ConfigError, DamagedError
from secondlook.eyes import heads, load, tiny
from secondlook.notes import Note
from secondlook.registry import COMPARERS, VERIFIERS
from secondlook.settings import make_named
from secondlook.testing import ComparerContract, VerifierContract
from secondlook.testing.contracts import noise_pictures
from secondlook.types import Comparer, Condition, Verifier
from secondlook.verify import answers
from tests import eyes_references

transformers = pytest.importorskip("transformers")
EYES = [
    n
    for n, row in VERIFIERS.items()
    if row.target.startswith("secondlook.eyes.") and not any(m in row.target for m in (".ensemble:", ".fields:"))
]
PROMPTS = ("a red cup", "two dogs", "a cat left of a chair", "a red cup", "a clock")
CONDITIONS = [Condition(p, label=i) for i, p in enumerate(PROMPTS)]
CONTRACT = [t for t in dir(VerifierContract) if t.startswith("test_")]


def made(texts: dict[str, str], name: str, **more: Any) -> Verifier:
    """A verifier from its tiny call-string, with more options."""
    text = texts[name][:-1] + "".join(f", {k}={v!r}" for k, v in more.items()) + ")"
    verifier: Verifier = make_named("verifier", text)
    return verifier


def numbers(verifier: Verifier, pictures: Tensor, conditions: list[Condition] = CONDITIONS) -> list[float]:
    return answers.scores(verifier(pictures, conditions), len(pictures))[0]


def test_tiny_weights_exist_for_each(eyes: dict[str, str]) -> None:
    assert {n.partition(",")[0] for n in eyes} == set(EYES)


@pytest.mark.parametrize("test", CONTRACT)
@pytest.mark.parametrize("name", EYES)
def test_each_keeps_the_contract(name: str, test: str, eyes: dict[str, str]) -> None:
    one = made(eyes, name)
    under = VerifierContract()
    under.made = lambda: one  # type: ignore[method-assign]
    under.conditions = lambda count: [Condition("two red cups left of a clock" if name == "objects" else "cup")] * count  # type: ignore[method-assign]
    assert not any(math.isnan(v) for v in under.numbers(under.pictures(3)))
    getattr(under, test)()


@pytest.mark.parametrize("name", [n for n in EYES if n != "objects"])
def test_in_padded_batches_a_score_is_its_own_to_the_bit_and_batches_agree(name: str, eyes: dict[str, str]) -> None:
    pictures = noise_pictures(5)
    wide, single = made(eyes, name, batch=3), made(eyes, name, batch=1)
    together = numbers(wide, pictures)
    assert together == [numbers(wide, pictures[i : i + 1], CONDITIONS[i : i + 1])[0] for i in range(5)]
    assert together[::-1] == numbers(wide, pictures.flip(0), CONDITIONS[::-1])
    alone = numbers(single, pictures)
    assert np.abs(np.array(together) - np.array(alone)).max() < 1e-5 * max(1, np.abs(alone).max())


# ---- against the library's forward passes --------------------------------------------------------------------------------


def theirs(folder: str, kind: str, pictures: Tensor, prompts: tuple[str, ...], **text: Any) -> tuple[nn.Module, Any]:
    """The library's own forward pass, one pair after another."""
    network = getattr(transformers, kind).from_pretrained(folder).eval().requires_grad_(False)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    out = []
    with torch.inference_mode():
        for picture, prompt in zip(pictures, prompts, strict=True):
            pixels = processor(images=[picture.numpy()], return_tensors="pt")["pixel_values"]
            words = tokenizer(prompt, return_tensors="pt", **text)
            out.append(network(pixel_values=pixels, input_ids=words["input_ids"]).logits_per_image[0, 0])
    return network, torch.stack(out).double()


@pytest.mark.parametrize("name", ["clip", "pickscore", "siglip"])
def test_a_score_of_two_encoders_is_the_librarys(name: str, eyes: dict[str, str], eyes_at: Path) -> None:
    pictures = noise_pictures(5)
    kind, more = ("SiglipModel", {"padding": "max_length", "max_length": 64}) if name == "siglip" else ("CLIPModel", {})
    network, logits = theirs(str(eyes_at / name), kind, pictures, PROMPTS, **more)
    wanted = 100 * logits / float(network.logit_scale.exp()) if name == "clip" else logits  # type: ignore[operator,union-attr]
    assert len(set(wanted.tolist())) == 5
    assert torch.allclose(torch.tensor(numbers(made(eyes, name), pictures), dtype=torch.float64), wanted, atol=2e-5)


def test_siglip_reads_small_letters_as_it_was_trained_and_clip_what_its_tokenizer_does(eyes: dict[str, str]) -> None:
    picture = noise_pictures(1)
    for name, same in (("siglip", True), ("clip", False)):
        verifier = made(eyes, name)
        found = [numbers(verifier, picture, [Condition(p)]) for p in ("a Red CUP", "a red cup")]
        assert (found[0] == found[1]) == same


def pixels_and_ids(folder: Path, picture: Tensor, prompt: str) -> tuple[Tensor, list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return processor(images=[picture.numpy()], return_tensors="pt")["pixel_values"], tokenizer(prompt)["input_ids"]


def test_hpsv2_is_openclips_cosine_on_the_published_layout(eyes: dict[str, str], eyes_at: Path) -> None:
    state = {
        k: v.float()
        for k, v in torch.load(eyes_at / "hpsv2" / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"].items()
    }
    pictures = noise_pictures(5)
    wanted = [
        eyes_references.open_clip_cosine(state, *pixels_and_ids(eyes_at / "hpsv2", p, c))
        for p, c in zip(pictures, PROMPTS, strict=True)
    ]
    assert np.allclose(numbers(made(eyes, "hpsv2"), pictures), wanted, atol=1e-6)


def test_imagereward_is_its_papers_on_the_published_layout(eyes: dict[str, str], eyes_at: Path) -> None:
    state = torch.load(eyes_at / "imagereward" / "ImageReward.pt", weights_only=True)
    pictures, prompts = noise_pictures(5), (*PROMPTS[:4], "many words that go on and on for longer than it reads")
    wanted = [
        eyes_references.imagereward(state, *pixels_and_ids(eyes_at / "imagereward", p, c))
        for p, c in zip(pictures[:4], prompts[:4], strict=True)
    ]
    assert np.allclose(numbers(made(eyes, "imagereward"), pictures[:4], CONDITIONS[:4]), wanted, atol=1e-4)
    with pytest.warns(Note, match=r'imagereward takes 33 of its 53 tokens and does not see ".*it reads"'):
        long = numbers(made(eyes, "imagereward"), pictures[4:], [Condition(prompts[4])])
    pixels, ids = pixels_and_ids(eyes_at / "imagereward", pictures[4], prompts[4])
    assert np.allclose(long, eyes_references.imagereward(state, pixels, [*ids[:34], ids[-1]]), atol=1e-4)


def test_the_aesthetic_head_is_the_released_one_on_unit_features(
    eyes: dict[str, str], eyes_at: Path, tmp_path: Path
) -> None:
    state = torch.load(eyes_at / "aesthetic" / "aesthetic-model.pth", weights_only=True)
    sizes = [(48, 32), (32, 16), (16, 8), (8, 4), (4, 1)]
    a, b, c, d, e = (nn.Linear(*s) for s in sizes)
    released = nn.ModuleDict(
        {"layers": nn.Sequential(a, nn.Dropout(0.2), b, nn.Dropout(0.2), c, nn.Dropout(0.1), d, e)}
    ).eval()
    released.load_state_dict(state)
    network = transformers.CLIPModel.from_pretrained(eyes_at / "clip").eval()
    pictures = noise_pictures(3)
    with torch.inference_mode():
        pixels = torch.cat([pixels_and_ids(eyes_at / "clip", p, "")[0] for p in pictures])
        features = network.get_image_features(pixel_values=pixels).pooler_output
        wanted = released["layers"](features / features.norm(dim=-1, keepdim=True))[:, 0]
    assert np.allclose(numbers(made(eyes, "aesthetic"), pictures, [Condition()] * 3), wanted.numpy(), atol=1e-5)
    from safetensors.torch import save_file

    save_file(state, tmp_path / "head.safetensors")
    text = f"aesthetic(model={str(eyes_at / 'clip')!r}, head={str(tmp_path)!r})"
    assert numbers(make_named("verifier", text), pictures, [Condition()] * 3) == numbers(
        made(eyes, "aesthetic"), pictures, [Condition()] * 3
    )


def test_classes_is_the_log_softmax_at_the_class_asked_for(eyes: dict[str, str], eyes_at: Path, tmp_path: Path) -> None:
    pictures = noise_pictures(4)
    network = transformers.ViTForImageClassification.from_pretrained(eyes_at / "classes").eval()
    processor = transformers.ViTImageProcessorPil.from_pretrained(eyes_at / "classes")
    with torch.inference_mode():
        logits = network(
            pixel_values=processor(images=[p.numpy() for p in pictures], return_tensors="pt")["pixel_values"]
        ).logits
    asked = [Condition(label=3), Condition("Cup"), Condition("a thing"), Condition(label=99)]
    found, wanted = numbers(made(eyes, "classes"), pictures, asked), logits.log_softmax(-1)
    assert np.allclose(found[:2], [wanted[0, 3], wanted[1, tiny.COCO.index("cup")]], atol=1e-5)
    assert math.isnan(found[2])
    assert math.isnan(found[3])
    (tmp_path / "names.txt").write_text("\n".join(tiny.COCO))
    by_names = make_named(
        "verifier", f"classes(model={str(eyes_at / 'clip')!r}, names={str(tmp_path / 'names.txt')!r})"
    )
    texts = tuple(f"a photo of a {n}." for n in tiny.COCO)
    _, each = theirs(str(eyes_at / "clip"), "CLIPModel", pictures[:1].expand(len(texts), -1, -1, -1), texts)
    assert np.allclose(numbers(by_names, pictures[:1], [Condition(label=3)]), each.log_softmax(0)[3], atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("dino", "dino"), ("clip", "clip")])
def test_likeness_is_the_cosine_of_the_librarys_features(name: str, kind: str, eyes_at: Path) -> None:
    comparer = make_named("comparer", f"{name}(model={str(eyes_at / kind)!r})")
    one, two = noise_pictures(3), noise_pictures(3, seed=1)
    cls = transformers.Dinov2Model if name == "dino" else transformers.CLIPModel
    network, processor = (
        cls.from_pretrained(eyes_at / kind).eval(),
        transformers.AutoImageProcessor.from_pretrained(eyes_at / kind, backend="pil"),
    )
    features = []
    with torch.inference_mode():
        for some in (one, two):
            pixels = processor(images=[p.numpy() for p in some], return_tensors="pt")["pixel_values"]
            features.append(
                network(pixel_values=pixels).last_hidden_state[:, 0]
                if name == "dino"
                else network.get_image_features(pixels).pooler_output
            )
    wanted = (1 + torch.cosine_similarity(*features)) / 2
    assert torch.allclose(comparer(one, two, [Condition()] * 3).float(), wanted, atol=1e-5)
    assert torch.allclose(comparer(one, one, [Condition()] * 3), torch.ones(3, dtype=torch.float64), atol=1e-6)


class _Likeness(ComparerContract):
    def __init__(self, comparer: Comparer):
        self.comparer = comparer

    def made(self) -> Comparer:
        return self.comparer


@pytest.mark.parametrize("test", [t for t in dir(ComparerContract) if t.startswith("test_")])
@pytest.mark.parametrize("name", [n for n, row in COMPARERS.items() if row.target.startswith("secondlook.eyes.")])
def test_each_comparer_keeps_the_contract(name: str, test: str, eyes_at: Path) -> None:
    getattr(_Likeness(make_named("comparer", f"{name}(model={str(eyes_at / name)!r})")), test)()


# ---- what is refused, and how ------------------------------------------------------------------------------------------------


def test_weights_that_are_nowhere_are_missed_in_one_sentence_that_names_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for text, model in {
        "clip": "openai/clip-vit-large-patch14",
        "imagereward": "THUDM/ImageReward",
        "hpsv2": "xswu/HPSv2",
    }.items():
        with pytest.raises(
            ConfigError,
            match=rf"\"{model}\" is not on this machine .* `hf download {model} --local-dir DIR` .*{text}\(model='DIR'\)",
        ):
            make_named("verifier", text)
    with pytest.raises(ConfigError, match="There is no folder"):
        make_named("verifier", f"clip(model={str(tmp_path / 'nothing')!r})")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip(dtype='float8')", "There is no dtype"), ("clip(model='{clip}', device='cuda:99')", "cannot be used here"),
        ("clip(model='{clip}', batch=-1)", "batch is from 1"), ("hpsv2(version='3')", "no version"), ("clip(model='{dino}')", "CLIPModel with all its weights"),
        ("classes(model='{clip}', names='none.txt')", "with a class on each line"), ("aesthetic(model='{clip}', head='{hpsv2}')", "no stack of linear layers"),
        ("imagereward(model='{hpsv2}')", "holds no ImageReward"), ("hpsv2(model='{imagereward}')", "no CLIP of OpenCLIP"),
        ("aesthetic(model='{clip}', head='{stack}')", "reads 9 features, and the CLIP has 48"), ("objects(detector='yolo')", "There is no detector"),
        ("objects(model='{owlv2}', colours='{clip}', threshold=1.5)", "threshold is a score"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_sentence(text: str, said: str, eyes_at: Path, tmp_path: Path) -> None:
    torch.save(tiny.stack(9), tmp_path / "stack.pth")
    names = {k: str(eyes_at / k) for k in tiny.KINDS} | {"stack": str(tmp_path / "stack.pth")}
    with pytest.raises(ConfigError, match=said) as error:
        make_named("verifier", text.format(**names))
    assert "\n" not in str(error.value)


def test_a_file_whose_pickle_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"layers.0.weight": Bad()}, tmp_path / "bad.pth")
    with pytest.raises(DamagedError, match="without running code"):
        load.state_of(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"xx")
    with pytest.raises(DamagedError, match="cannot be read"):
        load.state_of(tmp_path / "cut.safetensors")


def test_a_head_with_a_layer_left_out_is_refused(tmp_path: Path) -> None:
    state = tiny.stack(8)
    for key in ("layers.2.weight", "layers.2.bias"):
        with pytest.raises(ConfigError, match="no stack of linear layers"):
            heads.linear_stack({k: v for k, v in state.items() if k != key}, tmp_path)
    with pytest.raises(ConfigError, match="no stack of linear layers"):
        heads.linear_stack({k: v for k, v in state.items() if ".2." not in k}, tmp_path)
