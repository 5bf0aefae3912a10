"""Two runs on the same pictures: the mean difference of their Dice, and how sure it is.

The 16 views of a car are no 16 independent samples, so the bootstrap draws cars and not pictures.
"""
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 9999
CONFIDENCE = 0.95
# Cars that an interval needs: were there no difference, six would all show one of the same sign in 3 % of all cases
# and five in 6 %, so that of five not even that would be sure at 95 %.
FEWEST_CARS = 6


@dataclass(frozen=True)
class Difference:
    """b minus a; the interval is NaN for fewer than `FEWEST_CARS`."""

    mean: float  # over pictures
    low: float
    high: float
    images: int
    cars: int
    wins: int  # pictures on which b is better
    losses: int

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """The pictures of both tables: `img`, `car`, `make`, `view`, `dice_a`, `dice_b` and `difference`, b minus a.

    a, b: of `table.with_groups`. Sorted by difference, those first that b gained most on.
    """
    joined = a[["img", "car", "make", "view", "dice"]].merge(b[["img", "dice"]], on="img", suffixes=("_a", "_b"))
    joined["difference"] = joined["dice_b"] - joined["dice_a"]
    return joined.sort_values(["difference", "img"], ascending=[False, True], ignore_index=True)


def difference_of(pairs: pd.DataFrame, resamples: int = RESAMPLES) -> Difference:
    """pairs: what `paired` gives, or some rows of it, at least one. The same pairs, the same interval."""
    by_car = pairs.groupby("car")["difference"].agg(["sum", "count"])
    low, high = interval(by_car["sum"].to_numpy(float), by_car["count"].to_numpy(float), resamples)
    difference = pairs["difference"]
    return Difference(
        float(difference.mean()),
        low,
        high,
        len(pairs),
        len(by_car),
        int((difference > 0).sum()),
        int((difference < 0).sum()),
    )


def interval(sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int) -> tuple[float, float]:
    """Of the mean over pictures, cars drawn anew with all their pictures. sums, counts: of each car, (cars,).

    Bias-corrected and accelerated, https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.bootstrap.html.
    """
    if len(sums) < FEWEST_CARS:
        return float("nan"), float("nan")
    means = sums / counts
    if np.ptp(means) == 0:  # the correction would divide by 0
        return float(means[0]), float(means[0])
    found = stats.bootstrap(
        (sums, counts),
        lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=500,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def difference_by(pairs: pd.DataFrame, column: str, resamples: int = 999) -> pd.DataFrame:
    """`difference_of` for each value of `make` or `view`: one row a value, `column` and the fields of Difference.

    Sorted by `mean`, where b is better first.
    """
    rows = [{column: value, **vars(difference_of(part, resamples))} for value, part in pairs.groupby(column)]
    return pd.DataFrame(rows).sort_values("mean", ascending=False, ignore_index=True)
