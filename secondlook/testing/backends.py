"""What every backend must do, as tests to inherit: whoever draws, the engine and its record must be able to rely on it."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from secondlook import api
from secondlook.backends.base import Backend
from secondlook.engine.record import Record
from secondlook.engine.rig import Rig, Work
from secondlook.engine.store import Store
from secondlook.errors import ConfigError
from secondlook.flow.grid import after
from secondlook.noise import Key
from secondlook.settings import OPTIONS, Settings
from secondlook.types import State


class BackendContract:
    """Subclass it in a test file as ``TestMine`` and give ``made``. requests: two that can be asked for. refused: texts that cannot
    be (none where all can). settings: what makes a run small."""

    requests: tuple[str, str] = ("a red circle", "two blue squares")
    refused: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[dict[str, Any]] = {"steps": 3, "rows": 4, "threads": 1}

    def made(self) -> Backend:
        """The backend, fresh."""
        raise AssertionError("BackendContract expects made(): return your backend.")

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def filled(self, backend: Backend) -> Settings:
        s = Settings(list(self.requests), "random(n=2)", verifier="brightness", pad=True, **self.settings)
        return s.filled(backend.usual(s))

    def rigged(self, scoring: bool = True) -> tuple[Backend, Rig]:
        backend = self.made()
        return backend, backend.rig(self.filled(backend), None, scoring=scoring)

    def draw(self, out: Path, plan: str = "random(n=3)", **more: Any) -> Any:
        return api.draw(
            list(self.requests), plan, out, model=self.made(), verifier="brightness", pad=True, **self.settings, **more
        )

    # ---- what it says ------------------------------------------------------------------------------------------------

    def test_it_says_who_it_is_and_what_it_takes(self) -> None:
        backend = self.made()
        assert isinstance(backend.name, str)
        assert backend.name
        assert set(backend.takes) <= set(OPTIONS)

    def test_a_request_is_a_condition_that_can_be_compared(self) -> None:
        backend = self.made()
        one, two = (backend.condition(r) for r in self.requests)
        assert one == backend.condition(self.requests[0])
        assert one != two
        for text in self.refused:
            with pytest.raises(ConfigError):
                backend.condition(text)

    def test_usual_settings_leave_nothing_open_that_a_run_needs(self) -> None:
        backend = self.made()
        s = Settings(list(self.requests)).filled(backend.usual(Settings(list(self.requests))))
        assert s.world == backend.name
        assert all(getattr(s, n) is not None for n in ("steps", "solver", "rows", "verifier"))
        json.dumps(s.as_dict())

    def test_settings_that_were_given_stay(self) -> None:
        backend = self.made()
        s = self.filled(backend)
        assert {n: getattr(s, n) for n in self.settings} == self.settings

    def test_what_it_records_is_plain_and_the_same_each_time(self) -> None:
        backend = self.made()
        with backend.session():
            backend.rig(self.filled(backend), None)
            assert backend.digests() == backend.digests() == dict(json.loads(json.dumps(backend.digests())))
            assert all(isinstance(v, str) and v for v in backend.digests().values())
            assert json.loads(json.dumps(backend.describe())) == backend.describe()
            assert backend.metadata(self.requests[0])["prompt"]

    def test_it_has_no_verifier_of_a_name_that_is_not_one(self) -> None:
        backend = self.made()
        assert backend.verifier("brightness") is None
        assert backend.exact(None) is False

    # ---- what it draws with ------------------------------------------------------------------------------------------

    def test_a_rig_without_scoring_has_nobody_who_scores(self) -> None:
        _, rig = self.rigged(scoring=False)
        assert rig.verifier is None
        assert not rig.judges

    def test_work_costs_something_and_the_rest_of_the_way_less_than_the_whole(self) -> None:
        _, rig = self.rigged()
        whole = rig.price(rig.begin, 1.0)
        assert whole.nfe > 0
        assert rig.price(0.5 * (rig.begin + rig.times[-1]), 1.0).nfe < whole.nfe

    def test_a_step_is_charged_what_it_was_said_to_cost(self) -> None:
        backend, rig = self.rigged()
        condition = backend.condition(self.requests[0])
        with backend.session():
            state, spent, t = rig.start(Key.root(1)).to(rig.device), 0, rig.begin
            while t < rig.times[-1]:
                t = after(rig.times, t, 1.0)
                state, cost = rig.step(Work(state, (t,), (condition,)))
                spent += cost.nfe
        assert spent == rig.price(rig.begin, 1.0).nfe

    def test_rows_in_padded_batches_do_not_depend_on_company(self) -> None:
        backend, rig = self.rigged()
        one, two = (backend.condition(r) for r in self.requests)
        keys = [Key.root(i) for i in range(3)]
        then = rig.times[1]

        def stepped(which: list[int]) -> torch.Tensor:
            state = State.stack([rig.start(keys[i]) for i in which]).to(rig.device)
            conditions = tuple(one if i < 2 else two for i in which)
            return rig.step(Work(state, (then,) * len(which), conditions))[0].x.cpu()

        with backend.session():
            together = stepped([0, 1, 2])
            assert all(torch.equal(together[i : i + 1], stepped([i])) for i in range(3))

    def test_pictures_are_bytes_of_three_channels_on_the_cpu(self) -> None:
        backend, rig = self.rigged()
        with backend.session():
            pictures = rig.decode(State.stack([rig.start(Key.root(i)) for i in range(2)]).x.to(rig.device))
        assert (pictures.dtype, pictures.shape[0], pictures.shape[3]) == (torch.uint8, 2, 3)
        assert pictures.device.type == "cpu"

    # ---- what runs rely on -------------------------------------------------------------------------------------------

    def test_a_run_draws_and_each_outcome_can_be_drawn_again(self, tmp_path: Path) -> None:
        for plan in ("random(n=2)", "zero_order(neighbours=2)"):
            out = tmp_path / plan[:4]
            found = self.draw(out, plan, nfe=24)
            assert all(math.isfinite(r.score) for r in found)
            assert all(api.replay_outcome(out, r.outcome, model=self.made()).same for r in found)

    def test_a_run_that_was_stopped_goes_on_to_the_same_end(self, tmp_path: Path) -> None:
        whole = self.draw(tmp_path / "whole")

        def stop(driver: Any) -> None:
            if driver.drawn >= 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.draw(tmp_path / "stopped", progress=stop)
        gone_on = api.resume(tmp_path / "stopped", model=self.made())
        assert [(r.outcome, r.score) for r in gone_on] == [(r.outcome, r.score) for r in whole]
        assert all(np.array_equal(a.picture, b.picture) for a, b in zip(gone_on, whole, strict=True))

    def test_a_session_gives_back_what_it_borrows(self) -> None:
        backend, before = self.made(), (torch.get_num_threads(), torch.is_grad_enabled())
        for _ in range(2):
            with pytest.raises(ZeroDivisionError), backend.session():
                raise ZeroDivisionError
            assert (torch.get_num_threads(), torch.is_grad_enabled()) == before

    def test_a_step_can_be_carried_out_elsewhere(self) -> None:
        """Another process is told the settings, makes a rig of its own, and is sent work: that goes through pickle, and what comes
        back has the same bits."""
        backend, rig = self.rigged(scoring=False)
        there = self.made()
        settings = Settings.of(json.loads(json.dumps(self.filled(backend).as_dict())))
        with backend.session(), there.session():
            work = Work(rig.start(Key.root(3)).to(rig.device), (rig.times[1],), (backend.condition(self.requests[0]),))
            here = rig.step(work)
            sent = pickle.loads(pickle.dumps(work))
            back = pickle.loads(pickle.dumps(there.rig(settings, None, scoring=False).step(sent)))
        assert torch.equal(here[0].x, back[0].x)
        assert here[1] == back[1]

    def test_a_run_is_recorded_as_drawn_with_it(self, tmp_path: Path) -> None:
        self.draw(tmp_path / "run")
        store = Store.open(tmp_path / "run")
        assert store.config["world"] == self.made().name
        assert Record.read(store).done
