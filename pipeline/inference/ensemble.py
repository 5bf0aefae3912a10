"""Networks and pictures to 8-bit probabilities at full size.

The mean over folds, runs and views is taken in float32 at the networks' own size, brought to full size once for
each scale, added up there, and rounded once: an ensemble whose members were rounded one by one would lose the
hundredths that it is made for.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.images import upsample, to_u8
from pipeline.runtime.device import autocast
from pipeline.inference.tta import TtaTransform
from pipeline.runtime.progress import in_order

ByScale = dict[int, Tensor]  # the same pictures, or what was found in them, at 1/scale


@dataclass(frozen=True)
class Member:
    """A network's part in the mean. All on one device; the weights of an ensemble's members sum to 1."""

    network: nn.Module  # a `Segmenter` of one class; of several in a `class_maps.ClassEnsemble`
    scale: int  # of the pictures that it sees
    views: tuple[TtaTransform, ...]
    weight: float


class Ensemble:
    """`ensemble(image_of_scale)` -> uint8 (N, height, width), the mean probability of its members, on their device.

    image_of_scale: for each of `scales` the same pictures, uint8 (N, H, W, 3).
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
        """At which its pictures are wanted: members that share one share the decoding."""
        return tuple(sorted({member.scale for member in self.members}))

    @property
    def channels(self) -> int:
        """Of the pictures that its networks see."""
        mean = getattr(self.members[0].network, "mean", None)  # a `Segmenter` has it
        return 3 if mean is None else mean.shape[1]

    @torch.inference_mode()
    def __call__(self, image_of_scale: ByScale) -> Tensor:
        return self.rounded(self.weighted_probs(image_of_scale))

    @torch.inference_mode()
    def with_grid(self, image_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Where all members see one scale: the same, and the mean before it is enlarged, uint8 (N, H, W)."""
        probs = self.weighted_probs({scale: image_NHWC for scale in self.scales})
        (prob_NHW,) = probs.values()
        return self.rounded(probs), to_u8_on_device(prob_NHW)

    def rounded(self, probs: ByScale) -> Tensor:
        if self.device.type == "cuda":
            return to_u8_on_device(self.mean_on_device(probs))
        images = range(len(probs[self.scales[0]]))
        return torch.from_numpy(np.stack(list(in_order(lambda image: to_u8(self.full_size_mean(probs, image)), images))))

    @torch.inference_mode()
    def unrounded(self, image_of_scale: ByScale) -> Tensor:
        """The same mean before it is rounded, float32 (N, height, width); see `images.upsample` for its range."""
        probs = self.weighted_probs(image_of_scale)
        if self.device.type == "cuda":
            return self.mean_on_device(probs)
        images = range(len(probs[self.scales[0]]))
        return torch.from_numpy(np.stack(list(in_order(lambda image: self.full_size_mean(probs, image), images))))

    def weighted_probs(self, image_of_scale: ByScale) -> ByScale:
        return {scale: self.weighted_prob(scale, image_of_scale[scale]) for scale in self.scales}

    def weighted_prob(self, scale: int, image_NHWC: Tensor) -> Tensor:
        """What the members at this scale add to the mean, float32 (N, H, W) at the size of the pictures."""
        image_NHWC = image_NHWC.to(self.device, non_blocking=True)
        total_NHW = torch.zeros(image_NHWC.shape[:3], device=self.device)
        for member in self.members:
            if member.scale == scale:
                for view in member.views:
                    prob_NHW = prob(member.network, view.apply(image_NHWC))
                    total_NHW += view.invert(prob_NHW, *image_NHWC.shape[1:3]) * (member.weight / len(member.views))
        return total_NHW

    def full_size_mean(self, probs: ByScale, image: int) -> NDArray[np.float32]:
        """The sum over the scales for one picture, float32 array (height, width)."""
        one, *others = (upsample(probs[s][image].numpy(), s, self.height, self.width) for s in self.scales)
        return sum(others, start=one)

    def mean_on_device(self, probs: ByScale) -> Tensor:
        """The sum over the scales, float32 (N, height, width)."""
        one, *others = (upsample_on_device(probs[s], s, self.height, self.width) for s in self.scales)
        return sum(others, start=one)


def prob(network: nn.Module, image_NHWC: Tensor) -> Tensor:
    """Probability float32 (N, H, W) at the size of the pictures."""
    with autocast(image_NHWC.device):
        logits_NCHW = network(image_NHWC)
    return logits_NCHW[:, 0].float().sigmoid()


def upsample_on_device(prob_NHW: Tensor, scale: int, height: int, width: int) -> Tensor:
    """`data.images.upsample` for a batch on a GPU; the two agree but for the rounding of float32."""
    return F.interpolate(prob_NHW[:, None], scale_factor=scale, mode="bicubic")[:, 0, :height, :width]


def to_u8_on_device(prob_NHW: Tensor) -> Tensor:
    """`data.images.to_u8` for a batch on any device."""
    return (prob_NHW.clamp(0, 1) * 255).round().to(torch.uint8)
