"""Stage `compare`: two runs in; `runs/A+B/compare/index.html` out: the difference of their Dice, and where one wins.

Of several classes it is the difference of the mean IoU of each picture.
"""
from typing import Any

import numpy as np
import pandas as pd

from pipeline.report import errors, paired
from pipeline.data import grouping
from pipeline.runtime.files import locked, write_text
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress
from pipeline.report import charts, choice, classes, gallery, overview, page
from pipeline.report.held_out import HeldOut, open_run, settings_of
from pipeline.report.held_out_classes import HeldOutClasses, open_classes
from pipeline.runtime.progress import in_order

Opened = HeldOut | HeldOutClasses
SHOWN = 60  # pictures, each twice: half of those that b gained most on, half of those that it lost most on


def main(joint: Run, runs: list[Run], overrides: list[str]) -> None:
    if len(runs) != 2:
        raise Problem(f'Two runs can be compared, not {len(runs)}; name two, as in RUNS="a b".')
    both = [opened(run, overrides) for run in runs]
    tables = [table_of(run, found) for run, found in zip(runs, both)]
    if both[0].score != both[1].score:
        raise Problem(f"Of {runs[0].folder} and {runs[1].folder} one has a cut and the other classes; name two alike.")
    if both[0].classes != both[1].classes:
        raise Problem(f"{runs[0].folder} and {runs[1].folder} have different classes; name two runs with the same.")
    score, unit = both[0].score, "car" if both[0].of_cars else "group"
    pairs = paired.paired(*tables)
    if not len(pairs):
        raise Problem(f"No picture was judged in both {runs[0].folder} and {runs[1].folder}; train a fold in both.")
    difference = paired.difference_of(pairs)
    names = [run.name for run in runs]
    busy = f"{joint.compare_page} is being written by another process; wait until it is done."
    with locked(joint.lock("compare"), busy):
        text = page.render(
            "compare.html.j2", a=names[0], b=names[1], title=f"{names[1]} against {names[0]}", maker="compare",
            difference=difference, verdict=verdict(difference, *names), score=score, unit=unit,
            kicker=[f"{len(pairs)} pictures judged in both, {unit}s: {difference.cars}"],
            palette=palette_of(both[0]), facts=facts_of(difference, pairs, names, both, unit),
            panels=panels_of(pairs, names[0], names[1], score, both[0].of_cars),
            missing=list(dict.fromkeys(f"{run.name}: {gap}" for run, found in zip(runs, both) for gap in found.missing)),
            footer=f'Made by make compare RUNS="{" ".join(names)}".', **gallery_of(pairs, both),
        )  # fmt: skip
        write_text(joint.compare_page, text)
    sure = f"95 % between {difference.low:+.5f} and {difference.high:+.5f}"
    if difference.cars < paired.FEWEST_CARS:
        sure = f"without an interval, which needs {paired.FEWEST_CARS} {unit}s"
    print(
        f"{joint.compare_page}: {names[1]} against {names[0]} {difference.mean:+.5f}, {sure}, over {len(pairs)} "
        f"pictures; {unit}s: {difference.cars}."
    )


def opened(run: Run, overrides: list[str]) -> Opened:
    """What the run left of its held-out pictures, with a cut or with classes."""
    trained = run.trained_folds()
    several = bool(trained) and settings_of(run, trained[0], overrides).task.kind == "multiclass"
    return open_classes(run, overrides) if several else open_run(run, overrides)


def palette_of(found: Opened) -> list[tuple[str, str]]:
    """Names and colours of the classes; nothing where there is one object."""
    if not isinstance(found, HeldOutClasses):
        return []
    nobody = np.empty((0, len(found.classes)), np.int64)
    return classes.legend(classes.class_table(found.matrix, nobody, found.classes))


def table_of(run: Run, found: Opened) -> pd.DataFrame:
    """One row a picture, from the histograms or counts alone."""
    if not found.judged:
        stages = "validate threshold" if found.score == "Dice" else "validate"
        raise Problem(f"{run.folder} has no {found.score} of each picture; run `make {stages}` for it first.")
    if found.score == "Dice" and not run.threshold.is_file():
        raise Problem(f"{run.folder} has no cut; run `make threshold RUN={run.name}` before it is compared.")
    make_of_car = dict(grouping.read_folds(run.folds).iloc[:, :2].itertuples(index=False))
    return found.counts(make_of_car).dropna(subset=["dice"])


def verdict(difference: paired.Difference, a: str, b: str) -> str:
    """One line about the mean difference, no firmer than its interval."""
    if difference.is_sure:
        return f"{b} is {'better' if difference.mean > 0 else 'worse'} than {a}"
    return f"no sure difference between {b} and {a}"


def facts_of(
    difference: paired.Difference, pairs: pd.DataFrame, names: list[str], both: list[Opened], unit: str
) -> list[tuple[str, str, str]]:
    (a, b), score = names, both[0].score
    known = difference.cars >= paired.FEWEST_CARS
    interval = f"{page.signed(difference.low)} to {page.signed(difference.high)}" if known else "–"
    note = f"of the mean, over {unit}s" if known else f"needs {paired.FEWEST_CARS} {unit}s"
    return [
        ("95 % interval", interval, note),
        (f"{score} of {a}", page.dice(pairs["dice_a"].mean()), both[0].judged_by),
        (f"{score} of {b}", page.dice(pairs["dice_b"].mean()), both[1].judged_by),
        (f"{b} wins", f"{difference.wins / difference.images:.0%}", f"on {difference.wins} of {difference.images}"),
    ]


def panels_of(pairs: pd.DataFrame, a: str, b: str, score: str, of_cars: bool) -> list[overview.Panel]:
    label = f"{score} of {b} minus {a}, × 1000"
    if not of_cars:
        scatter = charts.against("against", pairs["dice_a"].to_numpy(), pairs["dice_b"].to_numpy(), (a, b), score)
        return [*by_group(pairs, label), overview.Panel("Each picture", f"Below the line {b} is better.", scatter)]
    by_angle = paired.difference_by(pairs, "view").sort_values("view")
    by_make = paired.difference_by(pairs, "make")
    scatter = charts.against("against", pairs["dice_a"].to_numpy(), pairs["dice_b"].to_numpy(), (a, b))
    views = {f"view {row.view}": (row.mean, row.low, row.high) for row in by_angle.itertuples()}
    makes = {overview.shown_make(row.make): (row.mean, row.low, row.high) for row in by_make.itertuples()}
    return [
        overview.Panel("By make", "", charts.differences("by-make", label, makes)),
        overview.Panel("By view", "", charts.differences("by-view", label, views)),
        overview.Panel("Each picture", f"Below the line {b} is better.", scatter),
    ]


def by_group(pairs: pd.DataFrame, label: str) -> list[overview.Panel]:
    """A row a group, of many those that differ most either way; nothing where there are no groups."""
    table = paired.difference_by(pairs[pairs["make"] != ""], "make") if pairs["make"].any() else pd.DataFrame()
    if len(table) > overview.GROUPS_SHOWN:
        half = overview.GROUPS_SHOWN // 2
        table = pd.concat((table.head(half), table.tail(half)))
    rows = {row.make: (row.mean, row.low, row.high) for row in table.itertuples()}
    return [overview.Panel("By group", "", charts.differences("by-group", label, rows))] if rows else []


def gallery_of(pairs: pd.DataFrame, both: list[Opened]) -> dict[str, Any]:
    """Pairs of cards, a's and b's, around the place where the two predictions differ most."""
    shown, of_cars = set(both[0].shown) & set(both[1].shown), both[0].of_cars
    rows = pairs[pairs["img"].isin(shown)]
    if len(rows) > SHOWN:
        rows = pd.concat((rows.head(SHOWN // 2), rows.tail(SHOWN // 2)))

    def cards(row: Any) -> list[gallery.Card]:
        row_px, column_px, _ = errors.worst_spot(
            both[0].prediction(row.img) != both[1].prediction(row.img), errors.WORST_WINDOW_PX
        )
        facts = {
            "make": row.make, "view": row.view, "difference": row.difference,
            "right": f"{overview.shown_make(row.make)}, view {row.view}",
        }  # fmt: skip
        if not of_cars:
            facts = {"group": row.make, "right": row.make, "difference": row.difference}
        better = ("b",) if row.difference > 0 else ("a",) if row.difference < 0 else ()
        return [
            found.card(row.img, (row_px, column_px), facts | {"dice": dice}, better)
            for found, dice in zip(both, (row.dice_a, row.dice_b))
        ]

    return {
        "cards": list(progress(in_order(cards, rows.itertuples()), "gallery", total=len(rows))),
        "choices": choice.filters(rows, of_cars),
    }
