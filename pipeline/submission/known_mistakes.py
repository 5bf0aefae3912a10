"""Recognise, in the masks of a submission, the best-known mistakes: Kaggle scores them without a word.

Three kinds of evidence, the first two from a sample of the rows:

- The distance between the starts of runs. An object's edge goes down through many rows, so that most often a run
  begins exactly one row after another one. If that distance is not the length of a row, the masks have another size, or
  their pixels are counted in the other order. This needs nothing but the submission.
- Dice with the mean of the training masks of the same angle. If it is clearly higher after a mistake has been
  corrected, such as masks upside down, that mistake has been made. This needs training masks, seen from angles.
- Starts counted from 0 shift a mask by one pixel. Masks that touch the first column show it: their runs begin at the
  last pixel of the row before. So do 1.5 % of Carvana's masks; if those of a network do not, nothing tells.

Figures of right and wrong submissions, from which the limits below were chosen, and the command that measures them:
docs/EXPERIMENTS.md.
"""
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.carvana import angle_of
from pipeline.data.competition import Competition, Masks
from pipeline.data.images import coverage_of_runs
from pipeline.runtime.problem import Problem

SAMPLE_ROWS = 256  # of a submission, whether it has 800 rows or 100,064
TRAINING_CARS = 32  # in each mean mask
SCALE = 8  # of the grid on which masks are compared
RUNS_AHEAD = 8  # runs after each run whose distances are counted
MIN_FRACTION = 0.2  # of the runs that begin one row after another; of real masks 0.4
MIN_FACTOR = 1.4  # how many times as many as begin one row of the right length after another ...
MIN_FACTOR_OF_PART = 1.1  # ... if that holds whole wrong rows: runs two rows apart are nearly as many as one row apart
MIN_DICE = 0.55  # with the mean masks, after correction; of real masks 0.75, of a network's with Dice 0.8 0.66
MIN_GAIN = 0.015  # of Dice by a correction; of mistakes at least 0.032, of right masks at most 0.008
MIN_SIGMAS = 3.0  # of that gain, in standard errors; with 16 masks of real mistakes 3.8
MIN_DIFFERENCE = 0.05  # of Dice between the best angle and others; of real masks 0.1, of one constant mask 0
OWN_IF_RIGHT, OWN_IF_WRONG = 0.5, 0.25  # of that difference, for the own angle; of real masks 0.9, in any order 0.06
MIN_ROWS = 16  # fewer masks, or fewer runs at the first column, give no evidence

Bounds = NDArray[np.int64]  # (runs, 2) of `[begin, end)`, in the order in which the competition counts pixels
Coverage = NDArray[np.float32]  # (rows, columns) at 1/SCALE, 0 to 1
Coverages = NDArray[np.float32]  # (masks, rows, columns)


@dataclass(frozen=True)
class Mistake:
    """One mistake, and how to correct it."""

    sentence: str
    correct: Callable[[Coverages], Coverages] = lambda masks: masks
    other_order: bool = False  # whether the pixels are counted in the other order
    neighbour: int = 0  # whose mask it is: that of the image so many rows after its own in the sample submission


MISTAKES = (
    Mistake("the pixels are counted in the wrong order", other_order=True),
    Mistake("the masks are upside down", lambda masks: masks[:, ::-1]),
    Mistake("left and right are exchanged", lambda masks: masks[:, :, ::-1]),
    Mistake("the masks are rotated by 180 degrees", lambda masks: masks[:, ::-1, ::-1]),
    Mistake("the masks cover the background instead of the object", lambda masks: 1 - masks),
    Mistake("each mask is that of the next image, so that all names are one row off", neighbour=1),
    Mistake("each mask is that of the image before, so that all names are one row off", neighbour=-1),
)


def sample_names(names: Sequence[str]) -> list[str]:
    """Choose SAMPLE_ROWS of the names, or all of fewer: drawn from all, always the same ones, in their order."""
    chosen = np.random.default_rng(0).permutation(len(names))[:SAMPLE_ROWS]
    return [names[i] for i in np.sort(chosen)]


def find_mistake(
    masks: Mapping[str, Bounds], names: Sequence[str], competition: Competition, means: Mapping[int, Coverage],
    first_column: tuple[int, int] = (0, 0),
) -> str | None:  # fmt: skip
    """Say in a clause which known mistake a submission shows, and the evidence; None if it shows none.

    masks: of the images of `sample_names`. names: of all images, in the order of the sample submission. means: what
    `mean_masks` returns; {} if there are no training masks. first_column: sums of `count_first_column`, of all masks.
    """
    masks = {name: bounds for name, bounds in masks.items() if len(bounds)}
    if len(masks) < MIN_ROWS:
        return None
    runs = list(masks.values())
    mistake = describe_row_length(runs, competition) or describe_first_column(*first_column, competition)
    return mistake or (describe_disagreement(masks, names, competition, means) if cover(means, names) else None)


def cover(means: Mapping[int, Coverage], names: Sequence[str]) -> bool:
    """Whether there is a mean mask of the angle of each image; names of other images have no angle."""
    try:
        return bool(means) and {angle_of(name) for name in names} <= means.keys()
    except ValueError:
        return False


# --- the distance between runs ---------------------------------------------------------------------------------------


def describe_row_length(masks: Sequence[Bounds], competition: Competition) -> str | None:
    """Say that the rows, or columns, of the masks have another length than those of the competition."""
    height, width = competition.height_px, competition.width_px
    expected, other = (height, width) if competition.column_major else (width, height)
    length, fraction, of_expected = most_frequent_distance(masks, expected)
    factor = MIN_FACTOR if expected % length else MIN_FACTOR_OF_PART
    if length == expected or fraction < max(MIN_FRACTION, factor * of_expected):
        return None
    evidence = f"{fraction:.0%} of the runs begin {length} pixels after another one, and {of_expected:.0%} {expected}"
    side = "high" if competition.column_major else "wide"
    if length == other:
        wrong, right = "along the rows", "down the columns"
        if not competition.column_major:
            wrong, right = right, wrong
        order = f"the pixels are counted {wrong} instead of {right}"
        return f"{order}, or the masks are {length} pixels {side} ({evidence})"
    return f"the masks are {length} pixels {side} instead of {expected} ({evidence})"


def most_frequent_distance(masks: Sequence[Bounds], expected: int) -> tuple[int, float, float]:
    """Return the most frequent distance between starts of runs, the fraction of runs at it, and that at `expected`.

    Only distances from a quarter of `expected` to twice as much count: smaller ones lie inside a row.
    """
    begins = [bounds[:, 0] for bounds in masks]
    counts, largest = np.zeros(2 * expected + 1, np.int64), 2 * expected
    for begin in begins:
        for ahead in range(1, RUNS_AHEAD + 1):
            distances = begin[ahead:] - begin[:-ahead]
            counts += np.bincount(distances[distances <= largest], minlength=largest + 1)
    length = expected // 4 + int(counts[expected // 4 :].argmax())
    runs = max(1, sum(map(len, begins)))
    fractions = [sum(np.isin(begin + px, begin).sum() for begin in begins) / runs for px in (length, expected)]
    return length, float(fractions[0]), float(fractions[1])


def count_first_column(bounds: Bounds, competition: Competition) -> tuple[int, int]:
    """Count the runs that begin at the first pixel of a row, and those that begin one before it and go on in the row.

    A row is a column where pixels are counted down the columns.
    """
    row = competition.height_px if competition.column_major else competition.width_px
    begin = bounds[:, 0] % row
    is_longer = bounds[:, 1] - bounds[:, 0] > 1
    return int(np.count_nonzero(begin == 0)), int(np.count_nonzero(is_longer & (begin == row - 1)))


def describe_first_column(at_first: int, before: int, competition: Competition) -> str | None:
    """Say that starts are counted from 0: runs of the first column begin at the last pixel of the row before."""
    if before < max(MIN_ROWS, 4 * at_first):
        return None
    line = "column" if competition.column_major else "row"
    evidence = f"{before} runs begin at the last pixel of a {line} and go on in the next, {at_first} at the first pixel"
    return f"the starts of runs are counted from 0 instead of from 1 ({evidence})"


# --- Dice with the mean training masks -------------------------------------------------------------------------------


def read_mean_masks(folder: pathlib.Path, competition: Competition) -> tuple[dict[int, Coverage], str]:
    """Return `mean_masks` of a competition folder and "", or {} and why it has none that can be read."""
    if competition.angles == 1:
        return {}, ""
    try:
        return mean_masks(competition.open_masks(folder), competition), ""
    except (Problem, ValueError) as error:  # a ValueError of a name without an angle
        what = "The masks were not compared with training masks, which would show some mistakes, as masks upside down"
        return {}, f"{what}: {error}"


def mean_masks(masks: Masks, competition: Competition) -> dict[int, Coverage]:
    """Return the mean coverage of the training masks of each angle; `competition` must have angles."""
    names_of_angle: dict[int, list[str]] = {}
    for name in masks.names:
        names_of_angle.setdefault(angle_of(name), []).append(name)
    means = {}
    for angle, names in names_of_angle.items():
        chosen = names[:: -(-len(names) // TRAINING_CARS)]
        covers = np.stack([masks.coverage(name, SCALE) for name in chosen])
        means[angle] = (covers.mean(axis=0) / 255).astype(np.float32)
    return means


def describe_disagreement(
    masks: Mapping[str, Bounds], names: Sequence[str], competition: Competition, means: Mapping[int, Coverage]
) -> str | None:
    """Say which correction makes the masks agree clearly better with the mean training masks of their angles.

    Or, where none does, that the masks agree with other angles as well as with their own.
    """
    layouts = {
        other_order: np.stack([lay_out(bounds, competition, other_order) for bounds in masks.values()])
        for other_order in (False, True)
    }
    place_of = {name: i for i, name in enumerate(names)}
    places = [place_of[name] for name in masks]
    given, after = dice_after_corrections(layouts, places, names, means)
    best = int(after.mean(axis=1).argmax())
    gains = after[best] - given
    limit = max(MIN_GAIN, MIN_SIGMAS * float(gains.std()) / len(gains) ** 0.5)
    if after[best].mean() >= MIN_DICE and gains.mean() >= limit:
        mistake = MISTAKES[best]
        corrected = mistake.correct(layouts[mistake.other_order])
        own, largest = agreement_with_angles(corrected, angles_of(places, names, mistake.neighbour), means)
        if largest < MIN_DIFFERENCE or own < OWN_IF_RIGHT * largest:
            return None
        dice = f"{given.mean():.3f}, and {after[best].mean():.3f} after correction"
        return f"{mistake.sentence} (Dice with the mean training masks {dice})"
    own, largest = agreement_with_angles(layouts[False], angles_of(places, names), means)
    if largest < MIN_DIFFERENCE or own >= OWN_IF_WRONG * largest:
        return None
    return (
        f"the masks are not those of their names (they agree with the mean training mask of one angle by Dice "
        f"{largest:.3f} more than with others, but with that of their own angle by {own:.3f})"
    )


def dice_after_corrections(
    layouts: Mapping[bool, Coverages], places: Sequence[int], names: Sequence[str], means: Mapping[int, Coverage]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return Dice of the masks with the mean masks, (masks,), and after correction of MISTAKES, (mistakes, masks).

    layouts: the masks with their pixels counted in the other order or not. places: of their names among `names`.
    """
    dice = []
    for mistake in (Mistake("none"), *MISTAKES):
        expected = np.stack([means[angle] for angle in angles_of(places, names, mistake.neighbour)])
        dice.append(soft_dice(mistake.correct(layouts[mistake.other_order]), expected))
    return dice[0], np.stack(dice[1:])


def angles_of(places: Sequence[int], names: Sequence[str], neighbour: int = 0) -> list[int]:
    """The angles of the images at these places among the names, or so many rows after them."""
    return [angle_of(names[(place + neighbour) % len(names)]) for place in places]


def agreement_with_angles(
    masks: Coverages, angles: Sequence[int], means: Mapping[int, Coverage]
) -> tuple[float, float]:
    """Return by how much Dice with the mean mask of the own, and of the best angle, exceeds that with all angles.

    Means over the masks. What all masks have in common with an angle does not count: a constant mask gives 0 and 0.
    """
    all_means = np.stack(list(means.values()))
    both = np.einsum("nij,aij->na", masks, all_means)
    dice = 2 * both / (masks.sum((1, 2))[:, None] + all_means.sum((1, 2)))
    excess = dice - dice.mean(axis=0)
    excess -= excess.mean(axis=1, keepdims=True)
    column_of = {angle: column for column, angle in enumerate(means)}
    own = excess[np.arange(len(angles)), [column_of[angle] for angle in angles]]
    return float(own.mean()), float(excess.max(axis=1).mean())


def lay_out(bounds: Bounds, competition: Competition, other_order: bool) -> Coverage:
    """Return the coverage of a mask whose pixels are counted in the competition's order, or in the other one."""
    height, width = competition.height_px, competition.width_px
    if competition.column_major != other_order:
        return coverage_of_runs(bounds, width, height, SCALE).T.astype(np.float32) / np.float32(255)
    return coverage_of_runs(bounds, height, width, SCALE).astype(np.float32) / np.float32(255)


def soft_dice(masks: Coverages, means: Coverages) -> NDArray[np.float32]:
    """Return 2 sum(mask * mean) / (sum(mask) + sum(mean)) of each pair."""
    both = np.einsum("nij,nij->n", masks, means)
    return 2 * both / (masks.sum((1, 2)) + means.sum((1, 2)))
