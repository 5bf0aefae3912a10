"""What the page of a run of several classes says, put together from its parts: `parts/classes.html.j2` shows it."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.runtime.progress import progress
from pipeline.report import choice, classes, overview
from pipeline.report.held_out_classes import HeldOutClasses
from pipeline.runtime.progress import in_order


def context(
    found: HeldOutClasses, group_of_image: Mapping[str, str], logs: Mapping[int, Sequence[dict]]
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """What the template names, less what any run has; and the tables that lie beside the page, by their file names.

    group_of_image: "" for one without a group; logs: fold -> rows of its log.jsonl.
    """
    said: dict[str, Any] = classes.head_of_training(logs) | {"class_rows": [], "cards": [], "images": 0}
    said |= {"curves": overview.curve_panels(logs), "fold_rows": fold_rows(found, logs)}
    if not found.judged:
        return said, {}
    images = found.counts(group_of_image)
    in_truth = np.concatenate([judged.per_image.in_truth for judged in found.judged.values()])
    table = classes.class_table(found.matrix, in_truth, found.classes)
    matrices = {fold: judged.matrix for fold, judged in found.judged.items()}
    said |= classes.head(found.matrix, matrices, images) | classes.sections(table, found.matrix, images)
    said |= gallery_of(found, images) | {"palette": classes.legend(table), "images": len(images)}
    return said, {"images.csv": classes.images_csv(images), "classes.csv": table}


def anchors(said: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Of each section its title, and something that is empty when it is left out."""
    return {
        "classes": ("Each class", said["class_rows"]),
        "confusion": ("What is taken for what", said["class_rows"]),
        "gallery": ("ImageSet", said["cards"]),
        "training": ("Training", said["curves"]),
        "settings": ("Settings", True),
    }  # fmt: skip


def fold_rows(found: HeldOutClasses, logs: Mapping[int, Sequence[dict]]) -> list[dict[str, Any]]:
    """A row a fold that was begun, with dashes where it was not judged."""
    rows = []
    for fold, log in sorted(logs.items()):
        row = {"fold": fold, "epochs": len(log), "images": "–", "mean_iou": "–"}
        if judged := found.judged.get(fold):
            row |= {"images": len(judged.names), "mean_iou": classes.score(classes.mean_iou(judged.matrix))}
        rows.append(row)
    return rows


def gallery_of(found: HeldOutClasses, images: pd.DataFrame) -> dict[str, Any]:
    """Cards of the worst, middle and random pictures by mean IoU, and what the filters offer."""
    there = images[images["img"].isin(set(found.shown))].dropna(subset=["dice"])
    if not len(there):
        return {"cards": [], "counts": {}, "choices": {}}
    rows = choice.chosen(there)
    cards = in_order(
        lambda row: found.card(row.img, found.worst_spot(row.img), classes.facts_of(row), tuple(row.tags)),
        rows.itertuples(),
    )
    return {
        "cards": list(progress(cards, "gallery", total=len(rows))),
        "counts": choice.tag_counts(rows), "choices": choice.filters(rows, of_cars=False),
    }  # fmt: skip
