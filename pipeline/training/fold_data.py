"""The images of one fold: what it trains on and what it is evaluated on, checked against the settings."""
import hashlib
import pathlib
from dataclasses import dataclass

import pandas as pd

from pipeline.config import Settings
from pipeline.data import augment, grouping, relabel
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.data.loader import TrainingDataset, ValidationDataset
from pipeline.paths import Fold, Run
from pipeline.runtime.problem import Problem


@dataclass(frozen=True)
class FoldData:
    """What one fold trains on and is evaluated on, and where its files are."""

    run: Run
    number: int
    folder: pathlib.Path  # of the dataset
    dataset: SegmentationDataset
    training: TrainingDataset
    validation: ValidationDataset
    folds: pd.DataFrame  # folds.csv
    fingerprint: str  # tells these images, this copy of them and these masks from others
    notes: str  # on images that are left out and masks that are replaced, for messages

    @property
    def paths(self) -> Fold:
        return self.run.fold(self.number)

    def missing_groups(self) -> list[str]:
        """Return the rows of `folds.csv` of which the dataset has no image: cars, or images."""
        present = set(map(self.dataset.group_key, self.dataset.names))
        return [key for key in self.folds.sort_values("fold", kind="stable").iloc[:, 0] if key not in present]


def open_fold(settings: Settings, run: Run, fold_number: int, folder: pathlib.Path, world_size: int) -> FoldData:
    """Open the images of a fold; Problem unless the settings, the folds and the folder go together."""
    hyper, scale = settings.train, settings.data.scale
    table = grouping.read_folds(run.folds)
    dataset = open_dataset(settings.data, settings.task, folder)
    training, validation = grouping.split(table, fold_number, dataset.names, dataset.group_key)
    if len(training) + len(validation) != len(dataset.names):
        raise Problem(f"{folder} has images that {run.folds} does not list; run `make folds` under another RUN=.")
    training = relabel.without(training, settings.data.exclude, settings.data.kind)
    if len(training) < hyper.batch_size or not validation:
        images = f"{len(training)} images to train on and {len(validation)} held out"
        too_large = f"but train.batch_size is {hyper.batch_size}; lower it, or change data.folds under another RUN="
        raise Problem(f"Fold {fold_number} of {run.folds} has {images}, {too_large}.")
    if hyper.batch_size % (world_size * hyper.accumulate):
        product = f"train.accumulate ({hyper.accumulate}) times the number of processes ({world_size})"
        raise Problem(f"train.batch_size ({hyper.batch_size}) must be a multiple of {product}.")
    relabelled = relabel.read_relabelled(training, settings.data.relabel, settings.data.kind)
    transform = augment.build(**settings.augment.model_dump(), of_classes=settings.task.kind == "multiclass")
    return FoldData(
        run=run, number=fold_number, folder=folder, dataset=dataset,
        training=TrainingDataset(dataset, training, scale, transform, hyper.seed, settings.data.cache, relabelled),
        validation=ValidationDataset(dataset, validation, scale), folds=table,
        fingerprint=fingerprint_of(training, validation, dataset, relabel.fingerprint(relabelled)),
        notes=relabel.relabel_summary(training, validation, dataset.names, relabelled),
    )


def fingerprint_of(training: list[str], validation: list[str], dataset: SegmentationDataset, masks: str) -> str:
    """Return a hash of the names, the dataset's own fingerprint and scale, and the masks that were replaced."""
    lines = [*training, "held out", *validation, f"stored at 1/{dataset.stored_scale}", *masks.splitlines()]
    text = "\n".join([*lines, *dataset.fingerprint.splitlines()])
    return hashlib.sha256(text.encode()).hexdigest()
