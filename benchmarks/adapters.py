"""Best of N through secondlook against loops of ``pipe(...)``: pictures a second and peak memory, as ratios of one run.

    python benchmarks/adapters.py --out docs/results/adapters-speed.md                 # tiny pipelines, CPU
    python benchmarks/adapters.py --shape full --device cuda --dtype bfloat16          # SANA 1.6B and FLUX 12B, 1024 x 1024

Three ways to the best of N pictures of one prompt, with the same network, steps, guidance, size and dtype:

- loop: what one writes first, a call of the pipeline a picture. Each call encodes the prompt.
- loop in batches: what a careful user writes, num_images_per_prompt and a list of generators.
- secondlook: ``draw(prompt, "random(n=N)", rows=...)`` with the pipeline loaded.

All score every picture with the same verifier (sharpness, which costs next to nothing), keep the best, and write every picture
as a PNG, equally packed. secondlook also keeps its log (synced to the disk), digests and the numbers of two more measures, and
reads the best picture back, all within its time. Loading is in none. Ways take turns, forwards and backwards; the first turn is not
counted. A ratio is that of two ways of the same turn, its median over the turns with the smallest and the largest.

Peak memory is the largest resident size of a process that does nothing else (CPU), or the most the allocator held (GPU).

Tiny shapes are those of ``secondlook.adapters.tiny``. Full ones have random weights in the published configurations:
Efficient-Large-Model/Sana_1600M_1024px_diffusers (20 layers of 70 heads of 32, cross-attention of 20 heads of 112, captions
2304 wide, MLP ratio 2.5; DC-AE f32c32-sana-1.0) and black-forest-labs/FLUX.1-dev (19 + 38 layers of 24 heads of 128, joint
attention 4096 wide, pooled 768, guidance embedded; AutoencoderKL of 128, 256, 512, 512 channels to 16). Their text encoders
are small stand-ins of the right widths and lengths, so a loop's encoding in each call is cheaper here than in life.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import secondlook
from secondlook.adapters import tiny
from secondlook.adapters.base import Adapter
from secondlook.adapters.chunks import no_memory
from secondlook.disk.versions import commit
from secondlook.engine.store import LARGE
from secondlook.types import Condition
from secondlook.verify.measures import Sharpness

PROMPT = "a photo of a red cube on a blue ball"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BINNED = ("sana", "pixart")  # their pipelines choose another size unless told not to

SANA = {"in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
        "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
        "caption_channels": 2304, "mlp_ratio": 2.5, "attention_bias": False, "sample_size": 32, "patch_size": 1,
        "norm_elementwise_affine": False, "norm_eps": 1e-6}  # fmt: skip
DCAE = {"latent_channels": 32, "attention_head_dim": 32, "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024), "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
        "decoder_layers_per_block": (3,) * 6, "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)), "downsample_block_type": "conv",
        "upsample_block_type": "interpolate", "decoder_norm_types": "rms_norm", "decoder_act_fns": "silu",
        "scaling_factor": 0.41407}  # fmt: skip
FLUX = {"patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56)}  # fmt: skip
KL = {"in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": (128, 256, 512, 512),
      "layers_per_block": 2, "norm_num_groups": 32, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159,
      "use_quant_conv": False, "use_post_quant_conv": False, "down_block_types": ("DownEncoderBlock2D",) * 4,
      "up_block_types": ("UpDecoderBlock2D",) * 4}  # fmt: skip


# ---- pipelines of the published shapes -----------------------------------------------------------------------------


@contextmanager
def made_on(device: str, dtype: torch.dtype) -> Iterator[None]:
    """New modules are born on ``device`` in ``dtype``: no copy in float32 on the CPU first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def transformer(family: str, depth: int | None = None) -> Any:
    """The published network, or ``depth`` layers of it (FLUX: of each kind)."""
    import diffusers as d

    if family == "sana":
        return d.SanaTransformer2DModel(**{**SANA, **({"num_layers": depth} if depth else {})})
    cut = {"num_layers": depth, "num_single_layers": depth} if depth else {}
    return d.FluxTransformer2DModel(**{**FLUX, **cut})


def full(family: str, device: str, dtype: torch.dtype, depth: int | None = None) -> Any:
    """A whole pipeline of the published shape with random weights, all of it on ``device``."""
    import diffusers as d

    if family not in ("sana", "flux"):
        raise SystemExit(f"There are published shapes for sana and flux here, not for {family}.")
    torch.manual_seed(0)
    long: Any = tiny.words(limit=512)
    with made_on(device, dtype):
        network = transformer(family, depth)
        vae = d.AutoencoderDC(**DCAE) if family == "sana" else d.AutoencoderKL(**KL)
        texts = _texts(family, len(long))
    if family == "sana":
        scheduler = d.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, use_flow_sigmas=True,
                                                  flow_shift=3.0, prediction_type="flow_prediction")  # fmt: skip
        pipe = d.SanaPipeline(tokenizer=long, text_encoder=texts[0], vae=vae, transformer=network, scheduler=scheduler)
    else:
        scheduler = d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
        pipe = d.FluxPipeline(scheduler=scheduler, vae=vae, text_encoder=texts[0], tokenizer=tiny.letters(),
                              text_encoder_2=texts[1], tokenizer_2=long, transformer=network)  # fmt: skip
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as from_pretrained leaves it; in training mode the text encoder would drop at random
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _texts(family: str, vocabulary: int) -> list[Any]:
    """Text encoders of one layer each, as wide as the published ones."""
    import transformers as t

    if family == "sana":
        gemma: Any = t.Gemma2Config
        return [t.Gemma2Model(gemma(head_dim=16, hidden_size=2304, intermediate_size=64, num_attention_heads=2,
                                    num_hidden_layers=1, num_key_value_heads=2, vocab_size=vocabulary,
                                    attn_implementation="eager", pad_token_id=0, eos_token_id=1, bos_token_id=2))]  # fmt: skip
    clip = t.CLIPTextConfig(vocab_size=258, hidden_size=768, intermediate_size=64, num_hidden_layers=1, num_attention_heads=12,
                            bos_token_id=256, eos_token_id=257, pad_token_id=257)  # fmt: skip
    t5: Any = t.T5Config
    return [t.CLIPTextModel(clip), t.T5EncoderModel(t5(vocab_size=vocabulary, d_model=4096, d_kv=8, d_ff=64, num_layers=1,
                                                       num_heads=4, feed_forward_proj="gated-gelu",
                                                       decoder_start_token_id=0))]  # fmt: skip


def parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- the ways ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """``ours``: through secondlook, else a loop; ``rows``: pictures a call."""

    ours: bool
    rows: int

    def __str__(self) -> str:
        if self.ours:
            return f"secondlook, rows={self.rows}"
        return "loop" if self.rows == 1 else f"loop in batches of {self.rows}"


@dataclass(frozen=True)
class Time:
    wall: float
    cpu: float


@dataclass
class Bench:
    """A pipeline held ready, and what each way is to do with it."""

    family: str
    pipe: Any
    held: Adapter
    steps: int
    pictures: int
    seed: int

    @staticmethod
    def of(a: argparse.Namespace, family: str) -> Bench:
        dtype = DTYPES[a.dtype]
        pipe = full(family, a.device, dtype, a.depth) if a.shape == "full" else tiny.make(family).to(a.device, dtype)
        held = secondlook.load(pipe, height=a.size, width=a.size)
        return Bench(family, pipe, held, a.steps, a.pictures, a.seed)

    def __call__(self, way: Way) -> Time:
        """One way, once. Making and clearing its folder is not counted."""
        with tempfile.TemporaryDirectory() as folder:
            work = self.search if way.ours else self.loop
            wall, cpu = time.perf_counter(), time.process_time()
            work(way.rows, Path(folder))  # pictures end on the CPU in every way: nothing is left running on a GPU
            return Time(time.perf_counter() - wall, time.process_time() - cpu)

    def search(self, rows: int, folder: Path) -> float:
        prompt = "1" if self.family == "dit" else PROMPT
        [result] = secondlook.draw(prompt, f"random(n={self.pictures})", folder / "run", model=self.held,
                                   verifier="sharpness", rows=rows, steps=self.steps, seed=self.seed)  # fmt: skip
        return result.score

    def loop(self, rows: int, folder: Path) -> float:
        guide, best, kept = Sharpness(), -np.inf, None
        for first in range(0, self.pictures, rows):
            images = self.call(range(first, min(first + rows, self.pictures)))
            scores = guide(torch.from_numpy(np.stack(images)), [Condition(PROMPT)] * len(images)).tolist()
            for i, (image, score) in enumerate(zip(images, scores, strict=True)):
                image.save(folder / f"{first + i:06d}.png", compress_level=tightness(image.width * image.height))
                if score > best:
                    best, kept = score, image
        assert kept is not None
        return best

    def call(self, indices: Sequence[int]) -> list[Any]:
        """One call of the pipeline, at its own guidance."""
        some = [torch.Generator(self.pipe._execution_device).manual_seed(self.seed + i) for i in indices]
        rest: dict[str, Any] = {"num_inference_steps": self.steps, "generator": some[0] if len(some) == 1 else some}
        if self.family == "dit":
            found: list[Any] = self.pipe(class_labels=[1] * len(some), **rest).images
            return found
        if self.family in BINNED:
            rest["use_resolution_binning"] = False
        if len(some) > 1:
            rest["num_images_per_prompt"] = len(some)
        found = self.pipe(PROMPT, height=self.held.height, width=self.held.width, **rest).images
        return found


# ---- measurements --------------------------------------------------------------------------------------------------


def tightness(pixels: int) -> int:
    """How tightly the store packs a PNG: at Pillow's own level (6) a loop would take 0.1 s more for a picture of 1024 x 1024."""
    return 1 if pixels >= LARGE else 6


def resident() -> int:
    """The most bytes of memory this process ever held. getrusage would count its parent's, too, from before it began."""
    status = Path("/proc/self/status")
    if status.exists():
        [line] = [x for x in status.read_text().splitlines() if x.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alone(a: argparse.Namespace, family: str, way: Way) -> int:
    """Peak bytes of a fresh process that does one way once."""
    words = [sys.executable, __file__, "--alone", f"{int(way.ours)},{way.rows}", "--families", family]
    for name in ("device", "shape", "dtype", "steps", "pictures", "seed", "size", "depth"):
        if getattr(a, name) is not None:
            words += [f"--{name}", str(getattr(a, name))]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


@dataclass
class Found:
    """One family's numbers: times of every turn and peak bytes, by way, and of every turn the seconds that a run costs besides
    its pictures. Ways that memory did not hold are not there."""

    family: str
    times: dict[Way, list[Time]]
    peaks: dict[Way, int]
    pictures: int
    fixed: list[float]

    def speed(self, way: Way) -> str:
        return spread([self.pictures / t.wall for t in self.times[way]])

    def against(self, way: Way, other: Way, unit: str = "wall") -> str:
        """How many times as fast as another way."""
        if other not in self.times or other == way:
            return ""
        pairs = zip(self.times[way], self.times[other], strict=True)
        return spread([getattr(b, unit) / getattr(w, unit) for w, b in pairs])


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def measure(a: argparse.Namespace, family: str) -> Found:
    """All ways of one family, in turns; the first turn warms up, and on a GPU tells the peaks."""
    ways = [Way(ours, rows) for ours in (False, True) for rows in dict.fromkeys([1, *a.rows] if not ours else a.rows)]
    peaks = {} if a.device.startswith("cuda") else {way: alone(a, family, way) for way in ways}
    bench = Bench.of(a, family)
    times: dict[Way, list[Time]] = {}
    small, fixed = replace(bench, steps=2, pictures=1), []
    for way in ways:
        try:
            if a.device.startswith("cuda"):
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            bench(way)
            if a.device.startswith("cuda"):
                peaks[way] = torch.cuda.max_memory_allocated()
            times[way] = []
        except Exception as error:
            if not no_memory(error):
                raise
            print(f"{family}: memory does not hold the {way}", file=sys.stderr)
    for turn in range(a.repeats):
        for way in list(times)[:: -1 if turn % 2 else 1]:
            times[way].append(bench(way))
        print(
            family, turn, ", ".join(f"{w}: {t[-1].wall:.3f} s" for w, t in times.items()), file=sys.stderr, flush=True
        )
        fixed.append(small(Way(True, 1)).wall - small(Way(False, 1)).wall)
    return Found(family, times, peaks, a.pictures, fixed)


# ---- words ---------------------------------------------------------------------------------------------------------


def table(found: Sequence[Found]) -> str:
    lines = ["| family | way | pictures a second | speed against the loop | speed against the same batch | the same in CPU seconds | peak, MB | against the same batch |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for f in found:
        for way in f.times:
            same = Way(False, way.rows)
            share = f"{f.peaks[way] / f.peaks[same]:.3f}" if way.ours and same in f.peaks else ""
            first = f.against(way, Way(False, 1)) if way != Way(False, 1) else ""
            fair = (f.against(way, same), f.against(way, same, "cpu")) if way.ours else ("", "")
            lines.append(f"| {f.family} | {way} | {f.speed(way)} | {first} | {fair[0]} | {fair[1]} | "
                         f"{f.peaks[way] / 1e6:.0f} | {share} |")  # fmt: skip
    return "\n".join(lines)


def report(a: argparse.Namespace, found: Sequence[Found], load: tuple[float, ...]) -> str:
    where = (
        torch.cuda.get_device_name(torch.device(a.device))
        if a.device.startswith("cuda")
        else f"{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} threads of {os.cpu_count()}"
    )
    packages = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "diffusers", "transformers"))
    loads = " and ".join(", ".join(f"{v:.2f}" for v in x) for x in (load, os.getloadavg()))
    head = (f"`{shlex.join(['python', *sys.argv])}`, seed {a.seed}, commit {commit()}; {where}; {platform.python_version()}, "
            f"{packages}. Load averages before and after (1, 5, 15 minutes): {loads}.")  # fmt: skip
    shape = "tiny pipelines" if a.shape == "tiny" else "published shapes, random weights"
    what = (f"Best of {a.pictures}, {a.steps} steps, each pipeline's own guidance, {shape}, {a.dtype}. Every way scores each picture "
            f"by sharpness and writes it as a PNG. Medians of {a.repeats} turns, with the smallest and the largest; above 1 is "
            "faster, and in memory below 1 is less. CPU seconds leave out what other processes took and waits for the disk.")  # fmt: skip
    fixed = ", ".join(f"{f.family} {spread(f.fixed)}" for f in found)
    note = (f"Seconds that a run costs however many pictures it draws (its record, the weights' digest, the scheduler's times), from "
            f"runs of one picture in two steps, less a call of the pipeline for the same: {fixed}. Beside networks this small they "
            "weigh; a real picture takes longer than all of them.")  # fmt: skip
    return f"# Speed of the adapters\n\n{head}\n\n{what}\n\n{table(found)}\n\n{note}\n\nWhat is compared: benchmarks/adapters.py.\n"


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--families", nargs="+", help="default: all tiny ones, or sana and flux in full")
    p.add_argument("--shape", choices=("tiny", "full"), default="tiny")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=DTYPES, default="float32")
    p.add_argument("--size", type=int, help="of pictures, in pixels (default: the pipeline's own)")
    p.add_argument("--depth", type=int, help="only so many layers of the full shapes, to try them out")
    p.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    p.add_argument("--pictures", type=int, default=16)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    p.add_argument("--alone", help=argparse.SUPPRESS)  # a process whose memory is measured
    return p.parse_args()


def main() -> int:
    a, load = arguments(), os.getloadavg()
    families = a.families or (["sana", "flux"] if a.shape == "full" else list(tiny.PIPELINES))
    if a.alone:
        ours, rows = map(int, a.alone.split(","))
        Bench.of(a, families[0])(Way(bool(ours), rows))
        print(json.dumps({"peak": resident()}))
        return 0
    found: list[Found] = []
    for family in families:
        found.append(measure(a, family))
        gc.collect()  # the next family needs the room
        if a.out:  # after every family: a whole run takes a while
            a.out.write_text(report(a, found, load))
    print(report(a, found, load))
    return 0


if __name__ == "__main__":
    sys.exit(main())
