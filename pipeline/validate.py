"""Stage `validate`: predict each held-out image by the network that never saw it; writes `oof/fold{k}.npz` and `.zip`.

The `.npz` holds the histogram of each image, from which `threshold` and `report` compute Dice at every threshold, or
of several classes the counts of its confusion matrix. The `.zip` holds the predictions for `report`: probabilities on
the network's grid, with a refiner also at full size, or class maps. The `.npz` is written last and names the zip by its
hash: a kill between the two leaves a zip that nothing names.
"""
import pathlib
from typing import Any

import numpy as np
import pandas as pd

from pipeline import config
from pipeline.config import Settings
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.data.grouping import check_trained_on, count_of, find_missing_keys, read_folds, split
from pipeline.data.inspection import inspect_images
from pipeline.data.loader import ValidationDataset, validation_loader
from pipeline.inference.ensemble import Ensemble
from pipeline.inference.evaluate import (
    compute_class_scores, compute_dice_scores, evaluate_confusions, evaluate_histograms, find_missing_classes,
)  # fmt: skip
from pipeline.inference.loading import (
    batch_that_fits, build_ensemble, build_member, load_network, read_folds_digest, refiner_path, with_refiners,
)  # fmt: skip
from pipeline.inference.oof import Store, oof_writer
from pipeline.inference.stored_threshold import predicted_with, refined_with
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.runtime.device import describe, pick_device
from pipeline.runtime.files import locked, replacing, sha256
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.runtime.problem import Problem, counted
from pipeline.runtime.progress import progress

CLASSES_SHOWN = 4


def main(run: Run, folds: list[int], overrides: list[str]) -> None:
    """Validate these folds. overrides: `data.…=` and `predict.…=` on top of the settings that trained them."""
    if not folds:
        raise Problem(run.untrained_message())
    for fold in folds:
        validate_fold(run, fold, overrides)


def validate_fold(run: Run, fold: int, overrides: list[str]) -> None:
    """Load the network of a fold, evaluate it on the images held out from it, write the results and print a score."""
    best, table = run.fold(fold).best, read_folds(run.folds)
    with checkpoint.unchanged(with_refiners([best])) as digest_of:
        network, trained = load_network(best, pick_device())
        check_trained_on(table, read_folds_digest(best), run.folds, best)
        settings = config.for_later_stage(trained, overrides)
        member, _ = build_member(network, best, settings, weight=1.0)
    dataset = open_dataset(settings.data, settings.task, pathlib.Path(settings.data.folder))
    names = find_held_out(dataset, table, fold, run)
    inspect_images(dataset, names, run.inspected)  # a bad mask would end the validation at its last image
    ensemble = build_ensemble([member], settings.task.kind == "binary", dataset.height, dataset.width)

    predictions, oof = run.oof_predictions(fold), run.oof(fold)
    busy = f"Fold {fold} of {run.folder} is being validated by another process; wait until it is done."
    with locked(run.lock(f"validate.fold{fold}"), busy):
        with oof_writer(predictions) as store:
            arrays, summary = evaluate(ensemble, settings, dataset, names, f"fold {fold}", store)
        provenance = {"checkpoint_sha256": digest_of[str(best)], "predictions_sha256": sha256(predictions)}
        provenance["refiner_sha256"] = digest_of[str(refiner_path(best))] if member.refiner else ""
        provenance["predicted_with"] = predicted_with(settings, refined=member.refiner is not None)
        with replacing(oof) as draft, open(draft, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, names=np.array(names), **arrays, **provenance)
    how = f"predict.tta {settings.predict.tta}{refined_with(settings) if member.refiner else ''}"
    print(f"fold {fold}: {summary}, {how}, over {counted(len(names), 'held-out image')}, in {oof}.")


def find_held_out(dataset: SegmentationDataset, table: pd.DataFrame, fold: int, run: Run) -> list[str]:
    """Return the names of the images held out in `fold`, and print which the dataset lacks. Problem if it lacks all."""
    _, names = split(table, fold, dataset.names, dataset.group_key)
    if not names:
        raise Problem(f"{dataset.where} holds no image of fold {fold} in {run.folds}; is it another folder?")
    if missing := find_missing_keys(table, fold, names, dataset.group_key):
        what = f"{count_of(table.columns[0], len(missing))} held out, the first is {missing[0]}"
        print(f"fold {fold}: {dataset.where} lacks {what}; they are not evaluated.")
    return names


def evaluate(
    ensemble: Ensemble, settings: Settings, dataset: SegmentationDataset, names: list[str], label: str, store: Store
) -> tuple[dict[str, Any], str]:
    """Return the arrays of the `.npz` and a summary with the score; `store` gets each prediction."""
    scale, device = settings.data.scale, ensemble.device
    batch_size = batch_that_fits(ensemble, settings.predict.batch_size)
    validation_set = ValidationDataset(dataset, names, ensemble.scales)
    loader = validation_loader(validation_set, batch_size, settings.data.workers, device.type == "cuda")
    batches = progress(loader, f"{label} on {describe(device)}")
    with explain_out_of_memory(lambda: too_large_message(batch_size, scale)):
        if settings.task.kind == "binary":
            histograms = evaluate_histograms(ensemble.predict_to_store, batches, names, dataset.truth, store)
            return {"histograms": histograms}, f"Dice {compute_dice_scores(histograms)['dice']:.5f} at threshold 0.5"
        confusions = evaluate_confusions(ensemble, batches, names, dataset.truth, settings.task.count, store)
    scores = compute_class_scores(confusions)
    note_missing_classes(label, find_missing_classes(confusions), dataset.classes)
    summary = f"mean IoU {scores['mean_iou']:.5f}, pixel accuracy {scores['pixel_accuracy']:.5f}"
    arrays = {"matrix": confusions.matrix, **confusions.per_image._asdict(), "classes": np.array(dataset.classes)}
    return arrays, summary


def note_missing_classes(label: str, missing: list[int], classes: tuple[str, ...]) -> None:
    """Print which classes no held-out pixel has, such as the object in masks of 0 and 255: 255 is not evaluated."""
    if missing:
        names = ", ".join(classes[index] for index in missing[:CLASSES_SHOWN])
        more = ", ..." if len(missing) > CLASSES_SHOWN else ""
        print(f"{label}: no held-out pixel has {len(missing)} of the {len(classes)} classes: {names}{more}.")
