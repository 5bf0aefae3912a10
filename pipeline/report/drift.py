"""Masks of a submission against those of training: their area from each side, and which are empty or broken.

A network that meets cars, light or colours that it was not trained on shows it here, before any score comes back.
All is told from run lengths, a row at a time: of 100,064 rows only a line of numbers each is kept.
"""
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline import carvana
from pipeline.data.images import runs_by_row
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.submission.reader import read_rows

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRAY_FRACTION = 0.01  # of an object's pixels, which more than one piece may have outside the largest
TRAINING_RANGE = 1.25  # how much larger or smaller than all of training an area may be


@dataclass(frozen=True)
class Shape:
    """What one mask looks like."""

    area_px: int
    pieces: int
    stray_px: int  # outside the largest piece
    touches_border: bool


def shape_of(bounds: NDArray[np.int64], height: int, width: int) -> Shape:
    """bounds: of the mask's runs, int64 array (runs, 2), as `rle.parse` gives them. Some 0.5 ms for a real mask."""
    sizes = piece_sizes_px(bounds, width)
    area_px = int(sizes.sum())
    row, begin, end = runs_by_row(bounds, width)
    at_border = (row == 0) | (row == height - 1) | (begin == 0) | (end == width)
    return Shape(area_px, len(sizes), area_px - int(sizes[:1].sum()), bool(at_border.any()))


def shapes_table(masks: Iterable[tuple[str, NDArray[np.int64]]], height: int, width: int) -> pd.DataFrame:
    """One row a mask: `img`, `car`, `view` (1 to 16) and the fields of Shape.

    masks: (name of the picture, bounds of the runs), for example `submission_masks`.
    """
    names: list[str] = []
    shapes: list[tuple[int, int, int, bool]] = []
    for name, bounds in masks:
        names.append(name)
        shape = shape_of(bounds, height, width)
        shapes.append((shape.area_px, shape.pieces, shape.stray_px, shape.touches_border))
    table = pd.DataFrame(shapes, columns=["area_px", "pieces", "stray_px", "touches_border"])
    table.insert(0, "img", names)
    table.insert(1, "car", [carvana.car_of(name) for name in names])
    table.insert(2, "view", [carvana.angle_of(name) for name in names])
    return table


def submission_masks(path: pathlib.Path) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """(img, bounds of its runs) of each row of a submission, read as they are asked for; Problem for a wrong row."""
    for line, (name, text) in read_rows(path, carvana.SUBMISSION_HEADER):
        if not carvana.IMAGE_NAME.fullmatch(name):
            raise Problem(f"{path}, line {line}: {name[:40]!r} is no name of a picture.")
        try:
            yield name, rle.parse(text, carvana.HEIGHT_PX * carvana.WIDTH_PX)
        except ValueError as error:
            raise Problem(f"{path}, line {line}, image {name}: {error}.") from None


def drift_by_angle(test: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """The area of the masks from each side: one row a view that both tables of `shapes_table` have.

    Columns: `view`; `test_images`, `training_images`; for each of QUANTILES `test_05` ... `training_95`, in pixels;
    `ks`, the largest distance between the two distributions (Kolmogorov and Smirnov's; 0: the same, 1: apart), and
    `ks_p`, how often chance alone would set them so far apart.
    """
    names = [f"{round(100 * quantile):02d}" for quantile in QUANTILES]
    rows = []
    for view in sorted(set(test["view"]) & set(training["view"])):
        row: dict[str, float] = {"view": view}
        tables = {"test": test, "training": training}
        areas = {kind: table.loc[table["view"] == view, "area_px"] for kind, table in tables.items()}
        for kind, area in areas.items():
            row[f"{kind}_images"] = len(area)
            row |= {f"{kind}_{name}": float(px) for name, px in zip(names, area.quantile(QUANTILES))}
        tested = stats.ks_2samp(areas["test"], areas["training"])
        row |= {"ks": float(tested.statistic), "ks_p": float(tested.pvalue)}
        rows.append(row)
    return pd.DataFrame(rows)


def odd_masks(test: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """The rows of `test` with something that is wrong with them in words, `why`, the worst first.

    In training a mask is one piece, or nearly, that touches no border, and from each side its area lies in a range.
    What some mask of training is like is no fault in the test set.
    """
    stray_at_most = max(STRAY_FRACTION, float((training["stray_px"] / training["area_px"].clip(lower=1)).max()))
    areas = training.groupby("view")["area_px"].agg(["min", "max"])
    lowest, highest = (test["view"].map(areas[column]) for column in ("min", "max"))
    faults = {
        "empty": test["area_px"] == 0,
        "touches the border": test["touches_border"] & (not training["touches_border"].any()),
        "smaller than any in training": (test["area_px"] > 0) & (test["area_px"] * TRAINING_RANGE < lowest),
        "larger than any in training": test["area_px"] > TRAINING_RANGE * highest,
        "in several pieces": test["stray_px"] > stray_at_most * test["area_px"],
    }
    table = pd.DataFrame(faults)
    words = [", ".join(table.columns[row]) for row in table.to_numpy()]
    found = test.assign(why=words, first_fault=table.to_numpy().argmax(axis=1))[table.any(axis=1)]
    found = found.sort_values(["first_fault", "stray_px", "img"], ascending=[True, False, True], ignore_index=True)
    return found.drop(columns="first_fault")


# --- connected pieces ------------------------------------------------------------------------------------------------

# The connected pieces of a mask, from its run lengths; no pixel is touched.


def piece_sizes_px(bounds: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Pixels of each connected piece, the largest first; pixels that touch at a corner are connected.

    bounds: of the mask's runs, int64 array (runs, 2), as `rle.parse` gives them.
    """
    if len(bounds) == 0:
        return np.empty(0, np.int64)
    row, begin, end = runs_by_row(bounds, width)
    # Numbered as if each row had a column more on either side, a run touches those of the next row that lie
    # between the pixels below it, one more to the left and to the right; no other row comes in between.
    first, last = begin + row * (width + 2), end + row * (width + 2)
    from_run = np.searchsorted(last, first + width + 1, side="right")
    to_run = np.searchsorted(first, last + width + 3, side="left")
    touching = np.maximum(to_run - from_run, 0)
    above = np.repeat(np.arange(len(row)), touching)
    nth = np.arange(touching.sum()) - np.repeat(np.cumsum(touching) - touching, touching)
    below = np.repeat(from_run, touching) + nth
    touch = coo_array((np.ones(len(above), bool), (above, below)), shape=(len(row), len(row)))
    pieces, piece = connected_components(touch, directed=False)
    sizes = np.bincount(piece, weights=end - begin, minlength=pieces).astype(np.int64)
    return np.sort(sizes)[::-1]
