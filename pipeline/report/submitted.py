"""Section of a run's submission: mask areas by angle against training, odd masks, and cards of test images."""
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from pipeline.carvana import angle_of
from pipeline.data.competition import Competition, ImageSet
from pipeline.masks import rle
from pipeline.paths import Run
from pipeline.report import charts, drift, errors, gallery, overview, page
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress
from pipeline.submission.reader import read_rows

MAX_CARDS, MAX_ODD_ROWS = 16, 12
SIGNIFICANCE = 0.05


def section(
    run: Run, folder: pathlib.Path, hq: bool, competition: Competition, missing_notes: list[str]
) -> dict[str, Any] | None:
    """Return the section's variables; or None, and add a sentence to missing_notes, if something cannot be read."""
    if not run.submission.is_file():
        missing_notes.append(f"There is no submission {run.submission}; write it with `make predict`.")
        return None
    try:
        masks = competition.open_masks(folder)
        training_masks = ((name, masks.runs(name)) for name in masks.names)
        training = drift.shapes_table(progress(training_masks, "masks", total=len(masks.names)), competition)
        masks_of_rows = drift.submission_masks(run.submission, competition)
        test = drift.shapes_table(progress(masks_of_rows, "submission"), competition)
        images = competition.open_images(folder, competition.test_set, hq)
        odd = drift.odd_masks(test, training)
        names = sample(test["img"], odd["img"], set(images.names))
        cards = list(test_cards(run.submission, images, names, dict(zip(odd["img"], odd["why"]))))
    except Problem as problem:
        missing_notes.append(f"The submission is not shown: {problem}")
        return None
    by_angle = drift.drift_by_angle(test, training)
    areas = [
        {int(angle): part["area_px"].to_numpy() / competition.pixels for angle, part in table.groupby("angle")}
        for table in (training, test)
    ]
    largest = by_angle.loc[by_angle["ks"].idxmax()]
    is_significant = largest["ks_p"] * len(by_angle) <= SIGNIFICANCE  # Bonferroni: the largest of this many angles
    has_angles = competition.angles > 1
    most = f"most from training at angle {int(largest['angle'])} " if has_angles else "from training "
    text = "Band: 5 to 95 % of the training masks of an angle. Dots: median of the predictions, lines 5 to 95 %."
    return {
        "text": f"{page.thousands(len(test))} test images. The area differs {most}(Kolmogorov-Smirnov distance "
        f"{largest['ks']:.2f}, {'' if is_significant else 'not '}significant at 5 %).",
        "panels": [overview.Panel("Area by angle", text, charts.area_by_angle(*areas))] if has_angles else [],
        "odd": odd.head(MAX_ODD_ROWS).to_dict("records"), "more_odd": max(0, len(odd) - MAX_ODD_ROWS), "cards": cards,
    }  # fmt: skip


def sample(names: pd.Series, odd: pd.Series, readable: set[str]) -> list[str]:
    """Choose MAX_CARDS images: odd ones up to half, the others drawn from all, always the same."""
    first = [name for name in odd if name in readable][: MAX_CARDS // 2]
    drawn = np.random.default_rng(0).permutation([name for name in names if name in readable]).tolist()
    return list(dict.fromkeys([*first, *drawn]))[:MAX_CARDS]


def test_cards(
    submission: pathlib.Path, images: ImageSet, names: Iterable[str], why: dict[str, str]
) -> Iterator[gallery.Card]:
    """Yield cards of predictions without truth; the crop is where the predicted edge is longest."""
    wanted, competition = set(names), images.competition
    size = (competition.height_px, competition.width_px)
    text_of = {name: text for _, (name, text) in read_rows(submission, competition.submission_header) if name in wanted}
    for name in names:
        mask = rle.fill(competition.parse(text_of[name]), *size)
        row, column, _ = errors.find_worst_spot(gallery.edge_of(mask), errors.WORST_WINDOW_PX)
        window = gallery.window_around((row, column), gallery.CROP_PX, size)
        facts = {
            "title": f"{mask.mean():.1%}", "right": f"angle {angle_of(name)}" if competition.angles > 1 else "",
            "below": f"{why[name]}, {name}" if name in why else name,
        }  # fmt: skip
        small, full = gallery.read_small_and_full(images, name, *size)
        yield gallery.make_card(name, small, full[window], gallery.mask_layers(None, mask, window), facts, ("test",))
