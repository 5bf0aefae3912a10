"""What a run left of its held-out pictures, opened for looking: table, masks, probabilities, photos.

What is missing or damaged is told in `missing`, a sentence each, and the rest is shown: a report of half a run is better
than none.
"""
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import config
from pipeline.report import error_table
from pipeline.carvana import HEIGHT_PX, WIDTH_PX
from pipeline.config import Settings
from pipeline.data.dataset import SegmentationDataset, open_dataset
from pipeline.data.competition import Masks, ImageSet, open_masks
from pipeline.data.images import upsample_u8
from pipeline.inference.stored_threshold import other_network_message, stale_message, read_threshold_u8, prediction_settings
from pipeline.inference.oof import OofHistograms, OofStore, open_oof_store, read_oof_histograms
from pipeline.masks.dice import threshold_from_u8, threshold_to_u8
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.report import gallery


class Truths:
    """The masks of a plain folder, as `HeldOut` asks for them."""

    def __init__(self, dataset: SegmentationDataset):
        self.names, self.read = dataset.names, dataset.truth


@dataclass
class HeldOut:
    """`open_run` makes it. truth, prediction, probability and photo may be called by several threads at once."""

    threshold_u8: int  # 0 to 255
    judged: dict[int, OofHistograms] = field(default_factory=dict)  # fold -> its histograms
    kept: dict[int, OofStore] = field(default_factory=dict)  # fold -> its probabilities, where they are whole
    scale_of: dict[int, int] = field(default_factory=dict)
    fold_of: dict[str, int] = field(default_factory=dict)  # name of a picture -> the fold that held it out
    pictures: ImageSet | SegmentationDataset | None = None
    masks: Masks | Truths | None = None
    missing: list[str] = field(default_factory=list)
    score, classes = "Dice", ()
    of_cars: bool = True  # or of a plain folder, whose pictures have groups, but no makes and no views
    size: tuple[int, int] = (HEIGHT_PX, WIDTH_PX)

    @property
    def shown(self) -> list[str]:
        """Names of the pictures of which prediction, mask and photo are at hand."""
        if self.masks is None or self.pictures is None:
            return []
        there = set(self.masks.names) & set(self.pictures.names)
        return [name for name, fold in self.fold_of.items() if fold in self.kept and name in there]

    @property
    def judged_by(self) -> str:
        """By which cut and of what predictions, in a few words."""
        return ", ".join(word for word in (f"threshold {threshold_from_u8(self.threshold_u8):.3f}", self.predicted_with) if word)

    @property
    def predicted_with(self) -> str:
        return prediction_settings(self.judged.values())

    def truth(self, name: str) -> NDArray[np.bool_]:
        """bool (height, width)."""
        assert self.masks is not None, "only pictures in `shown` have one"
        return self.masks.read(name)

    def probability(self, name: str) -> NDArray[np.uint8]:
        """0 to 255, uint8 (height, width)."""
        fold = self.fold_of[name]
        return error_table.probability_of(self.kept[fold].read(name), self.scale_of[fold], *self.size)

    def prediction(self, name: str) -> NDArray[np.bool_]:
        """bool (height, width)."""
        return self.probability(name) >= self.threshold_u8

    def table(self, make_of_car: Mapping[str, str], count: Callable[[Iterator], Iterator]) -> pd.DataFrame:
        """One row a picture with the columns `analysis.table.COLUMNS`. count: sees each picture's result come."""
        shown, rows = set(self.shown), []
        for fold, judged in self.judged.items():
            counts = error_table.counts_table(judged.names, judged.histograms, self.threshold_u8)
            whole = all(name in shown for name in judged.names)
            places = error_table.with_places(counts, self.truth, self.prediction if whole else None, count)
            rows.append(self.grouped(places, fold, make_of_car))
        return pd.concat(rows, ignore_index=True)

    def counts(self, make_of_car: Mapping[str, str]) -> pd.DataFrame:
        """The same without reading a picture: what is known from the histograms alone."""
        rows = []
        for fold, judged in self.judged.items():
            counts = error_table.counts_table(judged.names, judged.histograms, self.threshold_u8)
            rows.append(self.grouped(error_table.with_places(counts, self.truth, None), fold, make_of_car))
        return pd.concat(rows, ignore_index=True)

    def grouped(self, counts: pd.DataFrame, fold: int, make_of_car: Mapping[str, str]) -> pd.DataFrame:
        """make_of_car: of a plain folder, the group of each picture."""
        with_groups = error_table.with_groups if self.of_cars else error_table.with_image_groups
        return with_groups(counts, fold, dict(make_of_car))

    def card(self, name: str, spot: tuple[int, int], facts: dict[str, Any], tags: tuple[str, ...] = ()) -> gallery.Card:
        assert self.pictures is not None, "only pictures in `shown` have one"
        return gallery.card(
            name, *photos(self.pictures, name), self.truth(name), self.prediction(name), spot, facts, tags
        )


def open_run(run: Run, overrides: list[str]) -> HeldOut:
    """overrides: `data.…=` words over the trained settings. Without a `threshold.json` the cut is 0.5."""
    threshold_known = run.threshold.is_file()
    found = HeldOut(read_threshold_u8(run.threshold) if threshold_known else threshold_to_u8(0.5))
    data, task = Settings().data, Settings().task
    for fold in run.trained_folds():
        settings = settings_of(run, fold, overrides)
        data, task = settings.data, settings.task
        try:
            found.judged[fold] = judged = read_oof_histograms(run.oof(fold))
            if sentence := other_network_message(run, fold, judged.checkpoint_sha256):
                found.missing.append(sentence)
        except Problem as problem:
            found.missing.append(f"Fold {fold} has no Dice of its pictures. {problem}")
            continue
        found.scale_of[fold] = data.scale
        found.fold_of |= dict.fromkeys(judged.names, fold)
        try:
            found.kept[fold] = open_oof_store(judged, run.oof_predictions(fold))
        except Problem as problem:
            found.missing.append(f"Fold {fold} has no pictures of its predictions. {problem}")
    if threshold_known and (sentence := stale_message(run)) not in ("", *found.missing):
        found.missing.append(sentence)
    folder, set_name = pathlib.Path(data.folder), "train_hq" if data.hq else "train"
    found.of_cars = data.kind == "carvana"
    try:
        if found.of_cars:
            found.pictures = ImageSet(folder, set_name)
            found.masks = open_masks(folder)
        else:
            found.pictures = dataset = open_dataset(data, task, folder)
            found.masks, found.size = Truths(dataset), (dataset.height, dataset.width)
    except Problem as problem:
        found.missing.append(f"Without photos and masks there is no gallery. {problem}")
    if found.kept and not found.shown and found.masks is not None:
        found.missing.append(f"{folder} has none of the pictures that this run was judged on; name theirs with DATA=.")
    return found


def settings_of(run: Run, fold: int, overrides: list[str]) -> Settings:
    path = run.fold(fold).config
    return config.for_later_stage(config.load(path, check_choices=False), overrides, check_choices=False)


def photos(pictures: ImageSet | SegmentationDataset, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A photo small, at a quarter or less, and at full size; of a light copy the second is as sharp as that is.

    Pictures that are none of the competition's may be small ones: they are at full size both times, without depth.
    """
    if not isinstance(pictures, ImageSet):
        photo = pictures.read(name, 1)[..., :3]
        return photo, photo
    small = pictures.read(name, max(4, pictures.stored_scale))
    large = pictures.read(name, pictures.stored_scale)
    if pictures.stored_scale == 1:
        return small, large
    channels = [
        upsample_u8(large[..., channel].astype(np.float32) / np.float32(255), pictures.stored_scale, HEIGHT_PX, WIDTH_PX)
        for channel in range(3)
    ]
    return small, np.dstack(channels)
