"""The refiner: a small U-Net on tiles at 1/2 or full size, which corrects what a coarse network predicted there.

It sees the tile and the coarse probability, and its output is added to the coarse logit, so that it starts from the
coarse prediction and learns the difference. Relatives: PointRend (https://arxiv.org/abs/1912.08193), CascadePSP
(https://arxiv.org/abs/2005.02551), Boundary Patch Refinement (https://arxiv.org/abs/2104.05239), whose patches along
the edge are the nearest.
"""
import torch
from torch import Tensor, nn

from pipeline.model.factory import MEAN_RGB, STD_RGB, pad_to_multiple, unpad
from pipeline.model.unet import UNet

MEAN_COARSE, STD_COARSE = 127.5, 127.5  # from 0 to 255 to the range from -1 to 1


class Refiner(nn.Module):
    """Map tiles, red, green, blue and the coarse probability, to logits at the size of the tiles."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, depth: int, patch: int, checkpoint_activations: bool = False):
        super().__init__()
        self.network = UNet(4, 1, width, depth, patch, checkpoint_activations)
        nn.init.zeros_(self.network.head.weight)  # before the first step it returns the coarse prediction
        self.register_buffer("mean", torch.tensor((*MEAN_RGB, MEAN_COARSE)).view(1, 4, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((*STD_RGB, STD_COARSE)).view(1, 4, 1, 1), persistent=False)

    def forward(self, tile_NHWC: Tensor) -> Tensor:
        """uint8 or float32 (N, H, W, 4), each channel 0 to 255 -> logits (N, 1, H, W)."""
        tile_NCHW = tile_NHWC.permute(0, 3, 1, 2)
        padded, margins = pad_to_multiple((tile_NCHW - self.mean) / self.std, self.network.multiple)
        coarse_N1HW = tile_NCHW[:, 3:] / 255
        return unpad(self.network(padded), margins).float() + coarse_N1HW.logit(eps=1 / 255)


def build_refiner(width: int, depth: int, patch: int, checkpoint_activations: bool = False) -> Refiner:
    """Build a refiner; see `config.Refine`. Weights are drawn from torch's generator."""
    return Refiner(width, depth, patch, checkpoint_activations).to(memory_format=torch.channels_last)
