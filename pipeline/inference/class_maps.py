"""Networks of several classes and pictures to class maps at full size.

As for one class, probabilities are averaged at the networks' own size, brought to full size, and decided there: the
class with the highest mean wins, and an edge lies where two means meet, between the cells. One class at a time is
enlarged, so that 894 of them take no more memory at full size than two.
"""
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.images import upsample
from pipeline.runtime.device import autocast
from pipeline.inference.ensemble import ByScale, Ensemble, upsample_on_device
from pipeline.masks.confusion import index_dtype
from pipeline.runtime.progress import in_order


class ClassEnsemble(Ensemble):
    """`ensemble(image_of_scale)` -> class indices (N, height, width), of the dtype that `as_torch_has_it` says.

    image_of_scale: as of an `Ensemble`, uint8 (N, H, W, channels).
    """

    @torch.inference_mode()
    def __call__(self, image_of_scale: ByScale) -> Tensor:
        probs = self.weighted_probs(image_of_scale)
        if self.device.type == "cuda":
            return self.class_map_on_device(probs)
        images, classes = probs[self.scales[0]].shape[:2]
        maps = np.stack(list(in_order(lambda image: self.class_map(probs, image), range(images))))
        return torch.from_numpy(maps).to(as_torch_has_it(classes))

    def unrounded(self, image_of_scale: ByScale) -> Tensor:
        raise NotImplementedError("the mean of several classes is not kept at full size")

    def weighted_prob(self, scale: int, image_NHWC: Tensor) -> Tensor:
        """What the members at this scale add to the mean, float32 (N, classes, H, W) at the size of the pictures."""
        image_NHWC = image_NHWC.to(self.device, non_blocking=True)
        rows, columns = image_NHWC.shape[1:3]
        total_NCHW: Tensor | None = None
        for member in self.members:
            if member.scale == scale:
                for view in member.views:
                    prob_NCHW = probs(member.network, view.apply(image_NHWC))
                    invert = view.invert(prob_NCHW.flatten(0, 1), rows, columns).unflatten(0, prob_NCHW.shape[:2])
                    part = invert * (member.weight / len(member.views))
                    total_NCHW = part if total_NCHW is None else total_NCHW.add_(part)
        assert total_NCHW is not None
        return total_NCHW

    def class_map(self, probs: ByScale, image: int) -> NDArray:
        """Of one picture, array (height, width)."""

        def prob(index: int) -> NDArray[np.float32]:
            one, *others = (upsample(probs[s][image, index].numpy(), s, self.height, self.width) for s in self.scales)
            return sum(others, start=one)

        return largest(prob, probs[self.scales[0]].shape[1])

    def class_map_on_device(self, probs: ByScale) -> Tensor:
        """Of a batch, tensor (N, height, width)."""
        images, classes = probs[self.scales[0]].shape[:2]
        size = (images, self.height, self.width)
        best = torch.full(size, -torch.inf, device=self.device)
        found = torch.zeros(size, dtype=as_torch_has_it(classes), device=self.device)
        for index in range(classes):
            maps = (upsample_on_device(probs[s][:, index], s, self.height, self.width) for s in self.scales)
            prob = sum(maps, start=next(maps))
            better = prob > best
            best, found = prob.where(better, best), found.masked_fill(better, index)
        return found


def probs(network: nn.Module, image_NHWC: Tensor) -> Tensor:
    """Probabilities float32 (N, classes, H, W) at the size of the pictures."""
    with autocast(image_NHWC.device):
        logits_NCHW = network(image_NHWC)
    return logits_NCHW.float().softmax(1)


def largest(prob: Callable[[int], NDArray[np.float32]], classes: int) -> NDArray:
    """Of each pixel the class whose share is the largest, of equals the first: indices (height, width).

    share: class -> its map, float32 (height, width); one after another is asked for.
    """
    best = prob(0).copy()
    found = np.zeros(best.shape, index_dtype(classes))
    for index in range(1, classes):
        its_share = prob(index)
        better = its_share > best
        best[better], found[better] = its_share[better], index
    return found


def as_torch_has_it(classes: int) -> torch.dtype:
    """`confusion.index_dtype`, but int32 for uint16, with which torch computes little."""
    return torch.uint8 if index_dtype(classes) is np.uint8 else torch.int32
