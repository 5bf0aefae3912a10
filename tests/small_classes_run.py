"""Runs without training on plain folders, for tests of the report: their predictions are shifted truths."""
import json
import pathlib

import numpy as np
from plain_folder import CLASSES, draw

from pipeline import config
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.inference.oof import oof_writer, png
from pipeline.masks import confusion, dice
from pipeline.paths import Run
from pipeline.runtime.files import sha256, write_json, write_text

DEFAULTS = pathlib.Path(__file__).parent.parent / "configs/folder.yaml"
SIZE = ["data.height=64", "data.width=96", "data.scale=1", "data.folds=2", "train.epochs=2"]
ABSENT_CLASS = "sky"  # in no image


def make(name: str, shift_px: int, binary: bool = False) -> Run:
    """Write `runs/NAME/` as two validated folds would, on 12 drawn images in four groups."""
    run, folder = Run(name), pathlib.Path(f"images of {'one' if binary else 'several'}")
    if not folder.exists():
        draw(folder, binary=binary)
    task = [f"task.classes=[{', '.join((*CLASSES, ABSENT_CLASS))}]", "task.kind=multiclass"]
    task = ["task.classes=[]", "task.class_weights=[]", "task.kind=binary"] if binary else task
    settings = config.load(DEFAULTS, [f"data.folder={folder}", *task, *SIZE])
    dataset = open_dataset(settings.data, settings.task, folder)
    table = dataset.folds(2)
    write_text(run.folds, table.to_csv(index=False))
    for fold in (0, 1):
        write_text(run.fold(fold).config, config.dump(settings))
        write_text(run.fold(fold).best, f"weights of fold {fold} of {name}")
        row = {"train_loss": 0.1, "images_per_s": 40.0, "lr": 0.001, "seconds": 60.0}
        row |= {"val_dice": 0.9} if binary else {"val_dice": None, "val_mean_iou": 0.7}
        rows = [{"epoch": epoch, **row} for epoch in (1, 2)]
        write_text(run.fold(fold).log, "".join(json.dumps(row) + "\n" for row in rows))
        names = table[table["fold"] == fold]["image"].tolist()
        with oof_writer(run.oof_probabilities(fold)) as store:
            evaluate = evaluate_binary if binary else evaluate_classes
            scores = evaluate(dataset, names, shift_px, store)
        hashes = {"checkpoint": sha256(run.fold(fold).best), "probabilities": sha256(run.oof_probabilities(fold))}
        with open(run.oof(fold), "wb") as file:
            np.savez_compressed(file, names=np.array(names), **scores, **hashes)
    if binary:
        write_json(run.threshold, {"threshold": 0.5, "oof_dice": 0.9, "oof_dice_cross_fitted": 0.899, "images": 12})
    return run


def evaluate_classes(dataset: SegmentationDataset, names: list[str], shift_px: int, store) -> dict[str, np.ndarray]:
    classes = (*CLASSES, ABSENT_CLASS)
    matrices = []
    for number, name in enumerate(names):
        truth = dataset.truth(name)
        predicted = np.roll(np.where(truth == 255, 0, truth), shift_px * (number % 3), axis=1).astype(np.uint8)
        matrices.append(confusion.matrix(predicted, truth, len(classes)))
        store(name, png(predicted))
    counts = confusion.counts(np.stack(matrices))
    return {"matrix": np.sum(matrices, axis=0), "classes": np.array(classes), **counts._asdict()}


def evaluate_binary(dataset: SegmentationDataset, names: list[str], shift_px: int, store) -> dict[str, np.ndarray]:
    histograms = []
    for number, name in enumerate(names):
        prob_u8 = np.roll(dataset.truth(name), shift_px * (number % 3), axis=1).astype(np.uint8) * 255
        store(name, png(prob_u8))
        histograms.append(dice.histogram(prob_u8, dataset.truth(name)))
    return {"histograms": np.stack(histograms)}
