"""Stage `report`: everything under `runs/RUN/` in; `runs/RUN/report/index.html` out, one page that needs no other file.

Beside it are the tables behind it: `images.csv`, one row a held-out picture, and `suspects.csv`, the masks that may be
wrong. What a run has not yet is said on the page and left out.
"""
import json
import pathlib
import time
from typing import Any

import numpy as np
import pandas as pd

from pipeline import carvana, config
from pipeline.report import suspects
from pipeline.report.error_table import without_car_columns
from pipeline.config import Settings
from pipeline.data import grouping
from pipeline.runtime.files import locked, write_text
from pipeline.inference.stored_threshold import read_threshold_json
from pipeline.masks import dice
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import progress
from pipeline.report import charts, choice, classes_page, gallery, overview, page, submitted
from pipeline.report.held_out import HeldOut, open_run, settings_of
from pipeline.report.held_out_classes import open_classes
from pipeline.runtime.progress import in_order

SUSPECTS_SHOWN = 24
LOG_NUMBERS = ("epoch", "train_loss", "images_per_s", "lr", "seconds")  # and val_dice, which may be none


def main(run: Run, overrides: list[str], others: list[Run]) -> None:
    """others: more runs that must accuse a mask too before it is a suspect."""
    started = time.monotonic()
    logs = read_logs(run)
    if not logs:
        raise Problem(f"{run.folder} has no fold that was trained; run `make train FOLD=0` first.")
    settings = settings_of(run, min(logs), overrides)
    with locked(run.lock("report"), f"{run.report} is being written by another process; wait until it is done."):
        if settings.task.kind == "multiclass":
            report_classes(run, settings, overrides, logs, started)
        else:
            report_binary(run, settings, overrides, logs, started, others)


def report_binary(
    run: Run, settings: Settings, overrides: list[str], logs: dict[int, list[dict]], started: float, others: list[Run]
) -> None:
    """The page of a run of one object, and `images.csv` and `suspects.csv` beside it."""
    folder, is_carvana = pathlib.Path(settings.data.folder), settings.data.kind == "carvana"
    found, threshold_known = open_run(run, overrides), run.threshold.is_file()
    missing = list(found.missing)
    if found.judged and not threshold_known:
        missing.append("The cut is 0.5, for want of a better one; run `make threshold`.")
    if not found.judged:
        missing.append("No held-out picture has been judged; run `make validate threshold`.")

    images = pd.DataFrame()
    if found.judged:
        make_of_car = dict(grouping.read_folds(run.folds).iloc[:, :2].itertuples(index=False))
        images = found.table(make_of_car, lambda things: progress(things, "errors", total=len(found.fold_of)))
        write_table(images if found.of_cars else without_car_columns(images), run.report / "images.csv")
    print(f"{len(images)} held-out pictures are analysed after {time.monotonic() - started:.0f} s.")
    context = (
        head(run, settings, found, images, logs, threshold_known)
        | where(images, found)
        | gallery_of(images, found)
        | {"suspects": suspects_of(run, found, images, others, overrides)}
        | {"curves": overview.curve_panels(logs), "threshold_chart": threshold_chart(found)}
        | {"submission": submitted.section(run, folder, settings.data.hq, missing) if is_carvana else None}
    )
    anchors = {
        "where": ("Where Dice is lost", context["panels"]), "gallery": ("ImageSet", context["cards"]),
        "suspects": ("Suspect masks", context["suspects"]), "training": ("Training", context["curves"]),
        "submission": ("Submission", context["submission"]), "settings": ("Settings", True),
    }  # fmt: skip
    write_page(run, "report.html.j2", anchors, missing, started, context)


def report_classes(
    run: Run, settings: Settings, overrides: list[str], logs: dict[int, list[dict]], started: float
) -> None:
    """The page of a run of several classes, and `images.csv` and `classes.csv` beside it."""
    found = open_classes(run, overrides)
    missing = list(found.missing)
    if not found.judged:
        missing.append("No held-out picture has been judged; run `make validate`.")
    group_of_image = dict(grouping.read_folds(run.folds).iloc[:, :2].itertuples(index=False)) if found.judged else {}
    context, tables = classes_page.context(found, group_of_image, logs)
    for name, table in tables.items():
        write_table(table, run.report / name)
    seconds = {fold: sum(row["seconds"] for row in rows) for fold, rows in logs.items()}
    for row in context["fold_rows"]:
        row |= {"time": duration(seconds[row["fold"]]), "epochs": f"{row['epochs']} of {settings.train.epochs}"}
    folds_text = f"{len(logs)} of {settings.data.folds} folds"
    context["facts"].append(("Training", duration(sum(seconds.values())), folds_text))
    write_page(run, "classes.html.j2", classes_page.anchors(context), missing, started, context | {
        "run": run.name, "title": f"{run.name}: report", "maker": "report", "kicker": kicker_of(settings, logs),
        "settings": config.changes(Settings(), settings),
        "footer": f"Made by make report RUN={run.name}. Tables: images.csv and classes.csv beside this page.",
    })  # fmt: skip


def write_page(
    run: Run, template: str, anchors: dict[str, tuple[str, Any]], missing: list[str], started: float, context: dict
) -> None:
    """anchors: of each section its title, and something that is empty when it is left out."""
    sections = [(anchor, text) for anchor, (text, there) in anchors.items() if there]
    write_text(run.report_page, page.render(template, sections=sections, missing_notes=missing, **context))
    for sentence in missing:
        print(sentence)
    print(f"{run.report_page}: {run.report_page.stat().st_size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s.")


def read_logs(run: Run) -> dict[int, list[dict[str, Any]]]:
    """Fold -> the rows of its log, of each fold that was begun."""
    logs = {}
    for path in sorted(run.folder.glob("fold[0-9]*/log.jsonl")):
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            if not all(map(is_row, rows)):
                raise ValueError(f"a line does not have the numbers {', '.join(LOG_NUMBERS)}")
        except (ValueError, OSError, RecursionError) as error:
            raise Problem(f"{path} is damaged ({error}); `make train` writes it again.") from None
        if rows:
            logs[int(path.parent.name.removeprefix("fold"))] = rows
    return logs


def is_row(row: Any) -> bool:
    """Whether a line of the log is what a report needs of an epoch."""
    if not isinstance(row, dict) or not isinstance(row.get("val_dice", "missing"), (int, float, type(None))):
        return False
    return all(isinstance(row.get(name), (int, float)) for name in LOG_NUMBERS)


def head(
    run: Run, settings: Settings, found: HeldOut, images: pd.DataFrame, logs: dict[int, list[dict]], threshold_known: bool
) -> dict[str, Any]:
    """The first screen, the folds and the settings."""
    seconds = {fold: sum(row["seconds"] for row in rows) for fold, rows in logs.items()}
    rows: list[dict[str, Any]] = []
    for fold, log in sorted(logs.items()):
        its = images[images["fold"] == fold]["dice"] if len(images) else pd.Series(dtype=float)
        rows.append({
            "fold": fold, "images": len(its) or "–", "dice": its.mean() if len(its) else None,
            "worst": its.min() if len(its) else None, "epochs": f"{len(log)} of {settings.train.epochs}",
            "time": duration(seconds[fold]),
        })  # fmt: skip
    of_folds = [row["dice"] for row in rows if row["dice"] is not None]
    best = max((row["val_dice"] for log in logs.values() for row in log if row["val_dice"] is not None), default=None)
    headline = float(images["dice"].mean()) if len(images) else best
    groups = "makes" if found.of_cars else "groups" if len(images) and images["make"].any() else "pictures"
    label = f"Dice of pictures of {groups} that no network saw".replace("pictures of pictures", "pictures")
    label = label if len(images) else "Dice at the end of training"
    threshold = read_threshold_json(run.threshold) if threshold_known else {}
    spread = f"{np.std(of_folds, ddof=1):.5f} is their standard deviation" if len(of_folds) > 1 else "one fold"
    facts = [
        ("Cross-fitted", page.dice(threshold.get("oof_dice_cross_fitted")), f"the cut chosen on other {groups}"),
        ("Cut", f"{threshold['threshold']:.3f}" if threshold else "0.5", found.predicted_with or "of the probability"),
        ("Folds", " ".join(f"{value:.4f}" for value in of_folds) or "–", spread if of_folds else ""),
        ("Worst picture", page.dice(images["dice"].min() if len(images) else None), ""),
        ("Training", duration(sum(seconds.values())), f"{len(logs)} of {settings.data.folds} folds"),
    ]
    return {
        "run": run.name, "title": f"{run.name}: report", "maker": "report", "kicker": kicker_of(settings, logs),
        "headline": headline, "headline_label": label, "facts": [fact for fact in facts if fact[1] != "–"],
        "fold_rows": rows, "images": len(images),
        "settings": config.changes(Settings(), settings),
        "footer": f"Made by make report RUN={run.name}. Tables: images.csv and suspects.csv beside this page.",
    }  # fmt: skip


def kicker_of(settings: Settings, logs: dict[int, list[dict]]) -> list[str]:
    """Which network on what, how fast, and which code: the line above the headline."""
    last = logs[max(logs)][-1]
    commit = last.get("commit", "")[:10]  # of what trained it; runs from before it was noted have none
    kicker = [
        f"{settings.model.arch}, pictures at 1/{settings.data.scale}",
        f"{last['images_per_s']:.0f} images/s in training" + (f" on {last['device']}" if "device" in last else ""),
        f"trained by commit {commit}" if commit else "",
    ]
    return [word for word in kicker if word]


def where(images: pd.DataFrame, found: HeldOut) -> dict[str, Any]:
    """Charts of where Dice is lost, and the ring of views around a car of middling Dice."""
    if not len(images):
        return {"panels": [], "ring": None, "makes": None}
    if not found.of_cars:
        panels = [*overview.where_it_is_lost(images), overview.by_group(images, "Dice")]
        return {"panels": [panel for panel in panels if panel], "ring": None, "makes": None}
    lost = overview.lost_by_angle(images, carvana.ANGLES)
    shown = set(found.shown)
    of_cars = images[images["img"].isin(shown)].groupby("car")["dice"].mean().sort_values()
    car = of_cars.index[len(of_cars) // 2] if len(of_cars) else None
    views = []
    for view, (left, top) in enumerate(overview.places_on_ring(carvana.ANGLES), start=1):
        name = carvana.image_name(car, f"{view:02d}") if car else ""
        photo = gallery.thumbnail(found.pictures.read(name, 8)) if found.pictures and name in shown else ""
        views.append({"view": view, "left": left, "top": top, "photo": photo, "worst": lost[view - 1] == max(lost)})
    return {
        "panels": overview.where_it_is_lost(images), "makes": overview.by_make(images),
        "ring": {"svg": charts.ring(lost), "views": views},
    }  # fmt: skip


def gallery_of(images: pd.DataFrame, found: HeldOut) -> dict[str, Any]:
    """Cards of the worst, middle and random pictures, and what the filters offer."""
    shown = set(found.shown)
    if not shown:
        return {"cards": [], "counts": {}, "choices": {}}
    rows = choice.chosen(images[images["img"].isin(shown)].dropna(subset=["worst_row"]))
    say = facts_of if found.of_cars else facts_of_group
    cards = in_order(lambda row: found.card(row.img, spot_of(row), say(row), tuple(row.tags)), rows.itertuples())
    return {
        "cards": list(progress(cards, "gallery", total=len(rows))),
        "counts": choice.tag_counts(rows),
        "choices": choice.filters(rows, found.of_cars),
    }


def spot_of(row: Any) -> tuple[int, int]:
    return int(row.worst_row), int(row.worst_column)


def facts_of(row: Any) -> dict[str, Any]:
    """What a card says of a row of the table of pictures."""
    return {
        "make": row.make, "view": row.view, "fold": row.fold, "dice": f"{row.dice:.6f}",
        "title": f"{row.dice:.5f}", "right": f"{overview.shown_make(row.make)}, view {row.view}",
        "below": f"missed {page.thousands(row.false_background_px)}, added {page.thousands(row.false_object_px)} px, "
        f"{row.img}",
    }  # fmt: skip


def facts_of_group(row: Any) -> dict[str, Any]:
    """The same of a picture that is no car."""
    facts = facts_of(row)
    return {key: facts[key] for key in ("fold", "dice", "title", "below")} | {"group": row.make, "right": row.make}


def suspects_of(
    run: Run, found: HeldOut, images: pd.DataFrame, others: list[Run], overrides: list[str]
) -> dict[str, Any] | None:
    """Write `suspects.csv`, and cards of its first; None when there is nothing to ask."""
    if not found.shown:
        return None
    everyone = [found, *(open_run(other, overrides) for other in others if other != run)]
    in_all = set.intersection(*(set(one.shown) for one in everyone))
    names = [name for name in found.shown if name in in_all]
    table = suspects.suspects_table(
        names, found.truth, lambda name: [one.probability(name) for one in everyone],
        lambda things: progress(things, "suspects", total=len(names)), have_angles=found.of_cars,
    )  # fmt: skip
    path = run.report / "suspects.csv"
    write_table(table, path)
    row_of = {row.img: row for row in images.itertuples()}
    shown_group = overview.shown_make if found.of_cars else str

    def card(row: Any) -> gallery.Card:
        facts = {
            "title": f"{row_of[row.img].dice:.5f}", "right": shown_group(row_of[row.img].make),
            "below": f"{page.thousands(row.px)} px in one place, score {row.score:.4f}, {row.img}",
        }  # fmt: skip
        return found.card(row.img, ((row.top + row.bottom) // 2, (row.left + row.right) // 2), facts, ("suspect",))

    who = "the networks" if len(everyone) == 1 else f"the networks of {len(everyone)} runs"
    cards = list(in_order(card, table.head(SUSPECTS_SHOWN).itertuples()))
    return {"count": len(table), "file": str(path), "cards": cards, "who": who, "of_cars": found.of_cars}


def threshold_chart(found: HeldOut) -> overview.Panel | None:
    if not found.judged:
        return None
    scores = np.concatenate([dice.dice_at_thresholds(judged.histograms) for judged in found.judged.values()])
    cuts = np.array([dice.threshold_from_u8(cut) for cut in range(dice.THRESHOLDS)])
    chart = charts.threshold_curve(cuts, scores.mean(axis=0), dice.threshold_from_u8(found.threshold_u8))
    return overview.Panel("Dice at every cut", "Mean over the held-out pictures, the cut of this run marked.", chart)


def write_table(table: pd.DataFrame, path: pathlib.Path) -> None:
    write_text(path, table.to_csv(index=False))


def duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
