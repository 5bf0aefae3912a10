"""Masks that may be wrong: where networks that never saw a car's make are sure, and its mask says otherwise.

A network is wrong along edges, where it is unsure or off by a few pixels, so a suspicious place must be thick. It is
also wrong about parts of a car (a dark sill taken for its shadow), and then from several sides, while a slip of the
hand that drew the masks is in one picture: what counts is how much worse a picture is than the views beside it. So what
was drawn wrong in three views in a row is not found. Several runs accuse a mask only where all of them do.
"""
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.report.errors import box_around
from pipeline.carvana import ANGLE_CODES, ANGLES, car_of, image_name, angle_of
from pipeline.masks import rle
from pipeline.runtime.progress import in_order

SURE = 0.9  # a probability that is sure of the object; 1 - SURE of the background
THICK_PX = 9  # an opening by a disk of this diameter leaves only what is as thick
LEAST_FRACTION = 0.002  # of the object's pixels, for the place and for the score
COLUMNS = ("img", "score", "share", "px", "top", "left", "bottom", "right", "rle_mask")


@dataclass(frozen=True)
class Suspect:
    """A mask with a place that all runs are sure is wrong."""

    fraction: float  # wrong pixels that the least accusing run expects there, as a share of the mask's; more is worse
    px: int  # of that place
    box: tuple[int, int, int, int]  # around it: top, left, bottom, right, the last two behind it
    rle_mask: str  # run lengths of the mask with each such place as the runs have it


def suspect_of(truth: NDArray[np.bool_], probabilities_u8: Sequence[NDArray[np.uint8]]) -> Suspect | None:
    """truth: bool (height, width); probabilities_u8: of each run, 0 to 255, of that size. None: nothing accuses it."""
    # Of each pixel what the run that accuses it least says: 255 is surely wrong.
    accused = np.where(truth, 255 - np.maximum.reduce(probabilities_u8), np.minimum.reduce(probabilities_u8))
    window = padded(box_around(accused >= SURE * 255), THICK_PX, truth.shape)
    its_truth, its_accused = truth[window], accused[window]
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (THICK_PX, THICK_PX))
    thick = cv2.morphologyEx((its_accused >= SURE * 255).view(np.uint8), cv2.MORPH_OPEN, disk)
    count, place, stats, _ = cv2.connectedComponentsWithStats(thick, connectivity=8)
    truth_px = max(1, int(np.count_nonzero(truth)))
    large = [number for number in range(1, count) if stats[number, cv2.CC_STAT_AREA] >= LEAST_FRACTION * truth_px]
    if not large:
        return None
    expected_px = {number: float(its_accused[place == number].sum(dtype=np.int64)) / 255 for number in large}
    worst = max(large, key=lambda number: expected_px[number])
    # What the opening took from a place's rim and corners is wrong too, up to where some run thinks otherwise.
    near = cv2.dilate(np.isin(place, large).view(np.uint8), np.ones((THICK_PX, THICK_PX), np.uint8)).view(bool)
    righted = truth.copy()
    righted[window] = its_truth ^ (near & (its_accused >= 128))
    top, left, bottom, right = box_around(place == worst)
    down, across = window[0].start, window[1].start
    return Suspect(
        expected_px[worst] / truth_px,
        int(stats[worst, cv2.CC_STAT_AREA]),
        (top + down, left + across, bottom + down, right + across),
        rle.encode(righted),
    )


def padded(box: tuple[int, int, int, int], by_px: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The rows and columns of a box and `by_px` more on each side, within a picture of that shape."""
    top, left, bottom, right = box
    rows = slice(max(0, top - by_px), min(shape[0], bottom + by_px))
    return rows, slice(max(0, left - by_px), min(shape[1], right + by_px))


def suspects_table(
    names: Iterable[str],
    read_truth: Callable[[str], NDArray[np.bool_]],
    read_probabilities: Callable[[str], Sequence[NDArray[np.uint8]]],
    count: Callable[[Iterator[Suspect | None]], Iterator[Suspect | None]] = lambda found: found,
    have_angles: bool = True,
) -> pd.DataFrame:
    """One row a suspect, the worst first, with the columns COLUMNS: `suspects.csv`, which training can be given.

    read_truth: name -> bool (height, width); read_probabilities: name -> what `suspect_of` takes of each run that held
    that picture out. Both are called by several threads at once. count: sees each picture's result come, for a bar.
    have_views: names are those of cars; of other pictures, which have none beside them, the score is the share.
    """
    names = list(names)
    found = in_order(lambda name: suspect_of(read_truth(name), read_probabilities(name)), names)
    suspect_of_name = dict(zip(names, count(found), strict=True))
    share_of_name = {name: suspect.fraction if suspect else 0.0 for name, suspect in suspect_of_name.items()}
    score_of_name = scores(share_of_name) if have_angles else share_of_name
    rows = [
        (name, round(score_of_name[name], 6), round(suspect.fraction, 6), suspect.px, *suspect.box, suspect.rle_mask)
        for name, suspect in suspect_of_name.items()
        if suspect and score_of_name[name] >= LEAST_FRACTION
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["score", "img"], ascending=[False, True], ignore_index=True)


def scores(share_of_name: dict[str, float]) -> dict[str, float]:
    """By how much each picture is more suspicious than the second most suspicious of the four views beside it."""

    def beside(name: str) -> list[float]:
        numbers = [(angle_of(name) - 1 + step) % ANGLES for step in (-2, -1, 1, 2)]
        return [share_of_name.get(image_name(car_of(name), ANGLE_CODES[number]), 0.0) for number in numbers]

    return {name: fraction - sorted(beside(name))[-2] for name, fraction in share_of_name.items()}
