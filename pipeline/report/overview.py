"""Panels of a report: charts of the table of all images (`errors`) that show where Dice is lost, and of training."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.report import charts

BANDS = {  # column of wrong pixels -> their distance from the edge
    "errors_1_px": "1 px", "errors_2_px": "1 to 2 px", "errors_4_px": "2 to 4 px", "errors_8_px": "4 to 8 px",
    "errors_far_px": "further",
}  # fmt: skip
MAX_GROUPS, MAX_LABEL_LETTERS = 30, 18  # of a chart with one row a group


@dataclass(frozen=True)
class Panel:
    """A chart with its title and a sentence about what it shows."""

    title: str
    text: str
    svg: str


def display_make(make: str) -> str:
    """`"land rover"` -> `"Land Rover"`, `"bmw"` -> `"BMW"`, `""` -> `"Unknown make"`."""
    return " ".join(word.upper() if len(word) <= 3 else word.capitalize() for word in make.split()) or "Unknown make"


def car_facts(row: Any) -> dict[str, Any]:
    """Return what a card shows and is filtered by, if the row of a table of images has an angle."""
    if "angle" not in row._fields:
        return {}
    return {"angle": row.angle, "right": f"{display_make(row.group)}, angle {row.angle}"}


def lost_dice_panels(images: pd.DataFrame) -> list[Panel]:
    """Return panels over all images: distribution, distance from the edge, missed or added."""
    text = f"The worst twentieth of the images has {lost_by_worst(images['score']):.0%} of all lost Dice."
    panels = [Panel("Dice of each image", text, charts.lost_histogram(images["score"].to_numpy()))]
    with_places = images.dropna(subset=["errors_1_px"])
    if len(with_places) and (by_band := lost_fraction(with_places, list(BANDS))).sum():
        text = f"{by_band[:2].sum():.0%} of the lost Dice lies within 2 pixels of the true edge."
        fraction_of = dict(zip(BANDS.values(), by_band))
        chart = charts.fractions("edge", fraction_of, ["accent"] * len(BANDS), "Lost Dice by distance")
        panels.append(Panel("Distance from the edge", text, chart))
    if (kinds := lost_fraction(images, ["false_background_px", "false_object_px"])).sum():
        text = "Missed: in the mask, but not predicted. Added: predicted, but not in the mask."
        chart = charts.fractions("kinds", dict(zip(("missed", "added"), kinds)), ("missed", "added"), "Lost Dice")
        panels.append(Panel("Missed or added", text, chart))
    return panels


def by_make(images: pd.DataFrame) -> Panel:
    """Draw cars as ticks and each make's mean over its images as a dot, the worst make first."""
    means = images.groupby("group")["score"].mean().sort_values()
    by_car = images.groupby(["group", "car"])["score"].mean()
    rows = {display_make(make): by_car[make].to_numpy() for make in means.index}
    text = "Each tick is a car, the mean of its angles; each dot the mean of a make that the network never saw."
    return Panel("By make", text, charts.groups("makes", "Dice", rows))


def by_group(images: pd.DataFrame, metric: str) -> Panel | None:
    """Draw images as ticks and each group's mean as a dot, the worst group first; None without groups."""
    grouped = images[images["group"] != ""].dropna(subset=["score"])
    means = grouped.groupby("group")["score"].mean().sort_values()
    if not len(means):
        return None
    scores_of_group = dict(list(grouped.groupby("group")["score"]))
    rows = {group[:MAX_LABEL_LETTERS]: scores_of_group[group].to_numpy() for group in means.index[:MAX_GROUPS]}
    which = f" The worst {MAX_GROUPS} of {len(means)} groups." if len(means) > MAX_GROUPS else ""
    text = f"Each tick is an image, each dot the mean of a group that the network never saw.{which}"
    return Panel("By group", text, charts.groups("groups", metric, rows))


def lost_fraction(images: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return the fraction of all lost Dice in each column of wrong pixels, float64 (columns,); zeros if none is lost.

    They sum to 1. A wrong pixel costs 1 / (truth + predicted) of its image.
    """
    size = (images["truth_px"] + images["predicted_px"]).clip(lower=1)
    lost = images[list(columns)].div(size, axis=0).sum().to_numpy(float)
    return lost / lost.sum() if lost.sum() else lost


def lost_by_worst(dice: pd.Series) -> float:
    """Return the fraction of all lost Dice that the worst twentieth of the images has."""
    lost = np.sort(1 - dice.to_numpy())[::-1]
    return float(lost[: max(1, len(lost) // 20)].sum() / max(lost.sum(), 1e-12))


def lost_by_angle(images: pd.DataFrame, angles: int) -> list[float]:
    """Return the mean lost Dice of angles 1 to `angles`; 0 for one without images."""
    lost = 1 - images.groupby("angle")["score"].mean()
    return [float(lost.get(angle, 0.0)) for angle in range(1, angles + 1)]


def places_on_ring(count: int) -> list[tuple[float, float]]:
    """Return left and top, in % of a square, of places on a circle; the first at the top, counterclockwise."""
    angles = 2 * np.pi * np.arange(count) / count
    return [(round(50 - 43 * float(np.sin(a)), 2), round(50 - 43 * float(np.cos(a)), 2)) for a in angles]


def curve_panels(logs: Mapping[int, Sequence[dict]]) -> list[Panel]:
    """Return curves of loss, score, learning rate and speed, a line a fold. logs: fold -> rows of its log.jsonl."""
    panels = []
    for key, title, label, log in (
        ("train_loss", "Loss", "training loss", True),
        ("val_dice", "Dice", "held-out Dice", False),
        ("val_mean_iou", "Mean IoU", "held-out mean IoU", False),
        ("lr", "Learning rate", "at the end of the epoch", False),
        ("images_per_s", "Speed", "images/s in training", False),
    ):
        lines = {
            f"fold {fold}": ([row["epoch"] for row in known], [row[key] for row in known])
            for fold, rows in logs.items()
            if (known := [row for row in rows if row.get(key) is not None])
        }
        if lines:
            panels.append(Panel(title, "", charts.curves(f"curve-{key.replace('_', '-')}", lines, label, log)))
    return panels
