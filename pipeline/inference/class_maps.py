"""Networks of several classes and images to class maps at full size.

As for one class, probabilities are averaged at the networks' own size and brought to full size; the class is decided
there. The class with the highest mean wins, so an edge lies where two means meet, between the cells. Classes are
upsampled one at a time, so that 894 of them take no more memory at full size than two.
"""
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.inference.ensemble import ByScale, Ensemble
from pipeline.masks.confusion import index_dtype


class ClassEnsemble(Ensemble):
    """`ensemble(image_of_scale)` -> class indices (N, height, width), of the dtype `torch_index_dtype`.

    image_of_scale: as for an `Ensemble`, uint8 (N, H, W, channels).
    """

    @torch.inference_mode()
    def __call__(self, image_of_scale: ByScale) -> Tensor:
        prob_of_scale = self.predict_at_scales(image_of_scale)
        if self.device.type == "cuda":
            return self.decide_on_device(prob_of_scale)
        index_NHW = self.stack(prob_of_scale, lambda image: self.decide(prob_of_scale, image))
        return index_NHW.to(torch_index_dtype(prob_of_scale[self.scales[0]].shape[1]))

    def decide(self, prob_of_scale: ByScale, image: int) -> NDArray:
        """Return the class map of one image, array (height, width)."""
        classes = prob_of_scale[self.scales[0]].shape[1]
        return find_largest(lambda index: self.upsample_mean(prob_of_scale, image, index), classes)

    def decide_on_device(self, prob_of_scale: ByScale) -> Tensor:
        """Return the class maps of a batch, tensor (N, height, width)."""
        images, classes = prob_of_scale[self.scales[0]].shape[:2]
        size = (images, self.height, self.width)
        best_prob = torch.full(size, -torch.inf, device=self.device)
        index_NHW = torch.zeros(size, dtype=torch_index_dtype(classes), device=self.device)
        for index in range(classes):
            prob = self.upsample_mean_on_device(prob_of_scale, index)
            better = prob > best_prob
            best_prob, index_NHW = prob.where(better, best_prob), index_NHW.masked_fill(better, index)
        return index_NHW


def find_largest(compute_prob: Callable[[int], NDArray[np.float32]], classes: int) -> NDArray:
    """Return the most probable class of each pixel, the first of equals: indices (height, width).

    compute_prob: class -> its probability, float32 (height, width); called for one class after another.
    """
    best_prob = compute_prob(0).copy()
    indices = np.zeros(best_prob.shape, index_dtype(classes))
    for index in range(1, classes):
        prob = compute_prob(index)
        better = prob > best_prob
        best_prob[better], indices[better] = prob[better], index
    return indices


def torch_index_dtype(classes: int) -> torch.dtype:
    """`confusion.index_dtype`, but int32 instead of uint16, for which torch has few operations."""
    return torch.uint8 if index_dtype(classes) is np.uint8 else torch.int32
