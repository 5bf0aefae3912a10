"""Sections of the report of a multiclass run: how good each class is, and what it is confused with."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.masks import confusion
from pipeline.masks.colours import palette
from pipeline.report import charts, errors, gallery, overview, page
from pipeline.report.oof_predictions import OofPredictions
from pipeline.report.overview import Panel
from pipeline.report.palette import css_colour

MAX_PAIRS = 20
MAX_CLASS_ROWS = 60  # of the table of classes on the page; all are in classes.csv


def page_context(
    predictions: OofPredictions, group_of_key: Mapping[str, str], logs: Mapping[int, Sequence[dict]]
) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Return the template's variables that only a multiclass run has, and tables beside the page by file name.

    logs: fold -> rows of its log.jsonl.
    """
    if not predictions.oof:
        ious = [row["val_mean_iou"] for log in logs.values() for row in log if row.get("val_mean_iou") is not None]
        best, label = score(max(ious, default=np.nan)), "mean IoU at the end of training"
        return {"headline": best, "headline_label": label, "facts": [], "class_rows": [], "cards": [], "images": 0}, {}
    images = predictions.score_table(group_of_key)
    total, matrices = predictions.matrix, {fold: oof.matrix for fold, oof in predictions.confusions.items()}
    truth_px = np.concatenate([oof.per_image.in_truth for oof in predictions.confusions.values()])
    table = class_table(total, truth_px, predictions.classes)
    context = headline(total, matrices, images) | class_sections(table, total, images)
    showable = images[images["img"].isin(set(predictions.showable))].dropna(subset=["score"])
    context |= gallery.section(showable, lambda row: make_card(predictions, row))
    context |= {"palette": legend(table), "images": len(images)}
    return context, {"images.csv": images.rename(columns={"score": predictions.metric_column}), "classes.csv": table}


def section_titles(context: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Map each section's anchor to its title and a value that is empty if the section is left out."""
    return {
        "classes": ("Each class", context["class_rows"]), "confusion": ("Confused classes", context["class_rows"]),
        "gallery": ("Images", context["cards"]), "training": ("Training", context["curves"]),
        "settings": ("Settings", True),
    }  # fmt: skip


# --- tables ----------------------------------------------------------------------------------------------------------


def class_table(total: NDArray[np.int64], truth_px: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    """Return one row a class, in their order; scores are NaN for a class in neither truth nor prediction.

    total: confusion matrix over all images, (classes, classes); truth_px: pixels in truth, (images, classes).
    """
    counts, valid_px = confusion.counts(total), max(1, int(total.sum()))
    return pd.DataFrame({
        "index": range(len(classes)), "class": list(classes),
        "iou": confusion.iou(counts), "dice": confusion.dice(counts),
        "truth_fraction": counts.in_truth / valid_px, "predicted_fraction": counts.predicted / valid_px,
        "images": (truth_px > 0).sum(axis=0),
    })  # fmt: skip


def class_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Format the table for the page; of more than MAX_CLASS_ROWS classes, the largest of those that occur."""
    rows = table
    if len(table) > MAX_CLASS_ROWS:
        rows = occurring(table).sort_values("truth_fraction", ascending=False, kind="stable").head(MAX_CLASS_ROWS)
    colours = palette(len(table))
    return [
        {
            "name": row["class"], "colour": css_colour(colours[row["index"]]),
            "iou": score(row["iou"]), "dice": score(row["dice"]), "bar": 0 if np.isnan(row["iou"]) else row["iou"],
            "truth": percentage(row["truth_fraction"]), "predicted": percentage(row["predicted_fraction"]),
            "images": row["images"],
        }
        for row in rows.to_dict("records")
    ]  # fmt: skip


def occurring(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of classes that are in truth or in prediction."""
    return table[(table["truth_fraction"] > 0) | (table["predicted_fraction"] > 0)]


def legend(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return name and colour of the classes that occur; of more than MAX_CLASS_ROWS, the largest."""
    colours = palette(len(table))
    rows = occurring(table)
    if len(rows) > MAX_CLASS_ROWS:
        rows = rows.nlargest(MAX_CLASS_ROWS, "truth_fraction")
    return [(row["class"], css_colour(colours[row["index"]])) for row in rows.to_dict("records")]


def confused_pairs(total: NDArray[np.int64], classes: Sequence[str], limit: int) -> pd.DataFrame:
    """Return the pairs that cost most pixels, worst first: `truth`, `predicted`, `px`, and two fractions, 0 to 1.

    `class_fraction`: of the pixels of that class in truth; `error_fraction`: of all wrong pixels.
    """
    wrong = total - np.diag(np.diagonal(total))
    rows, columns = np.unravel_index(np.argsort(wrong, axis=None, kind="stable")[::-1][:limit], wrong.shape)
    px = wrong[rows, columns]
    pairs = pd.DataFrame({
        "truth": np.array(classes)[rows], "predicted": np.array(classes)[columns], "px": px,
        "class_fraction": px / np.maximum(1, total.sum(axis=1)[rows]), "error_fraction": px / max(1, wrong.sum()),
    })  # fmt: skip
    return pairs[pairs["px"] > 0].reset_index(drop=True)


# --- sections --------------------------------------------------------------------------------------------------------


def headline(
    total: NDArray[np.int64], matrices: Mapping[int, NDArray[np.int64]], images: pd.DataFrame
) -> dict[str, Any]:
    """Return the first screen: mean IoU over all pixels, and facts. matrices: fold -> confusion matrix."""
    counts = confusion.counts(total)
    ious = confusion.iou(counts)
    by_fold = [mean_iou(each) for each in matrices.values()]
    spread = f"standard deviation {np.std(by_fold, ddof=1):.4f}" if len(by_fold) > 1 else "one fold"
    scored = int((~np.isnan(ious)).sum())
    mean_dice = float(confusion.mean_of_classes(confusion.dice(counts)))
    left_out = f", {len(ious) - scored} more do not occur" if scored < len(ious) else ""
    return {
        "headline": score(mean_iou(total)), "headline_label": "out-of-fold (OOF) mean IoU",
        "facts": [
            ("Pixel accuracy", score(float(confusion.pixel_accuracy(counts))), "of all valid pixels"),
            ("Mean Dice", score(mean_dice), f"of {scored} classes{left_out}"),
            ("Folds", " ".join(score(value) for value in by_fold), spread),
            ("Worst image", score(images["score"].min()), "mean IoU of its own classes"),
        ],
    }  # fmt: skip


def mean_iou(total: NDArray[np.int64]) -> float:
    return float(confusion.mean_of_classes(confusion.iou(confusion.counts(total))))


def class_sections(table: pd.DataFrame, total: NDArray[np.int64], images: pd.DataFrame) -> dict[str, Any]:
    """Return panels, the table of classes, the confusion matrix and the most confused pairs."""
    names = table["class"].tolist()
    panels = [image_scores(images), overview.by_group(images, "mean IoU")]
    matrix_svg, width_px = charts.confusion_matrix(total, names) if len(names) <= charts.MAX_MATRIX_CLASSES else ("", 0)
    pairs = confused_pairs(total, names, MAX_PAIRS)
    wrong = 1 - np.trace(total) / max(1, total.sum())
    rows = class_rows(table)
    return {
        "panels": [panel for panel in panels if panel], "class_rows": rows,
        "more_classes": len(table) - len(rows), "numbered": len(names) <= charts.MAX_NUMBERED_CLASSES,
        "matrix": matrix_svg, "matrix_width_px": width_px,
        "pairs": [
            {**row, "of_class": percentage(row["class_fraction"]), "of_errors": percentage(row["error_fraction"])}
            for row in pairs.to_dict("records")
        ],
        "pairs_text": f"{percentage(wrong)} of all valid pixels are wrong; these {len(pairs)} pairs are "
        f"{percentage(pairs['error_fraction'].sum())} of them.",
    }  # fmt: skip


def image_scores(images: pd.DataFrame) -> Panel | None:
    """Draw the distribution of the mean IoU over images."""
    scores = images["score"].dropna().to_numpy()
    if not len(scores):
        return None
    text = f"Mean IoU of each image's own classes; half of the images have more than {score(np.median(scores))}."
    return Panel("Mean IoU of each image", text, charts.histogram("spread", scores, "mean IoU"))


def fold_scores(predictions: OofPredictions, fold: int) -> dict[str, Any]:
    """Return what the table of folds says of a fold's images; dashes if it was not evaluated."""
    if oof := predictions.confusions.get(fold):
        return {"images": len(oof.names), "mean_iou": score(mean_iou(oof.matrix))}
    return {"images": "–", "mean_iou": "–"}


def make_card(predictions: OofPredictions, row: Any) -> gallery.Card:
    """Make the card of a row of the table of images, cropped where wrong pixels are dense."""
    wrong = gallery.wrong_pixels(predictions.truth(row.img), predictions.prediction(row.img))
    right = f"{percentage(row.pixel_accuracy)} of {page.thousands(row.valid_px)} px right"
    facts = {
        "group": row.group, "fold": row.fold, "score": f"{row.score:.6f}", "title": score(row.score),
        "right": row.group, "below": f"{right}, {row.classes} classes, {row.img}",
    }  # fmt: skip
    return predictions.card(row.img, errors.find_worst_spot(wrong, errors.WORST_WINDOW_PX)[:2], facts, row.tags)


def score(value: float) -> str:
    """0.7312; a dash for NaN."""
    return "–" if np.isnan(value) else f"{value:.4f}"


def percentage(fraction: float) -> str:
    """0.123 -> 12.3 %, 0.0004 -> 0.04 %; a dash for NaN."""
    if np.isnan(fraction):
        return "–"
    digits = 0 if fraction in (0, 1) else 1 if fraction >= 0.001 else 2
    return f"{100 * fraction:.{digits}f}\u202f%"
