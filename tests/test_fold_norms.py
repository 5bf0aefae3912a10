"""A network whose batch norms were folded predicts what it predicted before, up to rounding."""
import copy

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.factory import build
from pipeline.model.fold_norms import fold_batch_norms
from pipeline.model.refiner import build_refiner


def trained(network: nn.Module) -> nn.Module:
    """Give all batch norms statistics and scales of their own, as training does."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, lowest, highest in (
                (module.running_mean, -1.0, 1.0), (module.running_var, 0.3, 3.0),
                (module.weight, 0.5, 2.0), (module.bias, -1.0, 1.0),
            ):  # fmt: skip
                assert isinstance(values, Tensor)
                nn.init.uniform_(values, lowest, highest)
    return network.eval()


def count_norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    "network, channels, left",
    [
        (build(arch="unet", width=8, depth=2, patch=2), 3, 0),
        (build_refiner(8, 2, 1), 4, 0),
        (build(arch="smp.Unet", encoder="resnet18", encoder_weights=None), 3, 17),  # those of its encoder
    ],
)
def test_folding_changes_no_prediction(network: nn.Module, channels: int, left: int) -> None:
    plain = trained(network)
    folded = copy.deepcopy(plain)
    fold_batch_norms(folded)
    assert count_norms(plain) > count_norms(folded) == left
    image_NHWC = torch.randint(0, 256, (2, 64, 96, channels), dtype=torch.uint8)
    with torch.no_grad():
        expected = plain(image_NHWC)
        assert torch.allclose(folded(image_NHWC), expected, atol=1e-4 * expected.abs().max().item())


class Twice(nn.Sequential):
    """Uses its convolution twice, and the second time without its batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm = self
        return convolution(norm(convolution(x)))


def test_a_block_with_an_order_of_its_own_is_left_alone() -> None:
    network = trained(Twice(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    fold_batch_norms(network)
    assert count_norms(network) == 1


def test_an_activation_that_is_used_twice_still_separates_its_neighbours() -> None:
    relu = nn.ReLU()
    layers = [nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3)]
    network = trained(nn.Sequential(*layers))
    fold_batch_norms(network)
    assert count_norms(network) == 2
