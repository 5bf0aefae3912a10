"""Dice at every threshold, against Dice by its definition."""
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from pipeline.masks.dice import (
    THRESHOLDS, best_threshold_u8, dice_at_thresholds, histogram, threshold_from_u8, threshold_to_u8
)  # fmt: skip

IMAGES = array_shapes(min_dims=2, max_dims=2, max_side=8).flatmap(
    lambda shape: st.tuples(arrays(np.uint8, shape), arrays(bool, shape))
)


def dice_by_definition(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    total = prediction.sum() + truth.sum()
    return 1.0 if total == 0 else 2 * (prediction & truth).sum() / total


def dice_of(probability_u8: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    return dice_at_thresholds(histogram(probability_u8, mask)[None])[0]


def test_a_known_image_has_known_dice() -> None:
    probability_u8 = np.array([[200, 100], [100, 0]], dtype=np.uint8)
    mask = np.array([[True, True], [False, False]])
    dice = dice_of(probability_u8, mask)
    assert dice[0] == pytest.approx(2 * 2 / (4 + 2))  # everything is car
    assert dice[100] == pytest.approx(2 * 2 / (3 + 2))  # a value equal to the threshold counts
    assert dice[101] == dice[200] == pytest.approx(2 * 1 / (1 + 2))
    assert dice[201] == dice[255] == 0


@given(IMAGES)
def test_dice_from_histograms_is_dice_by_definition_at_all_256_thresholds(image: tuple) -> None:
    probability_u8, mask = image
    expected = [dice_by_definition(probability_u8 >= threshold_u8, mask) for threshold_u8 in range(256)]
    np.testing.assert_allclose(dice_of(probability_u8, mask), expected, rtol=0, atol=1e-12)


def test_both_masks_empty_is_1_and_one_of_them_empty_is_0() -> None:
    black = np.zeros((3, 4), dtype=np.uint8)
    no_car = np.zeros((3, 4), dtype=bool)
    assert dice_of(black, no_car)[1:].tolist() == [1.0] * 255
    assert dice_of(black, no_car)[0] == 0  # at threshold 0 all is car
    assert dice_of(black, ~no_car)[1:].tolist() == [0.0] * 255


def test_a_histogram_counts_every_pixel_of_a_full_size_image_once() -> None:
    probability_u8 = np.random.default_rng(0).integers(256, size=(1280, 1918), dtype=np.uint8)
    mask = np.zeros((1280, 1918), dtype=bool)
    mask[300:900, 400:1500] = True
    counts = histogram(probability_u8, mask)
    assert counts.shape == (2, THRESHOLDS) and counts.dtype == np.int32
    assert counts[1].sum() == mask.sum() and counts.sum() == mask.size


def test_images_count_equally_however_large_their_cars_are() -> None:
    """The mean over images, not Dice of all pixels in one pool."""
    large, small = np.ones((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
    small[0, 0] = True
    all_255 = large.astype(np.uint8) * 255  # right for the large car
    all_0 = np.zeros((10, 10), dtype=np.uint8)  # the small one is missed
    dice = dice_at_thresholds(np.stack([histogram(all_255, large), histogram(all_0, small)]))
    assert dice[:, 128].tolist() == [1.0, 0.0]
    assert dice.mean(axis=0)[128] == 0.5


def test_the_best_threshold_has_the_highest_mean_over_images() -> None:
    dice = np.zeros((2, THRESHOLDS))
    dice[:, 40] = 1.0, 0.1
    dice[:, 90] = 0.6, 0.6
    assert best_threshold_u8(dice) == 90


def test_of_equally_good_thresholds_the_middle_one_is_chosen() -> None:
    dice = np.zeros((1, THRESHOLDS))
    dice[0, 101:200] = 0.9
    assert best_threshold_u8(dice) == 150


def test_a_threshold_converted_to_a_probability_and_back_is_the_same() -> None:
    for threshold_u8 in range(THRESHOLDS):
        assert threshold_to_u8(threshold_from_u8(threshold_u8)) == threshold_u8
        assert threshold_to_u8(round(threshold_from_u8(threshold_u8), 6)) == threshold_u8  # as threshold.json rounds it


def test_a_half_is_128_of_255_and_not_the_number_0_5() -> None:
    """With values 0 to 255, `> 0.5` would count every faint pixel as car."""
    assert threshold_to_u8(0.5) == 128
    assert threshold_from_u8(128) == 0.5
    faint = np.full((2, 2), 1, dtype=np.uint8)
    assert not (faint >= threshold_to_u8(0.5)).any()


def test_threshold_u8_is_the_smallest_8_bit_value_that_reaches_the_threshold() -> None:
    for thousandths in range(1001):
        threshold_u8 = threshold_to_u8(thousandths / 1000)
        assert threshold_u8 == min(value for value in range(256) if Fraction(value, 255) >= Fraction(thousandths, 1000))
