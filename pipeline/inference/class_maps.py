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

from pipeline.inference.ensemble import ByScale, Ensemble, Predictions, stack
from pipeline.masks.confusion import index_dtype


class ClassEnsemble(Ensemble):
    """`ensemble(image_of_scale)` -> class indices (N, height, width), of the dtype `torch_index_dtype`.

    image_of_scale: as for an `Ensemble`, uint8 (N, H, W, channels).
    """

    @torch.inference_mode()
    def __call__(self, image_of_scale: ByScale) -> Tensor:
        predicted = self.predict(image_of_scale)
        classes = next(iter(predicted.prob_of_scale.values())).shape[1]
        if self.device.type == "cuda":
            return self.decide_on_device(predicted, classes)
        index_NHW = stack(lambda image: self.decide(predicted, classes, image), len(predicted))
        return index_NHW.to(torch_index_dtype(classes))

    def decide(self, predicted: Predictions, classes: int, image: int) -> NDArray:
        """Return the class map of one image, array (height, width)."""
        return find_largest(lambda index: self.upsample_mean(predicted, image, index), classes)

    def decide_on_device(self, predicted: Predictions, classes: int) -> Tensor:
        """Return the class maps of a batch, tensor (N, height, width)."""
        size = (len(predicted), self.height, self.width)
        best_prob = torch.full(size, -torch.inf, device=self.device)
        index_NHW = torch.zeros(size, dtype=torch_index_dtype(classes), device=self.device)
        for index in range(classes):
            prob = self.upsample_mean_on_device(predicted, index)
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
