"""Which pictures a gallery shows: worst, middle and random ones, and what its filters offer."""
from typing import Any

import numpy as np
import pandas as pd

from pipeline.report.overview import shown_make

WORST, MEDIAN, RANDOM = 120, 60, 120  # 300 pictures make a page of some 20 MB


def chosen(images: pd.DataFrame, worst: int = WORST, median: int = MEDIAN, random: int = RANDOM) -> pd.DataFrame:
    """Rows of the table of pictures with `tags`, the worst first; a picture may have several tags.

    The random ones are drawn from all pictures, the same ones each time.
    """
    by_dice = images.sort_values(["dice", "img"], ignore_index=True)
    count = len(by_dice)
    middle = max(0, (count - median) // 2)
    drawn = np.random.default_rng(0).permutation(count)[:random]
    places = {
        "worst": range(min(worst, count)),
        "median": range(middle, min(count, middle + median)),
        "random": drawn,
    }
    tags: list[list[str]] = [[] for _ in range(count)]
    for tag, its in places.items():
        for place in its:
            tags[place].append(tag)
    return by_dice.assign(tags=tags)[[bool(its) for its in tags]].reset_index(drop=True)


def tag_counts(rows: pd.DataFrame) -> dict[str, int]:
    """How many of the chosen have each tag; nothing where all have all, which then tell nothing."""
    all_tags = ("worst", "median", "random")
    counts = {tag: sum(tag in tags for tags in rows["tags"]) for tag in all_tags}
    return {} if all(count == len(rows) for count in counts.values()) else counts


def filters(rows: pd.DataFrame, of_cars: bool) -> dict[str, list[tuple[Any, str]]]:
    """What the filters offer: values and how they are shown."""
    makes, views = (sorted(set(rows[column])) for column in ("make", "view"))
    of_folds = {"fold": [(fold, str(fold)) for fold in sorted(set(rows["fold"]))]} if "fold" in rows else {}
    if not of_cars:
        return {"group": [(group, group) for group in makes if group]} | of_folds
    shown = [(make, shown_make(make)) for make in makes]
    return {"make": shown, "view": [(view, str(view)) for view in views]} | of_folds
