"""Find masks that may be wrong: networks that never saw a car's make are confident, and its mask disagrees.

Networks make errors along edges, where they are unsure or off by a few pixels, so a suspicious region must be thick.
They also make errors on parts of a car (a dark sill taken for its shadow), and then from several angles, while a slip
of the annotator's hand is in one image: what counts is how much worse an image is than its neighbouring angles. So a
mask that was drawn wrong at three angles in a row is not found. With several runs, a mask is suspect only where all of
them disagree with it.
"""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.carvana import ANGLE_CODES, ANGLES, angle_of, car_of, image_name
from pipeline.masks import rle
from pipeline.report.errors import bounding_box, pad_box
from pipeline.runtime.progress import in_order, progress

CONFIDENT = 0.9  # probability from which a network is confident of the object; up to 1 - CONFIDENT of the background
THICK_PX = 9  # diameter of the disk of the morphological opening; thinner regions vanish
MIN_FRACTION = 0.002  # of the object's pixels, for the region and for the score
COLUMNS = ("img", "score", "fraction", "px", "top", "left", "bottom", "right", "rle_mask")

Encode = Callable[[NDArray[np.bool_]], str]


@dataclass(frozen=True)
class Suspect:
    """A mask with a region that all runs are confident is wrong."""

    fraction: float  # expected wrong pixels in the region, by the least confident run, over the mask's; more is worse
    px: int  # size of the region
    box: tuple[int, int, int, int]  # its bounding box: top, left, bottom, right, the last two exclusive
    rle_mask: str  # run lengths of the mask, corrected in every such region


def find_suspect(
    truth: NDArray[np.bool_], probabilities_u8: Sequence[NDArray[np.uint8]], encode: Encode = rle.encode
) -> Suspect | None:
    """Return the worst region of a mask, or None if no thick region is surely wrong.

    truth: bool (height, width); probabilities_u8: one a run, 0 to 255, of the same size; encode: mask -> run lengths.
    """
    # Probability that a pixel's truth is wrong, by the run that doubts it least: 255 is surely wrong.
    wrong_u8 = np.where(truth, 255 - np.maximum.reduce(probabilities_u8), np.minimum.reduce(probabilities_u8))
    window = pad_box(bounding_box(wrong_u8 >= CONFIDENT * 255), THICK_PX, truth.shape)
    crop_truth, crop_wrong_u8 = truth[window], wrong_u8[window]
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (THICK_PX, THICK_PX))
    thick = cv2.morphologyEx((crop_wrong_u8 >= CONFIDENT * 255).view(np.uint8), cv2.MORPH_OPEN, disk)
    count, label, stats, _ = cv2.connectedComponentsWithStats(thick, connectivity=8)
    truth_px = max(1, int(np.count_nonzero(truth)))
    large = [number for number in range(1, count) if stats[number, cv2.CC_STAT_AREA] >= MIN_FRACTION * truth_px]
    if not large:
        return None
    expected_px = {number: float(crop_wrong_u8[label == number].sum(dtype=np.int64)) / 255 for number in large}
    worst = max(large, key=lambda number: expected_px[number])
    # The rim and corners that the opening removed from a region are wrong too, as far as all runs say so.
    near = cv2.dilate(np.isin(label, large).view(np.uint8), np.ones((THICK_PX, THICK_PX), np.uint8)).view(bool)
    corrected = truth.copy()
    corrected[window] = crop_truth ^ (near & (crop_wrong_u8 >= 128))
    top, left, bottom, right = bounding_box(label == worst)
    down, across = window[0].start, window[1].start
    box = (top + down, left + across, bottom + down, right + across)
    return Suspect(expected_px[worst] / truth_px, int(stats[worst, cv2.CC_STAT_AREA]), box, encode(corrected))


def suspects_table(
    names: Iterable[str], read_truth: Callable[[str], NDArray[np.bool_]],
    read_probabilities: Callable[[str], Sequence[NDArray[np.uint8]]],
    has_angles: bool = True, encode: Encode = rle.encode,
) -> pd.DataFrame:  # fmt: skip
    """Return one row a suspect, the worst first, with the columns COLUMNS: `suspects.csv`, which training can read.

    read_truth: name -> bool (height, width); read_probabilities: name -> what `find_suspect` takes, of each run that
    held that image out. Both are called by several threads at once. has_angles: the names are those of cars; other
    images have no neighbours, and their score is the fraction itself.
    """
    names = list(names)
    results = in_order(lambda name: find_suspect(read_truth(name), read_probabilities(name), encode), names)
    suspect_of_name = dict(zip(names, progress(results, "suspects", total=len(names)), strict=True))
    fraction_of_name = {name: suspect.fraction if suspect else 0.0 for name, suspect in suspect_of_name.items()}
    score_of_name = score_by_neighbours(fraction_of_name) if has_angles else fraction_of_name
    rows = [
        (name, round(score_of_name[name], 6), round(suspect.fraction, 6), suspect.px, *suspect.box, suspect.rle_mask)
        for name, suspect in suspect_of_name.items()
        if suspect and score_of_name[name] >= MIN_FRACTION
    ]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.sort_values(["score", "img"], ascending=[False, True], ignore_index=True)


def score_by_neighbours(fraction_of_name: dict[str, float]) -> dict[str, float]:
    """Subtract from each image's fraction the second largest of the four neighbouring angles."""

    def neighbours(name: str) -> list[float]:
        numbers = [(angle_of(name) - 1 + step) % ANGLES for step in (-2, -1, 1, 2)]
        return [fraction_of_name.get(image_name(car_of(name), ANGLE_CODES[number]), 0.0) for number in numbers]

    return {name: fraction - sorted(neighbours(name))[-2] for name, fraction in fraction_of_name.items()}
