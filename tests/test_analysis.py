"""Where a prediction is wrong: known answers on small masks, and the whole picture against a part of it."""
import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.report import suspects
from pipeline.report.errors import DISTANCES_PX, errors_of, largest_piece_px, worst_spot
from pipeline.report.drift import piece_sizes_px
from pipeline.report.suspects import scores, suspect_of, suspects_table
from pipeline.report.error_table import COLUMNS, counts_table, mask_of, with_groups, with_places
from pipeline.data.images import coverage
from pipeline.masks import dice, rle

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.booleans())


def square(top: int, left: int, side: int, shape: tuple[int, int] = (64, 80)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


# --- one picture ------------------------------------------------------------------------------------


def test_a_square_that_is_a_pixel_too_wide_and_has_a_bite_far_inside() -> None:
    truth = square(10, 10, 40)
    predicted = square(10, 10, 40)
    predicted[10:50, 50] = True  # 40 pixels beside the right edge
    predicted[30, 30] = False  # 20 from the left edge and from the top
    found = errors_of(truth, predicted)
    assert (found.truth_px, found.predicted_px) == (1600, 1639)
    assert (found.false_object_px, found.false_background_px) == (40, 1)
    assert found.dice == pytest.approx(2 * 1599 / (1600 + 1639))
    assert (found.errors_1_px, found.errors_2_px, found.errors_4_px, found.errors_8_px) == (40, 0, 0, 0)
    assert found.errors_far_px == 1 and found.largest_error_px == 40 and found.pieces == 1


@pytest.mark.parametrize("width, expected", [
    (1, [4, 0, 0, 0, 0]), (2, [4, 4, 0, 0, 0]), (4, [4, 4, 8, 0, 0]), (8, [4, 4, 8, 16, 0]), (9, [4, 4, 8, 16, 4]),
])  # fmt: skip
def test_each_wrong_pixel_lies_in_one_band_of_distance(width: int, expected: list[int]) -> None:
    truth = np.zeros((4, 30), bool)
    truth[:, :10] = True
    predicted = truth.copy()
    predicted[:, 10 : 10 + width] = True
    found = errors_of(truth, predicted)
    bands = [getattr(found, f"errors_{distance}_px") for distance in DISTANCES_PX] + [found.errors_far_px]
    assert bands == expected


@given(MASKS, st.randoms(use_true_random=False))
def test_the_parts_make_the_whole(truth: np.ndarray, random) -> None:
    predicted = np.array([random.random() < 0.5 for _ in range(truth.size)]).reshape(truth.shape)
    found = errors_of(truth, predicted)
    wrong = int((truth ^ predicted).sum())
    bands = [getattr(found, f"errors_{distance}_px") for distance in DISTANCES_PX] + [found.errors_far_px]
    assert sum(bands) == wrong == found.false_object_px + found.false_background_px
    assert found.truth_px == truth.sum() and found.predicted_px == predicted.sum()
    expected = dice.dice_at_thresholds(dice.histogram(predicted * np.uint8(255), truth)[None])[0, 128]
    assert found.dice == pytest.approx(expected)
    assert found.worst_px == wrong  # a picture this small lies within the square
    assert found.pieces == cv2.connectedComponents(predicted.view(np.uint8), connectivity=8)[0] - 1
    assert 0 <= found.worst_row < truth.shape[0] and 0 <= found.worst_column < truth.shape[1]


def test_two_empty_masks_agree_and_one_against_a_full_one_is_all_wrong() -> None:
    empty, full = np.zeros((5, 6), bool), np.ones((5, 6), bool)
    assert errors_of(empty, empty).dice == 1 and errors_of(full, full).dice == 1
    for truth, predicted in ((empty, full), (full, empty)):
        found = errors_of(truth, predicted)
        assert found.dice == 0 and found.errors_far_px == 30  # no pixel is truly what was predicted


def test_the_worst_spot_is_the_middle_of_the_densest_errors() -> None:
    wrong = square(100, 200, 20, (300, 400)) | square(10, 10, 5, (300, 400))
    assert worst_spot(wrong, 96) == (109, 209, 400)
    truth = np.zeros((300, 400), bool)
    found = errors_of(truth, wrong)
    assert (found.worst_row, found.worst_column, found.worst_px) == (109, 209, 400)
    assert found.largest_error_px == 400 == largest_piece_px(wrong) and found.pieces == 2


def test_where_nothing_is_wrong_the_spot_is_the_middle_of_the_object() -> None:
    found = errors_of(square(20, 40, 10), square(20, 40, 10))
    assert (found.worst_row, found.worst_column, found.worst_px, found.dice) == (25, 45, 0, 1.0)


@given(MASKS)
def test_pieces_of_runs_are_those_of_pixels(mask: np.ndarray) -> None:
    sizes = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    assert piece_sizes_px(rle.bounds(mask), mask.shape[1]).tolist() == sorted(sizes.tolist(), reverse=True)


# --- all pictures -----------------------------------------------------------------------------------


NAMES = ["00000000000a_01.jpg", "00000000000a_16.jpg", "331659860e11_07.jpg"]


def test_the_table_tells_each_picture_exactly() -> None:
    truths = {name: square(10, 10 + 3 * place, 40) for place, name in enumerate(NAMES)}
    kept = {name: coverage(square(10, 12, 40), 4) for name in NAMES}

    def read_prediction(name: str) -> np.ndarray:
        return mask_of(kept[name], 4, 64, 80, cut=128)

    predicted = read_prediction(NAMES[0])
    assert (predicted ^ square(10, 12, 40)).sum() == 8  # at the corners
    counts = counts_table(NAMES, np.stack([dice.histogram(predicted * np.uint8(200), truths[n]) for n in NAMES]), 200)
    found = with_groups(with_places(counts, truths.__getitem__, read_prediction), 2, {"331659860e11": "kia"})
    assert list(found.columns) == list(COLUMNS) and found["img"].tolist() == NAMES
    assert found["car"].tolist() == ["00000000000a", "00000000000a", "331659860e11"]
    assert found["make"].tolist() == ["", "", "kia"] and found["view"].tolist() == [1, 16, 7]
    for _, row in found.iterrows():
        expected = errors_of(truths[row["img"]], predicted)
        assert {key: row[key] for key in vars(expected)} == pytest.approx(vars(expected))


def test_without_kept_probabilities_the_counts_remain() -> None:
    counts = counts_table(NAMES[:1], dice.histogram(square(10, 12, 40) * np.uint8(255), square(10, 10, 40))[None], 128)
    found = with_groups(with_places(counts, lambda name: square(10, 10, 40), None), 0, {})
    assert found["dice"].tolist() == [0.95] and found["false_object_px"].tolist() == [80]
    assert found["worst_row"].isna().all() and isinstance(found, pd.DataFrame)


# --- suspects ---------------------------------------------------------------------------------------

SHAPE = (120, 200)
TRUE = square(30, 50, 60, SHAPE)


def sure_of(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 250, 5).astype(np.uint8)


def with_hole(mask: np.ndarray, top: int = 40, left: int = 70, side: int = 20) -> np.ndarray:
    return mask & ~square(top, left, side, SHAPE)


def test_a_hole_that_all_runs_are_sure_is_none_is_found_and_put_right() -> None:
    found = suspect_of(with_hole(TRUE), [sure_of(TRUE), sure_of(TRUE)])
    assert found is not None and found.box == (40, 70, 60, 90)
    assert 340 < found.px <= 400  # but for the corners, which are not thick
    assert found.share == pytest.approx(found.px * 250 / 255 / (3600 - 400))
    np.testing.assert_array_equal(rle.decode(found.rle_mask, *SHAPE), TRUE)


def test_a_piece_too_much_is_found_too() -> None:
    found = suspect_of(TRUE | square(5, 150, 20, SHAPE), [sure_of(TRUE)])
    assert found is not None and found.box == (5, 150, 25, 170)
    np.testing.assert_array_equal(rle.decode(found.rle_mask, *SHAPE), TRUE)


@pytest.mark.parametrize("mask, runs", [
    (TRUE, [sure_of(TRUE)]),  # nothing wrong
    (with_hole(TRUE), [sure_of(TRUE), sure_of(with_hole(TRUE))]),  # another run agrees with the mask
    (with_hole(TRUE), [np.where(TRUE, 200, 5).astype(np.uint8)]),  # not sure
    (TRUE | square(30, 110, 8, SHAPE), [sure_of(TRUE)]),  # not as thick as the opening
    (cv2.dilate(TRUE.view(np.uint8), np.ones((9, 9), np.uint8)).view(bool), [sure_of(TRUE)]),  # 4 px all around
])  # fmt: skip
def test_what_one_run_doubts_or_what_is_thin_is_no_suspect(mask: np.ndarray, runs: list[np.ndarray]) -> None:
    assert suspect_of(mask, runs) is None


def test_an_empty_mask_of_a_picture_with_an_object_is_put_right() -> None:
    found = suspect_of(np.zeros(SHAPE, bool), [sure_of(TRUE)])
    assert found is not None
    np.testing.assert_array_equal(rle.decode(found.rle_mask, *SHAPE), TRUE)


def test_a_slip_in_one_view_comes_before_what_is_wrong_from_all_sides() -> None:
    names = [f"00000000000{car}_{view:02d}.jpg" for car in "ab" for view in range(1, 17)]
    masks = {name: with_hole(TRUE, side=27 if name == names[16] else 25) if "b_" in name else TRUE for name in names}
    masks[names[15]] = with_hole(TRUE)
    found = suspects_table(names, masks.__getitem__, lambda name: [sure_of(TRUE)])
    assert tuple(found.columns) == suspects.COLUMNS
    assert found["img"].tolist() == ["00000000000a_16.jpg", "00000000000b_01.jpg"]
    assert (found["score"] <= found["share"]).all() and found["score"].is_monotonic_decreasing
    expected = suspect_of(masks[names[15]], [sure_of(TRUE)])
    row = found[found["img"] == names[15]].iloc[0]
    assert expected and (row["score"], row["px"], row["rle_mask"]) == (
        pytest.approx(expected.share, abs=1e-6), expected.px, expected.rle_mask
    )  # fmt: skip


def test_the_views_beside_a_picture_are_those_on_the_turntable() -> None:
    share_of_name = {f"00000000000a_{view:02d}.jpg": 0.0 for view in range(1, 17)}
    share_of_name |= {"00000000000a_01.jpg": 0.5, "00000000000a_16.jpg": 0.3, "00000000000a_15.jpg": 0.2}
    found = scores(share_of_name)
    assert found["00000000000a_01.jpg"] == pytest.approx(0.3)  # 16 and 15 lie beside it, 15 the second worst
    assert found["00000000000a_16.jpg"] == pytest.approx(0.1) and found["00000000000a_02.jpg"] == pytest.approx(-0.3)
    assert scores({"00000000000a_01.jpg": 0.5}) == {"00000000000a_01.jpg": 0.5}  # alone
