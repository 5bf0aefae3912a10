"""Stage `report`: everything under `runs/RUN/` in; `runs/RUN/report/index.html` out, one page that needs no other file.

Beside it are its tables: `images.csv`, one row an out-of-fold image; `suspects.csv`, the masks that may be wrong; or,
of several classes, `classes.csv`. The page leaves out what the run does not have yet, and says so.
"""
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from pipeline import carvana, config
from pipeline.config import Refine, Settings
from pipeline.inference.loading import read_pseudo_labels
from pipeline.inference.oof import OofHistograms
from pipeline.inference.stored_threshold import read_threshold_json
from pipeline.masks import dice, rle
from pipeline.paths import Run
from pipeline.report import charts, classes, gallery, overview, page, refinement, submitted, suspects
from pipeline.report.oof_predictions import OofPredictions, open_predictions, read_groups, settings_of
from pipeline.runtime.files import locked, write_text
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import duration, in_order

MAX_SUSPECT_CARDS = 24
LOG_NUMBERS = ("epoch", "train_loss", "images_per_s", "lr", "seconds")  # and val_dice, which may be null
Logs = dict[int, list[dict[str, Any]]]  # fold -> rows of its log.jsonl


def main(run: Run, overrides: list[str], others: list[Run]) -> None:
    """Write the page and its tables. others: runs that must contradict a mask too, so that it is suspect."""
    started = time.monotonic()
    if not (logs := read_logs(run)):
        raise Problem(run.untrained_message())
    settings = settings_of(run, min(logs), overrides)
    with locked(run.lock("report"), f"{run.report} is being written by another process; wait until it is done."):
        predictions = open_predictions(run, overrides)
        if settings.task.kind == "multiclass":
            report_classes(run, settings, predictions, logs, started)
        else:
            opened = [open_predictions(other, overrides) for other in others if other != run]
            report_binary(run, settings, predictions, logs, started, opened)


def report_binary(
    run: Run, settings: Settings, predictions: OofPredictions, logs: Logs, started: float, others: list[OofPredictions]
) -> None:
    """Write the page of a binary run with `images.csv` and `suspects.csv`."""
    folder, notes = pathlib.Path(settings.data.folder), list(predictions.missing_notes)
    competition = predictions.competition
    if not predictions.oof:
        notes.append("No out-of-fold image has been evaluated; run `make validate threshold`.")
    elif not run.threshold.is_file():
        notes.append("The threshold is 0.5, since none has been chosen; run `make threshold`.")

    images = pd.DataFrame()
    if predictions.oof:
        images = predictions.error_table(read_groups(run))
        write_table(images.rename(columns={"score": predictions.metric_column}), run.report / "images.csv")
    print(f"{len(images)} out-of-fold images analysed after {time.monotonic() - started:.0f} s.")
    in_gallery = images
    if len(images):
        in_gallery = images[images["img"].isin(set(predictions.showable))].dropna(subset=["worst_row"])
    context = (
        headline(run, settings, predictions, images, logs)
        | lost_dice_section(images, predictions)
        | {"refinement": refinement.section(images)}
        | gallery.section(in_gallery, lambda row: make_card(predictions, row))
        | {"suspects": suspects_section(run, predictions, images, others)}
        | {"threshold_chart": threshold_chart(predictions)}
        | {"submission": submitted.section(run, folder, settings.data.hq, competition, notes) if competition else None}
    )
    titles = {
        "where": ("Where Dice is lost", context["panels"]), "refinement": ("Refinement", context["refinement"]),
        "gallery": ("Images", context["cards"]),
        "suspects": ("Suspect masks", context["suspects"]), "training": ("Training", context["curves"]),
        "submission": ("Submission", context["submission"]), "settings": ("Settings", True),
    }  # fmt: skip
    write_page(run, "report.html.j2", titles, notes, started, context)


def report_classes(run: Run, settings: Settings, predictions: OofPredictions, logs: Logs, started: float) -> None:
    """Write the page of a multiclass run with `images.csv` and `classes.csv`."""
    notes = list(predictions.missing_notes)
    if not predictions.oof:
        notes.append("No out-of-fold image has been evaluated; run `make validate`.")
    context, tables = classes.page_context(predictions, read_groups(run) if predictions.oof else {}, logs)
    for name, table in tables.items():
        write_table(table, run.report / name)
    fold_scores = {fold: classes.fold_scores(predictions, fold) for fold in logs}
    context |= run_context(run, settings, logs, "images.csv and classes.csv", context["facts"], fold_scores)
    write_page(run, "classes.html.j2", classes.section_titles(context), notes, started, context)


def write_page(
    run: Run, template: str, titles: dict[str, tuple[str, Any]], notes: list[str], started: float, context: dict
) -> None:
    """titles: of each section, and a value that is empty if the section is left out."""
    sections = [(anchor, title) for anchor, (title, content) in titles.items() if content]
    write_text(run.report_page, page.render(template, sections=sections, missing_notes=notes, **context))
    for note in notes:
        print(note)
    print(f"{run.report_page}: {run.report_page.stat().st_size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s.")


# --- logs ------------------------------------------------------------------------------------------------------------


def read_logs(run: Run) -> Logs:
    """Read the log of each fold whose training began. Raise Problem if one is damaged."""
    logs = {}
    for path in sorted(run.folder.glob("fold[0-9]*/log.jsonl")):
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            if not all(map(is_log_row, rows)):
                raise ValueError(f"a line does not have the numbers {', '.join(LOG_NUMBERS)}")
        except (ValueError, OSError, RecursionError) as error:
            raise Problem(f"{path} is damaged ({error}); `make train` writes it again.") from None
        if rows:
            logs[int(path.parent.name.removeprefix("fold"))] = rows
    return logs


def refiner_rows(run: Run, fold: int) -> list[dict[str, Any]]:
    """Read the log of a fold's refiner; [] if it has none. Raise Problem if it is damaged."""
    return read_rows(run.fold(fold).refiner.log, "refine")


def read_rows(path: pathlib.Path, stage: str) -> list[dict[str, Any]]:
    """Read a log that not every fold has; [] if it is missing. Raise Problem if it is damaged. stage: its writer."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if not all(isinstance(row["seconds"], (int, float)) for row in rows):
            raise ValueError("a line has no seconds")
        return rows
    except (ValueError, OSError, RecursionError, LookupError, TypeError) as error:
        raise Problem(f"{path} is damaged ({error}); `make {stage}` writes it again.") from None


def rows_beside(run: Run, fold: int) -> list[dict[str, Any]]:
    """Read the logs of the networks that a fold has beside its `best.pt`."""
    return [*read_rows(run.fold(fold).short.log, "train"), *refiner_rows(run, fold)]


def is_log_row(row: Any) -> bool:
    """Whether a line of the log has what a report needs of an epoch."""
    if not isinstance(row, dict) or not isinstance(row.get("val_dice", "missing"), (int, float, type(None))):
        return False
    return all(isinstance(row.get(name), (int, float)) for name in LOG_NUMBERS)


# --- sections --------------------------------------------------------------------------------------------------------


def run_context(
    run: Run, settings: Settings, logs: Logs, tables: str,
    facts: list[tuple[str, str, str]], fold_scores: Mapping[int, dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Return the template's variables that any run has. The kicker is the line above the headline.

    facts: of the first screen, to which the time of training is added; fold_scores: the scores of each row of folds.
    """
    seconds = {fold: sum(row["seconds"] for row in [*rows, *rows_beside(run, fold)]) for fold, rows in logs.items()}
    last = logs[max(logs)][-1]
    commit = last.get("commit", "")[:10]  # of the code that trained it; "" outside a git checkout
    kicker = [
        f"{settings.model.arch}, images at 1/{settings.data.scale}",
        f"{last['images_per_s']:.0f} images/s in training" + (f" on {last['device']}" if "device" in last else ""),
        f"trained by commit {commit}" if commit else "", pseudo_label_fact(run, min(logs)),
    ]
    return {
        "run": run.name, "title": f"{run.name}: report", "maker": "report", "kicker": list(filter(None, kicker)),
        "settings": config.changes(defaults_of(settings), settings), "curves": overview.curve_panels(logs),
        "facts": [*facts, ("Training", duration(sum(seconds.values())), f"{len(logs)} of {settings.data.folds} folds")],
        "fold_rows": [
            {"fold": fold, "epochs": f"{len(log)} of {settings.train.epochs}", "time": duration(seconds[fold])}
            | fold_scores[fold] for fold, log in sorted(logs.items())
        ],
        "footer": f"Made by make report RUN={run.name}. Tables: {tables} beside this page.",
    }  # fmt: skip


def pseudo_label_fact(run: Run, fold: int) -> str:
    """Return which pseudo-labels a fold was trained on; "" without any."""
    files = run.fold(fold)
    if not files.config.is_file() or not files.best.is_file():
        return ""
    path_of = read_pseudo_labels({files.best: config.load(files.config, check_choices=False)})
    return ", ".join(f"pseudo-labels {path}, sha256 {digest[:12]}" for digest, path in path_of.items())


def defaults_of(settings: Settings) -> Settings:
    """Return the defaults with which settings are compared; the section `refine` only if they have it."""
    return Settings(refine=Refine() if settings.refine else None)


def headline(
    run: Run, settings: Settings, predictions: OofPredictions, images: pd.DataFrame, logs: Logs
) -> dict[str, Any]:
    """Return the first screen, the folds and the settings."""
    fold_scores: dict[int, dict[str, Any]] = {fold: {"images": "–", "dice": None, "worst": None} for fold in logs}
    for fold, scores in images.groupby("fold")["score"] if len(images) else ():
        fold_scores[fold] = {"images": len(scores), "dice": scores.mean(), "worst": scores.min()}
    by_fold = [row["dice"] for _, row in sorted(fold_scores.items()) if row["dice"] is not None]
    best = max((row["val_dice"] for log in logs.values() for row in log if row["val_dice"] is not None), default=None)
    has_groups = len(images) and images["group"].any()
    groups = "makes" if predictions.has_angles else "groups" if has_groups else "images"
    label = f"out-of-fold (OOF) Dice, on {groups} that no network saw" if len(images) else "Dice at the end of training"
    threshold = read_threshold_json(run.threshold) if run.threshold.is_file() else {}
    threshold_text = f"{threshold['threshold']:.3f}" if threshold else "0.5"
    spread = f"standard deviation {np.std(by_fold, ddof=1):.5f}" if len(by_fold) > 1 else "one fold"
    facts = [
        ("Cross-fitted", page.score(threshold.get("oof_dice_cross_fitted")), f"threshold chosen on other {groups}"),
        ("Threshold", threshold_text, predictions.predicted_with or "of the probability"),
        ("Folds", " ".join(f"{value:.4f}" for value in by_fold) or "–", spread),
        ("Worst image", page.score(images["score"].min() if len(images) else None), ""),
    ]
    facts = [fact for fact in facts if fact[1] != "–"]
    headline = float(images["score"].mean()) if len(images) else best
    return run_context(run, settings, logs, "images.csv and suspects.csv", facts, fold_scores) | {
        "headline": headline, "headline_label": label, "images": len(images)
    }  # fmt: skip


def lost_dice_section(images: pd.DataFrame, predictions: OofPredictions) -> dict[str, Any]:
    """Return charts of where Dice is lost; of cars also the ring of angles around a car of median Dice."""
    if not len(images):
        return {"panels": [], "ring": None, "makes": None}
    panels = overview.lost_dice_panels(images)
    if not predictions.has_angles:
        by_group = overview.by_group(images, "Dice")
        return {"panels": [*panels, by_group] if by_group else panels, "ring": None, "makes": None}
    lost = overview.lost_by_angle(images, carvana.ANGLES)
    showable = set(predictions.showable)
    by_car = images[images["img"].isin(showable)].groupby("car")["score"].mean().sort_values()
    car = by_car.index[len(by_car) // 2] if len(by_car) else None
    angles = []
    for angle, (left, top) in enumerate(overview.places_on_ring(carvana.ANGLES), start=1):
        name = carvana.image_name(car, f"{angle:02d}") if car else ""
        image = gallery.thumbnail(predictions.dataset.read(name, 8)) if predictions.dataset and name in showable else ""
        angles.append({"angle": angle, "left": left, "top": top, "image": image, "worst": lost[angle - 1] == max(lost)})
    return {"panels": panels, "makes": overview.by_make(images), "ring": {"svg": charts.ring(lost), "angles": angles}}


def make_card(predictions: OofPredictions, row: Any) -> gallery.Card:
    """Make the card of a row of the table of images, cropped where most pixels are wrong."""
    missed, added = page.thousands(row.false_background_px), page.thousands(row.false_object_px)
    facts = {
        "group": row.group, "fold": row.fold, "score": f"{row.score:.6f}", "title": f"{row.score:.5f}",
        "right": row.group, "below": f"missed {missed}, added {added} px, {row.img}",
    } | overview.car_facts(row)  # fmt: skip
    spot = (int(row.worst_row), int(row.worst_column))
    return predictions.card(row.img, spot, facts, row.tags, coarse=True)


def suspects_section(
    run: Run, predictions: OofPredictions, images: pd.DataFrame, others: list[OofPredictions]
) -> dict[str, Any] | None:
    """Write `suspects.csv` and return cards of its first rows; None if no stored prediction can be shown."""
    if not predictions.showable:
        return None
    runs, competition = [predictions, *others], predictions.competition
    in_all_runs = set.intersection(*(set(each.showable) for each in runs))
    names = [name for name in predictions.showable if name in in_all_runs]
    table = suspects.suspects_table(
        names, predictions.truth, lambda name: [each.probability(name) for each in runs], predictions.has_angles,
        competition.encode if competition else rle.encode,
    )  # fmt: skip
    path, header = run.report / "suspects.csv", competition.submission_header if competition else ("img", "rle_mask")
    write_table(table.rename(columns={"img": header[0], "rle_mask": header[1]}), path)
    row_of = {row.img: row for row in images.itertuples()}

    def card(row: Any) -> gallery.Card:
        group = row_of[row.img].group
        facts = {
            "title": f"{row_of[row.img].score:.5f}",
            "right": overview.display_make(group) if predictions.has_angles else group,
            "below": f"{page.thousands(row.px)} px in one region, score {row.score:.4f}, {row.img}",
        }  # fmt: skip
        centre = (row.top + row.bottom) // 2, (row.left + row.right) // 2
        return predictions.card(row.img, centre, facts, ("suspect",))

    return {
        "count": len(table), "file": str(path), "has_angles": predictions.has_angles, "for_training": bool(competition),
        "cards": list(in_order(card, table.head(MAX_SUSPECT_CARDS).itertuples())),
        "who": "the networks" if len(runs) == 1 else f"the networks of {len(runs)} runs",
    }  # fmt: skip


def threshold_chart(predictions: OofPredictions) -> overview.Panel | None:
    if not predictions.oof:
        return None
    histograms = np.concatenate([oof.histograms for oof in predictions.oof.values() if isinstance(oof, OofHistograms)])
    thresholds = np.array([dice.threshold_from_u8(threshold_u8) for threshold_u8 in range(dice.THRESHOLDS)])
    chosen = dice.threshold_from_u8(predictions.threshold_u8)
    chart = charts.threshold_curve(thresholds, dice.dice_at_thresholds(histograms).mean(axis=0), chosen)
    return overview.Panel("Dice by threshold", "Mean over all images; the run's threshold is marked.", chart)


def write_table(table: pd.DataFrame, path: pathlib.Path) -> None:
    write_text(path, table.to_csv(index=False))
