"""The submission of a run against the masks of training: areas by view, what is odd, and cards of test pictures."""
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from pipeline import carvana
from pipeline.report import drift, errors
from pipeline.data import competition
from pipeline.submission.reader import read_rows
from pipeline.masks import rle
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress
from pipeline.report import charts, gallery, overview, page
from pipeline.report.held_out import photos

SHOWN, ODD_SHOWN, SURE = 16, 12, 0.05
SIZE = (carvana.HEIGHT_PX, carvana.WIDTH_PX)


def section(run: Run, folder: pathlib.Path, hq: bool, missing: list[str]) -> dict[str, Any] | None:
    """What the page says of it; None and a sentence in `missing` when one of the two is not there."""
    if not run.submission.is_file():
        missing.append(f"There is no submission {run.submission}; make it with `make predict`.")
        return None
    try:
        masks = competition.open_masks(folder)
        known = progress(((name, runs_of(masks, name)) for name in masks.names), "masks", total=len(masks.names))
        training = drift.shapes_table(known, *SIZE)
        test = drift.shapes_table(progress(drift.submission_masks(run.submission), "submission"), *SIZE)
        pictures = competition.ImageSet(folder, "test_hq" if hq else "test")
        odd = drift.odd_masks(test, training)
        names = sample(test["img"], odd["img"], set(pictures.names))
        cards = list(test_cards(run.submission, pictures, names, dict(zip(odd["img"], odd["why"]))))
    except Problem as problem:
        missing.append(f"The submission is not shown. {problem}")
        return None
    by_angle = drift.drift_by_angle(test, training)
    pixels = carvana.WIDTH_PX * carvana.HEIGHT_PX
    areas = [
        {int(view): part["area_px"].to_numpy() / pixels for view, part in table.groupby("view")}
        for table in (training, test)
    ]
    furthest = by_angle.loc[by_angle["ks"].idxmax()]
    by_chance = furthest["ks_p"] * len(by_angle) > SURE  # Bonferroni: the furthest of so many views
    text = "Band: 5 to 95 % of the training masks of a view. Dots: median of the predictions, lines 5 to 95 %."
    return {
        "text": f"{page.thousands(len(test))} test pictures; the area that differs most from training is that of view "
        f"{int(furthest['view'])} (Kolmogorov-Smirnov distance {furthest['ks']:.2f}, "
        f"{'as chance alone may have it' if by_chance else 'more than chance alone would have'}).",
        "panels": [overview.Panel("Area by view", text, charts.area_by_angle(*areas))],
        "odd": odd.head(ODD_SHOWN).to_dict("records"), "more_odd": max(0, len(odd) - ODD_SHOWN), "cards": cards,
    }  # fmt: skip


def sample(names: pd.Series, odd: pd.Series, there: set[str]) -> list[str]:
    """Up to half of them odd ones, the others drawn from all, the same ones each time."""
    first = [name for name in odd if name in there][: SHOWN // 2]
    drawn = np.random.default_rng(0).permutation([name for name in names if name in there]).tolist()
    return list(dict.fromkeys([*first, *drawn]))[:SHOWN]


def test_cards(
    submission: pathlib.Path, pictures: competition.ImageSet, names: Iterable[str], why: dict[str, str]
) -> Iterator[gallery.Card]:
    """Cards of predictions whose truth nobody knows, with the place where their edge is longest."""
    wanted = set(names)
    text_of = {name: text for _, (name, text) in read_rows(submission, carvana.SUBMISSION_HEADER) if name in wanted}
    for name in names:
        mask = rle.decode(text_of[name], *SIZE)
        row, column, _ = errors.worst_spot(gallery.edge_of(mask), errors.WORST_WINDOW_PX)
        facts = {
            "title": f"{mask.mean():.1%}", "right": f"view {carvana.angle_of(name)}",
            "below": f"{why[name]}, {name}" if name in why else name,
        }  # fmt: skip
        yield gallery.card(name, *photos(pictures, name), None, mask, (row, column), facts, ("test",))


def runs_of(masks: competition.Masks, name: str) -> np.ndarray:
    """Bounds of the runs of a training mask, as `rle.parse` gives them."""
    return masks.runs(name) if isinstance(masks, competition.CsvMasks) else rle.bounds(masks.read(name))
