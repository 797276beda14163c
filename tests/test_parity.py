"""Agreement with the official SiT code: one case for each vector of the file that SECONDLOOK_PARITY names.

The file's keys say what was computed; ../shared/parity/README.md of the vectors says how. Nothing here is tuned to a
value: every case builds the network, path, interval, solver or loss that its key describes, by the preset "official".
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path as File

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from secondlook.flow.estimate import Flow
from secondlook.flow.grid import spread
from secondlook.flow.guidance import ClassifierFree
from secondlook.flow.interval import LAST_STEP, interval
from secondlook.flow.path import PATHS, Kind
from secondlook.models.official import from_state_dict
from secondlook.models.sit import Labels, SiT
from secondlook.noise import Key
from secondlook.solvers.adaptive import Dopri5
from secondlook.solvers.ode import Euler, Heun, Solver, integrate
from secondlook.solvers.sde import Diffusion, EulerMaruyama, StochasticHeun
from secondlook.types import State

FILE = File(os.environ.get("SECONDLOOK_PARITY", File(__file__).parents[2] / "shared/parity/sit_tiny.safetensors"))
KINDS: dict[str, Kind] = {"velocity": "velocity", "noise": "noise", "score": "logp_grad"}
INPUTS = {"forward.x", "forward.t", "forward.y", "sample.z", "sample.y", "loss.noise", "loss.t"}


def keys() -> list[str]:
    if not FILE.is_file():
        return []
    with safe_open(FILE, "pt") as file:
        return sorted(set(file.keys()) - INPUTS)


CASES = keys() or [pytest.param("none", marks=pytest.mark.skip(reason=f"there is no file of parity vectors at {FILE}"))]


@cache
def vectors() -> dict[str, Tensor]:
    return load_file(FILE)


@cache
def network(predicts: Kind = "velocity", path: str = "linear") -> SiT:
    with safe_open(FILE, "pt") as file:
        config = json.loads(file.metadata()["config"])
    state = {k[6:]: v for k, v in vectors().items() if k.startswith("model.")}
    made = from_state_dict(state, heads=config["num_heads"], predicts=predicts, path=path)
    return made.eval().requires_grad_(False)


def start(t: float, rows: int) -> State:
    z = vectors()["sample.z"][:rows]
    return State(z, torch.full((rows,), t), (Key.root(0),) * rows, torch.zeros(rows, dtype=torch.long))


def flow_of(path: str, prediction: str) -> Flow:
    return Flow(network(KINDS[prediction], path.lower()), PATHS[path.lower()]())


def ode(path: str, prediction: str, method: str) -> Tensor:
    """11 grid points, except for dopri5, which chooses its own and integrates each row alone."""
    kind = KINDS[prediction]
    span = interval(path.lower(), kind, "ode", preset="official")
    solvers: dict[str, Solver] = {
        "euler": Euler("step"),
        "heun2": Heun("step"),
        "dopri5": Dopri5(1e-4, 1e-6, end="step"),
    }
    times = (span.start, span.end) if method == "dopri5" else spread(span.start, span.end, 10)
    labels = Labels(vectors()["sample.y"])
    return integrate(flow_of(path, prediction), solvers[method], start(span.start, len(labels.index)), times, labels).x


def sde(path: str, prediction: str, form: str, method: str, last: str) -> Tensor:
    """9 even steps and a last one of 0.04, or none; the noise is torch's, one draw a step."""
    size = 0.0 if last == "None" else LAST_STEP
    span = interval(path.lower(), KINDS[prediction], "sde", preset="official", last=size)
    torch.manual_seed(5)
    solver = {"Euler": EulerMaruyama, "Heun": StochasticHeun}[method](
        form=Diffusion.official(form, 1.0),
        cap=float("inf"),
        last="step" if last == "None" else last.lower(),  # type: ignore[arg-type]
        source=lambda keys, shape: torch.randn(len(keys), *shape),
    )
    times = spread(span.start, span.end, 9, last=size)
    return integrate(
        flow_of(path, prediction), solver, start(span.start, 1), times, Labels(vectors()["sample.y"][:1])
    ).x


def loss(path: str, prediction: str, weight: str) -> Tensor:
    """The official code drops a weight that is asked for with the velocity; so does its preset."""
    v = vectors()
    asked = "none" if prediction == "velocity" else weight.lower()
    return flow_of(path, prediction).loss(
        v["forward.x"],
        v["loss.noise"],
        v["loss.t"],
        Labels(torch.arange(len(v["loss.t"]))),
        asked,
        floor=0.0,  # type: ignore[arg-type]
    )


def guided() -> Tensor:
    """Both halves of the official guidance: guided channels, and each half's own rest."""
    z, t = vectors()["sample.z"], torch.full((2,), 0.4)
    net = network()
    wanted, null = Labels(torch.tensor([1, 2])), Labels(torch.full((2,), net.config.classes))
    halves = []
    for first, second in ((wanted, null), (null, wanted)):
        scale = 2.5 if first is wanted else 1 - 2.5  # from the null's side the same line is walked the other way
        guide = ClassifierFree(scale, lambda cond, rows, b=second: Labels.stack([cond, b]), channels=3)
        halves.append(guide(net, z, t, first))
    return torch.cat(halves)


@pytest.mark.parametrize("key", CASES)
def test_parity(key: str) -> None:
    want, parts = vectors()[key], key.split(".")
    with torch.no_grad():
        if parts[0] == "model":
            got = network().state_dict()[key[6:]]
        elif parts[0] == "forward":
            v = vectors()
            got = network()(v["forward.x"], v["forward.t"], Labels(v["forward.y"]))
        elif parts[0] == "cfg":
            got = guided()
        else:
            got = {"ode": ode, "sde": sde, "loss": loss}[parts[0]](*parts[1:])
    assert got.shape == want.shape
    error = float((got - want).norm() / want.norm())
    assert error <= (1e-3 if "dopri5" in parts else 1e-4), f"{key}: relative error {error:.2e}"
