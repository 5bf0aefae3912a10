"""All held-out pictures through `errors_of`: one row a picture, the table that the report filters and sorts.

Dice and the pixel counts come from the histograms and are exact. Where the errors lie comes from the probabilities
that were kept in 8 bits on the network's grid, and is missing (NaN) for folds without them.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.report.errors import Errors, errors_of
from pipeline.carvana import car_of, angle_of
from pipeline.data.images import upsample_u8
from pipeline.masks.dice import dice_at_thresholds
from pipeline.runtime.progress import in_order

COUNTED = ("dice", "truth_px", "predicted_px", "false_object_px", "false_background_px")
PLACED = tuple(field.name for field in fields(Errors) if field.name not in COUNTED)
COLUMNS = ("img", "car", "make", "view", "fold", *COUNTED, *PLACED)


def counts_table(names: Sequence[str], histograms: NDArray[np.int32], threshold_u8: int) -> pd.DataFrame:
    """What the histograms (images, 2, 256) tell of each picture at a cut, 0 to 255: `img` and the columns COUNTED."""
    off, on = histograms.astype(np.int64).transpose(1, 0, 2)
    false_object, true_object = off[:, threshold_u8:].sum(axis=1), on[:, threshold_u8:].sum(axis=1)
    return pd.DataFrame({
        "img": list(names),
        "dice": dice_at_thresholds(histograms)[:, threshold_u8],
        "truth_px": on.sum(axis=1),
        "predicted_px": false_object + true_object,
        "false_object_px": false_object,
        "false_background_px": on.sum(axis=1) - true_object,
    })  # fmt: skip


def with_places(
    counts: pd.DataFrame,
    read_truth: Callable[[str], NDArray[np.bool_]],
    read_prediction: Callable[[str], NDArray[np.bool_]] | None,
    count: Callable[[Iterator[Errors]], Iterator[Errors]] = lambda found: found,
) -> pd.DataFrame:
    """The table of `counts_table` with the columns PLACED; NaN where there is no prediction to be read.

    read_truth, read_prediction: name of a picture -> bool (height, width); called by several threads at once.
    count: sees each result come, for a bar. Some 25 ms a picture on two cores, the reading included.
    """
    if read_prediction is None:
        return counts.assign(**{column: np.nan for column in PLACED})
    found = in_order(lambda name: errors_of(read_truth(name), read_prediction(name)), counts["img"])
    places = pd.DataFrame([asdict(errors) for errors in count(found)], columns=[field.name for field in fields(Errors)])
    return pd.concat((counts, places[list(PLACED)]), axis=1)


def with_groups(table: pd.DataFrame, fold: int, make_of_car: dict[str, str]) -> pd.DataFrame:
    """With `car`, `make`, `view` (1 to 16) and `fold` of each picture, in the order COLUMNS."""
    car = [car_of(name) for name in table["img"]]
    view = [angle_of(name) for name in table["img"]]
    make = [make_of_car.get(one, "") for one in car]
    return table.assign(car=car, make=make, view=view, fold=fold)[list(COLUMNS)]


def with_image_groups(table: pd.DataFrame, fold: int, group_of_image: dict[str, str]) -> pd.DataFrame:
    """The same of pictures that are no cars: `make` is a picture's group, "" where it has none, and `view` is 0.

    `car`, of which pictures are no independent samples, is that group, or else the picture itself.
    """
    group = [group_of_image.get(name, "") for name in table["img"]]
    car = [one or name for one, name in zip(group, table["img"])]
    found = table.assign(car=car, make=group, view=0, fold=fold)
    return found[["img", "car", "make", "view", "fold", *(column for column in table.columns if column != "img")]]


def without_car_columns(images: pd.DataFrame) -> pd.DataFrame:
    """The table of pictures that have a group in the place of a make, and no view."""
    return images.drop(columns=["car", "view"]).rename(columns={"make": "group"})


def probability_of(kept_u8: NDArray[np.uint8], scale: int, height: int, width: int) -> NDArray[np.uint8]:
    """A probability that was kept at 1/scale -> at full size, 0 to 255, uint8 (height, width)."""
    return upsample_u8(np.divide(kept_u8, 255, dtype=np.float32), scale, height, width)


def mask_of(kept_u8: NDArray[np.uint8], scale: int, height: int, width: int, threshold_u8: int) -> NDArray[np.bool_]:
    """A probability that was kept at 1/scale -> the mask at full size, bool (height, width)."""
    return probability_of(kept_u8, scale, height, width) >= threshold_u8
