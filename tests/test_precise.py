"""The wrapper that runs a network in reduced precision: float32 comes back, the whole head where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from secondlook.flow.autocast import Autocast
from secondlook.flow.path import Kind
from secondlook.models.sit import Labels, SiT, SiTConfig


@dataclass
class Matrix:
    """A network of nothing but a prediction: x times a matrix."""

    weight: Tensor
    predicts: Kind = "noise"
    shape: tuple[int, ...] = (3,)

    def __call__(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("bf16", [False, True])
def test_predictions_come_back_as_float32(bf16: bool) -> None:
    x, weight = torch.randn(4, 3), torch.randn(3, 3)
    network = Autocast(Matrix(weight), bf16)
    got = network(x, torch.zeros(4), None)
    assert (network.predicts, network.shape, got.dtype) == ("noise", (3,), torch.float32)
    torch.testing.assert_close(got, x @ weight, rtol=0.05, atol=0.05)
    assert torch.equal(got, x @ weight) == (not bf16)
    assert torch.equal(network.full(x, torch.zeros(4), None), got)  # there is no more of a head than that


def test_the_whole_head_is_there_where_the_network_has_one() -> None:
    torch.manual_seed(0)
    sit = SiT(SiTConfig(side=4, patch=2, channels=2, width=16, depth=1, heads=2, classes=3, variance=True))
    torch.nn.init.normal_(sit.final_layer.linear.weight)
    x, t, labels = torch.randn(2, 2, 4, 4), torch.tensor([0.2, 0.7]), Labels(torch.tensor([0, 2]))
    with torch.no_grad():
        network = Autocast(sit, bf16=False)
        assert torch.equal(network.full(x, t, labels), sit.full(x, t, labels))
        assert network.full(x, t, labels).shape == (2, 4, 4, 4)
        assert torch.equal(network(x, t, labels), sit(x, t, labels))
