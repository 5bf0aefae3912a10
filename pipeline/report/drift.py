"""Compare the masks of a submission with the training masks: area by angle, and which masks are empty or broken.

A network that meets cars, light or colours that it was not trained on shows it here, before any score comes back.
Everything is computed from run lengths, a row at a time: of each of 100,064 rows only a few numbers are stored.
"""
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.carvana import angle_of
from pipeline.data.competition import Competition
from pipeline.data.images import runs_by_row
from pipeline.runtime.problem import Problem
from pipeline.submission.reader import read_rows

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STRAY_FRACTION = 0.01  # of the object's pixels, the most that may lie outside its largest component
TRAINING_RANGE = 1.25  # factor by which an area may exceed, or fall below, all areas of training


@dataclass(frozen=True)
class Shape:
    """Size and connectedness of one mask."""

    area_px: int
    components: int
    stray_px: int  # outside the largest connected component
    touches_border: bool


def measure_shape(bounds: NDArray[np.int64], height: int, width: int) -> Shape:
    """Measure a mask from its runs, int64 (runs, 2), as `rle.parse` returns them. Some 0.5 ms for a real mask."""
    sizes = component_sizes_px(bounds, width)
    area_px = int(sizes.sum())
    row, begin, end = runs_by_row(bounds, width)
    at_border = (row == 0) | (row == height - 1) | (begin == 0) | (end == width)
    return Shape(area_px, len(sizes), area_px - int(sizes[:1].sum()), bool(at_border.any()))


def shapes_table(masks: Iterable[tuple[str, NDArray[np.int64]]], competition: Competition) -> pd.DataFrame:
    """Return one row a mask: `img`, `angle` (1 to 16; 1 of images without) and the fields of Shape.

    masks: (image name, bounds of the runs), for example `submission_masks`.
    """
    height, width, has_angles = competition.height_px, competition.width_px, competition.angles > 1
    rows = [
        (name, angle_of(name) if has_angles else 1, *vars(measure_shape(bounds, height, width)).values())
        for name, bounds in masks
    ]
    return pd.DataFrame(rows, columns=["img", "angle", *(field.name for field in fields(Shape))])


def submission_masks(path: pathlib.Path, competition: Competition) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield (img, bounds of its runs) of each row of a submission. Raise Problem for an invalid row."""
    for line, (name, text) in read_rows(path, competition.submission_header):
        if not competition.pattern(competition.image_suffix).fullmatch(competition.image_file(name)):
            raise Problem(f"{path}, line {line}: {name[:40]!r} is not the name of an image.")
        try:
            yield name, competition.parse(text)
        except ValueError as error:
            raise Problem(f"{path}, line {line}, image {name}: {error}.") from None


def drift_by_angle(test: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """Compare mask areas angle by angle: one row an angle that both tables of `shapes_table` have.

    Columns: `angle`; `test_images`, `training_images`; for each of QUANTILES `test_05` ... `training_95`, in pixels;
    `ks`, the Kolmogorov-Smirnov distance of the two distributions (0: equal, 1: disjoint), and `ks_p`, its p value.
    """
    names = [f"{round(100 * quantile):02d}" for quantile in QUANTILES]
    tables = {"test": test, "training": training}
    rows = []
    for angle in sorted(set(test["angle"]) & set(training["angle"])):
        row: dict[str, float] = {"angle": angle}
        areas = {kind: table.loc[table["angle"] == angle, "area_px"] for kind, table in tables.items()}
        for kind, area in areas.items():
            row[f"{kind}_images"] = len(area)
            row |= {f"{kind}_{name}": float(px) for name, px in zip(names, area.quantile(QUANTILES))}
        ks = stats.ks_2samp(areas["test"], areas["training"])
        rows.append(row | {"ks": float(ks.statistic), "ks_p": float(ks.pvalue)})
    return pd.DataFrame(rows)


def odd_masks(test: pd.DataFrame, training: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `test` with a fault, the worst first; the column `why` names the faults.

    In training a mask is a single component, or nearly, that touches no border, and at each angle its area lies in a
    range. Whatever occurs in some training mask is not a fault in the test set.
    """
    max_stray = max(STRAY_FRACTION, float((training["stray_px"] / training["area_px"].clip(lower=1)).max()))
    areas = training.groupby("angle")["area_px"].agg(["min", "max"])
    lowest, highest = (test["angle"].map(areas[column]) for column in ("min", "max"))
    table = pd.DataFrame({
        "empty": (test["area_px"] == 0) & training["area_px"].all(),
        "touches the border": test["touches_border"] & (not training["touches_border"].any()),
        "smaller than any in training": (test["area_px"] > 0) & (test["area_px"] * TRAINING_RANGE < lowest),
        "larger than any in training": test["area_px"] > TRAINING_RANGE * highest,
        "in several components": test["stray_px"] > max_stray * test["area_px"],
    })  # fmt: skip
    reasons = [", ".join(table.columns[row]) for row in table.to_numpy()]
    odd = test.assign(why=reasons, first_fault=table.to_numpy().argmax(axis=1))[table.any(axis=1)]
    odd = odd.sort_values(["first_fault", "stray_px", "img"], ascending=[True, False, True], ignore_index=True)
    return odd.drop(columns="first_fault")


# --- connected components --------------------------------------------------------------------------------------------


def component_sizes_px(bounds: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Return the size of each connected component, largest first, from run lengths alone.

    bounds: runs of the mask, int64 (runs, 2), as `rle.parse` returns them. Pixels that touch at a corner are connected.
    """
    if len(bounds) == 0:
        return np.empty(0, np.int64)
    row, begin, end = runs_by_row(bounds, width)
    # Number the pixels as if each row had one more column on either side. Then a run touches those runs of the next row
    # that lie between the pixels below it, one more to the left and to the right, and no other row comes in between.
    first, last = begin + row * (width + 2), end + row * (width + 2)
    from_run = np.searchsorted(last, first + width + 1, side="right")
    to_run = np.searchsorted(first, last + width + 3, side="left")
    touching = np.maximum(to_run - from_run, 0)
    above = np.repeat(np.arange(len(row)), touching)
    nth = np.arange(touching.sum()) - np.repeat(np.cumsum(touching) - touching, touching)
    below = np.repeat(from_run, touching) + nth
    touch = coo_array((np.ones(len(above), bool), (above, below)), shape=(len(row), len(row)))
    count, component = connected_components(touch, directed=False)
    sizes = np.bincount(component, weights=end - begin, minlength=count).astype(np.int64)
    return np.sort(sizes)[::-1]
