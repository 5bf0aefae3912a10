"""One prediction against its mask: how much is wrong, how far from the edge, and where it is worst."""
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

DISTANCES_PX = (1, 2, 4, 8)  # from the truth's edge, beyond which an error is far
WORST_WINDOW_PX = 96  # side of the square in which errors are dense


@dataclass(frozen=True)
class Errors:
    """Of one picture. The five `errors_..._px` share out all pixels that are wrong."""

    dice: float
    truth_px: int
    predicted_px: int
    false_object_px: int  # predicted, but background in truth
    false_background_px: int
    errors_1_px: int  # no further than 1 from the nearest pixel that is truly what was predicted
    errors_2_px: int  # over 1, no further than 2
    errors_4_px: int
    errors_8_px: int
    errors_far_px: int
    largest_error_px: int  # the largest connected place that is wrong
    worst_row: int  # the middle of the errors in the square that has most of them; without errors, that of the object
    worst_column: int
    worst_px: int  # how many are in that square
    pieces: int  # connected ones of the prediction


def errors_of(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Errors:
    """truth, predicted: bool (height, width). Some 15 ms of one core for a real picture of 1918x1280."""
    height, width = truth.shape
    top, left, bottom, right = box_around(truth | predicted)
    # One more on each side: there all is background, so that no distance within is cut.
    first_row, first_column = max(0, top - 1), max(0, left - 1)
    window = np.s_[first_row : min(height, bottom + 1), first_column : min(width, right + 1)]
    its_truth, its_prediction = truth[window], predicted[window]
    wrong = its_truth ^ its_prediction
    false_object = wrong & its_prediction
    truth_px, predicted_px = int(np.count_nonzero(its_truth)), int(np.count_nonzero(its_prediction))
    false_object_px, wrong_px = int(np.count_nonzero(false_object)), int(np.count_nonzero(wrong))
    total = truth_px + predicted_px
    row, column, worst_px = worst_spot(wrong, WORST_WINDOW_PX)
    if wrong_px == 0:
        row, column = (top + bottom) // 2 - first_row, (left + right) // 2 - first_column
    within_1, within_2, within_4, within_8, far = by_distance(its_truth, false_object, wrong & its_truth)
    return Errors(
        1.0 if total == 0 else (total - wrong_px) / total,
        truth_px,
        predicted_px,
        false_object_px,
        wrong_px - false_object_px,
        within_1,
        within_2,
        within_4,
        within_8,
        far,
        largest_piece_px(wrong),
        row + first_row,
        column + first_column,
        worst_px,
        pieces(its_prediction),
    )


def box_around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what is set, the last two behind it; the whole picture where nothing is."""
    left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    return (top, left, top + rows, left + columns) if rows else (0, 0, *mask.shape)


def by_distance(
    truth: NDArray[np.bool_], false_object: NDArray[np.bool_], false_background: NDArray[np.bool_]
) -> tuple[int, ...]:
    """Wrong pixels by their distance to the nearest pixel that truly is what was predicted: DISTANCES_PX, and beyond.

    Beside the edge that distance is 1. Where there is no such pixel at all, it is far.
    """
    distances = [
        cv2.distanceTransform(away.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[wrong]
        for away, wrong in ((~truth, false_object), (truth, false_background))
        if wrong.any()
    ]
    bands = np.digitize(np.concatenate([*distances, np.empty(0, np.float32)]), DISTANCES_PX, right=True)
    return tuple(np.bincount(bands, minlength=len(DISTANCES_PX) + 1).tolist())


def worst_spot(wrong: NDArray[np.bool_], side_px: int) -> tuple[int, int, int]:
    """Row and column of the middle of the errors in the square that has most of them, and how many it has."""
    counts = cv2.boxFilter(
        wrong.view(np.uint8), cv2.CV_32F, (side_px, side_px), normalize=False, borderType=cv2.BORDER_CONSTANT
    )
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    top, left = max(0, row - side_px // 2), max(0, column - side_px // 2)
    rows, columns = np.nonzero(wrong[top : row + side_px // 2, left : column + side_px // 2])
    if not len(rows):
        return int(row), int(column), 0
    return int(top + rows.mean()), int(left + columns.mean()), len(rows)


def largest_piece_px(mask: NDArray[np.bool_]) -> int:
    sizes = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    return int(sizes.max(initial=0))


def pieces(mask: NDArray[np.bool_]) -> int:
    """How many connected pieces a mask has; pixels that touch at a corner are connected."""
    return cv2.connectedComponents(mask.view(np.uint8), connectivity=8)[0] - 1
