"""Stage `threshold`: reads the out-of-fold histograms, writes `runs/RUN/threshold.json`.

The threshold is the one with the best mean Dice over all held-out images. A threshold that is chosen and evaluated on
the same images is scored too well, so the file also has its cross-fitted Dice: each group (make of car) is evaluated
at the threshold that is best on all other groups.
"""
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import config
from pipeline.data.dataset import group_key_of
from pipeline.data.grouping import NOUNS, KeyOf, map_keys_to_groups, read_folds
from pipeline.inference.oof import OofHistograms, read_oof_histograms
from pipeline.inference.stored_threshold import (
    error_summary, oof_digests, other_network_message, prediction_settings, unrefined_note
)  # fmt: skip
from pipeline.masks import dice
from pipeline.paths import Run
from pipeline.runtime.files import locked, write_json
from pipeline.runtime.problem import Problem, counted


def main(run: Run) -> None:
    """Find the best threshold over the validated folds, write it and print its Dice."""
    kinds = [config.check_binary(run.fold(fold).config, "A threshold") for fold in run.trained_folds()]
    folds = [fold for fold in run.trained_folds() if run.oof(fold).is_file()]
    if not folds:
        raise Problem(f"{run.folder} has no out-of-fold predictions; run `make validate RUN={run.name}` first.")
    with locked(run.lock("threshold"), f"{run.threshold} is being written by another process; wait until it is done."):
        content = find_threshold(run, folds, group_key_of(kinds[0]))
        write_json(run.threshold, content)
    images = counted(content["images"], "image")
    scores = f"Dice {content['oof_dice']:.5f}, cross-fitted {content['oof_dice_cross_fitted']:.5f}"
    print(f"{run.threshold}: threshold {content['threshold']:.3f}, {scores}, over {images}.")
    if errors := error_summary(content):
        print(f"Standard error of the cross-fitted Dice: {errors}.")


def find_threshold(run: Run, folds: list[int], key_of: KeyOf) -> dict[str, Any]:
    """Return the content of `threshold.json`. key_of: the name of an image -> its key in folds.csv."""
    # Before the files are read: a fold that is validated again in between must make the threshold stale.
    digests = oof_digests(run)
    oofs = read_oofs(run, folds)
    names = [name for oof in oofs for name in oof.names]
    table = read_folds(run.folds)
    group_of_key = map_keys_to_groups(table)
    keys = [name if name in group_of_key else key_of(name) for name in names]  # of a table of images, of cars
    if unknown := [key for key in keys if key not in group_of_key]:
        raise Problem(f"{run.folds} does not list {unknown[0]}, which is in {run.folder / 'oof'}; run `make validate`.")
    groups = np.array([group_of_key[key] for key in keys])

    scores = dice.dice_at_thresholds(np.concatenate([oof.histograms for oof in oofs]))
    threshold_u8 = dice.best_threshold_u8(scores)
    cross_fitted = cross_fit(scores, groups)
    return {
        "threshold": round(dice.threshold_from_u8(threshold_u8), 6),
        "oof_dice": round(float(scores[:, threshold_u8].mean()), 6),
        "oof_dice_cross_fitted": round(float(cross_fitted.mean()), 6),
        "standard_errors": standard_errors(cross_fitted, dict(zip(table.columns, (keys, groups)))),
        "images": len(names),
        "predicted_with": prediction_settings(oofs), "predictions": digests,
    }


def cross_fit(scores: NDArray[np.float64], groups: NDArray) -> NDArray[np.float64]:
    """Return Dice (images,) with each group at the threshold that is best on the other groups.

    scores: Dice (images, 256) at every threshold; groups: (images,). A single group gets its own best threshold.
    """
    dice_of_image = np.empty(len(scores))
    for group in np.unique(groups):
        inside = groups == group
        others = scores[~inside] if not inside.all() else scores
        dice_of_image[inside] = scores[inside, dice.best_threshold_u8(others)]
    return dice_of_image


def standard_errors(dice_of_image: NDArray[np.float64], clusters: dict[str, list[str] | NDArray]) -> dict[str, float]:
    """Return the standard error of the mean over each kind of cluster that has more than one, by its noun.

    clusters: column of folds.csv -> the cluster of each image. Images of a car are alike, and so are cars of a make.
    """
    errors = {NOUNS.get(column, column): dice.standard_error(dice_of_image, of) for column, of in clusters.items()}
    return {noun: round(error, 6) for noun, error in errors.items() if error is not None}


def read_oofs(run: Run, folds: list[int]) -> list[OofHistograms]:
    """Read the histograms of these folds. Raise Problem if another network than a fold's `best.pt` predicted it."""
    oofs = [read_oof_histograms(run.oof(fold)) for fold in folds]
    for fold, oof in zip(folds, oofs):
        if message := other_network_message(run, fold, oof):
            raise Problem(message)
        if note := unrefined_note(run, fold, oof):
            print(note)
    return oofs
