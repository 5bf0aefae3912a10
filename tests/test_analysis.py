"""Errors of a prediction and suspect masks: known answers on small masks."""
import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.data.images import coverage
from pipeline.masks import dice, rle
from pipeline.report import suspects
from pipeline.report.drift import component_sizes_px
from pipeline.report.errors import (
    DISTANCES_PX, add_car_groups, add_image_groups, add_places, count_errors, find_worst_spot, largest_component_px,
    measure_errors, upsample_stored,
)  # fmt: skip
from pipeline.report.suspects import find_suspect, score_by_neighbours, suspects_table

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans())


def square(top: int, left: int, side: int, shape: tuple[int, int] = (64, 80)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


# --- one image --------------------------------------------------------------------------------------


def test_a_square_that_is_a_pixel_too_wide_and_has_a_bite_far_inside() -> None:
    truth = square(10, 10, 40)
    predicted = square(10, 10, 40)
    predicted[10:50, 50] = True  # 40 pixels beside the right edge
    predicted[30, 30] = False  # 20 from the left edge and from the top
    errors = measure_errors(truth, predicted)
    assert (errors.truth_px, errors.predicted_px) == (1600, 1639)
    assert (errors.false_object_px, errors.false_background_px) == (40, 1)
    assert errors.dice == pytest.approx(2 * 1599 / (1600 + 1639))
    assert (errors.errors_1_px, errors.errors_2_px, errors.errors_4_px, errors.errors_8_px) == (40, 0, 0, 0)
    assert errors.errors_far_px == 1 and errors.largest_error_px == 40 and errors.components == 1


@pytest.mark.parametrize("width, expected", [
    (1, [4, 0, 0, 0, 0]), (2, [4, 4, 0, 0, 0]), (4, [4, 4, 8, 0, 0]), (8, [4, 4, 8, 16, 0]), (9, [4, 4, 8, 16, 4]),
])  # fmt: skip
def test_each_wrong_pixel_lies_in_one_band_of_distance(width: int, expected: list[int]) -> None:
    truth = np.zeros((4, 30), bool)
    truth[:, :10] = True
    predicted = truth.copy()
    predicted[:, 10 : 10 + width] = True
    errors = measure_errors(truth, predicted)
    bands = [getattr(errors, f"errors_{distance}_px") for distance in DISTANCES_PX] + [errors.errors_far_px]
    assert bands == expected


@given(MASKS, st.randoms(use_true_random=False))
def test_the_bands_of_distance_add_up_to_all_errors(truth: np.ndarray, random) -> None:
    predicted = np.array([random.random() < 0.5 for _ in range(truth.size)]).reshape(truth.shape)
    errors = measure_errors(truth, predicted)
    wrong = int((truth ^ predicted).sum())
    bands = [getattr(errors, f"errors_{distance}_px") for distance in DISTANCES_PX] + [errors.errors_far_px]
    assert sum(bands) == wrong == errors.false_object_px + errors.false_background_px
    assert errors.truth_px == truth.sum() and errors.predicted_px == predicted.sum()
    expected = dice.dice_at_thresholds(dice.histogram(predicted * np.uint8(255), truth)[None])[0, 128]
    assert errors.dice == pytest.approx(expected)
    assert errors.worst_px == wrong  # an image this small lies within the square
    assert errors.components == cv2.connectedComponents(predicted.view(np.uint8), connectivity=8)[0] - 1
    assert 0 <= errors.worst_row < truth.shape[0] and 0 <= errors.worst_column < truth.shape[1]


def test_two_empty_masks_agree_and_one_against_a_full_one_is_all_wrong() -> None:
    empty, full = np.zeros((5, 6), bool), np.ones((5, 6), bool)
    assert measure_errors(empty, empty).dice == 1 and measure_errors(full, full).dice == 1
    for truth, predicted in ((empty, full), (full, empty)):
        errors = measure_errors(truth, predicted)
        assert errors.dice == 0 and errors.errors_far_px == 30  # no pixel has the predicted class in truth


def test_the_worst_spot_is_the_middle_of_the_densest_errors() -> None:
    wrong = square(100, 200, 20, (300, 400)) | square(10, 10, 5, (300, 400))
    assert find_worst_spot(wrong, 96) == (109, 209, 400)
    truth = np.zeros((300, 400), bool)
    errors = measure_errors(truth, wrong)
    assert (errors.worst_row, errors.worst_column, errors.worst_px) == (109, 209, 400)
    assert errors.largest_error_px == 400 == largest_component_px(wrong) and errors.components == 2


def test_where_nothing_is_wrong_the_spot_is_the_middle_of_the_object() -> None:
    errors = measure_errors(square(20, 40, 10), square(20, 40, 10))
    assert (errors.worst_row, errors.worst_column, errors.worst_px, errors.dice) == (25, 45, 0, 1.0)


@given(MASKS)
def test_components_of_runs_are_those_of_pixels(mask: np.ndarray) -> None:
    sizes = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    assert component_sizes_px(rle.bounds(mask), mask.shape[1]).tolist() == sorted(sizes.tolist(), reverse=True)


# --- all images -------------------------------------------------------------------------------------


NAMES = ["00000000000a_01.jpg", "00000000000a_16.jpg", "331659860e11_07.jpg"]


def test_the_table_has_the_errors_of_each_image() -> None:
    truths = {name: square(10, 10 + 3 * place, 40) for place, name in enumerate(NAMES)}
    stored = {name: coverage(square(10, 12, 40), 4) for name in NAMES}

    def read_prediction(name: str) -> np.ndarray:
        return upsample_stored(stored[name], 4, 64, 80) >= 128

    predicted = read_prediction(NAMES[0])
    assert (predicted ^ square(10, 12, 40)).sum() == 8  # at the corners
    counts = count_errors(NAMES, np.stack([dice.histogram(predicted * np.uint8(200), truths[n]) for n in NAMES]), 200)
    table = add_car_groups(add_places(counts, truths.__getitem__, read_prediction), 2, {"331659860e11": "kia"})
    assert table.columns[:6].tolist() == ["img", "car", "group", "angle", "fold", "dice"]
    assert table["img"].tolist() == NAMES and set(table["fold"]) == {2}
    assert table["car"].tolist() == ["00000000000a", "00000000000a", "331659860e11"]
    assert table["group"].tolist() == ["", "", "kia"] and table["angle"].tolist() == [1, 16, 7]
    for _, row in table.iterrows():
        expected = vars(measure_errors(truths[row["img"]], predicted))
        assert {key: row[key] for key in expected} == pytest.approx(expected)
        assert set(table.columns) == {"img", "car", "group", "angle", "fold", *expected}


def test_images_of_other_things_have_groups_but_no_cars_and_angles() -> None:
    table = add_image_groups(pd.DataFrame({"img": ["x", "y"], "dice": [0.5, 1.0]}), 1, {"x": "room"})
    assert list(table.columns) == ["img", "group", "fold", "dice"] and table["group"].tolist() == ["room", ""]


def test_without_stored_probabilities_the_counts_remain() -> None:
    counts = count_errors(NAMES[:1], dice.histogram(square(10, 12, 40) * np.uint8(255), square(10, 10, 40))[None], 128)
    table = add_car_groups(add_places(counts, lambda name: square(10, 10, 40), None), 0, {})
    assert table["dice"].tolist() == [0.95] and table["false_object_px"].tolist() == [80]
    assert table["worst_row"].isna().all()


# --- suspects ---------------------------------------------------------------------------------------

SHAPE = (120, 200)
TRUE = square(30, 50, 60, SHAPE)


def confident_in(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 250, 5).astype(np.uint8)


def with_hole(mask: np.ndarray, top: int = 40, left: int = 70, side: int = 20) -> np.ndarray:
    return mask & ~square(top, left, side, SHAPE)


def test_a_hole_that_all_runs_contradict_is_found_and_corrected() -> None:
    suspect = find_suspect(with_hole(TRUE), [confident_in(TRUE), confident_in(TRUE)])
    assert suspect is not None and suspect.box == (40, 70, 60, 90)
    assert 340 < suspect.px <= 400  # but for the corners, which are not thick
    assert suspect.fraction == pytest.approx(suspect.px * 250 / 255 / (3600 - 400))
    np.testing.assert_array_equal(rle.decode(suspect.rle_mask, *SHAPE), TRUE)


def test_a_region_too_much_is_found_too() -> None:
    suspect = find_suspect(TRUE | square(5, 150, 20, SHAPE), [confident_in(TRUE)])
    assert suspect is not None and suspect.box == (5, 150, 25, 170)
    np.testing.assert_array_equal(rle.decode(suspect.rle_mask, *SHAPE), TRUE)


@pytest.mark.parametrize("mask, runs", [
    (TRUE, [confident_in(TRUE)]),  # nothing wrong
    (with_hole(TRUE), [confident_in(TRUE), confident_in(with_hole(TRUE))]),  # another run agrees with the mask
    (with_hole(TRUE), [np.where(TRUE, 200, 5).astype(np.uint8)]),  # not confident
    (TRUE | square(30, 110, 8, SHAPE), [confident_in(TRUE)]),  # not as thick as the opening
    (cv2.dilate(TRUE.view(np.uint8), np.ones((9, 9), np.uint8)).view(bool), [confident_in(TRUE)]),  # 4 px all around
])  # fmt: skip
def test_a_region_that_one_run_doubts_or_that_is_thin_is_no_suspect(mask: np.ndarray, runs: list[np.ndarray]) -> None:
    assert find_suspect(mask, runs) is None


def test_an_empty_mask_of_an_image_with_an_object_is_corrected() -> None:
    suspect = find_suspect(np.zeros(SHAPE, bool), [confident_in(TRUE)])
    assert suspect is not None
    np.testing.assert_array_equal(rle.decode(suspect.rle_mask, *SHAPE), TRUE)


def test_a_slip_at_one_angle_comes_before_what_is_wrong_at_all_angles() -> None:
    names = [f"00000000000{car}_{angle:02d}.jpg" for car in "ab" for angle in range(1, 17)]
    masks = {name: with_hole(TRUE, side=27 if name == names[16] else 25) if "b_" in name else TRUE for name in names}
    masks[names[15]] = with_hole(TRUE)
    table = suspects_table(names, masks.__getitem__, lambda name: [confident_in(TRUE)])
    assert tuple(table.columns) == suspects.COLUMNS
    assert table["img"].tolist() == ["00000000000a_16.jpg", "00000000000b_01.jpg"]
    assert (table["score"] <= table["fraction"]).all() and table["score"].is_monotonic_decreasing
    expected = find_suspect(masks[names[15]], [confident_in(TRUE)])
    row = table[table["img"] == names[15]].iloc[0]
    assert expected and (row["score"], row["px"], row["rle_mask"]) == (
        pytest.approx(expected.fraction, abs=1e-6), expected.px, expected.rle_mask
    )  # fmt: skip


def test_the_neighbours_of_an_image_are_those_on_the_turntable() -> None:
    fraction_of_name = {f"00000000000a_{angle:02d}.jpg": 0.0 for angle in range(1, 17)}
    fraction_of_name |= {"00000000000a_01.jpg": 0.5, "00000000000a_16.jpg": 0.3, "00000000000a_15.jpg": 0.2}
    scores = score_by_neighbours(fraction_of_name)
    assert scores["00000000000a_01.jpg"] == pytest.approx(0.3)  # neighbours 16 and 15, of which 15 is second
    assert scores["00000000000a_16.jpg"] == pytest.approx(0.1) and scores["00000000000a_02.jpg"] == pytest.approx(-0.3)
    assert score_by_neighbours({"00000000000a_01.jpg": 0.5}) == {"00000000000a_01.jpg": 0.5}  # alone
