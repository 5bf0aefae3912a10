"""Counts of several classes as figures, tables and charts: how good each class is, and what it is taken for."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.masks import confusion
from pipeline.masks.colours import palette
from pipeline.report import charts, matrix, overview, page
from pipeline.report.overview import Panel

PAIRS_SHOWN = 20
ROWS_SHOWN = 60  # of the table of classes; all are in classes.csv


def class_table(total: NDArray[np.int64], in_picture: NDArray[np.int64], classes: Sequence[str]) -> pd.DataFrame:
    """One row a class, in their order; its scores are NaN where it is neither in truth nor in prediction.

    total: the confusion matrix of all pictures, (classes, classes); in_picture: pixels in truth (pictures, classes).
    """
    counts = confusion.counts(total)
    judged = max(1, int(total.sum()))
    return pd.DataFrame({
        "index": range(len(classes)), "class": list(classes),
        "iou": confusion.iou(counts), "dice": confusion.dice(counts),
        "share_of_truth": counts.in_truth / judged, "share_of_prediction": counts.predicted / judged,
        "pictures": (in_picture > 0).sum(axis=0),
    })  # fmt: skip


def shown_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page's table says; of very many classes the largest of those that occur."""
    rows = table
    if len(table) > ROWS_SHOWN:
        rows = occurring(table).sort_values("share_of_truth", ascending=False, kind="stable").head(ROWS_SHOWN)
    colours = palette(len(table))
    return [
        {
            "name": row["class"], "colour": "#%02x%02x%02x" % tuple(colours[row["index"]]),
            "iou": score(row["iou"]), "dice": score(row["dice"]), "bar": 0 if np.isnan(row["iou"]) else row["iou"],
            "truth": fraction(row["share_of_truth"]), "predicted": fraction(row["share_of_prediction"]),
            "pictures": row["pictures"],
        }
        for row in rows.to_dict("records")
    ]  # fmt: skip


def occurring(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the classes that are in truth or in prediction."""
    return table[(table["share_of_truth"] > 0) | (table["share_of_prediction"] > 0)]


def confused_pairs(total: NDArray[np.int64], classes: Sequence[str], most: int) -> pd.DataFrame:
    """The pairs that cost most pixels, worst first: `truth`, `predicted`, `px`, and two shares of 0 to 1.

    `of_class`: of the pixels of that class in truth; `of_errors`: of all pixels that are wrong.
    """
    wrong = total - np.diag(np.diagonal(total))
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:most]
    rows, columns = np.unravel_index(order, wrong.shape)
    px = wrong[rows, columns]
    found = pd.DataFrame({
        "truth": np.array(classes)[rows], "predicted": np.array(classes)[columns], "px": px,
        "of_class": px / np.maximum(1, total.sum(axis=1)[rows]), "of_errors": px / max(1, wrong.sum()),
    })  # fmt: skip
    return found[found["px"] > 0].reset_index(drop=True)


def head(total: NDArray[np.int64], of_folds: Mapping[int, NDArray[np.int64]], images: pd.DataFrame) -> dict[str, Any]:
    """The first screen: mean IoU of all pixels together and what is beside it. of_folds: each fold's matrix."""
    counts = confusion.counts(total)
    ious = confusion.iou(counts)
    by_fold = [mean_iou(each) for each in of_folds.values()]
    spread = f"{np.std(by_fold, ddof=1):.4f} is their standard deviation" if len(by_fold) > 1 else "one fold"
    scored = int((~np.isnan(ious)).sum())
    mean_dice = float(confusion.mean_of_classes(confusion.dice(counts)))
    left_out = f", {len(ious) - scored} more are nowhere" if scored < len(ious) else ""
    return {
        "headline": score(mean_iou(total)),
        "headline_label": "mean IoU of pictures that no network saw",
        "facts": [
            ("Pixel accuracy", score(float(confusion.pixel_accuracy(counts))), "of all judged pixels"),
            ("Mean Dice", score(mean_dice), f"of {scored} classes{left_out}"),
            ("Folds", " ".join(score(value) for value in by_fold), spread),
            ("Worst picture", score(images["dice"].min()), "mean IoU of its own classes"),
        ],
    }  # fmt: skip


def head_of_training(logs: Mapping[int, Sequence[dict]]) -> dict[str, Any]:
    """The first screen before anything was judged."""
    best = max((row["val_mean_iou"] for log in logs.values() for row in log if row.get("val_mean_iou") is not None),
               default=float("nan"))  # fmt: skip
    return {"headline": score(best), "headline_label": "mean IoU at the end of training", "facts": []}


def mean_iou(total: NDArray[np.int64]) -> float:
    return float(confusion.mean_of_classes(confusion.iou(confusion.counts(total))))


def sections(table: pd.DataFrame, total: NDArray[np.int64], images: pd.DataFrame) -> dict[str, Any]:
    """Panels, the table of classes, the matrix and the pairs."""
    names = table["class"].tolist()
    panels = [spread(images), overview.by_group(images, "mean IoU")]
    drawn, width_px = matrix.chart(total, names) if len(names) <= matrix.MOST else ("", 0)
    pairs = confused_pairs(total, names, PAIRS_SHOWN)
    wrong = 1 - np.trace(total) / max(1, total.sum())
    rows = shown_rows(table)
    return {
        "panels": [panel for panel in panels if panel], "class_rows": rows,
        "more_classes": len(table) - len(rows), "numbered": len(names) <= matrix.NUMBERED,
        "matrix": drawn, "matrix_width_px": width_px,
        "pairs": [
            {**row, "of_class": fraction(row["of_class"]), "of_errors": fraction(row["of_errors"])}
            for row in pairs.to_dict("records")
        ],
        "pairs_text": f"{fraction(wrong)} of all judged pixels are wrong; these {len(pairs)} pairs are "
        f"{fraction(pairs['of_errors'].sum())} of them.",
    }  # fmt: skip


def spread(images: pd.DataFrame) -> Panel | None:
    """How many pictures have which mean IoU."""
    scores = images["dice"].dropna().to_numpy()
    if not len(scores):
        return None
    text = f"Mean IoU of each picture's own classes; half of the pictures have more than {score(np.median(scores))}."
    return Panel("How good each picture is", text, charts.histogram("spread", scores, "mean IoU"))


def facts_of(row: Any) -> dict[str, Any]:
    """What a card says of a row of the table of pictures."""
    return {
        "group": row.make, "fold": row.fold, "dice": f"{row.dice:.6f}", "title": score(row.dice), "right": row.make,
        "below": f"{fraction(row.pixel_accuracy)} of {page.thousands(row.judged_px)} px right, {row.classes} classes, "
        f"{row.img}",
    }  # fmt: skip


def legend(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Name and colour of the classes that occur; of very many the largest."""
    colours = palette(len(table))
    rows = occurring(table)
    if len(rows) > ROWS_SHOWN:
        rows = rows.nlargest(ROWS_SHOWN, "share_of_truth")
    return [(row["class"], "#%02x%02x%02x" % tuple(colours[row["index"]])) for row in rows.to_dict("records")]


def images_csv(images: pd.DataFrame) -> pd.DataFrame:
    """The table of pictures as a file has it: `img, group, fold, mean_iou, pixel_accuracy, mean_dice, ...`."""
    found = images.drop(columns=["car", "view"]).rename(columns={"make": "group", "dice": "mean_iou"})
    return found[["img", "group", "fold", *(column for column in found if column not in ("img", "group", "fold"))]]


def score(value: float) -> str:
    """0.7312; a dash for what is not known."""
    return "–" if np.isnan(value) else f"{value:.4f}"


def fraction(value: float) -> str:
    """12.3 %, 0.04 %; a dash for what is not known."""
    if np.isnan(value):
        return "–"
    digits = 0 if value in (0, 1) else 1 if value >= 0.001 else 2
    return f"{100 * value:.{digits}f}\u202f%"
