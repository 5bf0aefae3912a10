"""How much of one prediction is wrong, how far from the edge and where most; then one row an image for all of them.

Dice and the pixel counts come from the stored histograms and are exact. Where the errors lie comes from the
probabilities that are stored in 8 bits, on the network's grid or refined at full size; it is NaN for folds without
them.
"""
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.carvana import angle_of, car_of
from pipeline.data.images import upsample_u8
from pipeline.masks.dice import dice_at_thresholds
from pipeline.runtime.progress import in_order, progress

DISTANCES_PX = (1, 2, 4, 8)  # from the true edge; an error beyond the last one is far
WORST_WINDOW_PX = 96  # side of the square in which errors are counted to find where they are densest


@dataclass(frozen=True)
class Errors:
    """Errors of one image. The five `errors_..._px` add up to all wrong pixels."""

    dice: float
    truth_px: int
    predicted_px: int
    false_object_px: int  # predicted, but background in truth
    false_background_px: int
    errors_1_px: int  # at most 1 from the nearest pixel whose true class is the predicted one
    errors_2_px: int  # more than 1, at most 2
    errors_4_px: int
    errors_8_px: int
    errors_far_px: int
    largest_error_px: int  # the largest connected component of wrong pixels
    worst_row: int  # centre of the errors in the square with most of them; without errors, centre of the object
    worst_column: int
    worst_px: int  # wrong pixels in that square
    components: int  # connected components of the prediction; pixels that touch at a corner are connected


COUNT_COLUMNS = ("dice", "truth_px", "predicted_px", "false_object_px", "false_background_px")
PLACE_COLUMNS = tuple(field.name for field in fields(Errors) if field.name not in COUNT_COLUMNS)
COARSE_PREFIX = "coarse_"  # of the same figures before a prediction was refined
COARSE_COLUMNS = tuple(
    COARSE_PREFIX + field.name for field in fields(Errors)
    if field.name in ("dice", "truth_px", "predicted_px") or field.name.startswith("errors_")
)  # fmt: skip


# --- one image -------------------------------------------------------------------------------------------------------


def measure_errors(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> Errors:
    """Compare two masks, bool (height, width). Takes some 15 ms of one core for a real image of 1918x1280."""
    top, left, bottom, right = box = bounding_box(truth | predicted)
    window = pad_box(box, 1, truth.shape)  # all of it is background there, so cropping changes no distance
    first_row, first_column = window[0].start, window[1].start
    crop_truth, crop_predicted = truth[window], predicted[window]
    wrong = crop_truth ^ crop_predicted
    false_object = wrong & crop_predicted
    truth_px, predicted_px = int(np.count_nonzero(crop_truth)), int(np.count_nonzero(crop_predicted))
    false_object_px, wrong_px = int(np.count_nonzero(false_object)), int(np.count_nonzero(wrong))
    total = truth_px + predicted_px
    row, column, worst_px = find_worst_spot(wrong, WORST_WINDOW_PX)
    if wrong_px == 0:
        row, column = (top + bottom) // 2 - first_row, (left + right) // 2 - first_column
    within_1, within_2, within_4, within_8, far = count_by_distance(crop_truth, false_object, wrong & crop_truth)
    return Errors(
        dice=1.0 if total == 0 else (total - wrong_px) / total, truth_px=truth_px, predicted_px=predicted_px,
        false_object_px=false_object_px, false_background_px=wrong_px - false_object_px,
        errors_1_px=within_1, errors_2_px=within_2, errors_4_px=within_4, errors_8_px=within_8, errors_far_px=far,
        largest_error_px=largest_component_px(wrong),
        worst_row=row + first_row, worst_column=column + first_column, worst_px=worst_px,
        components=cv2.connectedComponents(crop_predicted.view(np.uint8), connectivity=8)[0] - 1,
    )  # fmt: skip


def bounding_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of the set pixels, the last two exclusive; the whole image for an empty mask."""
    left, top, columns, rows = cv2.boundingRect(mask.view(np.uint8))
    return (top, left, top + rows, left + columns) if rows else (0, 0, *mask.shape)


def pad_box(box: tuple[int, int, int, int], by_px: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """Return rows and columns of a box with `by_px` more on each side, within an image of that shape."""
    top, left, bottom, right = box
    rows = slice(max(0, top - by_px), min(shape[0], bottom + by_px))
    return rows, slice(max(0, left - by_px), min(shape[1], right + by_px))


def count_by_distance(
    truth: NDArray[np.bool_], false_object: NDArray[np.bool_], false_background: NDArray[np.bool_]
) -> tuple[int, ...]:
    """Count wrong pixels by distance to the nearest pixel of the predicted class: bands DISTANCES_PX, and beyond.

    Beside the edge that distance is 1. Without any such pixel, an error is far.
    """
    distances = [
        cv2.distanceTransform(away.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[wrong]
        for away, wrong in ((~truth, false_object), (truth, false_background))
        if wrong.any()
    ]
    bands = np.digitize(np.concatenate([*distances, np.empty(0, np.float32)]), DISTANCES_PX, right=True)
    return tuple(np.bincount(bands, minlength=len(DISTANCES_PX) + 1).tolist())


def find_worst_spot(wrong: NDArray[np.bool_], side_px: int) -> tuple[int, int, int]:
    """Return row and column of the centre of the errors in the square with most of them, and how many it holds."""
    size, border = (side_px, side_px), cv2.BORDER_CONSTANT
    counts = cv2.boxFilter(wrong.view(np.uint8), cv2.CV_32F, size, normalize=False, borderType=border)
    row, column = np.unravel_index(int(counts.argmax()), counts.shape)
    top, left = max(0, row - side_px // 2), max(0, column - side_px // 2)
    rows, columns = np.nonzero(wrong[top : row + side_px // 2, left : column + side_px // 2])
    if not len(rows):
        return int(row), int(column), 0
    return int(top + rows.mean()), int(left + columns.mean()), len(rows)


def largest_component_px(mask: NDArray[np.bool_]) -> int:
    sizes = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    return int(sizes.max(initial=0))


# --- all images ------------------------------------------------------------------------------------------------------


def count_errors(names: Sequence[str], histograms: NDArray[np.int32], threshold_u8: int) -> pd.DataFrame:
    """Return `img` and COUNT_COLUMNS of each image at a threshold, 0 to 255, from histograms (images, 2, 256)."""
    off, on = histograms.astype(np.int64).transpose(1, 0, 2)
    false_object, true_object = off[:, threshold_u8:].sum(axis=1), on[:, threshold_u8:].sum(axis=1)
    return pd.DataFrame({
        "img": list(names), "dice": dice_at_thresholds(histograms)[:, threshold_u8], "truth_px": on.sum(axis=1),
        "predicted_px": false_object + true_object, "false_object_px": false_object,
        "false_background_px": on.sum(axis=1) - true_object,
    })  # fmt: skip


ReadMask = Callable[[str], NDArray[np.bool_]]  # image name -> (height, width); called by several threads at once


def add_places(
    counts: pd.DataFrame, read_truth: ReadMask, read_prediction: ReadMask | None, read_coarse: ReadMask | None = None
) -> pd.DataFrame:
    """Add PLACE_COLUMNS to the table of `count_errors`; NaN without a read_prediction.

    read_coarse: reads the predictions before they were refined; adds COARSE_COLUMNS. Takes some 25 ms an image on two
    cores with reading.
    """
    if read_prediction is None:
        return counts.assign(**{column: np.nan for column in PLACE_COLUMNS})

    def measure(name: str) -> dict[str, float]:
        truth = read_truth(name)
        row: dict[str, float] = asdict(measure_errors(truth, read_prediction(name)))
        if read_coarse is not None:
            before = asdict(measure_errors(truth, read_coarse(name)))
            row |= {column: before[column.removeprefix(COARSE_PREFIX)] for column in COARSE_COLUMNS}
        return row

    rows = list(progress(in_order(measure, counts["img"]), "errors", total=len(counts)))
    columns = [*PLACE_COLUMNS, *(COARSE_COLUMNS if read_coarse is not None else ())]
    return pd.concat((counts, pd.DataFrame(rows, columns=columns)), axis=1)


def add_car_groups(table: pd.DataFrame, fold: int, make_of_car: Mapping[str, str]) -> pd.DataFrame:
    """Put `img, car, group, angle, fold` first: a car's group is its make, "" if unknown; angles are 1 to 16."""
    car, angle = table["img"].map(car_of), table["img"].map(angle_of)
    first = {"img": table["img"], "car": car, "group": car.map(lambda one: make_of_car.get(one, "")), "angle": angle}
    return pd.DataFrame(first).assign(fold=fold).join(table.drop(columns="img"))


def add_image_groups(table: pd.DataFrame, fold: int, group_of_image: Mapping[str, str]) -> pd.DataFrame:
    """Put `img, group, fold` first, for images that do not show the competition's cars; group "" if there is none."""
    first = {"img": table["img"], "group": table["img"].map(lambda name: group_of_image.get(name, ""))}
    return pd.DataFrame(first).assign(fold=fold).join(table.drop(columns="img"))


def upsample_stored(stored_u8: NDArray[np.uint8], scale: int, height: int, width: int) -> NDArray[np.uint8]:
    """Upsample a probability stored at 1/scale to full size; 0 to 255, uint8 (height, width)."""
    return upsample_u8(np.divide(stored_u8, 255, dtype=np.float32), scale, height, width)
