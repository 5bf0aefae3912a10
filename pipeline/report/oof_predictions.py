"""Open the out-of-fold predictions of a run: their scores, images, truths and predicted masks or class maps.

Whatever is missing or damaged becomes a sentence in `missing_notes`, and the rest is shown: a report of half a run is
better than none.
"""
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import config
from pipeline.config import Settings
from pipeline.data import grouping
from pipeline.data.competition import Competition
from pipeline.data.dataset import COMPETITIONS, SegmentationDataset, competition_of, open_dataset
from pipeline.inference.oof import (
    COARSE, OofConfusion, OofHistograms, OofStore, open_oof_store, read_oof_confusion, read_oof_histograms
)  # fmt: skip
from pipeline.inference.stored_threshold import (
    other_network_message, prediction_settings, read_threshold_u8, stale_message, unrefined_note
)  # fmt: skip
from pipeline.masks import confusion
from pipeline.masks.dice import threshold_from_u8, threshold_to_u8
from pipeline.paths import Run
from pipeline.report import errors, gallery
from pipeline.runtime.problem import Problem


@dataclass
class OofPredictions:
    """Out-of-fold predictions of a run; `open_predictions` makes it. Several threads may call its methods at once.

    The two tasks differ in what a fold stores. Binary: histograms, and probabilities on the network's grid, which are
    upsampled and thresholded at `threshold_u8`, or with a refiner also those at full size. Multiclass: counts of each
    class, and class maps at full size.
    """

    is_multiclass: bool
    competition: Competition | None  # None: other data
    threshold_u8: int  # 0 to 255
    oof: dict[int, OofHistograms | OofConfusion] = field(default_factory=dict)  # fold -> its scores
    stores: dict[int, OofStore] = field(default_factory=dict)  # fold -> its stored predictions, if they are complete
    scale_of: dict[int, int] = field(default_factory=dict)  # fold -> data.scale
    fold_of: dict[str, int] = field(default_factory=dict)  # image name -> the fold that held it out
    dataset: SegmentationDataset | None = None
    missing_notes: list[str] = field(default_factory=list)

    @property
    def has_angles(self) -> bool:
        """Whether the images show cars with makes and angles; otherwise they may have groups."""
        return self.competition is not None and self.competition.angles > 1

    @property
    def metric(self) -> str:
        return "mean IoU" if self.is_multiclass else "Dice"

    @property
    def metric_column(self) -> str:
        """Name in `images.csv` of the column that is `score` in the tables here."""
        return "mean_iou" if self.is_multiclass else "dice"

    @property
    def confusions(self) -> dict[int, OofConfusion]:
        return {fold: oof for fold, oof in self.oof.items() if isinstance(oof, OofConfusion)}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of a multiclass run, else ()."""
        return next((oof.classes for oof in self.confusions.values()), ())

    @property
    def matrix(self) -> NDArray[np.int64]:
        """Confusion matrix over all images, (classes, classes)."""
        return np.sum([oof.matrix for oof in self.confusions.values()], axis=0)

    @property
    def predicted_with(self) -> str:
        """TTA and scale of the predictions, as far as they are known."""
        return prediction_settings(self.oof.values())

    @property
    def evaluated_with(self) -> str:
        threshold = "" if self.is_multiclass else f"threshold {threshold_from_u8(self.threshold_u8):.3f}"
        return ", ".join(filter(None, (threshold, self.predicted_with)))

    @property
    def showable(self) -> list[str]:
        """Names of the images whose pixels, truth and stored prediction can all be read."""
        names = set(self.dataset.names) if self.dataset is not None else set()
        return [name for name, fold in self.fold_of.items() if fold in self.stores and name in names]

    def truth(self, name: str) -> NDArray:
        """Return the mask, bool (height, width), or the class map, of which the largest value is not valid."""
        assert self.dataset is not None, "only `showable` images have a truth"
        return self.dataset.truth(name)

    def probability(self, name: str) -> NDArray[np.uint8]:
        """Return the probability of a binary run at full size, 0 to 255, uint8 (height, width)."""
        assert self.dataset is not None, "only `showable` images have a size"
        fold, full_size = self.fold_of[name], (self.dataset.height, self.dataset.width)
        stored_u8 = self.stores[fold].read(name)
        if self.is_refined(name):
            return stored_u8
        return errors.upsample_stored(stored_u8, self.scale_of[fold], *full_size)

    def is_refined(self, name: str) -> bool:
        """Whether a refiner has corrected the prediction."""
        return self.oof[self.fold_of[name]].refiner_sha256 != ""

    def coarse_prediction(self, name: str) -> NDArray[np.bool_]:
        """Return the mask, bool (height, width), as it was before it was refined."""
        assert self.dataset is not None, "only `showable` images have a size"
        fold, full_size = self.fold_of[name], (self.dataset.height, self.dataset.width)
        coarse_u8 = self.stores[fold].read(name, COARSE)
        return errors.upsample_stored(coarse_u8, self.scale_of[fold], *full_size) >= self.threshold_u8

    def prediction(self, name: str) -> NDArray:
        """Return the mask, bool (height, width), or the class map."""
        if self.is_multiclass:
            return self.stores[self.fold_of[name]].read(name)
        return self.probability(name) >= self.threshold_u8

    def card(
        self, name: str, spot: tuple[int, int], facts: dict[str, Any], tags: tuple[str, ...] = (), coarse: bool = False
    ) -> gallery.Card:
        """Make a card of a `showable` image. spot: row and column of the crop's centre.

        coarse: add a layer with the errors before it was refined, if it was.
        """
        assert self.dataset is not None, "only `showable` images have pixels"
        truth, predicted = self.truth(name), self.prediction(name)
        window = gallery.window_around(spot, gallery.CROP_PX, predicted.shape)
        if self.is_multiclass:
            layers = gallery.class_layers(truth, predicted, len(self.classes), window)
        else:
            before = self.coarse_prediction(name) if coarse and self.is_refined(name) else None
            layers = gallery.mask_layers(truth, predicted, window, before)
        small, full = gallery.read_small_and_full(self.dataset, name, self.dataset.height, self.dataset.width)
        return gallery.make_card(name, small, full[window], layers, facts, tags)

    def score_table(self, group_of_key: Mapping[str, str]) -> pd.DataFrame:
        """Return one row an image: `img`, its groups, `fold`, `score` and its pixel counts; no image is read.

        group_of_key: what `read_groups` returns.
        """
        return self.concatenate({fold: self.count_fold(fold) for fold in self.oof}, group_of_key)

    def error_table(self, group_of_key: Mapping[str, str]) -> pd.DataFrame:
        """Return `score_table` of a binary run with `errors.PLACE_COLUMNS`, for which all images are read.

        With a refiner also `errors.COARSE_COLUMNS`, of the predictions before they were refined.
        """
        showable, tables = set(self.showable), {}
        for fold in self.oof:
            counts = self.count_fold(fold)
            read_prediction = self.prediction if counts["img"].isin(showable).all() else None
            read_coarse = self.coarse_prediction if read_prediction and self.oof[fold].refiner_sha256 else None
            tables[fold] = errors.add_places(counts, self.truth, read_prediction, read_coarse)
        return self.concatenate(tables, group_of_key)

    def count_fold(self, fold: int) -> pd.DataFrame:
        """Return one row an image with `img`, the metric's column and pixel counts."""
        oof = self.oof[fold]
        if isinstance(oof, OofHistograms):
            return errors.count_errors(oof.names, oof.histograms, self.threshold_u8)
        counts = oof.per_image
        return pd.DataFrame({
            "img": oof.names, "mean_iou": confusion.mean_of_classes(confusion.iou(counts)),
            "pixel_accuracy": confusion.pixel_accuracy(counts),
            "mean_dice": confusion.mean_of_classes(confusion.dice(counts)),
            "valid_px": counts.in_truth.sum(-1), "wrong_px": (counts.in_truth - counts.hits).sum(-1),
            "classes": (counts.in_truth > 0).sum(-1),
        })  # fmt: skip

    def concatenate(self, tables: Mapping[int, pd.DataFrame], group_of_key: Mapping[str, str]) -> pd.DataFrame:
        add_groups = errors.add_car_groups if self.has_angles else errors.add_image_groups
        rows = [add_groups(table, fold, group_of_key) for fold, table in tables.items()]
        return pd.concat(rows, ignore_index=True).rename(columns={self.metric_column: "score"})


def open_predictions(run: Run, overrides: list[str]) -> OofPredictions:
    """Open all trained folds. overrides: `data.…=` over the trained settings. Without `threshold.json` it is 0.5."""
    settings_of_fold = {fold: settings_of(run, fold, overrides) for fold in run.trained_folds()}
    settings = next(reversed(settings_of_fold.values()), Settings())
    is_multiclass = settings.task.kind == "multiclass"
    has_threshold = not is_multiclass and run.threshold.is_file()
    predictions = OofPredictions(
        is_multiclass=is_multiclass,
        competition=competition_of(settings.data.kind) if settings.data.kind in COMPETITIONS else None,
        threshold_u8=read_threshold_u8(run.threshold) if has_threshold else threshold_to_u8(0.5),
    )
    notes = predictions.missing_notes
    for fold, fold_settings in settings_of_fold.items():
        open_fold(predictions, run, fold, fold_settings.data.scale)
    if has_threshold and (note := stale_message(run)) not in ("", *notes):
        notes.append(note)
    folder = pathlib.Path(settings.data.folder)
    try:
        predictions.dataset = open_images(settings, folder)
    except Problem as problem:
        notes.append(f"There is no gallery of images: {problem}")
    if predictions.stores and not predictions.showable and predictions.dataset is not None:
        notes.append(f"{folder} has none of the images that this run was evaluated on; name their folder with DATA=.")
    return predictions


def open_images(settings: Settings, folder: pathlib.Path) -> SegmentationDataset:
    """Open the data set; of a competition without the table of its groups, since those of `folds.csv` are shown."""
    if settings.data.kind not in COMPETITIONS:
        return open_dataset(settings.data, settings.task, folder)
    return replace(competition_of(settings.data.kind), read_groups=None).open_dataset(folder, settings.data.hq)


def open_fold(predictions: OofPredictions, run: Run, fold: int, scale: int) -> None:
    """Add what a fold stored; add a note for what cannot be read."""
    notes, read = predictions.missing_notes, read_oof_confusion if predictions.is_multiclass else read_oof_histograms
    try:
        oof = read(run.oof(fold))
        if note := other_network_message(run, fold, oof) or unrefined_note(run, fold, oof):
            notes.append(note)
    except Problem as problem:
        notes.append(f"Fold {fold} has no scores of its images: {problem}")
        return
    if isinstance(oof, OofConfusion) and oof.classes != (predictions.classes or oof.classes):
        notes.append(f"Fold {fold} is left out, since its classes differ from those of the folds before it.")
        return
    predictions.oof[fold], predictions.scale_of[fold] = oof, scale
    predictions.fold_of |= dict.fromkeys(oof.names, fold)
    try:
        predictions.stores[fold] = open_oof_store(oof, run.oof_predictions(fold))
    except Problem as problem:
        notes.append(f"Fold {fold} has no predictions to show: {problem}")


def settings_of(run: Run, fold: int, overrides: list[str]) -> Settings:
    files = run.fold(fold)
    settings = config.load(files.config, check_choices=False)
    if files.refiner.config.is_file():  # perhaps of another config than that of the network
        refine = config.load(files.refiner.config, check_choices=False).refine
        settings = settings.model_copy(update={"refine": refine})
    return config.for_later_stage(settings, overrides, check_choices=False)


def read_groups(run: Run) -> dict[str, str]:
    """Return the group of each car or image in `folds.csv`; "" where it has none."""
    return dict(grouping.read_folds(run.folds).iloc[:, :2].itertuples(index=False))
