"""Stage `validate`: each checkpoint on the pictures that it never saw, `runs/RUN/oof/fold{k}.npz` and `.zip` out.

Kept per image is the histogram from which `threshold` and `report` know Dice at every cut, or of several classes what
its confusion matrix says; and for `report` the prediction itself: probabilities on the network's grid, or the class
map. The `.npz` comes last and names the zip by its hash: a kill between the two leaves a zip that nothing names.
"""
import pathlib
from typing import Any

import numpy as np
from torch import Tensor

from pipeline import config
from pipeline.data.dataset import open_dataset
from pipeline.data.loader import ValidationDataset, validation_loader
from pipeline.data.grouping import absent, check_trained_on, read_folds, split
from pipeline.runtime.files import locked, replacing, sha256
from pipeline.inference.stored_threshold import predicted_with
from pipeline.runtime.device import describe, pick_device
from pipeline.inference.evaluate import class_scores, confusions, dice_scores, histograms, missing_classes
from pipeline.inference.oof import oof_writer
from pipeline.inference.loading import batch_that_fits, ensemble_of, folds_of, load_network, member_of
from pipeline.runtime.memory import explain_out_of_memory, too_large_message
from pipeline.model import checkpoint
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress

CLASSES_SHOWN = 4


def main(run: Run, folds: list[int], overrides: list[str]) -> None:
    """folds: their numbers; overrides: `data.…=` and `predict.…=` words over the trained settings."""
    if not folds:
        raise Problem(f"{run.folder} has no trained fold; run `make train FOLD=0` first.")
    for fold in folds:
        validate_fold(run, fold, overrides)


def validate_fold(run: Run, fold: int, overrides: list[str]) -> None:
    device = pick_device()
    checkpoint_path = run.fold(fold).best
    table = read_folds(run.folds)
    with checkpoint.unchanged([checkpoint_path]) as digest_of:
        network, trained = load_network(checkpoint_path, device)
        check_trained_on(table, folds_of(checkpoint_path), run.folds, checkpoint_path)
    settings = config.for_later_stage(trained, overrides)
    folder = pathlib.Path(settings.data.folder)
    dataset = open_dataset(settings.data, settings.task, folder)
    _, names = split(table, fold, dataset.names)
    if not names:
        raise Problem(f"{folder} holds no picture of fold {fold} in {run.folds}; is it another folder?")

    if gone := absent(table, fold, names):
        what = "cars" if table.columns[0] == "car_id" else "pictures"
        print(f"fold {fold}: not judged are {len(gone)} held-out {what} that {folder} lacks, {gone[0]} the first.")

    binary = settings.task.kind == "binary"
    ensemble = ensemble_of([member_of(network, settings, weight=1.0)], binary, dataset.height, dataset.width)
    batch_size = batch_that_fits(ensemble, settings.predict.batch_size)
    validation_set = ValidationDataset(dataset, names, settings.data.scale)
    loader = validation_loader(validation_set, batch_size, settings.data.workers, device.type == "cuda")
    batches = progress(loader, f"fold {fold} on {describe(device)}")

    def predict(image_NHWC: Tensor) -> Tensor:
        return ensemble({settings.data.scale: image_NHWC})

    busy = f"Fold {fold} of {run.folder} is being validated by another process; wait until it is done."
    with locked(run.lock(f"validate.fold{fold}"), busy):
        kept_path = run.oof_probabilities(fold)
        with oof_writer(kept_path) as keep, explain_out_of_memory(lambda: too_large_message(batch_size, settings.data.scale)):
            if binary:
                counts = histograms(ensemble.with_grid, batches, names, dataset.truth, keep)
                found: dict[str, Any] = {"histograms": counts}
                judged = f"Dice {dice_scores(counts)['dice']:.5f} at the cut 0.5"
            else:
                confused = confusions(predict, batches, names, dataset.truth, settings.task.count, keep)
                found = {**confused._asdict(), "classes": np.array(dataset.classes)}
                scores = class_scores(confused)
                note_missing_classes(fold, missing_classes(confused), dataset.classes)
                judged = f"mean IoU {scores['mean_iou']:.5f}, pixel accuracy {scores['pixel_accuracy']:.5f}"
        found |= {"checkpoint": digest_of[str(checkpoint_path)], "probabilities": sha256(kept_path)}
        found |= {"predicted_with": predicted_with(settings.predict.tta, settings.data.scale, settings.data.hq)}
        with replacing(run.oof(fold)) as draft, open(draft, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, names=np.array(names), **found)
    print(
        f"fold {fold}: {judged}, predict.tta {settings.predict.tta}, over {len(names)} held-out images, "
        f"in {run.oof(fold)}."
    )


def note_missing_classes(fold: int, missing: list[int], classes: tuple[str, ...]) -> None:
    """Which classes no held-out pixel has: the object, for one, of masks of 0 and 255, since 255 is not judged."""
    if missing:
        named = ", ".join(classes[index] for index in missing[:CLASSES_SHOWN])
        more = ", ..." if len(missing) > CLASSES_SHOWN else ""
        print(f"fold {fold}: no held-out pixel has {len(missing)} of the {len(classes)} classes: {named}{more}.")
