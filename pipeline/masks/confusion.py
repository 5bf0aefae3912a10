"""Scores of class maps, all from one table of counts: the confusion matrix.

`matrix[t, p]` counts the pixels of class t that were predicted as p. The sum of a row is a class in truth, the sum of
a column a class in prediction, and the diagonal what was right. Only valid pixels are counted. The matrices of images
add up; the benchmarks of NYU Depth v2 score their sum over all images (Long et al. 2015,
https://arxiv.org/abs/1411.4038, section 5).

A class that is neither in truth nor in prediction has no score: nan, which means leave out. Its score is not 0
(nothing was missed) and not 1 (nothing was right).
"""
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.uint8] | NDArray[np.uint16]


class Counts(NamedTuple):
    """Pixels of each class: predicted correctly, in truth, in prediction; int64 (..., classes) each."""

    hits: NDArray[np.int64]
    in_truth: NDArray[np.int64]
    predicted: NDArray[np.int64]


def index_dtype(classes: int) -> type[np.uint8] | type[np.uint16]:
    """Return the dtype of class maps: the smallest with a value to spare, which marks ignored pixels."""
    return np.uint8 if classes <= 255 else np.uint16


def ignored(dtype: np.dtype | type) -> int:
    """Return the value of ignored pixels: 255 for uint8, 65535 for uint16."""
    return int(np.iinfo(dtype).max)


def matrix(predicted: Indices, truth: Indices, classes: int) -> NDArray[np.int64]:
    """Return the confusion matrix of one image, int64 (classes, classes).

    predicted, truth: class indices of the same shape, predicted below `classes`; `ignored(dtype)` in truth is left out.
    """
    valid = truth != ignored(truth.dtype)
    pairs = truth[valid].astype(np.intp) * classes + predicted[valid]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def counts(matrices: NDArray[np.int64]) -> Counts:
    """Return the counts of confusion matrices (..., classes, classes)."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1).copy()  # not a view, which would keep the matrices in memory
    return Counts(hits, matrices.sum(-1), matrices.sum(-2))


def iou(counts: Counts) -> NDArray[np.float64]:
    """Return |P ∩ T| / |P ∪ T| of each class, float64 (..., classes), 0 to 1; nan where it is in neither."""
    return divide(counts.hits, counts.in_truth + counts.predicted - counts.hits)


def dice(counts: Counts) -> NDArray[np.float64]:
    """Return 2 |P ∩ T| / (|P| + |T|) of each class, float64 (..., classes), 0 to 1; nan where it is in neither."""
    return divide(2 * counts.hits, counts.in_truth + counts.predicted)


def pixel_accuracy(counts: Counts) -> NDArray[np.float64]:
    """Return the fraction of valid pixels that are right, float64 (...); nan where none is valid."""
    return divide(counts.hits.sum(-1), counts.in_truth.sum(-1))


def mean_of_classes(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over classes with a score, float64 (...), of scores (..., classes); nan where none has one."""
    has_score = ~np.isnan(scores)
    return divide(np.where(has_score, scores, 0.0).sum(-1), has_score.sum(-1))


def divide(numerator: NDArray, denominator: NDArray) -> NDArray[np.float64]:
    """Return the quotient, nan where the denominator is 0."""
    nan = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=nan, where=np.asarray(denominator) != 0)
