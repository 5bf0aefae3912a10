"""Stage `threshold`: out-of-fold histograms in, `runs/RUN/threshold.json` out.

The cut is the one with the best mean Dice over all held-out images. A cut that is chosen and judged on
the same images flatters itself, so its cross-fitted Dice is told too: each make is judged at the cut
that is best on all other makes.
"""
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import config
from pipeline.data.grouping import groups, read_folds, group_key
from pipeline.runtime.files import locked, write_json
from pipeline.inference.stored_threshold import other_network_message, oof_digests, prediction_settings
from pipeline.inference.oof import OofHistograms, read_oof_histograms
from pipeline.masks import dice
from pipeline.paths import Run
from pipeline.runtime.problem import Problem


def main(run: Run) -> None:
    for fold in run.trained_folds():
        config.check_binary(run.fold(fold).config, "A cut")
    folds = [fold for fold in run.trained_folds() if run.oof(fold).is_file()]
    if not folds:
        raise Problem(f"{run.folder} has no out-of-fold predictions; run `make validate RUN={run.name}` first.")
    with locked(run.lock("threshold"), f"{run.threshold} is being written by another process; wait until it is done."):
        found = find_threshold(run, folds)
        write_json(run.threshold, found)
    print(
        f"{run.threshold}: threshold {found['threshold']:.3f}, Dice {found['oof_dice']:.5f}, "
        f"cross-fitted {found['oof_dice_cross_fitted']:.5f}, over {found['images']} images."
    )


def find_threshold(run: Run, folds: list[int]) -> dict[str, Any]:
    """What `threshold.json` holds."""
    predictions = oof_digests(run)  # before they are read: what is judged anew meanwhile makes the cut outdated
    judged_folds = read_oof(run, folds)
    names = [name for judged in judged_folds for name in judged.names]
    table = read_folds(run.folds)
    group_of_unit = groups(table)
    group = np.array([group_of_unit.get(group_key(name, table), "") for name in names])

    scores = dice.dice_at_thresholds(np.concatenate([judged.histograms for judged in judged_folds]))
    threshold_u8 = dice.best_threshold_u8(scores)
    return {
        "threshold": round(dice.threshold_from_u8(threshold_u8), 6),
        "oof_dice": round(float(scores[:, threshold_u8].mean()), 6),
        "oof_dice_cross_fitted": round(cross_fitted(scores, group), 6),
        "images": len(names),
        "predicted_with": prediction_settings(judged_folds),
        "predictions": predictions,
    }


def cross_fitted(scores: NDArray[np.float64], groups: NDArray) -> float:
    """Mean Dice over images (images, 256), each group at the cut that is best on the other groups."""
    judged = np.empty(len(scores))
    for group in np.unique(groups):
        inside = groups == group
        others = scores[~inside] if not inside.all() else scores
        judged[inside] = scores[inside, dice.best_threshold_u8(others)]
    return float(judged.mean())


def read_oof(run: Run, folds: list[int]) -> list[OofHistograms]:
    """Of each of the folds what was judged, by its network of now."""
    found = [read_oof_histograms(run.oof(fold)) for fold in folds]
    for fold, judged in zip(folds, found):
        if sentence := other_network_message(run, fold, judged.checkpoint):
            raise Problem(sentence)
    return found
