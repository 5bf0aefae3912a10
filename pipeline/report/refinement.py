"""What a refiner changed: Dice lost at each distance from the edge before and after, and large errors that remain."""
from typing import Any

import pandas as pd

from pipeline.report.errors import COARSE_PREFIX
from pipeline.report.overview import BANDS

LARGE_PX = 500  # so many wrong pixels further than 8 from the edge are a part of the object, and not its edge
LARGE_SHOWN = 20


def section(images: pd.DataFrame) -> dict[str, Any] | None:
    """Return the template's variables; None if no image of the table was refined."""
    column = f"{COARSE_PREFIX}dice"
    refined = images.dropna(subset=[column]) if column in images else images.iloc[:0]
    if not len(refined):
        return None
    before, after = lost_by_band(refined, COARSE_PREFIX), lost_by_band(refined, "")
    bands = [
        {"band": band, "coarse": old, "refined": new, "repaired": f"{1 - new / old:.0%}" if old else "–"}
        for band, old, new in zip(BANDS.values(), before, after)
    ]
    gain = (refined["score"] - refined[column]).mean()
    better, worse = (refined["score"] > refined[column]).sum(), (refined["score"] < refined[column]).sum()
    large = refined[refined["errors_far_px"] >= LARGE_PX].sort_values("errors_far_px", ascending=False)
    rows = [
        {"img": row.img, "score": row.score, "refined_px": row.errors_far_px,
         "coarse_px": getattr(row, f"{COARSE_PREFIX}errors_far_px")}
        for row in large.head(LARGE_SHOWN).itertuples()
    ]  # fmt: skip
    text = (
        f"Mean Dice {refined[column].mean():.5f} before and {refined['score'].mean():.5f} after, {gain:+.5f}: {better} "
        f"images are better, {worse} worse. {len(large)} images still have {LARGE_PX} or more wrong pixels more than 8 "
        "pixels from the edge: parts that are missed or added whole."
    )
    return {"text": text, "bands": bands, "large": rows, "large_px": LARGE_PX}


def lost_by_band(images: pd.DataFrame, prefix: str) -> list[float]:
    """Return the mean Dice that is lost in each of BANDS. prefix: of the columns.

    A wrong pixel costs 1 / (truth + predicted) of its image.
    """
    size = (images[f"{prefix}truth_px"] + images[f"{prefix}predicted_px"]).clip(lower=1)
    return [float((images[f"{prefix}{column}"] / size).mean()) for column in BANDS]
