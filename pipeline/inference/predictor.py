"""Networks and pictures to 8-bit probabilities at full size.

The mean over networks and flips is taken in float32 at the networks' own size; it is brought to full
size once, and rounded once.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.images import full_size
from pipeline.inference.device import autocast


class Predictor:
    """`predictor(image_NHWC)` with pictures at 1/scale -> uint8 (N, height, width), on the CPU.

    networks: `Segmenter`s of one class, on one device. flip: average with the mirrored picture.
    """

    def __init__(self, networks: Sequence[nn.Module], flip: bool, scale: int, height: int, width: int):
        self.networks = [network.eval() for network in networks]
        self.flip, self.scale, self.height, self.width = flip, scale, height, width
        self.device = next(networks[0].parameters()).device

    @torch.inference_mode()
    def __call__(self, image_NHWC: Tensor) -> Tensor:
        image_NHWC = image_NHWC.to(self.device, non_blocking=True)
        share_NHW = self.mean_share(image_NHWC)
        if self.device.type == "cuda":
            return full_size_on_device(share_NHW, self.scale, self.height, self.width).cpu()
        large = [full_size(share.numpy(), self.scale, self.height, self.width) for share in share_NHW]
        return torch.stack([torch.from_numpy(one) for one in large])

    def mean_share(self, image_NHWC: Tensor) -> Tensor:
        """Mean probability float32 (N, H, W) at the size of the pictures."""
        shares = []
        for network in self.networks:
            shares.append(self.share(network, image_NHWC))
            if self.flip:
                shares.append(self.share(network, image_NHWC.flip(2)).flip(2))
        return torch.stack(shares).mean(0)

    def share(self, network: nn.Module, image_NHWC: Tensor) -> Tensor:
        with autocast(self.device):
            logits_NCHW = network(image_NHWC)
        return logits_NCHW[:, 0].float().sigmoid()


def full_size_on_device(share_NHW: Tensor, scale: int, height: int, width: int) -> Tensor:
    """`data.images.full_size` for a batch on a GPU; the two agree but for the rounding of float32."""
    large = F.interpolate(share_NHW[:, None], scale_factor=scale, mode="bicubic")[:, 0, :height, :width]
    return (large.clamp(0, 1) * 255).round().to(torch.uint8)
