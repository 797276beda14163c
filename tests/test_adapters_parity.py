"""Adapters against the pipelines that they hold: from the same noise, by the same scheduler, the same pictures."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import secondlook
from secondlook.adapters import tiny
from secondlook.adapters.base import Adapter
from secondlook.errors import ConfigError
from secondlook.settings import make_named
from secondlook.testing import adapters as testing
from secondlook.testing import ours, parity, start_noise, theirs

diffusers = pytest.importorskip("diffusers", reason="needs secondlook[hub]: diffusers is missing")
pytest.importorskip("transformers", reason="needs secondlook[hub]: transformers is missing")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers on numpy 2

FLOW, EULER, DDIM, DPM = (
    "FlowMatchEulerDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
)
LIMIT, TIGHT = 1e-4, 5e-6  # of pixels in [0, 1], float32
LOOSE = 4e-5  # where rounding is divided by a small alpha
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = {**BETAS, "clip_sample": False}
FLOWING = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
ZERO = {**BETAS, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
WIDE = {"height": 32, "width": 48}
BLUE = "a blue ball"
LOAD: dict[str, dict[str, Any]] = {"flux": {"tokens": 16}, "sd3": {"tokens": 16}}
CALL: dict[str, dict[str, Any]] = {
    "flux": {"max_sequence_length": 16},
    "sd3": {"max_sequence_length": 16},
    "sana": {"use_resolution_binning": False},
    "pixart": {"use_resolution_binning": False},
}


@dataclass(frozen=True)
class Case:
    """A pipeline as it is compared. scheduler: its class, "" for the tiny pipeline's own; settings: its options. load, call: further
    arguments of ``secondlook.load`` and ``pipe(...)``. kind: a variant of the pipeline. limit: of the largest difference. why: it is
    not the same."""

    family: str
    name: str
    scheduler: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    load: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)
    guidance: float | None = None
    kind: str = ""
    steps: tuple[int, ...] = (1, 4, 20)
    limit: float = TIGHT
    why: str = ""

    def __str__(self) -> str:
        return f"{self.family}, {self.name}"

    def held(self) -> Adapter:
        pipe = pipeline(self.family, self.kind)
        own = OWN.setdefault((self.family, self.kind), pipe.scheduler)
        pipe.scheduler = getattr(diffusers, self.scheduler)(**self.settings) if self.scheduler else own
        return secondlook.load(pipe, **LOAD.get(self.family, {}), **self.load)

    def extra(self) -> dict[str, Any]:
        return {**CALL.get(self.family, {}), **self.call}


OWN: dict[tuple[str, str], Any] = {}
NEGATIVE: dict[str, Any] = {"load": {"negative": BLUE}, "call": {"negative_prompt": BLUE}}
CASES = (
    Case("flux", "flow Euler, shift by resolution"),
    Case("flux", "flow Euler, guidance 1.5", guidance=1.5),
    Case("flux", "flow Euler, 32 x 48", load=WIDE),
    Case("flux", "flow Euler, true guidance", load={"true_guidance": 2.5, "negative": BLUE},
         call={"true_cfg_scale": 2.5, "negative_prompt": BLUE}),
    Case("flux", "flow Euler, schnell", FLOW, {"shift": 1.0}, kind="schnell"),
    Case("flux", "flow DPM-Solver++, shift by resolution", DPM, {**FLOWING, "use_dynamic_shifting": True}),
    Case("sd3", "flow Euler, shift 3"),
    Case("sd3", "flow Euler, guidance 1", guidance=1.0),
    Case("sd3", "flow Euler, guidance 0", guidance=0.0),
    Case("sd3", "flow Euler, negative prompt", **NEGATIVE),
    Case("sd3", "flow Euler, shift by resolution, 32 x 48", FLOW, {"use_dynamic_shifting": True}, load=WIDE),
    Case("sd3", "flow Euler, shift by resolution, Karras", FLOW, {"use_dynamic_shifting": True, "use_karras_sigmas": True}),
    Case("sd3", "flow Euler, without T5", kind="no T5"),
    Case("sd3", "flow Heun", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    Case("sana", "flow DPM-Solver++"),
    Case("sana", "flow DPM-Solver++, guidance 1", guidance=1.0),
    Case("sana", "flow DPM-Solver++, heun", DPM, {**FLOWING, "solver_type": "heun"}),
    Case("sana", "flow DPM-Solver++, negative prompt", **NEGATIVE),
    Case("sana", "flow DPM-Solver++, 32 x 64", load={"height": 32, "width": 64}),
    Case("sana", "flow Euler", FLOW, {"shift": 3.0}),
    Case("pixart", "DPM-Solver++"),
    Case("pixart", "DPM-Solver++, 32 x 48", load=WIDE),
    Case("pixart", "DPM-Solver++, negative prompt", **NEGATIVE),
    Case("pixart", "DPM-Solver++, guidance 1", guidance=1.0),
    Case("pixart", "DPM-Solver++, PixArt-Alpha", kind="alpha", steps=(4, 20)),  # at 1 step the pipeline takes it for DMD
    Case("pixart", "DDIM", DDIM, {"clip_sample": False}),
    Case("dit", "DDIM"),
    Case("dit", "DDIM, guidance 1", guidance=1.0),
    Case("dit", "DPM-Solver++", DPM),
    *(Case("sdxl", f"Euler, {s}", EULER, {**BETAS, "timestep_spacing": s}, limit=LOOSE)
      for s in ("leading", "trailing", "linspace")),
    Case("sdxl", "Euler, offset 1, negative prompt", **NEGATIVE),
    Case("sdxl", "Euler, 32 x 48", load=WIDE),
    Case("sdxl", "Euler, guidance 0", guidance=0.0),
    Case("sdxl", "Euler, Karras", EULER, {**BETAS, "use_karras_sigmas": True}, limit=LOOSE),
    Case("sdxl", "Euler, v-prediction", EULER, {**BETAS, "prediction_type": "v_prediction"}, limit=LOOSE),
    Case("sdxl", "DDIM", DDIM, PLAIN),
    Case("sdxl", "DDIM, stops early", DDIM, {**PLAIN, "set_alpha_to_one": False}),
    Case("sdxl", "DDIM, v-prediction, no signal at first", DDIM, {**ZERO, "clip_sample": False}, limit=LOOSE),
    Case("sdxl", "DPM-Solver++", DPM, BETAS),
    Case("sdxl", "DPM-Solver++, heun", DPM, {**BETAS, "solver_type": "heun"}),
    Case("sdxl", "DPM-Solver++, Karras", DPM, {**BETAS, "use_karras_sigmas": True}, steps=(1, 4, 20, 50)),
    Case("sdxl", "DPM-Solver++, Karras, heun", DPM, {**BETAS, "use_karras_sigmas": True, "solver_type": "heun"}),
    Case("sdxl", "DPM-Solver++, stops early", DPM, {**BETAS, "final_sigmas_type": "sigma_min"}),
    Case("sdxl", "DPM-Solver++, v-prediction", DPM, {**BETAS, "prediction_type": "v_prediction"}),
    Case("sdxl", "DPM-Solver++, predicts data", DPM, {**BETAS, "prediction_type": "sample"}, limit=LOOSE),
)  # fmt: skip
HERE = "no counterpart: dpmpp(order=2) at its times"
OTHERS = (  # what is not the same, and why
    Case("sdxl", "DDIM, linspace", DDIM, {**PLAIN, "timestep_spacing": "linspace"}, steps=(20,),
         why="diffusers' DDIM steps by 1000 // steps, which misses the next of these levels"),
    Case("sdxl", "DDIM, trailing", DDIM, {**PLAIN, "timestep_spacing": "trailing"}, steps=(28,),
         why="the same, where 1000 does not divide by the steps"),
    Case("sdxl", "UniPC", "UniPCMultistepScheduler", BETAS, steps=(20,), why=HERE),
    Case("sdxl", "Heun", "HeunDiscreteScheduler", BETAS, steps=(20,), why=HERE),
)  # fmt: skip
Seen = MutableMapping[tuple[Any, ...], Any]


def prompt_of(family: str) -> str:
    return "1" if family == "dit" else "a red cube"


@cache
def pipeline(family: str, kind: str = "") -> Any:
    """A tiny pipeline, made once; ``kind`` names a variant."""
    pipe = tiny.make(family)
    if kind == "schnell":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            pipe.transformer = type(pipe.transformer).from_config(pipe.transformer.config, guidance_embeds=False).eval()
            tiny._wake(pipe.transformer)
    if kind == "no T5":
        pipe = type(pipe)(**{**pipe.components, "text_encoder_3": None, "tokenizer_3": None})
    if kind == "alpha":
        pipe = diffusers.PixArtAlphaPipeline(**pipe.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def error(case: Case, steps: int, rows: int) -> float:
    held = case.held()
    return parity(held, prompt_of(case.family), steps=steps, rows=rows, guidance=case.guidance, **case.extra())


# ---- the same -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "steps"), [(c, n) for c in CASES for n in c.steps], ids=str)
def test_pictures_are_those_of_the_pipelines_own_call(case: Case, steps: int, adapters_seen: Seen) -> None:
    sizes = (1, 3) if case.family != "dit" and steps == 4 else (1,)
    found = max(error(case, steps, rows) for rows in sizes)
    print(f"{case}, {steps} steps: {found:.1e}")
    adapters_seen["parity", str(case), steps] = found
    assert found < LIMIT
    assert found < case.limit


def drawn(seed: int) -> Callable[..., Tensor]:
    """A solver's source of noise that draws as a pipeline does."""
    generator = torch.Generator().manual_seed(seed)
    return lambda keys, shape: torch.randn((len(keys), *shape), generator=generator)


STOCHASTIC = tuple(Case(*given, steps=(4, 20), call={"eta": 1.0} if "eta" in given[1] else {}) for given in (
    ("sdxl", "ancestral Euler", "EulerAncestralDiscreteScheduler", BETAS),
    ("sdxl", "DDIM, eta 1", DDIM, PLAIN),
    ("sdxl", "DDPM, small variance", "DDPMScheduler", {**PLAIN, "variance_type": "fixed_small"}),
    ("sdxl", "DDPM, large variance", "DDPMScheduler", {**PLAIN, "variance_type": "fixed_large"}),
    ("sdxl", "SDE-DPM-Solver++", DPM, {**BETAS, "algorithm_type": "sde-dpmsolver++"}),
    ("sdxl", "SDE-DPM-Solver++, Karras", DPM, {**BETAS, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("sana", "flow SDE-DPM-Solver++", DPM, {**FLOWING, "algorithm_type": "sde-dpmsolver++"}),
    ("pixart", "SDE-DPM-Solver++", DPM, {"algorithm_type": "sde-dpmsolver++"}),
))  # fmt: skip


@pytest.mark.parametrize(("case", "steps"), [(c, n) for c in STOCHASTIC for n in c.steps], ids=str)
def test_stochastic_schedulers_too_where_both_draw_the_same_noise(
    case: Case, steps: int, adapters_seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = case.held()
    solver = "ddim(eta=1.0)" if "eta" in case.call else held.schedule(steps).solver
    monkeypatch.setattr(testing, "make_named", lambda kind, text: replace(make_named(kind, text), source=drawn(7)))
    generator = torch.Generator().manual_seed(7)
    found = parity(
        held, prompt_of(case.family), steps=steps, rows=2, solver=solver, generator=generator, **case.extra()
    )
    print(f"{case}, {steps} steps: {found:.1e}")
    adapters_seen["parity", str(case), steps] = found
    assert found < LIMIT


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_what_is_not_the_same_is_near(case: Case, adapters_seen: Seen) -> None:
    found = error(case, case.steps[0], 1)
    adapters_seen["others", str(case), case.steps[0]] = found
    assert LIMIT < found < 0.05


# ---- the comparison can fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.PIPELINES)
def test_the_pictures_compared_are_alive(family: str) -> None:
    """Neither flat nor mostly at the ends of their range, and different by noise, prompt and guidance."""
    case = Case(family, "usual")
    held, (one, other) = case.held(), ("0", "1") if family == "dit" else ("a red cube", "two blue dog")
    noise = start_noise(held, 1, 0)

    def call(prompt: str, seed: int, scale: float) -> Tensor:
        return theirs(held, prompt, start_noise(held, 1, seed), seed, 4, scale, **case.extra())

    usual = call(one, 0, 4.5)
    assert usual.shape == (1, held.height, held.width, 3)
    assert float(usual.std()) > 0.05
    assert float(((usual == 0) | (usual == 1)).float().mean()) < 0.2
    for changed in (call(other, 0, 4.5), call(one, 1, 4.5), call(one, 0, 1.5)):
        assert float((changed - usual).abs().max()) > 1e-3
    assert float((ours(held, one, noise, 4, 4.5) - usual).abs().max()) < TIGHT


@pytest.mark.parametrize("family", tiny.PIPELINES)
def test_another_guidance_shows(family: str) -> None:
    case = Case(family, "usual")
    held, noise = case.held(), start_noise(case.held(), 1, 0)
    its = theirs(held, prompt_of(family), noise, 0, 4, 4.5, **case.extra())
    assert float((ours(held, prompt_of(family), noise, 4, 4.0) - its).abs().max()) > 1e-3


WRONG = {
    "another shift": (Case("sd3", "", FLOW, {"shift": 3.0}), Case("sd3", "", FLOW, {"shift": 2.5})),
    "no shift by resolution": (Case("flux", "", FLOW, {"use_dynamic_shifting": True}), Case("flux", "", FLOW)),
    "another spacing": (Case("sdxl", "", EULER, {**BETAS, "timestep_spacing": "leading"}),
                        Case("sdxl", "", EULER, {**BETAS, "timestep_spacing": "trailing"})),
    "another solver": (Case("pixart", "", DPM), Case("pixart", "", DPM, {"solver_order": 1})),
    "no negative prompt": (Case("sana", "", **NEGATIVE), Case("sana", "")),
    "no instruction": (Case("sana", "", call={"complex_human_instruction": None}), Case("sana", "")),
    "another prediction": (Case("sdxl", "", DDIM, {**PLAIN, "prediction_type": "v_prediction"}), Case("sdxl", "", DDIM, PLAIN)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_set_otherwise_shows(name: str) -> None:
    right, wrong = WRONG[name]
    held, prompt = right.held(), prompt_of(right.family)
    noise = start_noise(held, 1, 0)
    its = theirs(held, prompt, noise, 0, 4, 4.5, **right.extra())
    assert float((ours(wrong.held(), prompt, noise, 4, 4.5) - its).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("family", "change"),
    [
        (
            "sana",
            lambda s: replace(s, levels=tuple(s.units * (1 - t) for t in s.times[:-1])),
        ),  # the scheduler's are whole
        ("sdxl", lambda s: replace(s, scale=0.9 * s.scale)),
        ("dit", lambda s: replace(s, levels=tuple(level + 5 for level in s.levels))),
    ],
)
def test_levels_and_the_noises_scale_show(family: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(family, "")
    held = case.held()
    monkeypatch.setattr(held, "schedule", lambda *given, made=held.schedule: change(made(*given)))
    found = parity(held, prompt_of(family), steps=4, **case.extra())
    print(f"{family}: {found:.1e}")
    assert found > 1e-3


# ---- schedulers -----------------------------------------------------------------------------------------------------


def test_levels_that_round_alike_are_steps_of_their_own() -> None:
    held = Case("sdxl", "", DPM, {**BETAS, "use_karras_sigmas": True}).held()
    made = held.schedule(100)
    assert len(made.times) == 101
    assert len(set(made.levels)) < 100 == len(made.levels)


@pytest.mark.parametrize(
    ("family", "scheduler", "settings", "steps"),
    [
        ("flux", "FlowMatchHeunDiscreteScheduler", {}, 4),  # FLUX gives it its sigmas, which it does not take
        ("sd3", FLOW, {"invert_sigmas": True}, 4),
        ("sdxl", "PNDMScheduler", BETAS, 1),
        ("sdxl", "LCMScheduler", BETAS, 4),
        ("sdxl", "EDMEulerScheduler", {}, 4),
    ],
)
def test_schedulers_that_mean_something_else_are_refused_in_a_sentence(
    family: str, scheduler: str, settings: dict[str, Any], steps: int
) -> None:
    held = Case(family, "", scheduler, settings).held()
    with pytest.raises(ConfigError, match=f"{scheduler}.*scheduler|{scheduler}.*another"):
        held.schedule(steps)
