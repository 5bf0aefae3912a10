"""Networks and images to 8-bit probabilities at full size.

The mean over folds, runs and TTA transforms is taken in float32 at the networks' own size, upsampled once for each
scale, added up at full size, and rounded once: rounding member by member would lose the hundredths that an ensemble
is made for. What a refiner has refined is at full size before it is averaged.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.images import to_u8, upsample
from pipeline.inference.edge import EdgeRefiner, RefinedMaps
from pipeline.inference.probability import predict_probability, to_u8_on_device, upsample_on_device
from pipeline.inference.tta import TtaTransform
from pipeline.runtime.progress import in_order

ByScale = dict[int, Tensor]  # scale -> the same images at 1/scale, or the predictions for them


@dataclass(frozen=True)
class Member:
    """A network and its weight in the mean. All members are on one device, and their weights sum to 1."""

    network: nn.Module  # a `Segmenter` of one class; in a `class_maps.ClassEnsemble`, of several
    scale: int  # of the images that it sees
    transforms: tuple[TtaTransform, ...]
    weight: float
    refiner: EdgeRefiner | None = None  # of its predictions along the edge

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def predict(self, image_of_scale: ByScale) -> Tensor:
        """Return the mean over the transforms, float32 (N, classes, H, W) on the grid of the images that it sees."""
        image_NHWC = image_of_scale[self.scale].to(self.device, non_blocking=True)
        rows, columns = image_NHWC.shape[1:3]
        total_NCHW: Tensor | None = None
        for transform in self.transforms:
            prob_NCHW = predict_probability(self.network, transform.apply(image_NHWC))
            shape = prob_NCHW.shape[:2]
            prob_NCHW = transform.invert(prob_NCHW.flatten(0, 1), rows, columns).unflatten(0, shape)
            weighted_NCHW = prob_NCHW * (1 / len(self.transforms))
            total_NCHW = weighted_NCHW if total_NCHW is None else total_NCHW.add_(weighted_NCHW)
        assert total_NCHW is not None
        return total_NCHW

    def refine(self, coarse_NHW: Tensor, image_of_scale: ByScale) -> RefinedMaps:
        """Refine what it has predicted; for a member with a refiner."""
        assert self.refiner is not None
        return self.refiner.refine(image_of_scale[self.refiner.scale], coarse_NHW, self.scale)


@dataclass(frozen=True)
class Predictions:
    """What the members of an ensemble predict for a batch of images, before it is added up at full size."""

    prob_of_scale: ByScale  # scale -> weighted sum over its members without a refiner, float32 (N, classes, H, W)
    refined: list[tuple[Member, RefinedMaps]]  # of the other members

    def __len__(self) -> int:
        """Return the number of images."""
        tensors = (*self.prob_of_scale.values(), *(maps.coarse_NHW for _, maps in self.refined))
        return len(tensors[0])


class Ensemble:
    """`ensemble(image_of_scale)` -> mean probability of its members, uint8 (N, height, width), on their device.

    image_of_scale: for each of `scales` the same images, uint8 (N, H, W, channels).
    """

    def __init__(self, members: Sequence[Member], height: int, width: int):
        total = sum(member.weight for member in members)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of an ensemble sum to {total}, but must sum to 1")
        for network in (network for member in members for network in networks_of(member)):
            network.eval()
        self.members, self.height, self.width = members, height, width
        self.device = members[0].device

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the scales at which it needs each image; members of the same scale share the decoding."""
        of_refiners = {member.refiner.scale for member in self.members if member.refiner}
        return tuple(sorted({member.scale for member in self.members} | of_refiners))

    @property
    def channels(self) -> int:
        """Return the number of channels of the images that its networks see."""
        mean = getattr(self.members[0].network, "mean", None)  # a `Segmenter` has it
        return 3 if mean is None else mean.shape[1]

    @torch.inference_mode()
    def __call__(self, image_of_scale: ByScale) -> Tensor:
        return self.round_mean(self.predict(image_of_scale))

    @torch.inference_mode()
    def predict_to_store(self, image_of_scale: ByScale) -> tuple[Tensor, ...]:
        """Return the mean at full size, and what `validate` stores of it, uint8 (N, H, W); for a single member.

        That is the prediction on the network's grid; of a network with a refiner the one at full size, and then the
        coarse one on the grid.
        """
        predicted = self.predict(image_of_scale)
        full_size_NHW = self.round_mean(predicted)
        if predicted.refined:
            ((_, maps),) = predicted.refined
            return full_size_NHW, full_size_NHW, to_u8_on_device(maps.coarse_NHW)
        (prob_NCHW,) = predicted.prob_of_scale.values()
        return full_size_NHW, to_u8_on_device(prob_NCHW[:, 0])

    @torch.inference_mode()
    def predict_unrounded(self, image_of_scale: ByScale) -> Tensor:
        """Return the mean before it is rounded, float32 (N, height, width); see `images.upsample` for its range."""
        predicted = self.predict(image_of_scale)
        if self.device.type == "cuda":
            return self.upsample_mean_on_device(predicted)
        return stack(lambda image: self.upsample_mean(predicted, image), len(predicted))

    @torch.inference_mode()
    def predict(self, image_of_scale: ByScale) -> Predictions:
        """Return what the members predict: added up for each scale, but each by itself if it has a refiner."""
        image_of_scale = {scale: image_of_scale[scale].to(self.device, non_blocking=True) for scale in self.scales}
        predicted = Predictions({}, [])
        for member in self.members:
            prob_NCHW = member.predict(image_of_scale)
            if member.refiner:
                predicted.refined.append((member, member.refine(prob_NCHW[:, 0], image_of_scale)))
            elif member.scale in predicted.prob_of_scale:
                predicted.prob_of_scale[member.scale].add_(prob_NCHW, alpha=member.weight)
            else:
                predicted.prob_of_scale[member.scale] = prob_NCHW.mul_(member.weight)
        return predicted

    def round_mean(self, predicted: Predictions) -> Tensor:
        """Return the mean at full size, uint8 (N, height, width)."""
        if self.device.type == "cuda":
            return to_u8_on_device(self.upsample_mean_on_device(predicted))
        return stack(lambda image: to_u8(self.upsample_mean(predicted, image)), len(predicted))

    def upsample_mean(self, predicted: Predictions, image: int, index: int = 0) -> NDArray[np.float32]:
        """Return the mean of one class of one image at full size, float32 array (height, width)."""
        size = (self.height, self.width)
        maps = [upsample(prob[image, index].numpy(), s, *size) for s, prob in sorted(predicted.prob_of_scale.items())]
        for member, refined in predicted.refined:
            assert member.refiner is not None
            maps.append(member.weight * upsample(refined.read(image), member.refiner.scale, *size))
        return sum(maps[1:], start=maps[0])

    def upsample_mean_on_device(self, predicted: Predictions, index: int = 0) -> Tensor:
        """Return the mean of one class at full size, float32 (N, height, width)."""
        size = (self.height, self.width)
        maps = [upsample_on_device(prob[:, index], s, *size) for s, prob in sorted(predicted.prob_of_scale.items())]
        for member, refined in predicted.refined:
            assert member.refiner is not None
            maps.append(member.weight * upsample_on_device(refined.read_all(), member.refiner.scale, *size))
        return sum(maps[1:], start=maps[0])


def networks_of(member: Member) -> list[nn.Module]:
    return [member.network, *([member.refiner.network] if member.refiner else [])]


def stack(work: Callable[[int], NDArray], images: int) -> Tensor:
    """Stack `work(image)` for the index of each image; threads do the work."""
    return torch.from_numpy(np.stack(list(in_order(work, range(images)))))
