"""Time grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secondlook.errors import ConfigError
from secondlook.flow.grid import after, grid, steps_between


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("shift", [0.2, 1.0, 3.0, 12.0])
def test_runs_from_noise_to_data(steps: int, shift: float) -> None:
    times = grid(steps, shift)
    assert len(times) == steps + 1
    assert times[0] == 0.0
    assert times[-1] == 1.0
    assert np.all(np.diff(times) > 0)


def test_without_shift_is_uniform() -> None:
    assert grid(4) == (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_is_that_of_sd3(shift: float) -> None:
    noise_level = np.linspace(1, 0, 11)  # SD3's axis, 1 at noise
    sd3 = shift * noise_level / (1 + (shift - 1) * noise_level)
    np.testing.assert_allclose(grid(10, shift), 1 - sd3, atol=1e-15)


def test_shift_above_one_stays_near_noise() -> None:
    assert grid(2, 3.0)[1] == 0.25


@pytest.mark.parametrize(
    ("steps", "shift"), [(0, 1.0), (-3, 1.0), (4, 0.0), (4, -1.0), (4, float("nan")), (4, float("inf"))]
)
def test_refuses_what_is_no_grid(steps: int, shift: float) -> None:
    with pytest.raises(ConfigError, match=str(steps) if steps < 1 else str(shift)):
        grid(steps, shift)


def test_after_is_the_next_time_or_stop() -> None:
    times = grid(4)
    assert after(times, 0.0) == 0.25
    assert after(times, 0.1) == 0.25
    assert after(times, 0.25) == 0.5
    assert after(times, 0.8) == 1.0
    assert after(times, 0.3, stop=0.4) == 0.4
    assert after(times, 0.3, stop=0.9) == 0.5


def test_float32_times_do_not_repeat_a_step() -> None:
    for shift in (1.0, 3.0):
        times = grid(50, shift)
        for i in range(50):
            assert after(times, float(torch.tensor(times[i], dtype=torch.float32))) == times[i + 1]


def test_steps_between_counts_what_after_walks() -> None:
    times = grid(10, 3.0)
    assert steps_between(times, 0.0, 1.0) == 10
    assert steps_between(times, times[3], times[7]) == 4
    assert steps_between(times, times[3] + 1e-3, times[7]) == 4
    assert steps_between(times, times[3], times[7] + 1e-3) == 5
    assert steps_between(times, times[3] + 1e-3, times[3] + 2e-3) == 1
    assert steps_between(times, 0.6, 0.6) == 0
    assert steps_between(times, 0.6, 0.2) == 0
    assert steps_between(times, float(np.float32(times[3])), 1.0) == 7
