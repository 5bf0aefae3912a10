"""Stage `compare`: two runs in; `runs/A+B/compare/index.html` out: the difference of their scores, and where one wins.

The score is Dice; of several classes it is the mean IoU of each image.
"""
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from pipeline.paths import Run
from pipeline.report import charts, classes, errors, gallery, overview, page, paired
from pipeline.report.oof_predictions import OofPredictions, open_predictions, read_groups
from pipeline.runtime.files import locked, write_text
from pipeline.runtime.problem import Problem, counted
from pipeline.runtime.progress import in_order, progress

MAX_ROWS = 60  # images, each twice: half with the largest gains of b, half with its largest losses


def main(joint: Run, runs: list[Run], overrides: list[str]) -> None:
    """Write the page. joint: the run `A+B`, under which it lies."""
    if len(runs) != 2:
        raise Problem(f'compare needs two runs, not {len(runs)}; name two, as in RUNS="a b".')
    both = [open_predictions(run, overrides) for run in runs]
    tables = [score_table(run, predictions) for run, predictions in zip(runs, both)]
    check_comparable(runs, both)
    pairs = paired.pair_images(*tables)
    if not len(pairs):
        raise Problem(f"No image was evaluated in both {runs[0].folder} and {runs[1].folder}; train a fold in both.")
    difference = paired.mean_difference(pairs)
    (a, b), cluster = [run.name for run in runs], "car" if both[0].has_angles else "group"
    busy = f"{joint.compare_page} is being written by another process; wait until it is done."
    with locked(joint.lock("compare"), busy):
        notes = [f"{run.name}: {note}" for run, predictions in zip(runs, both) for note in predictions.missing_notes]
        text = page.render(
            "compare.html.j2", a=a, b=b, title=f"{b} against {a}", maker="compare",
            difference=difference, verdict=verdict(difference, a, b), metric=both[0].metric, cluster=cluster,
            kicker=[f"{counted(len(pairs), 'image')} evaluated in both, of {counted(difference.clusters, cluster)}"],
            palette=class_legend(both[0]), facts=headline_facts(difference, pairs, (a, b), both, cluster),
            panels=panels(pairs, a, b, both[0].metric), missing_notes=list(dict.fromkeys(notes)),
            footer=f'Made by make compare RUNS="{a} {b}".', **gallery_section(pairs, both),
        )  # fmt: skip
        write_text(joint.compare_page, text)
    print(f"{joint.compare_page}: {b} against {a} {difference.sentence(cluster)}.")


def check_comparable(runs: list[Run], both: list[OofPredictions]) -> None:
    """Raise Problem if the runs have different metrics or classes."""
    folders = f"{runs[0].folder} and {runs[1].folder}"
    if both[0].metric != both[1].metric:
        why = "since one is binary and the other has several classes"
        raise Problem(f"{folders} cannot be compared, {why}; name two runs of one task.")
    if both[0].classes != both[1].classes:
        raise Problem(f"{folders} have different classes; name two runs with the same.")


def score_table(run: Run, predictions: OofPredictions) -> pd.DataFrame:
    """Return one row an image, from histograms or counts alone."""
    if not predictions.oof:
        stages = "validate" if predictions.is_multiclass else "validate threshold"
        raise Problem(f"{run.folder} has no {predictions.metric} of each image; run `make {stages}` for it first.")
    if not predictions.is_multiclass and not run.threshold.is_file():
        raise Problem(f"{run.folder} has no threshold; run `make threshold RUN={run.name}` before it is compared.")
    return predictions.score_table(read_groups(run)).dropna(subset=["score"])


def class_legend(predictions: OofPredictions) -> list[tuple[str, str]]:
    """Return names and colours of the classes; [] for a binary run."""
    if not predictions.is_multiclass:
        return []
    no_images = np.empty((0, len(predictions.classes)), np.int64)
    return classes.legend(classes.class_table(predictions.matrix, no_images, predictions.classes))


def verdict(difference: paired.Difference, a: str, b: str) -> str:
    """State the mean difference in one line, no more firmly than its interval allows."""
    if difference.is_significant:
        return f"{b} is {'better' if difference.mean > 0 else 'worse'} than {a}"
    return f"no significant difference between {b} and {a}"


def headline_facts(
    difference: paired.Difference, pairs: pd.DataFrame, names: tuple[str, str], both: list[OofPredictions], cluster: str
) -> list[tuple[str, str, str]]:
    """Return label, value and note of each fact of the first screen."""
    (a, b), metric = names, both[0].metric
    interval, note = "–", f"needs {paired.MIN_CLUSTERS} {cluster}s"
    if difference.has_interval:
        interval = f"{page.signed(difference.low)} to {page.signed(difference.high)}"
        note = f"of the mean, over {cluster}s"
    return [
        ("95 % interval", interval, note),
        (f"{metric} of {a}", page.score(pairs["score_a"].mean()), both[0].evaluated_with),
        (f"{metric} of {b}", page.score(pairs["score_b"].mean()), both[1].evaluated_with),
        (f"{b} wins", f"{difference.wins / difference.images:.0%}", f"on {difference.wins} of {difference.images}"),
    ]


def panels(pairs: pd.DataFrame, a: str, b: str, metric: str) -> list[overview.Panel]:
    """Return the difference by make and angle, or by group if there are any, and of each image."""
    label = f"{metric} of {b} minus {a}, × 1000"
    scatter = charts.scatter("scatter", pairs["score_a"].to_numpy(), pairs["score_b"].to_numpy(), (a, b), metric)
    each_image = overview.Panel("Each image", f"Below the line {b} is better.", scatter)

    def panel(title: str, table: pd.DataFrame, names: Iterable[str]) -> overview.Panel:
        rows = dict(zip(names, table[["mean", "low", "high"]].itertuples(index=False, name=None)))
        return overview.Panel(title, "", charts.differences(title.lower().replace(" ", "-"), label, rows))

    if "angle" in pairs:
        by_make = paired.difference_by(pairs, "group")
        by_angle = paired.difference_by(pairs, "angle").sort_values("angle")
        makes, angles = map(overview.display_make, by_make["group"]), (f"angle {angle}" for angle in by_angle["angle"])
        return [panel("By make", by_make, makes), panel("By angle", by_angle, angles), each_image]
    if not pairs["group"].any():
        return [each_image]
    by_group = first_and_last(paired.difference_by(pairs[pairs["group"] != ""], "group"), overview.MAX_GROUPS)
    return [panel("By group", by_group, by_group["group"]), each_image]


def first_and_last(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the rows of a sorted table; of more than `most`, the first half and the last half of that many."""
    return table if len(table) <= most else pd.concat((table.head(most // 2), table.tail(most // 2)))


def gallery_section(pairs: pd.DataFrame, both: list[OofPredictions]) -> dict[str, Any]:
    """Return pairs of cards, a's and b's, around the place where the two predictions differ most."""
    showable = set(both[0].showable) & set(both[1].showable)
    rows = first_and_last(pairs[pairs["img"].isin(showable)], MAX_ROWS)

    def cards(row: Any) -> list[gallery.Card]:
        differs = both[0].prediction(row.img) != both[1].prediction(row.img)
        spot = errors.find_worst_spot(differs, errors.WORST_WINDOW_PX)[:2]
        facts = {"group": row.group, "right": row.group, "difference": row.difference} | overview.car_facts(row)
        better = ("b",) if row.difference > 0 else ("a",) if row.difference < 0 else ()
        return [
            predictions.card(row.img, spot, facts | {"score": score}, better)
            for predictions, score in zip(both, (row.score_a, row.score_b))
        ]

    pairs_of_cards = progress(in_order(cards, rows.itertuples()), "gallery", total=len(rows))
    return {"cards": list(pairs_of_cards), "filters": gallery.filters(rows)}
