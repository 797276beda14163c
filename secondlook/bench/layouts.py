"""Pictures in the folders and under the names that each benchmark's own scorer reads.

The layouts are those of the released scorers: djghosh13/geneval `evaluate_images.py`, facebookresearch/GenEval2 `evaluation.py`,
Karine-Huang/T2I-CompBench `BLIP_vqa.py` and `UniDet_eval`, linzhiqiu/t2v_metrics `genai_bench/evaluate.py`, TencentQQGYLab/ELLA
`compute_dpg_bench.py`, PKU-YuanGroup/WISE `gpt_eval.py`. DrawBench and PartiPrompts have none and are written as GenEval's.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from secondlook.errors import ConfigError
from secondlook.verify.benchmarks import Entry

Pictures = Sequence[Sequence[Path]]  # of each prompt, its samples
Remarks = Sequence[Mapping[str, object]]  # of each prompt, what was said of some samples, by their number


def write(name: str, out: Path, entries: Sequence[Entry], pictures: Pictures, remarks: Remarks = ()) -> None:
    """A benchmark's layout into ``out``, a new or empty folder. pictures: PNG files, of each entry one or more. remarks: written as
    feedback.json, in each prompt's folder where it has one, else in ``out`` by the prompt's key. The folder appears whole."""
    if len(pictures) != len(entries):
        raise ConfigError(f"{len(entries)} prompts came with pictures of {len(pictures)}; give them for each prompt.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f'"{out}" is not an empty folder. Choose another; nothing was written.')
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        LAYOUTS[name](part, entries, pictures)
        _feedback(part, entries, remarks, LAYOUTS[name] is _folders)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _feedback(out: Path, entries: Sequence[Entry], remarks: Remarks, folders: bool) -> None:
    if not any(remarks):
        return
    if folders:
        for i, said in enumerate(remarks):
            if said:
                (out / f"{i:05d}" / "feedback.json").write_text(json.dumps(said, indent=1) + "\n")
        return
    whole = [{"key": e.key, "prompt": e.prompt, "said": said} for e, said in zip(entries, remarks, strict=True)]
    (out / "feedback.json").write_text(json.dumps(whole, indent=1) + "\n")


def _folders(out: Path, entries: Sequence[Entry], pictures: Pictures) -> None:
    """00000/metadata.jsonl, and 00000/samples/0000.png and so on."""
    for i, (entry, some) in enumerate(zip(entries, pictures, strict=True)):
        folder = out / f"{i:05d}"
        folder.mkdir()
        facts = {**entry.facts, "prompt": entry.prompt}
        if entry.category:
            facts = {"tag": entry.category} | facts
        (folder / "metadata.jsonl").write_text(json.dumps(facts) + "\n")
        for k, source in enumerate(some):
            _copy(source, folder / "samples" / f"{k:04d}.png")


def _per_sample(
    one: Callable[[Path, Sequence[Entry], Sequence[Path | None]], None],
) -> Callable[[Path, Sequence[Entry], Pictures], None]:
    """A layout with one picture a prompt: in ``out`` itself where there is one, else a folder a sample, each scored by itself."""

    def written(out: Path, entries: Sequence[Entry], pictures: Pictures) -> None:
        most = max(map(len, pictures))
        for k in range(most):
            folder = out if most == 1 else out / f"sample-{k}"
            folder.mkdir(exist_ok=True)
            one(folder, entries, [some[k] if k < len(some) else None for some in pictures])

    return written


def _by_path(out: Path, entries: Sequence[Entry], pictures: Sequence[Path | None]) -> None:
    """GenEval 2's: any files, and a JSON object from prompts to their paths."""
    paths = {}
    for entry, source in zip(entries, pictures, strict=True):
        if source is not None:
            _copy(source, out / "pictures" / f"{entry.key}.png")
            paths[entry.prompt] = str(Path("pictures") / f"{entry.key}.png")  # beside this file, which may be moved
    (out / "image_paths.json").write_text(json.dumps(paths, indent=1) + "\n")


def _by_key(out: Path, entries: Sequence[Entry], pictures: Sequence[Path | None]) -> None:
    """WISE's: prompt_id.png."""
    for entry, source in zip(entries, pictures, strict=True):
        if source is not None:
            _copy(source, out / f"{entry.key}.png")


def _jpeg(out: Path, entries: Sequence[Entry], pictures: Sequence[Path | None]) -> None:
    """GenAI-Bench's: 00000.jpeg, by Pillow's usual quality, as its own generate.py saves them."""
    for entry, source in zip(entries, pictures, strict=True):
        if source is not None:
            Image.open(source).convert("RGB").save(out / f"{entry.key}.jpeg")


def _by_prompt(out: Path, entries: Sequence[Entry], pictures: Pictures) -> None:
    """T2I-CompBench's: CATEGORY/samples/PROMPT_000000.png, numbered through; its scorers read the prompt from the name, up to the first "_"."""
    counts: dict[str, int] = {}
    for entry, some in zip(entries, pictures, strict=True):
        name = entry.prompt.replace("/", " ").replace("_", " ")
        if len(name.encode()) > 240:
            raise ConfigError(
                f'The prompt "{name[:60]}..." is too long to name a file, which is where T2I-CompBench\'s scorers read it; shorten it.'
            )
        for source in some:
            number = counts.get(entry.category, 0)
            counts[entry.category] = number + 1
            _copy(source, out / entry.category / "samples" / f"{name}_{number:06d}.png")


def _grid(out: Path, entries: Sequence[Entry], pictures: Pictures) -> None:
    """DPG-Bench's: ITEM.png, up to four samples in a square of two by two, which its scorer cuts apart (--pic-num, --resolution)."""
    for entry, some in zip(entries, pictures, strict=True):
        if len(some) == 1:
            _copy(some[0], out / f"{entry.key}.png")
            continue
        tiles = [Image.open(p).convert("RGB") for p in some[:4]]
        wide, high = tiles[0].size
        sheet = Image.new("RGB", (2 * wide, math.ceil(len(tiles) / 2) * high))
        for k, tile in enumerate(tiles):
            sheet.paste(tile, (k % 2 * wide, k // 2 * high))
        sheet.save(out / f"{entry.key}.png")


LAYOUTS: dict[str, Callable[[Path, Sequence[Entry], Pictures], None]] = {
    "geneval": _folders, "drawbench": _folders, "parti": _folders, "geneval2": _per_sample(_by_path), "wise": _per_sample(_by_key),
    "genai": _per_sample(_jpeg), "t2i-compbench": _by_prompt, "dpg": _grid,
}  # fmt: skip
