"""What a run left behind of its held-out pictures, opened for looking: table, masks, probabilities, photos.

What is missing or damaged is told in `gaps`, a sentence each, and the rest is shown: a report of half a run is better
than none.
"""
import pathlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.analysis import table
from pipeline.carvana import HEIGHT_PX, WIDTH_PX
from pipeline.data.competition import Masks, Pictures, open_masks
from pipeline.data.images import enlarged
from pipeline.inference.kept import Judged, Kept, open_kept, read_judged
from pipeline.problem import Problem
from pipeline.report import gallery


@dataclass(frozen=True)
class FoldFiles:
    """Where a fold's results lie, and at which scale its network saw pictures."""

    histograms: pathlib.Path
    probabilities: pathlib.Path
    scale: int


@dataclass
class HeldOut:
    """`open_held_out` makes it. truth, prediction, probability and photo may be called by several threads at once."""

    cut: int  # 0 to 255
    judged: dict[int, Judged] = field(default_factory=dict)  # fold -> its histograms
    kept: dict[int, Kept] = field(default_factory=dict)  # fold -> its probabilities, where they are whole
    scale_of: dict[int, int] = field(default_factory=dict)
    fold_of: dict[str, int] = field(default_factory=dict)  # name of a picture -> the fold that held it out
    pictures: Pictures | None = None
    masks: Masks | None = None
    gaps: list[str] = field(default_factory=list)

    @property
    def shown(self) -> list[str]:
        """Names of the pictures of which prediction, mask and photo are at hand."""
        if self.masks is None or self.pictures is None:
            return []
        there = set(self.masks.names) & set(self.pictures.names)
        return [name for name, fold in self.fold_of.items() if fold in self.kept and name in there]

    def truth(self, name: str) -> NDArray[np.bool_]:
        """bool (height, width)."""
        assert self.masks is not None, "only pictures in `shown` have one"
        return self.masks.read(name)

    def probability(self, name: str) -> NDArray[np.uint8]:
        """0 to 255, uint8 (height, width)."""
        fold = self.fold_of[name]
        return table.probability_of(self.kept[fold].read(name), self.scale_of[fold], HEIGHT_PX, WIDTH_PX)

    def prediction(self, name: str) -> NDArray[np.bool_]:
        """bool (height, width)."""
        return self.probability(name) >= self.cut

    def table(self, make_of_car: Mapping[str, str], count: Callable[[Iterator], Iterator]) -> pd.DataFrame:
        """One row a picture with the columns `analysis.table.COLUMNS`. count: sees each picture's result come."""
        shown, rows = set(self.shown), []
        for fold, judged in self.judged.items():
            counts = table.counts_table(judged.names, judged.histograms, self.cut)
            whole = all(name in shown for name in judged.names)
            places = table.with_places(counts, self.truth, self.prediction if whole else None, count)
            rows.append(table.with_groups(places, fold, dict(make_of_car)))
        return pd.concat(rows, ignore_index=True)

    def card(self, name: str, spot: tuple[int, int], facts: dict[str, Any], tags: tuple[str, ...] = ()) -> gallery.Card:
        assert self.pictures is not None, "only pictures in `shown` have one"
        return gallery.card(
            name, *photos(self.pictures, name), self.truth(name), self.prediction(name), spot, facts, tags
        )


def open_held_out(files: Mapping[int, FoldFiles], folder: pathlib.Path, set_name: str, cut: int) -> HeldOut:
    """files: of each trained fold; folder: the competition's, set_name: of its pictures, `train` or `train_hq`."""
    found = HeldOut(cut)
    for fold, its in files.items():
        try:
            found.judged[fold] = read_judged(its.histograms)
        except Problem as problem:
            found.gaps.append(f"Fold {fold} has no Dice of each picture. {problem}")
            continue
        found.scale_of[fold] = its.scale
        found.fold_of |= dict.fromkeys(found.judged[fold].names, fold)
        try:
            found.kept[fold] = open_kept(found.judged[fold], its.probabilities)
        except Problem as problem:
            found.gaps.append(f"Fold {fold} has no pictures of its predictions. {problem}")
    try:
        found.pictures = Pictures(folder, set_name)
        found.masks = open_masks(folder)
    except Problem as problem:
        found.gaps.append(f"Without photos and masks there is no gallery. {problem}")
    if found.kept and not found.shown and found.masks is not None:
        found.gaps.append(f"{folder} has none of the pictures that this run was judged on; name their folder with DATA=.")
    return found


def photos(pictures: Pictures, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A photo small, at a quarter or less, and at full size; of a light copy the second is as sharp as that is."""
    small = pictures.read(name, max(4, pictures.stored_scale))
    large = pictures.read(name, pictures.stored_scale)
    if pictures.stored_scale > 1:
        large = enlarged(large, pictures.stored_scale, HEIGHT_PX, WIDTH_PX)
    return small, large
