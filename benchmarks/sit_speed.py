"""Speed of SiT's shapes with random weights: python benchmarks/sit_speed.py [--models SiT-S/2 SiT-B/2] [--batch 4]

For every shape, dtype and mode: forward passes a second, achieved FLOP/s (counted, not measured) against this machine's
measured matrix peak in the same dtype, and sampling with 250 evaluations by the ODE (Heun, 125 steps) and the SDE (Euler-Maruyama,
250 steps). On a CPU only a few solver steps are timed; pictures a second are then extrapolated, and labelled so. The last
columns are ratios in one run: our SDE step (one network call) against a step that asks the network twice, as the released code
does. Latents only: no VAE is timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from secondlook.disk.versions import commit
from secondlook.flow.estimate import Flow
from secondlook.flow.path import Linear
from secondlook.models.sit import Labels, SiT, SiTConfig
from secondlook.noise import Key, normal
from secondlook.solvers.ode import Heun, Solver
from secondlook.solvers.sde import EulerMaruyama
from secondlook.types import State

EVALS = 250  # of a sample, as in the paper's tables


def multiply_adds(c: SiTConfig) -> int:
    """Of one forward pass of one sample; the unit that the papers call Gflops. Attention's products are included."""
    tokens, w = (c.side // c.patch) ** 2, c.width
    block = tokens * w * w * (4 + 2 * c.ratio) + 2 * tokens**2 * w + 6 * w * w
    ends = tokens * c.patch**2 * w * c.channels * (2 + int(c.variance)) + 2 * w * w + 256 * w + w * w
    return int(c.depth * block + ends)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of ``repeats`` timed calls, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        wait(device)
        begin = time.perf_counter()
        run()
        wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def matrix_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the best of a few square products in ``dtype``."""
    best = 0.0
    for n in (1024, 2048, 3072) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * n**3 / seconds(lambda a=a, b=b: a @ b, device, 5))
    return best


@dataclass
class Row:
    """One line of the table."""

    model: str
    dtype: str
    mode: str
    batch: int
    forward: float
    tflops: float
    of_peak: float
    ode: float
    sde: float
    fused: float
    extrapolated: bool


def measure(name: str, dtype: torch.dtype, compiled: bool, batch: int, device: torch.device, steps: int) -> Row:
    """``steps`` solver steps are timed (0: all of them)."""
    torch.manual_seed(0)
    config = SiTConfig.named(name)
    network = SiT(config).eval().requires_grad_(False).to(device, dtype)
    call = torch.compile(network) if compiled else network

    class Called:
        predicts, shape = network.predicts, network.shape

        def __call__(self, x: torch.Tensor, t: torch.Tensor, cond: Labels) -> torch.Tensor:
            return call(x.to(dtype), t, cond).to(x.dtype)

    labels = Labels(torch.zeros(batch, dtype=torch.long, device=device))
    x, t = torch.randn(batch, *config_shape(config), device=device), torch.full((batch,), 0.5, device=device)
    flow = Flow(Called(), Linear())
    with torch.inference_mode():
        one = seconds(lambda: flow.network(x, t, labels), device, 3)
        ode = stepping(flow, Heun(), labels, batch, steps or EVALS // 2, device) * EVALS / 2
        sde_step = stepping(flow, EulerMaruyama("sigma"), labels, batch, steps or EVALS, device)
    rate = 2 * multiply_adds(config) * batch / one
    return Row(name, str(dtype).removeprefix("torch."), "compiled" if compiled else "eager", batch, batch / one, rate / 1e12,
               0.0, batch / ode, batch / (sde_step * EVALS), (sde_step + one) / sde_step, bool(steps))  # fmt: skip


def config_shape(c: SiTConfig) -> tuple[int, int, int]:
    return c.channels, c.side, c.side


def stepping(flow: Flow, solver: Solver, labels: Labels, batch: int, steps: int, device: torch.device) -> float:
    """Seconds a solver step."""
    keys = tuple(Key.root(0).child(i) for i in range(batch))
    state = State(normal(keys, flow.network.shape).to(device), torch.full((batch,), 0.3, device=device), keys,
                  torch.zeros(batch, dtype=torch.long))  # fmt: skip

    def run() -> None:
        now = state
        for i in range(steps):
            now = solver.step(flow, now, torch.full_like(now.t, 0.3 + (i + 1) * 0.001), labels)

    return seconds(run, device, 1) / steps


def table(rows: list[Row]) -> str:
    lines = ["| model | dtype | mode | batch | forward, pictures/s | TFLOP/s | of the measured peak | ODE, pictures/s | SDE, pictures/s | SDE step against two calls |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        mark = "*" if r.extrapolated else ""
        lines.append(f"| {r.model} | {r.dtype} | {r.mode} | {r.batch} | {r.forward:.2f} | {r.tflops:.3f} | {r.of_peak:.0%} | "
                     f"{r.ode:.4f}{mark} | {r.sde:.4f}{mark} | {r.fused:.2f}x |")  # fmt: skip
    return "\n".join(lines)


def report(rows: list[Row], peaks: dict[torch.dtype, float], device: str, steps: int) -> str:
    command = " ".join(["python", *sys.argv])
    known = ", ".join(f"{str(d).removeprefix('torch.')} {p / 1e12:.3f} TFLOP/s" for d, p in peaks.items())
    head = f"Device: {device}; torch {torch.__version__}; commit {commit()}; `{command}`. Best matrix product in the same run: {known}."
    note = f"`*`: extrapolated from {steps} timed solver steps to {EVALS} evaluations." if steps else ""
    return f"# Speed of SiT's shapes\n\n{head}\n\n{table(rows)}\n\n{note}\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["SiT-S/2", "SiT-B/2", "SiT-XL/2"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=2, help="solver steps to time; 0: all (default: 2)")
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    peaks = dict.fromkeys((torch.float32, torch.bfloat16), 0.0)
    rows: list[Row] = []
    for model in args.models:
        for dtype in peaks:
            for mode in args.modes:
                torch.compiler.reset()
                rows.append(measure(model, dtype, mode == "compiled", args.batch, device, args.steps))
                peaks[dtype] = max(peaks[dtype], matrix_peak(dtype, device))  # again and again: a machine may be shared
                for row in rows:
                    row.of_peak = row.tflops * 1e12 / (peaks[getattr(torch, row.dtype)] or float("nan"))
                print(json.dumps(rows[-1].__dict__), flush=True)
                if args.out:  # after every row: compiling the largest takes minutes
                    args.out.write_text(report(rows, peaks, name, args.steps))
    print(report(rows, peaks, name, args.steps))


if __name__ == "__main__":
    main()
