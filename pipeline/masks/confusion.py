"""How class maps agree: everything from one table of counts, the confusion matrix.

`matrix[t, p]` counts the pixels of class t that were predicted as p. Rows summed are a class in truth, columns summed
in prediction, the diagonal is what was right. Pixels that are not judged are in no count. Matrices of pictures add up;
the benchmarks of NYU Depth v2 judge their sum over all pictures (Long et al. 2015, https://arxiv.org/abs/1411.4038,
section 5).

A class that is neither in truth nor in prediction has no score: nan, which means leave out. It is not 0 (nothing was
missed) and not 1 (nothing was found).
"""
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.uint8] | NDArray[np.uint16]


class Counts(NamedTuple):
    """Of each class, pixels: rightly predicted, in truth, in prediction; int64 (..., classes) each."""

    hits: NDArray[np.int64]
    in_truth: NDArray[np.int64]
    predicted: NDArray[np.int64]


def index_dtype(classes: int) -> type[np.uint8] | type[np.uint16]:
    """Of the class maps of so many classes: the smallest that has a value to spare."""
    return np.uint8 if classes <= 255 else np.uint16


def ignored(dtype: np.dtype | type) -> int:
    """The value of pixels that are not judged: 255, or 65535."""
    return int(np.iinfo(dtype).max)


def matrix(predicted: Indices, truth: Indices, classes: int) -> NDArray[np.int64]:
    """The confusion matrix of one picture, int64 (classes, classes).

    predicted, truth: class indices of one shape, predicted below `classes`; of truth `ignored(dtype)` is not judged.
    """
    judged = truth != ignored(truth.dtype)
    pairs = truth[judged].astype(np.intp) * classes + predicted[judged]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def counts(matrices: NDArray[np.int64]) -> Counts:
    """Of matrices (..., classes, classes)."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1).copy()  # not a view, which would keep the matrices in memory
    return Counts(hits, matrices.sum(-1), matrices.sum(-2))


def iou(counts: Counts) -> NDArray[np.float64]:
    """Of each class |P ∩ T| / |P ∪ T|, float64 (..., classes), 0 to 1; nan where it is in neither."""
    return quotient(counts.hits, counts.in_truth + counts.predicted - counts.hits)


def dice(counts: Counts) -> NDArray[np.float64]:
    """Of each class 2 |P ∩ T| / (|P| + |T|), float64 (..., classes), 0 to 1; nan where it is in neither."""
    return quotient(2 * counts.hits, counts.in_truth + counts.predicted)


def pixel_accuracy(counts: Counts) -> NDArray[np.float64]:
    """The share of judged pixels that are right, float64 (...); nan where none is judged."""
    return quotient(counts.hits.sum(-1), counts.in_truth.sum(-1))


def mean_of_classes(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of per-class scores (..., classes) over those that have one, float64 (...); nan where none has."""
    has_one = ~np.isnan(scores)
    return quotient(np.where(has_one, scores, 0.0).sum(-1), has_one.sum(-1))


def quotient(above: NDArray, below: NDArray) -> NDArray[np.float64]:
    """above / below, nan where below is 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=np.asarray(below) != 0)
