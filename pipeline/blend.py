"""Stage `blend`: several runs that hold out the same cars in; `runs/A+B/blend.json` out: what each weighs, and the cut.

A histogram knows a run's Dice at every cut but not that of a mean with others, so the held-out pictures are predicted
anew: each by the networks, one of each run, that never saw its make.
"""
import itertools
import math
import pathlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline import carvana, config
from pipeline.data import competition
from pipeline.data.grouping import check_trained_on, groups, read_folds, split
from pipeline.data.image_stream import ImagesAtScales, stream
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.loading import check_cars, folds_of, load_members
from pipeline.masks import dice
from pipeline.masks.dice import threshold_from_u8
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.files import locked, write_json
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import batches, in_order, progress

SHAPE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)


def main(joint: Run, runs: list[Run], folds: list[int], overrides: list[str]) -> None:
    """joint: names the result; folds: their numbers, none for those that are trained in every run."""
    if len(set(runs)) < 2:
        raise Problem('One run alone cannot be blended; name several, as in RUNS="a b".')
    folds = folds or sorted(set.intersection(*(set(run.trained_folds()) for run in runs)))
    if not folds:
        raise Problem(f"No fold is trained in all of {', '.join(str(run.folder) for run in runs)}; train one in each.")
    for path in (run.fold(fold).config for run in runs for fold in folds):
        config.check_binary(path, "A blend", only_cars=True)
    check_same_folds(runs)
    tried = weightings(len(runs))
    tally = Tally(len(tried))
    digest_of: dict[str, str] = {}
    with locked(joint.lock("blend"), f"{joint.blend} is being made by another process; wait until it is done."):
        for fold in folds:
            digest_of |= tally_fold(tally, tried, runs, fold, overrides)

    single = (tried == 1).any(axis=1)
    best, best_single = tally.best(among=np.ones(len(tried), bool)), tally.best(among=single)
    weights = {run.name: round(float(weight), 6) for run, weight in zip(runs, tried[best.weighting])}
    name_of_single = runs[int(tried[best_single.weighting].argmax())].name
    gain = best.dice_cross_fitted - best_single.dice_cross_fitted
    write_json(joint.blend, {
        "weights": weights,
        "threshold": round(threshold_from_u8(best.threshold_u8), 6),
        "oof_dice": round(best.dice, 6),
        "oof_dice_cross_fitted": round(best.dice_cross_fitted, 6),
        "best_single_run": name_of_single,
        "best_single_run_cross_fitted": round(best_single.dice_cross_fitted, 6),
        "gain_cross_fitted": round(gain, 6),
        "images": tally.pictures,
        "checkpoints": digest_of,
    })  # fmt: skip
    print(
        f"{joint.blend}: {', '.join(f'{name} {weight:.3f}' for name, weight in weights.items())}, "
        f"threshold {threshold_from_u8(best.threshold_u8):.3f}; cross-fitted Dice {best.dice_cross_fitted:.5f}, {gain:+.5f} against the "
        f"best single run, {name_of_single}, over {tally.pictures} images."
    )


def tally_fold(
    tally: "Tally", weightings: NDArray[np.float32], runs: list[Run], fold: int, overrides: list[str]
) -> dict[str, str]:
    """Add each held-out picture of a fold at each of the weightings (weightings, runs): checkpoint -> its sha256."""
    device = pick_device()
    paths = [run.fold(fold).best for run in runs]
    table = read_folds(runs[0].folds)
    with checkpoint.unchanged(paths) as digest_of:
        members, trained = load_members({path: 1.0 for path in paths}, overrides, device)
        check_cars(paths, trained, "A blend")
        for path in paths:
            check_trained_on(table, folds_of(path), runs[0].folds, path)
    settings = config.for_later_stage(trained[0], overrides)
    folder, batch_size = pathlib.Path(settings.data.folder), settings.predict.batch_size
    pictures = competition.ImageSet(folder, "train_hq" if settings.data.hq else "train")
    masks = competition.open_masks(folder)
    competition.check_masks(pictures, masks)
    carvana.read_training_makes(folder, pictures)
    _, names = split(table, fold, pictures.names)
    if not names:
        raise Problem(f"{folder} holds no picture of fold {fold} in {runs[0].folds}; is it another folder?")
    group_of_car = groups(table)

    ensembles = [Ensemble([member], *SHAPE) for member in members]
    scales = tuple(sorted({member.scale for member in members}))
    dataset = ImagesAtScales(pictures, scales, SHAPE, on_bad_image="error")
    name_batches = list(batches(names, batch_size))
    loader = stream(dataset, name_batches, batch_size, settings.data.workers, pin_memory=device.type == "cuda")
    bar = progress(loader, f"fold {fold} on {describe(device)}")
    with explain_out_of_memory(lambda: too_large_message(batch_size, settings.data.scale)):
        for batch in bar:
            prob_RNHW = np.stack([ensemble.unrounded(batch.image_of_scale).cpu().numpy() for ensemble in ensembles])

            def histograms(place: int) -> NDArray[np.int32]:
                return blended_histograms(prob_RNHW[:, place], masks.read(batch.names[place]), weightings)

            for name, counts in zip(batch.names, in_order(histograms, range(len(batch.names)))):
                tally.add(group_of_car[carvana.car_of(name)], counts)
    return digest_of


def check_same_folds(runs: list[Run]) -> None:
    """A picture must be held out in the same fold of each run, or some of the networks have seen its make."""
    first, *others = runs
    for other in others:
        if not read_folds(other.folds).equals(read_folds(first.folds)):
            raise Problem(
                f"{first.folds} and {other.folds} differ, so that no picture is new to the networks of both; train the "
                "runs with the same data.folds on the same cars, or predict them with equal weights, without blend."
            )


# --- weightings ------------------------------------------------------------------------------------------------------

# What each of several runs should weigh in their mean.
#
# Every weighting of a grid is judged at every cut, on held-out pictures at full size. A choice that is judged on the
# pictures it was made on flatters itself, so each make is judged by the choice that is best on all others; what that
# gains over the best single run, chosen in the same way, is the gain that one may hope for on the leaderboard.

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
        self.shape = (weightings, dice.THRESHOLDS)
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.pictures = 0

    def add(self, group: str, histograms: NDArray[np.int32]) -> None:
        """histograms: of one picture at each weighting, int32 array (weightings, 2, 256)."""
        self.sums.setdefault(group, np.zeros(self.shape))
        self.sums[group] += dice.dice_at_thresholds(histograms)
        self.pictures += 1

    def best(self, among: NDArray[np.bool_]) -> "Choice":
        """The best weighting and cut of all pictures; among: which weightings may be chosen, bool (weightings,)."""
        mean = self.total() / self.pictures
        weighting, threshold_u8 = highest(mean, among)
        return Choice(weighting, threshold_u8, float(mean[weighting, threshold_u8]), self.cross_fitted(among))

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
    threshold_u8: int
    dice: float
    dice_cross_fitted: float


def highest(sums: NDArray[np.float64], among: NDArray[np.bool_]) -> tuple[int, int]:
    """Where (weightings, cuts) is highest among some weightings; of equal cuts the middle one."""
    weighting = int(np.where(among, sums.max(axis=1), -np.inf).argmax())
    return weighting, dice.best_threshold_u8(sums[weighting][None])


def blended_histograms(
    prob_of_run: NDArray[np.float32], mask: NDArray[np.bool_], weightings: NDArray[np.float32]
) -> NDArray[np.int32]:
    """`dice.histogram` of a picture at each of the weightings (weightings, runs): int32 array (weightings, 2, 256).

    share_of_run: each run's probability at full size, float32 (runs, height, width); mask: bool (height, width).
    Most pixels are 0 or 255 in every run and so in every mean. Only the others are blended, on real pictures 2 to 3 %:
    30 to 60 ms a picture for 11 weightings of two runs, instead of 260 to 390.
    """
    highest_prob, lowest_prob = prob_of_run.max(axis=0), prob_of_run.min(axis=0)
    is_0, is_255 = highest_prob < SURELY_0, lowest_prob > 1 - SURELY_0
    unsure = ~(is_0 | is_255)
    counts = dice.histogram(is_255[~unsure] * np.uint8(255), mask[~unsure])
    prob_of_unsure, unsure_mask = prob_of_run[:, unsure], mask[unsure]
    values = (np.rint(255 * (weights @ prob_of_unsure).clip(0, 1)).astype(np.uint8) for weights in weightings)
    return np.stack([counts + dice.histogram(one, unsure_mask) for one in values])
