"""Two runs on the same images: the mean difference of their scores, and a confidence interval for it.

The 16 angles of a car are not 16 independent samples, so the bootstrap resamples clusters (cars) and not images.
"""
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pipeline.runtime.problem import counted

RESAMPLES, CONFIDENCE = 9999, 0.95
# An interval needs this many clusters: without any difference, six would all have one of the same sign in 3 % of all
# cases and five in 6 %, so that with five not even that would be significant at 95 %.
MIN_CLUSTERS = 6


@dataclass(frozen=True)
class Difference:
    """Score of b minus score of a; the interval is NaN below MIN_CLUSTERS."""

    mean: float  # over images
    low: float
    high: float
    images: int
    clusters: int
    wins: int  # images on which b is better

    @property
    def has_interval(self) -> bool:
        return self.clusters >= MIN_CLUSTERS

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def sentence(self, cluster: str) -> str:
        """Return the mean, its interval and its extent for a message. cluster: what one is called, such as `car`."""
        interval = f"{100 * CONFIDENCE:.0f} % interval {self.low:+.5f} to {self.high:+.5f}"
        if not self.has_interval:
            interval = f"without an interval, which needs {MIN_CLUSTERS} {cluster}s"
        extent = f"over {counted(self.images, 'image')} of {counted(self.clusters, cluster)}"
        return f"{self.mean:+.5f}, {interval}, {extent}"


def pair_images(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Join the tables of two runs on `img`: adds `score_a`, `score_b`, `difference` (b minus a) and `cluster`.

    a, b: columns `img`, `group` and `score`, of cars also `car` and `angle`. A cluster is a car, else a group, else the
    image itself. Sorted by difference, largest gain of b first.
    """
    shared = [column for column in ("img", "car", "group", "angle") if column in a]
    pairs = a[[*shared, "score"]].merge(b[["img", "score"]], on="img", suffixes=("_a", "_b"))
    pairs["difference"] = pairs["score_b"] - pairs["score_a"]
    pairs["cluster"] = pairs["car"] if "car" in pairs else pairs["group"].where(pairs["group"] != "", pairs["img"])
    return pairs.sort_values(["difference", "img"], ascending=[False, True], ignore_index=True)


def mean_difference(pairs: pd.DataFrame, resamples: int = RESAMPLES) -> Difference:
    """Return the mean with its interval; deterministic. pairs: at least one row of `pair_images`."""
    by_cluster = pairs.groupby("cluster")["difference"].agg(["sum", "count"])
    low, high = bootstrap_interval(by_cluster["sum"].to_numpy(float), by_cluster["count"].to_numpy(float), resamples)
    difference = pairs["difference"]
    wins = int((difference > 0).sum())
    return Difference(float(difference.mean()), low, high, images=len(pairs), clusters=len(by_cluster), wins=wins)


def bootstrap_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int) -> tuple[float, float]:
    """Return the interval of the mean over images when clusters are resampled whole. sums, counts: (clusters,).

    Bias-corrected and accelerated, https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.bootstrap.html.
    """
    if len(sums) < MIN_CLUSTERS:
        return float("nan"), float("nan")
    means = sums / counts
    if np.ptp(means) == 0:  # the correction would divide by 0
        return float(means[0]), float(means[0])
    interval = stats.bootstrap(
        (sums, counts), lambda sums, counts, axis: sums.sum(axis=axis) / counts.sum(axis=axis),
        paired=True, vectorized=True, n_resamples=resamples, batch=500, confidence_level=CONFIDENCE, method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def difference_by(pairs: pd.DataFrame, column: str, resamples: int = 999) -> pd.DataFrame:
    """Return `column` (`group` or `angle`) and the fields of Difference for each value, largest gain of b first."""
    rows = [{column: value, **vars(mean_difference(part, resamples))} for value, part in pairs.groupby(column)]
    return pd.DataFrame(rows).sort_values("mean", ascending=False, ignore_index=True)
