"""Networks and images to 8-bit probabilities at full size.

The mean over folds, runs and TTA transforms is taken in float32 at the networks' own size, upsampled once for each
scale, added up at full size, and rounded once: rounding member by member would lose the hundredths that an ensemble
is made for.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.images import to_u8, upsample
from pipeline.inference.tta import TtaTransform
from pipeline.runtime.device import autocast
from pipeline.runtime.progress import in_order

ByScale = dict[int, Tensor]  # scale -> the same images at 1/scale, or the predictions for them


@dataclass(frozen=True)
class Member:
    """A network and its weight in the mean. All members are on one device, and their weights sum to 1."""

    network: nn.Module  # a `Segmenter` of one class; in a `class_maps.ClassEnsemble`, of several
    scale: int  # of the images that it sees
    transforms: tuple[TtaTransform, ...]
    weight: float


class Ensemble:
    """`ensemble(image_of_scale)` -> mean probability of its members, uint8 (N, height, width), on their device.

    image_of_scale: for each of `scales` the same images, uint8 (N, H, W, channels).
    """

    def __init__(self, members: Sequence[Member], height: int, width: int):
        total = sum(member.weight for member in members)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of an ensemble sum to {total}, but must sum to 1")
        for member in members:
            member.network.eval()
        self.members, self.height, self.width = members, height, width
        self.device = next(members[0].network.parameters()).device

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the scales at which it needs each image; members of the same scale share the decoding."""
        return tuple(sorted({member.scale for member in self.members}))

    @property
    def channels(self) -> int:
        """Return the number of channels of the images that its networks see."""
        mean = getattr(self.members[0].network, "mean", None)  # a `Segmenter` has it
        return 3 if mean is None else mean.shape[1]

    @torch.inference_mode()
    def __call__(self, image_of_scale: ByScale) -> Tensor:
        return self.round_mean(self.predict_at_scales(image_of_scale))

    @torch.inference_mode()
    def predict_with_grid(self, image_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean at full size and the same on the grid, uint8 (N, H, W); all members must share one scale."""
        prob_of_scale = self.predict_at_scales({scale: image_NHWC for scale in self.scales})
        (prob_NCHW,) = prob_of_scale.values()
        return self.round_mean(prob_of_scale), to_u8_on_device(prob_NCHW[:, 0])

    @torch.inference_mode()
    def predict_unrounded(self, image_of_scale: ByScale) -> Tensor:
        """Return the mean before it is rounded, float32 (N, height, width); see `images.upsample` for its range."""
        prob_of_scale = self.predict_at_scales(image_of_scale)
        if self.device.type == "cuda":
            return self.upsample_mean_on_device(prob_of_scale)
        return self.stack(prob_of_scale, lambda image: self.upsample_mean(prob_of_scale, image))

    def round_mean(self, prob_of_scale: ByScale) -> Tensor:
        """Return the mean at full size, uint8 (N, height, width)."""
        if self.device.type == "cuda":
            return to_u8_on_device(self.upsample_mean_on_device(prob_of_scale))
        return self.stack(prob_of_scale, lambda image: to_u8(self.upsample_mean(prob_of_scale, image)))

    def stack(self, prob_of_scale: ByScale, work: Callable[[int], NDArray]) -> Tensor:
        """Stack `work(image)` for the index of each image; threads do the work."""
        images = range(len(prob_of_scale[self.scales[0]]))
        return torch.from_numpy(np.stack(list(in_order(work, images))))

    def predict_at_scales(self, image_of_scale: ByScale) -> ByScale:
        """Return, for each scale, what its members add to the mean; see `predict_at_scale`."""
        return {scale: self.predict_at_scale(scale, image_of_scale[scale]) for scale in self.scales}

    def predict_at_scale(self, scale: int, image_NHWC: Tensor) -> Tensor:
        """Return the weighted sum over the members at this scale, float32 (N, classes, H, W) on the images' grid."""
        image_NHWC = image_NHWC.to(self.device, non_blocking=True)
        rows, columns = image_NHWC.shape[1:3]
        total_NCHW: Tensor | None = None
        for member in self.members:
            if member.scale == scale:
                for transform in member.transforms:
                    prob_NCHW = predict_probability(member.network, transform.apply(image_NHWC))
                    shape = prob_NCHW.shape[:2]
                    prob_NCHW = transform.invert(prob_NCHW.flatten(0, 1), rows, columns).unflatten(0, shape)
                    weighted_NCHW = prob_NCHW * (member.weight / len(member.transforms))
                    total_NCHW = weighted_NCHW if total_NCHW is None else total_NCHW.add_(weighted_NCHW)
        assert total_NCHW is not None
        return total_NCHW

    def upsample_mean(self, prob_of_scale: ByScale, image: int, index: int = 0) -> NDArray[np.float32]:
        """Return the sum over the scales of one class of one image at full size, float32 array (height, width)."""
        maps = (upsample(prob_of_scale[s][image, index].numpy(), s, self.height, self.width) for s in self.scales)
        return sum(maps, start=next(maps))

    def upsample_mean_on_device(self, prob_of_scale: ByScale, index: int = 0) -> Tensor:
        """Return the sum over the scales of one class at full size, float32 (N, height, width)."""
        maps = (upsample_on_device(prob_of_scale[s][:, index], s, self.height, self.width) for s in self.scales)
        return sum(maps, start=next(maps))


def predict_probability(network: nn.Module, image_NHWC: Tensor) -> Tensor:
    """Return the probability of each class, or only of the object, float32 (N, classes, H, W), on the images' grid."""
    with autocast(image_NHWC.device):
        logits_NCHW = network(image_NHWC)
    return logits_NCHW.float().sigmoid() if logits_NCHW.shape[1] == 1 else logits_NCHW.float().softmax(1)


def upsample_on_device(prob_NHW: Tensor, scale: int, height: int, width: int) -> Tensor:
    """`data.images.upsample` for a batch on a GPU; the two agree up to the rounding of float32."""
    return F.interpolate(prob_NHW[:, None], scale_factor=scale, mode="bicubic")[:, 0, :height, :width]


def to_u8_on_device(prob_NHW: Tensor) -> Tensor:
    """`data.images.to_u8` for a batch on any device."""
    return (prob_NHW.clamp(0, 1) * 255).round().to(torch.uint8)
