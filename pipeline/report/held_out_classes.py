"""`held_out` for several classes: what a run left of its held-out pictures, from counts and class maps.

A `HeldOutClasses` answers to what `stages.report` and `stages.compare` ask of a `HeldOut`. In its table `dice` is the
score by which pictures are sorted: here the mean IoU of a picture's classes.
"""
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.report import errors, error_table
from pipeline.config import Settings
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.inference.stored_threshold import other_network_message, prediction_settings
from pipeline.inference.oof import OofConfusion, OofStore, open_oof_store, read_oof_confusion
from pipeline.masks import confusion
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.report import gallery, gallery_classes
from pipeline.report.held_out import settings_of


@dataclass
class HeldOutClasses:
    """`open_classes` makes it. truth, prediction and card may be called by several threads at once."""

    judged: dict[int, OofConfusion] = field(default_factory=dict)  # fold -> its counts
    kept: dict[int, OofStore] = field(default_factory=dict)  # fold -> its class maps, where they are whole
    fold_of: dict[str, int] = field(default_factory=dict)  # name of a picture -> the fold that held it out
    dataset: SegmentationDataset | None = None
    missing: list[str] = field(default_factory=list)
    score, of_cars = "mean IoU", False

    @property
    def shown(self) -> list[str]:
        """Names of the pictures of which prediction, truth and photo are at hand."""
        there = set(self.dataset.names) if self.dataset is not None else set()
        return [name for name, fold in self.fold_of.items() if fold in self.kept and name in there]

    @property
    def judged_by(self) -> str:
        """Of what predictions, as far as that is known."""
        return prediction_settings(self.judged.values())

    @property
    def classes(self) -> tuple[str, ...]:
        return next((judged.classes for judged in self.judged.values()), ())

    @property
    def matrix(self) -> NDArray[np.int64]:
        """The confusion matrix of all pictures, (classes, classes)."""
        return np.sum([judged.matrix for judged in self.judged.values()], axis=0)

    def truth(self, name: str) -> confusion.Indices:
        """(height, width); its largest value is not judged."""
        assert self.dataset is not None, "only pictures in `shown` have one"
        return self.dataset.truth(name)

    def prediction(self, name: str) -> confusion.Indices:
        """(height, width)."""
        return self.kept[self.fold_of[name]].read(name)

    def counts(self, group_of_image: Mapping[str, str]) -> pd.DataFrame:
        """One row a picture: `table.with_image_groups`, `dice`, which is its mean IoU, and what else its counts say."""
        rows = []
        for fold, judged in self.judged.items():
            its = judged.per_image
            counted = pd.DataFrame({
                "img": judged.names,
                "dice": confusion.mean_of_classes(confusion.iou(its)),
                "pixel_accuracy": confusion.pixel_accuracy(its),
                "mean_dice": confusion.mean_of_classes(confusion.dice(its)),
                "judged_px": its.in_truth.sum(-1),
                "wrong_px": (its.in_truth - its.hits).sum(-1),
                "classes": (its.in_truth > 0).sum(-1),
            })  # fmt: skip
            rows.append(error_table.with_image_groups(counted, fold, dict(group_of_image)))
        return pd.concat(rows, ignore_index=True)

    def worst_spot(self, name: str) -> tuple[int, int]:
        """Row and column where errors are dense."""
        wrong = gallery_classes.wrong(self.truth(name), self.prediction(name))
        return errors.worst_spot(wrong, errors.WORST_WINDOW_PX)[:2]

    def card(self, name: str, spot: tuple[int, int], facts: dict[str, Any], tags: tuple[str, ...] = ()) -> gallery.Card:
        assert self.dataset is not None, "only pictures in `shown` have one"
        photo = np.ascontiguousarray(self.dataset.read(name, 1)[..., :3])
        truth, predicted = self.truth(name), self.prediction(name)
        return gallery_classes.card(name, photo, truth, predicted, len(self.classes), spot, facts, tags)


def open_classes(run: Run, overrides: list[str]) -> HeldOutClasses:
    """overrides: `data.…=` words over the trained settings."""
    found, settings = HeldOutClasses(), Settings()
    for fold in run.trained_folds():
        settings = settings_of(run, fold, overrides)
        try:
            judged = read_oof_confusion(run.oof(fold))
        except Problem as problem:
            found.missing.append(f"Fold {fold} has no scores of its pictures. {problem}")
            continue
        if sentence := other_network_message(run, fold, judged.checkpoint_sha256):
            found.missing.append(sentence)
        if found.classes and judged.classes != found.classes:
            found.missing.append(f"Fold {fold} has other classes than the folds before it, and is left out.")
            continue
        found.judged[fold] = judged
        found.fold_of |= dict.fromkeys(judged.names, fold)
        try:
            found.kept[fold] = open_oof_store(judged, run.oof_predictions(fold))
        except Problem as problem:
            found.missing.append(f"Fold {fold} has no pictures of its predictions. {problem}")
    try:
        found.dataset = open_dataset(settings.data, settings.task, pathlib.Path(settings.data.folder))
    except Problem as problem:
        found.missing.append(f"Without pictures and their truth there is no gallery. {problem}")
    if found.kept and not found.shown and found.dataset is not None:
        folder = settings.data.folder
        found.missing.append(f"{folder} has none of the pictures that this run was judged on; name theirs with DATA=.")
    return found
