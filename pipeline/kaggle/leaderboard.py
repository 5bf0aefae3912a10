"""Stage `leaderboard`: print the ledger's submissions with their scores, ranked among published scores.

Pending rows are updated first when Kaggle can be reached.
"""
import pathlib
from collections.abc import Iterable

from pipeline.data.dataset import competition_of
from pipeline.kaggle import client, ledger
from pipeline.kaggle.ledger import Row
from pipeline.paths import LEDGER
from pipeline.runtime.problem import Problem

HELD_OUT = "oof_dice_cross_fitted"
PUBLISHED = (  # of Carvana: Dice, on which images, whose, and where it was published
    (0.997332, "private", "1st place, 49 networks", "their README"),
    (0.9970, "public", "5th place, one network at 1918x1280", "their write-up"),
    (0.9969, "private", "5th place, one network at 1918x1280", "their write-up"),
    (0.996899, "private", "31st place, 5 U-Nets", "their write-up"),
    (0.996, "public", "petrosgk's Keras U-Net at 1024", "its README"),
    (0.995, "public", "petrosgk's Keras U-Net at 512", "its README"),
    (0.992, "public", "petrosgk's Keras U-Net at 256", "its README"),
    (0.990, "public", "petrosgk's Keras U-Net at 128", "its README"),
    (0.988423, "public", "milesial/Pytorch-UNet, half size, 5 epochs", "its README"),
    (0.99711, HELD_OUT, "4th place, its best network at full size", "names of its weights; by car only"),
    (0.9926, HELD_OUT, "Christopher Ley's U-Net, half size, 5 epochs", "his document; by make, as ours"),
)
COLUMNS = ("row", "time (UTC)", "submission", "made by", "threshold", "OOF", "crossfit", "public", "private", "status")


def main(ledger_path: pathlib.Path, kind: str = "carvana") -> None:
    """kind: `data.kind` of the competition whose pending scores are updated."""
    if ledger_path != LEDGER and not ledger_path.is_file():
        raise Problem(f"There is no ledger {ledger_path}; check LEDGER=, or leave it out for {LEDGER}.")
    rows = ledger.read(ledger_path)
    if not rows:
        print(f"{ledger_path} has no submission yet; `make submit` adds one.")
        return
    if any(row.status == "pending" for row in rows):
        try:
            rows = update_pending(ledger_path, kind)
        except Problem as problem:
            print(f"Pending scores could not be updated: {problem}\n")
    print_table([COLUMNS, *(table_row(number, row) for number, row in enumerate(rows, start=1))])
    for row in rows:
        if row.error:
            print(f"{row.file}: {row.error}")
    which = {"private": "private", "public": "public", HELD_OUT: "held-out"} if kind == "carvana" else {}
    for column, name in which.items():
        print(f"\nAmong published {name} scores:\n")
        print_table(ranking(column, rows))


def update_pending(path: pathlib.Path, kind: str) -> list[Row]:
    """Update pending rows in the ledger from Kaggle; return all rows."""
    with ledger.exclusive(path, "`make submit` is running and will write them."):
        submissions = client.connect(competition_of(kind)).submissions()
        rows = ledger.read(path)
        for row in rows:
            new_row = ledger.updated(row, submissions) if row.status == "pending" or row.ref is None else None
            if new_row is not None and new_row != row:
                ledger.put(path, new_row)
    return ledger.read(path)


def table_row(number: int, row: Row) -> tuple[str, ...]:
    made_by = f"{','.join(row.runs)} {','.join(map(str, row.folds))}" if row.runs else "unknown"
    scores = map(format_dice, (row.oof_dice, row.oof_dice_cross_fitted, row.public, row.private))
    threshold = "" if row.threshold is None else f"{row.threshold:.3f}"
    return (str(number), f"{row.time:%Y-%m-%d %H:%M}", row.file, made_by, threshold, *scores, row.status)


def ranking(kind: str, rows: list[Row]) -> Iterable[tuple[str, ...]]:
    """Return one line per score, ours and the published ones, the best first."""
    ours = [(getattr(row, kind), f"▶ row {number}: {row.file}", "") for number, row in enumerate(rows, start=1)]
    theirs = [(dice, who, f"({source})") for dice, which, who, source in PUBLISHED if which == kind]
    scored = [line for line in theirs + ours if line[0] is not None]
    return [(f"{dice:.6g}", who, source) for dice, who, source in sorted(scored, key=lambda line: -line[0])]


def format_dice(dice: float | None) -> str:
    return "" if dice is None else f"{dice:.5f}"


def print_table(lines: Iterable[tuple[str, ...]]) -> None:
    lines = list(lines)
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
