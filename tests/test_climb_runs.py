"""Runs that climb, the verifiers whose gradients they follow, and pipelines that are differentiated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor

from secondlook import api
from secondlook.adapters import tiny
from secondlook.adapters.load import load
from secondlook.backends.find import find
from secondlook.engine import climb
from secondlook.engine.driver import Driver
from secondlook.engine.record import Record
from secondlook.engine.store import Store
from secondlook.errors import ConfigError, SecondlookError
from secondlook.models.text import TextSiT
from secondlook.moves import Climb, Fresh
from secondlook.noise import Key
from secondlook.settings import Settings
from secondlook.types import Condition, Cost, Proposal
from secondlook.verify.measures import Brightness, Sharpness
from tests.helpers import PROMPTS, drive, essence, spent, tiny_rig
from tests.test_climb import HERE, PARENT

# ---- runs ------------------------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


def test_a_run_is_paid_as_priced_and_one_that_was_stopped_ends_the_same(network: TextSiT, tmp_path: File) -> None:
    plan = "ascend(rate=0.5, patience=1)"
    whole = drive(tmp_path / "whole", tiny_rig(network), plan, evals=260, prompts=PROMPTS[:2])
    rig, sample = tiny_rig(network), tiny_rig(network)
    one = sample.price(0.0, 1.0)
    slope = climb.price(sample, PARENT, "sampler", 0)
    for o in whole.outcomes.values():
        want = one + (slope if isinstance(o.proposal.move, Climb) else Cost())
        assert whole.costs[o.id].with_seconds(0.0) == want
    climbs = [o for o in whole.outcomes.values() if isinstance(o.proposal.move, Climb)]
    assert len(climbs) >= 4
    assert max(whole.spent(i).evals for i in (0, 1)) <= 260

    def stop(driver: Driver) -> None:
        if driver.drawn >= 5:
            raise Stopped

    with pytest.raises(Stopped):
        drive(tmp_path / "cut", rig, plan, evals=260, prompts=PROMPTS[:2], progress=stop)
    cut = drive(tmp_path / "cut", tiny_rig(network), plan, evals=260, prompts=PROMPTS[:2])
    assert essence(cut) == essence(whole)
    assert spent(cut) == spent(whole)
    from secondlook.engine.derive import replay
    from secondlook.engine.store import sha256

    last = max(o.id for o in climbs)
    assert sha256(replay(tiny_rig(network), last, lambda n: whole.outcomes[n].proposal)) == whole.digests[last]


def test_the_scenes_world_climbs_by_the_learned_verifier_and_replays_bit_for_bit(tmp_path: File) -> None:
    run = api.draw(
        "a red circle left of a blue square",
        "ascend(patience=9)",
        tmp_path / "run",
        steps=2,
        guidance=1.0,
        evals=22,
        rows=4,
    )
    record = Record.read(Store.open(tmp_path / "run"))
    assert [o.proposal.move.name for o in record.of(0)] == ["fresh", "climb", "climb"]
    assert run[0].spent.evals == 2 + 2 * (2 + 7)
    assert run[0].spent.backward == 4
    for number in record.outcomes:
        assert api.replay_outcome(tmp_path / "run", number).same


def test_a_verifier_without_a_gradient_is_told_so_before_anything_is_made(tmp_path: File) -> None:
    with pytest.raises(ConfigError, match="a verifier with a method gradient, and 'compressibility' has none"):
        api.draw("a red circle", "ascend()", tmp_path / "no", verifier="compressibility", evals=100)
    assert not (tmp_path / "no").exists()


def test_a_decoder_without_a_gradient_and_a_gradient_that_fails_are_told_in_a_sentence(network: TextSiT) -> None:
    rig = tiny_rig(network)
    rig.pixels = None
    with pytest.raises(ConfigError, match="a decoder that can be differentiated"):
        climb.refuse_flat(rig)

    class Torn(Brightness):
        def gradient(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            raise RuntimeError("torn")

    class Wide(Brightness):
        def gradient(self, samples: Tensor, conditions: Sequence[Condition]) -> Tensor:
            return samples.sum(3)

    for verifier, said in (
        (Torn(), "failed with a gradient .RuntimeError: torn"),
        (Wide(), "a gradient like its samples"),
    ):
        rig = tiny_rig(network)
        rig.verifier = verifier
        with pytest.raises(SecondlookError, match=said):
            climb.gradient(rig, rig.start(Key(1)), PARENT, "estimate", 0)


# ---- verifiers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [Brightness(), Sharpness()], ids=lambda m: m.name)
@pytest.mark.parametrize("shape", [(7, 9), (3, 600)])
def test_a_measures_gradient_is_that_of_finite_differences_and_its_value_that_of_the_bytes(
    measure: Any, shape: tuple[int, int]
) -> None:
    levels = torch.randint(0, 256, (1, *shape, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    x, luma = levels.double() / 255, torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    assert float(measure.value(x[0] @ luma)) == pytest.approx(float(measure(levels, [HERE])[0]), rel=1e-5)
    found = measure.gradient(x, [HERE])
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    up, down = (float(measure.value((x + s * 1e-6 * way)[0] @ luma)) for s in (1, -1))
    assert float((found * way).sum()) == pytest.approx((up - down) / 2e-6, rel=1e-4)


def test_a_flat_picture_has_no_sharper_direction() -> None:
    assert not Sharpness().gradient(torch.full((1, 5, 5, 3), 0.5), [HERE]).any()


def test_the_learned_verifiers_gradient_is_that_of_its_match_head() -> None:
    from secondlook.verify import builtin

    verifier = builtin.learned()
    x = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    told = [Condition("a red circle"), Condition("two squares")]
    from secondlook.verify.networks import tokenize

    def logit(pictures: Tensor, row: int) -> float:
        c = verifier.network.config
        ids = tokenize(c.words, c.text_length, [str(told[row].prompt)])[:, None]
        return float(verifier.network(pictures[row : row + 1].permute(0, 3, 1, 2) * 2 - 1, ids).match)

    found = verifier.gradient(x, told)
    for row in (0, 1):
        norm = float(found[row].norm())
        up, down = (logit(x + h * found / norm, row) for h in (0.02, -0.02))
        assert (up - down) / 0.04 == pytest.approx(norm, rel=0.02)
    assert not verifier.gradient(x[:1], [Condition(label=1)]).any()
    assert all(p.grad is None for p in verifier.network.parameters())


# ---- pipelines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd3", "sana"])
def test_a_pipeline_climbs_through_network_and_autoencoder_and_is_left_as_it_was(family: str, tmp_path: File) -> None:
    pytest.importorskip("diffusers")
    pipe = tiny.make(family)
    parts = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    pipe.transformer.train()
    next(pipe.transformer.parameters()).requires_grad_(False)

    def standing() -> list[object]:
        each = [m for part in parts for m in part.modules()]
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in each]
        return [
            [m.training for m in each],
            hooks,
            [(p.requires_grad, p.grad is None) for m in parts for p in m.parameters()],
        ]

    held = load(pipe)
    held.encode(
        Condition("a cat")
    )  # transformers hangs hooks of its own on a text encoder that is asked for hidden states
    before = standing()
    run = api.draw("a cat", "ascend(rate=0.5, patience=9)", tmp_path / "run", model=held, verifier="brightness", steps=2, evals=40,
                   rows=1, pad=True)  # fmt: skip
    assert run[0].spent.backward > 0
    assert standing() == before
    record = Record.read(Store.open(tmp_path / "run"))
    climbed = [o.id for o in record.of(0) if isinstance(o.proposal.move, Climb)]
    assert api.replay_outcome(tmp_path / "run", climbed[-1], model=held).same

    s = Settings(plan="ascend()", steps=2, verifier="brightness")
    backend = find(held, s)
    with held.session():
        rig = backend.rig(s.filled(backend.usual(s)), Brightness())
        start, encoded = rig.start(Key(5)), rig.encoded(Condition("a cat"))
        found, _ = climb.gradient(rig, start, Proposal(Fresh(Key(1)), Condition("a cat")), "sampler", 0)

        @torch.no_grad()
        def light(x: Tensor) -> float:
            state = replace(start, x=x)
            for t in rig.times[1:]:
                state = rig.solver.step(rig.flow, state, torch.full_like(state.t, t), type(encoded).stack([encoded]))
            assert rig.pixels is not None
            return float((rig.pixels(state.x).double() * torch.tensor([0.299, 0.587, 0.114])).sum(3).mean())

        way = found / found.norm()
        risen = light(start.x + 0.05 * way) - light(start.x - 0.05 * way)
        assert risen / 0.1 == pytest.approx(float(found.norm()), rel=0.05)
