"""Scores of class maps: known values, and agreement with counting pixel by pixel."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.masks import confusion

IGNORED = 255


def count(predicted: list[int], truth: list[int], classes: int) -> confusion.Counts:
    arrays = (np.array([values], np.uint8) for values in (predicted, truth))
    return confusion.counts(confusion.matrix(*arrays, classes))


def test_a_matrix_has_truth_in_rows_and_leaves_out_ignored_pixels() -> None:
    predicted, truth = np.array([[0, 1, 1, 2]], np.uint8), np.array([[0, 0, 1, IGNORED]], np.uint8)
    assert confusion.matrix(predicted, truth, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_scores_have_known_values_and_a_class_in_neither_map_has_none() -> None:
    counts = count([0, 1, 1, 2], [0, 0, 1, IGNORED], classes=3)
    np.testing.assert_array_equal(confusion.iou(counts), [1 / 2, 1 / 2, np.nan])
    np.testing.assert_array_equal(confusion.dice(counts), [2 / 3, 2 / 3, np.nan])
    assert confusion.mean_of_classes(confusion.iou(counts)) == 1 / 2
    assert confusion.pixel_accuracy(counts) == 2 / 3


def test_counts_keep_no_matrix_in_memory() -> None:
    counts = confusion.counts(np.ones((2, 3, 3), np.int64))
    assert counts.hits.base is None and counts.hits.tolist() == [[1, 1, 1]] * 2


def test_a_class_that_is_missed_or_only_predicted_scores_0() -> None:
    counts = count([1, 1], [0, 0], classes=3)
    np.testing.assert_array_equal(confusion.iou(counts), [0, 0, np.nan])


def test_without_a_valid_pixel_nothing_has_a_score() -> None:
    counts = count([0, 1], [IGNORED, IGNORED], classes=2)
    assert np.isnan(confusion.mean_of_classes(confusion.iou(counts))) and np.isnan(confusion.pixel_accuracy(counts))


@pytest.mark.parametrize("classes, ignored", [(2, 255), (255, 255), (256, 65535), (894, 65535)])
def test_the_largest_value_of_the_dtype_is_no_class(classes: int, ignored: int) -> None:
    assert confusion.ignored(confusion.index_dtype(classes)) == ignored >= classes


maps = hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 3))


@given(predicted=maps, truth=maps, valid=hnp.arrays(bool, (4, 5)))
def test_scores_are_those_of_sets_of_pixels(predicted: NDArray, truth: NDArray, valid: NDArray) -> None:
    counts = confusion.counts(confusion.matrix(predicted, np.where(valid, truth, IGNORED).astype(np.uint8), 4))
    for index in range(4):
        p, t = valid & (predicted == index), valid & (truth == index)
        expected = (p & t).sum() / (p | t).sum() if (p | t).any() else np.nan
        np.testing.assert_equal(confusion.iou(counts)[index], expected)
    assert counts.in_truth.sum() == valid.sum() == counts.predicted.sum()


@given(st.lists(st.tuples(maps, maps), min_size=1, max_size=4))
def test_the_counts_of_images_add_up_to_those_of_their_sum(pairs: list[tuple[NDArray, NDArray]]) -> None:
    matrices = np.stack([confusion.matrix(predicted, truth, 4) for predicted, truth in pairs])
    for one, other in zip(confusion.counts(matrices), confusion.counts(matrices.sum(0))):
        np.testing.assert_array_equal(one.sum(0), other)
