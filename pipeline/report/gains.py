"""The table at the end of `compete`: out-of-fold Dice of each fold, and what each step gained.

All figures come from files that the stages wrote: of single networks without TTA from `log.jsonl` and
`refiner.log.jsonl`, at the threshold 0.5; with TTA, at every threshold, from the histograms in `oof/`; cross-fitted
ones from `threshold.json` and `blend.json`.
"""
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from pipeline.inference.oof import read_oof_histograms
from pipeline.inference.stored_threshold import error_summary, read_threshold_json
from pipeline.masks import dice
from pipeline.paths import Run
from pipeline.report.report import read_logs, refiner_rows
from pipeline.runtime.problem import Problem

COLUMNS = ("images", "network", "refined", "TTA")  # behind them one of the threshold


class FoldScores(NamedTuple):
    """Mean Dice of the images that a fold holds out, at full size."""

    images: int
    network: float  # best.pt, without TTA, at 0.5
    refined: float | None  # with its refiner, if it has one; without TTA, at 0.5
    tta: float  # with TTA, and with the refiner if it was validated with it; at 0.5
    chosen: float  # the same at the run's threshold

    @property
    def before_tta(self) -> float:
        return self.network if self.refined is None else self.refined


def best_score(log: pathlib.Path, rows: Iterable[dict[str, Any]]) -> float:
    """Return the highest `val_dice` of a log: that of the weights which were saved. Problem if it has none."""
    values = [row["val_dice"] for row in rows if row.get("val_dice") is not None]
    if not values:
        raise Problem(f"There is no Dice in {log}, or no such file; put it back, or train that fold again.")
    return max(values)


def score_folds(run: Run, folds: list[int]) -> dict[int, FoldScores]:
    """Return the scores of these folds, all of them trained and validated."""
    threshold_u8 = dice.threshold_to_u8(read_threshold_json(run.threshold)["threshold"])
    logs, scores = read_logs(run), {}
    for fold in folds:
        oof, files = read_oof_histograms(run.oof(fold)), run.fold(fold)
        mean = dice.dice_at_thresholds(oof.histograms).mean(axis=0)
        scores[fold] = FoldScores(
            images=len(oof.names), network=best_score(files.log, logs.get(fold, [])),
            refined=best_score(files.refiner.log, refiner_rows(run, fold)) if oof.refiner_sha256 else None,
            tta=float(mean[dice.threshold_to_u8(0.5)]), chosen=float(mean[threshold_u8]),
        )
    return scores


def mean_scores(scores: Iterable[FoldScores]) -> FoldScores:
    """Return the mean over all images of several folds; `refined` only if all folds have one."""
    scores = list(scores)
    images = sum(each.images for each in scores)

    def mean(values: Iterable[float]) -> float:
        return sum(each.images * value for each, value in zip(scores, values)) / images

    refined = [each.refined for each in scores if each.refined is not None]
    return FoldScores(
        images, mean(each.network for each in scores), mean(refined) if len(refined) == len(scores) else None,
        mean(each.tta for each in scores), mean(each.chosen for each in scores),
    )  # fmt: skip


def table(run: Run, joint: Run) -> list[str]:
    """Return the lines of the table, on the folds that the run's threshold was chosen on.

    joint: the run that several runs are blended in; `run` itself if there is only one.
    """
    threshold = read_threshold_json(run.threshold)
    folds = sorted(int(name.removeprefix("fold")) for name in threshold["predictions"])
    scores = score_folds(run, folds)
    every = mean_scores(scores.values())
    header = [*COLUMNS, f"at {threshold['threshold']:.3f}"]
    lines = [row("OOF Dice", header), *(score_row(f"fold {fold}", scores[fold]) for fold in folds)]
    lines.append(score_row("all", every))
    lines.append(row("cross-fitted", ["", "", "", "", number(threshold["oof_dice_cross_fitted"])]))
    if errors := error_summary(threshold):
        lines[-1] += f"  standard error {errors}"
    return [*lines, "", *gain_rows(every, threshold["oof_dice_cross_fitted"], run, joint)]


def gain_rows(every: FoldScores, cross_fitted: float, run: Run, joint: Run) -> list[str]:
    """Return a line for each step that a mask goes through, with what it gained."""
    gains = {"refiner over the network": None if every.refined is None else every.refined - every.network}
    gains |= {"TTA": every.tta - every.before_tta, "threshold over 0.5, cross-fitted": cross_fitted - every.tta}
    if joint != run:
        blend = read_threshold_json(joint.blend, "blend")
        weights = ", ".join(f"{name} {weight:g}" for name, weight in blend["weights"].items())
        gains[f"blend ({weights}) over {blend['best_single_run']}, cross-fitted"] = blend["gain_cross_fitted"]
    return [f"{name:<40} {gain:+.5f}" for name, gain in gains.items() if gain is not None]


def score_row(name: str, scores: FoldScores) -> str:
    images, *values = scores
    return row(name, [str(images), *map(number, values)])


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.5f}"


def row(name: str, cells: list[str]) -> str:
    return f"{name:<14}" + "".join(f"{cell:>10}" for cell in cells)
