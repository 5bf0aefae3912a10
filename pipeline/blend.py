"""Stage `blend`: find the weights of several runs in their mean, and the threshold; write `runs/A+B/blend.json`.

The runs must hold out the same cars in each fold. A histogram gives a run's Dice at every threshold, but not that of
its mean with others, so the held-out images are predicted again: each by the networks, one of each run, that never
saw its make.

Every weighting of a grid is evaluated at every threshold, on held-out images at full size. A choice that is evaluated
on the images it was made on is scored too well, so each make is evaluated with the choice that is best on all others.
What that gains over the best single run, chosen in the same way, is the gain to expect on the leaderboard.
"""
import itertools
import math
import pathlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import config
from pipeline.data.grouping import check_trained_on, map_keys_to_groups, read_folds, split
from pipeline.data.image_stream import ImagesAtScales, stream
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.loading import (
    checkpoints_of, common_competition, load_members, read_folds_digest, with_refiners
)  # fmt: skip
from pipeline.inference.stored_threshold import join_settings, predicted_with
from pipeline.masks import dice
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.files import locked, write_json
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import batches, in_order, progress

MAX_WEIGHTINGS = 36
MAX_STEPS = 10  # tenths are the finest grid
SURELY_0 = 0.4 / 255  # rounds to 0, with some margin for the rounding of float32


def main(joint: Run, runs: list[Run], folds: list[int], overrides: list[str]) -> None:
    """Blend `runs` over these folds, or over all that are trained in every run if `folds` is empty.

    joint: the run that names the result; overrides: `data.…=` and `predict.…=` on top of the trained settings.
    """
    if len(set(runs)) < 2:
        raise Problem('A blend needs several runs; name them, as in RUNS="a b".')
    folds = folds or sorted(set.intersection(*(set(run.trained_folds()) for run in runs)))
    if not folds:
        raise Problem(f"No fold is trained in all of {', '.join(str(run.folder) for run in runs)}; train one in each.")
    for path in (run.fold(fold).config for run in runs for fold in folds):
        config.check_binary(path, "A blend")
    check_same_folds(runs)
    weightings = list_weightings(len(runs))
    tally = Tally(len(weightings))
    used = Used({}, set())
    with locked(joint.lock("blend"), f"{joint.blend} is being made by another process; wait until it is done."):
        for fold in folds:
            tally_fold(tally, weightings, runs, fold, overrides, used)
    write_blend(joint, runs, weightings, tally, used)


def check_same_folds(runs: list[Run]) -> None:
    """Raise Problem unless all runs hold out the same cars in each fold, so that no network has seen their makes."""
    first, *others = runs
    for other in others:
        if not read_folds(other.folds).equals(read_folds(first.folds)):
            why = f"{first.folds} and {other.folds} differ, so that no image is new to the networks of both"
            advice = "train the runs with the same data.folds on the same cars"
            raise Problem(f"{why}; {advice}, or predict them with equal weights, without blend.")


# --- choosing the weights --------------------------------------------------------------------------------------------


def list_weightings(runs: int) -> NDArray[np.float32]:
    """Return the weightings to try, (weightings, runs), each of sum 1: a grid with every single run, and equal weights.

    The grid has tenths for 2 runs, sevenths for 3, quarters for 4.
    """
    steps = max(n for n in range(1, MAX_STEPS + 1) if n == 1 or math.comb(n + runs - 1, n) <= MAX_WEIGHTINGS)
    # Each way to place `runs - 1` bars between `steps` stars is a way to divide the stars among the runs.
    bars = itertools.combinations(range(steps + runs - 1), runs - 1)
    grid = np.array([np.diff((-1, *places, steps + runs - 1)) - 1 for places in bars]) / steps
    equal = np.full((1, runs), 1 / runs)
    has_equal = np.isclose(grid, equal).all(axis=1).any()
    return (grid if has_equal else np.concatenate((grid, equal))).astype(np.float32)


@dataclass(frozen=True)
class Choice:
    """The best weighting, as a row of the weightings, and the best threshold."""

    weighting: int
    threshold_u8: int
    dice: float  # mean over all images
    dice_cross_fitted: float


class Tally:
    """The sums of Dice at each weighting and each threshold, for each group of images (make of car)."""

    def __init__(self, weightings: int):
        self.shape = (weightings, dice.THRESHOLDS)
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.images = 0

    def add(self, group: str, histograms: NDArray[np.int32]) -> None:
        """Add an image. histograms: at each weighting, int32 array (weightings, 2, 256)."""
        self.sums.setdefault(group, np.zeros(self.shape))
        self.sums[group] += dice.dice_at_thresholds(histograms)
        self.images += 1

    def choose(self, allowed: NDArray[np.bool_]) -> Choice:
        """Return the best choice on all images. allowed: which weightings may be chosen, bool (weightings,)."""
        mean = self.total() / self.images
        weighting, threshold_u8 = find_highest(mean, allowed)
        return Choice(weighting, threshold_u8, float(mean[weighting, threshold_u8]), self.cross_fit(allowed))

    def cross_fit(self, allowed: NDArray[np.bool_]) -> float:
        """Return mean Dice with each group at the choice that is best on the others; a single group at its own."""
        total, sum_of_dice = self.total(), 0.0
        for inside in self.sums.values():
            others = total - inside if len(self.sums) > 1 else total
            sum_of_dice += float(inside[find_highest(others, allowed)])
        return sum_of_dice / self.images

    def total(self) -> NDArray[np.float64]:
        """Return the sums over all groups, (weightings, 256)."""
        return np.sum(list(self.sums.values()), axis=0)


def find_highest(sums: NDArray[np.float64], allowed: NDArray[np.bool_]) -> tuple[int, int]:
    """Return where (weightings, thresholds) is highest among the allowed weightings; of equal thresholds the middle."""
    weighting = int(np.where(allowed, sums.max(axis=1), -np.inf).argmax())
    return weighting, dice.best_threshold_u8(sums[weighting][None])


class Used(NamedTuple):
    """What the held-out images were predicted with."""

    digest_of: dict[str, str]  # checkpoint -> sha256
    settings: set[str]  # `stored_threshold.predicted_with` of each network


def write_blend(
    joint: Run, runs: list[Run], weightings: NDArray[np.float32], tally: Tally, used: Used
) -> None:
    """Write `blend.json` and print the weights and their gain over the best single run."""
    best, single = tally.choose(np.ones(len(weightings), bool)), tally.choose((weightings == 1).any(axis=1))
    weights = {run.name: round(float(weight), 6) for run, weight in zip(runs, weightings[best.weighting])}
    threshold = dice.threshold_from_u8(best.threshold_u8)
    best_single_run = runs[int(weightings[single.weighting].argmax())].name
    gain = best.dice_cross_fitted - single.dice_cross_fitted
    write_json(joint.blend, {
        "weights": weights, "threshold": round(threshold, 6),
        "oof_dice": round(best.dice, 6), "oof_dice_cross_fitted": round(best.dice_cross_fitted, 6),
        "best_single_run": best_single_run,
        "best_single_run_cross_fitted": round(single.dice_cross_fitted, 6),
        "gain_cross_fitted": round(gain, 6),
        "images": tally.images, "predicted_with": join_settings(used.settings), "checkpoints": used.digest_of,
    })  # fmt: skip
    choice = f"{', '.join(f'{name} {weight:.3f}' for name, weight in weights.items())}, threshold {threshold:.3f}"
    scores = f"cross-fitted Dice {best.dice_cross_fitted:.5f}, {gain:+.5f} against the best single run"
    print(f"{joint.blend}: {choice}; {scores}, {best_single_run}, over {tally.images} images.")


# --- predicting a fold -----------------------------------------------------------------------------------------------


def tally_fold(
    tally: Tally, weightings: NDArray[np.float32], runs: list[Run], fold: int, overrides: list[str], used: Used
) -> None:
    """Predict the held-out images of a fold; add them to the tally, and what predicted them to `used`."""
    device = pick_device()
    paths = [run.fold(fold).best for run in runs]
    table = read_folds(runs[0].folds)
    with checkpoint.unchanged(with_refiners(paths)) as digest_of:
        members, trained = load_members({path: 1.0 for path in paths}, overrides, device)
        competition = common_competition(paths, trained, "A blend")
        for path in paths:
            check_trained_on(table, read_folds_digest(path), runs[0].folds, path)
    for path, member, its_settings in zip(paths, members, trained):
        used.digest_of.update((str(each), digest_of[str(each)]) for each in checkpoints_of(path, member))
        its_settings = config.for_later_stage(its_settings, overrides)
        used.settings.add(predicted_with(its_settings, refined=member.refiner is not None))
    settings = config.for_later_stage(trained[0], overrides)
    folder, batch_size = pathlib.Path(settings.data.folder), settings.predict.batch_size
    dataset = competition.open_dataset(folder, settings.data.hq)
    _, names = split(table, fold, dataset.names, dataset.group_key)
    if not names:
        raise Problem(f"{folder} holds no image of fold {fold} in {runs[0].folds}; is it another folder?")
    group_of_key, shape = map_keys_to_groups(table), (dataset.height, dataset.width)

    ensembles = [Ensemble([member], *shape) for member in members]
    scales = tuple(sorted({scale for ensemble in ensembles for scale in ensemble.scales}))
    images = ImagesAtScales(dataset.images, scales, shape, on_bad_image="error")
    name_batches = list(batches(names, batch_size))
    loader = stream(images, name_batches, batch_size, settings.data.workers, pin_memory=device.type == "cuda")
    with explain_out_of_memory(lambda: too_large_message(batch_size, settings.data.scale)):
        for batch in progress(loader, f"fold {fold} on {describe(device)}"):
            prob_RNHW = np.stack([each.predict_unrounded(batch.image_of_scale).cpu().numpy() for each in ensembles])

            def histograms_of(place: int) -> NDArray[np.int32]:
                return blend_histograms(prob_RNHW[:, place], dataset.truth(batch.names[place]), weightings)

            for name, histograms in zip(batch.names, in_order(histograms_of, range(len(batch.names)))):
                tally.add(group_of_key[dataset.group_key(name)], histograms)


def blend_histograms(
    prob_RHW: NDArray[np.float32], mask: NDArray[np.bool_], weightings: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Return `dice.histogram` of an image at each of the weightings (weightings, runs): int32 (weightings, 2, 256).

    prob_RHW: each run's probability at full size, float32 (runs, height, width); mask: bool (height, width).
    Most pixels are 0 or 255 in every run and so in every mean. Only the others are blended, on real images 2 to 3 %:
    30 to 60 ms an image for 11 weightings of two runs, instead of 260 to 390.
    """
    highest_prob, lowest_prob = prob_RHW.max(axis=0), prob_RHW.min(axis=0)
    is_0, is_255 = highest_prob < SURELY_0, lowest_prob > 1 - SURELY_0
    unsure = ~(is_0 | is_255)
    sure_counts = dice.histogram(is_255[~unsure] * np.uint8(255), mask[~unsure])
    unsure_prob, unsure_mask = prob_RHW[:, unsure], mask[unsure]
    blended_u8 = (np.rint(255 * (weights @ unsure_prob).clip(0, 1)).astype(np.uint8) for weights in weightings)
    return np.stack([sure_counts + dice.histogram(values, unsure_mask) for values in blended_u8])
