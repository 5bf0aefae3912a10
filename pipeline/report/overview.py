"""The table of all held-out pictures (`analysis.table`) as charts and figures: where Dice is lost."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.report import charts

BANDS = {
    "errors_1_px": "1 px",
    "errors_2_px": "1 to 2 px",
    "errors_4_px": "2 to 4 px",
    "errors_8_px": "4 to 8 px",
    "errors_far_px": "further",
}
GROUPS_SHOWN, LABEL_LETTERS = 30, 18  # of a chart with one row a group


@dataclass(frozen=True)
class Panel:
    """A chart with its title and a sentence that says what it shows."""

    title: str
    text: str
    svg: str
    width: str = ""  # a class of the page: "two" or "wide"


def shown_make(make: str) -> str:
    """`"land rover"` -> `"Land Rover"`, `"bmw"` -> `"BMW"`; a make that is not known is told so."""
    return " ".join(word.upper() if len(word) <= 3 else word.capitalize() for word in make.split()) or "Unknown make"


def where_it_is_lost(images: pd.DataFrame) -> list[Panel]:
    """Panels over all pictures: spread, distance from the edge, which way wrong, each make."""
    panels = [Panel(
        "How good each picture is",
        f"The worst twentieth of the pictures has {lost_by_worst(images['dice']):.0%} of all lost Dice.",
        charts.spread(images["dice"].to_numpy()),
    )]  # fmt: skip
    placed = images.dropna(subset=["errors_1_px"])
    if len(placed) and (by_band := lost_fraction(placed, list(BANDS))).sum():
        near = float(by_band[:2].sum())
        panels.append(Panel(
            "How far from the edge",
            f"{near:.0%} of the lost Dice lies within 2 pixels of the true edge.",
            charts.fractions("edge", dict(zip(BANDS.values(), by_band)), ["accent"] * len(BANDS), "Lost Dice by distance"),
        ))  # fmt: skip
    kinds = lost_fraction(images, ["false_background_px", "false_object_px"])
    if kinds.sum():
        missed, added = kinds
        panels.append(Panel(
            "Which way it is wrong",
            "What the mask has and the prediction has not is missed; the other way round it is added.",
            charts.fractions("kinds", {"missed": missed, "added": added}, ["missed", "added"], "Lost Dice"),
        ))  # fmt: skip
    return panels


def by_make(images: pd.DataFrame) -> Panel:
    """Cars as ticks, a make's mean over its pictures as a dot, the worst make first."""
    means = images.groupby("make")["dice"].mean().sort_values()
    of_cars = images.groupby(["make", "car"])["dice"].mean()
    rows = {shown_make(make): of_cars[make].to_numpy() for make in means.index}
    return Panel(
        "By make",
        "Each tick is a car, the mean of its views; each dot the mean of a make that the network never saw.",
        charts.groups("makes", "Dice", rows),
    )


def by_group(images: pd.DataFrame, score: str) -> Panel | None:
    """Pictures as ticks, a group's mean as a dot, the worst group first; None without groups. score: what `dice` is."""
    grouped = images[images["make"] != ""].dropna(subset=["dice"])
    means = grouped.groupby("make")["dice"].mean().sort_values()
    if not len(means):
        return None
    of_group = dict(list(grouped.groupby("make")["dice"]))
    rows = {group[:LABEL_LETTERS]: of_group[group].to_numpy() for group in means.index[:GROUPS_SHOWN]}
    which = f" Of {len(means)} groups, the worst {GROUPS_SHOWN}." if len(means) > GROUPS_SHOWN else ""
    text = f"Each tick is a picture, each dot the mean of a group that the network never saw.{which}"
    return Panel("By group", text, charts.groups("groups", score, rows))


def lost_fraction(images: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Of all lost Dice, the share of each column of wrong pixels: a pixel costs 1 / (truth + predicted) of its image.

    float64 (columns,), summing to 1; zeros when nothing is lost.
    """
    size = (images["truth_px"] + images["predicted_px"]).clip(lower=1)
    lost = images[list(columns)].div(size, axis=0).sum().to_numpy(float)
    return lost / lost.sum() if lost.sum() else lost


def lost_by_worst(dice: pd.Series) -> float:
    """What share of all lost Dice the worst twentieth of the pictures has."""
    lost = np.sort(1 - dice.to_numpy())[::-1]
    return float(lost[: max(1, len(lost) // 20)].sum() / max(lost.sum(), 1e-12))


def lost_by_angle(images: pd.DataFrame, views: int) -> list[float]:
    """Mean lost Dice of views 1 to `views`; 0 for one without pictures."""
    lost = 1 - images.groupby("view")["dice"].mean()
    return [float(lost.get(view, 0.0)) for view in range(1, views + 1)]


def places_on_ring(count: int) -> list[tuple[float, float]]:
    """Left and top, in % of a square, of so many places on a circle, the first at the top, against the clock."""
    angles = 2 * np.pi * np.arange(count) / count
    return [(round(50 - 43 * float(np.sin(a)), 2), round(50 - 43 * float(np.cos(a)), 2)) for a in angles]


def curve_panels(logs: Mapping[int, Sequence[dict]]) -> list[Panel]:
    """Loss, Dice, learning rate and speed by epoch, a line a fold. logs: fold -> rows of its log.jsonl."""
    panels = []
    for key, title, label, log in (
        ("train_loss", "Loss", "training loss", True),
        ("val_dice", "Dice", "held-out Dice", False),
        ("val_mean_iou", "Mean IoU", "held-out mean IoU", False),
        ("lr", "Learning rate", "at the epoch's end", False),
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
