"""What each of several runs should weigh in their mean.

Every weighting of a grid is judged at every cut, on held-out pictures at full size. A choice that is judged on the
pictures it was made on flatters itself, so each make is judged by the choice that is best on all others; what that
gains over the best single run, chosen in the same way, is the gain that one may hope for on the leaderboard.
"""
import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.masks import dice

WEIGHTINGS_AT_MOST = 36
FINEST_STEP = 10  # tenths
SURELY_0 = 0.4 / 255  # rounds to 0 with something to spare for the rounding of float32


def weightings(runs: int) -> NDArray[np.float32]:
    """The weightings to try, (weightings, runs), each of sum 1: a grid that has every single run, and equal weights.

    Of 2 runs every tenth, of 3 every seventh, of 4 every quarter.
    """
    steps = max(n for n in range(1, FINEST_STEP + 1) if n == 1 or math.comb(n + runs - 1, n) <= WEIGHTINGS_AT_MOST)
    # Each way to lay `runs - 1` bars between `steps` things is a way to share them out.
    bars = itertools.combinations(range(steps + runs - 1), runs - 1)
    grid = np.array([np.diff((-1, *places, steps + runs - 1)) - 1 for places in bars]) / steps
    equal = np.full((1, runs), 1 / runs)
    has_equal = np.isclose(grid, equal).all(axis=1).any()
    return (grid if has_equal else np.concatenate((grid, equal))).astype(np.float32)


class Tally:
    """The sums of Dice at each weighting and each cut, for each group of pictures that no choice may divide."""

    def __init__(self, weightings: int):
        self.shape = (weightings, dice.CUTS)
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.pictures = 0

    def add(self, group: str, histograms: NDArray[np.int32]) -> None:
        """histograms: of one picture at each weighting, int32 array (weightings, 2, 256)."""
        self.sums.setdefault(group, np.zeros(self.shape))
        self.sums[group] += dice.dice_at_every_cut(histograms)
        self.pictures += 1

    def best(self, among: NDArray[np.bool_]) -> "Choice":
        """The best weighting and cut of all pictures; among: which weightings may be chosen, bool (weightings,)."""
        mean = self.total() / self.pictures
        weighting, cut = highest(mean, among)
        return Choice(weighting, cut, float(mean[weighting, cut]), self.cross_fitted(among))

    def cross_fitted(self, among: NDArray[np.bool_]) -> float:
        """Mean Dice with each group judged by what is best on the others; by itself where there is no other."""
        total, judged = self.total(), 0.0
        for inside in self.sums.values():
            others = total - inside if len(self.sums) > 1 else total
            judged += float(inside[highest(others, among)])
        return judged / self.pictures

    def total(self) -> NDArray[np.float64]:
        """The sums over all groups, (weightings, 256)."""
        return np.sum(list(self.sums.values()), axis=0)


@dataclass(frozen=True)
class Choice:
    """A row of the weightings and a cut, 0 to 255; their mean Dice, and what is left of it when cross-fitted."""

    weighting: int
    cut: int
    dice: float
    dice_cross_fitted: float


def highest(sums: NDArray[np.float64], among: NDArray[np.bool_]) -> tuple[int, int]:
    """Where (weightings, cuts) is highest among some weightings; of equal cuts the middle one."""
    weighting = int(np.where(among, sums.max(axis=1), -np.inf).argmax())
    return weighting, dice.best_cut(sums[weighting][None])


def blended_histograms(
    share_of_run: NDArray[np.float32], mask: NDArray[np.bool_], weightings: NDArray[np.float32]
) -> NDArray[np.int32]:
    """`dice.histogram` of a picture at each of the weightings (weightings, runs): int32 array (weightings, 2, 256).

    share_of_run: each run's probability at full size, float32 (runs, height, width); mask: bool (height, width).
    Most pixels are 0 or 255 in every run and so in every mean. Only the others are blended, on real pictures 2 to 3 %:
    30 to 60 ms a picture for 11 weightings of two runs, instead of 260 to 390.
    """
    highest_share, lowest_share = share_of_run.max(axis=0), share_of_run.min(axis=0)
    is_0, is_255 = highest_share < SURELY_0, lowest_share > 1 - SURELY_0
    unsure = ~(is_0 | is_255)
    counts = dice.histogram(is_255[~unsure] * np.uint8(255), mask[~unsure])
    share_of_unsure, unsure_mask = share_of_run[:, unsure], mask[unsure]
    values = (np.rint(255 * (weights @ share_of_unsure).clip(0, 1)).astype(np.uint8) for weights in weightings)
    return np.stack([counts + dice.histogram(one, unsure_mask) for one in values])
