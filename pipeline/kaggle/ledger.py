"""The ledger, `submissions/ledger.csv`: one row per submission, tracked by git.

A row is written before its file is uploaded and updated afterwards. The message ends with a tag, so a submission that
was interrupted at any moment can be found again at Kaggle:

    pending     the upload has begun; with a `ref`, Kaggle has the file but no score yet
    complete    Kaggle has scored it
    failed      Kaggle rejected it or could not score it; `error` says why

A cell with several values holds them quoted as in a shell. An empty cell means unknown.
"""
import contextlib
import csv
import datetime
import io
import pathlib
import shlex
from typing import Any, Literal

from pydantic import AwareDatetime, ValidationError, model_validator

from pipeline.data.zip_reader import reason_of
from pipeline.kaggle.client import Submission
from pipeline.runtime.files import locked, write_text
from pipeline.runtime.problem import Problem
from pipeline.submission.provenance import Dice, Provenance

COLUMNS = (
    "time", "file", "sha256", "runs", "folds", "threshold", "oof_dice", "oof_dice_cross_fitted",
    "config", "train_overrides", "predict_overrides", "config_sha256", "checkpoints", "pseudo_labels",
    "commit", "clean", "ref", "status", "public", "private", "message", "error",
)  # fmt: skip
COLUMNS_BEFORE = tuple(name for name in COLUMNS if name != "pseudo_labels")  # of ledgers that an earlier version began


class Row(Provenance):
    """One submission: what it was made from, and how Kaggle scored it."""

    time: AwareDatetime
    file: str
    message: str
    status: Literal["pending", "complete", "failed"] = "pending"
    ref: int | None = None  # Kaggle's number, as soon as Kaggle has the file
    public: Dice | None = None
    private: Dice | None = None
    error: str = ""

    @model_validator(mode="after")
    def check_status(self) -> "Row":
        if self.status == "complete" and self.ref is None:
            raise ValueError("a complete submission has a ref")
        if not self.message.split():
            raise ValueError("a message ends with a tag")
        return self

    @property
    def tag(self) -> str:
        """Return the last word of the message; no other submission's message ends with it."""
        return self.message.split()[-1]


# `submissions/RUN.json` has them; the message says how many bad images there are.
NOT_IN_LEDGER = {"bad_images", "test_images"}
assert set(COLUMNS) == set(Row.model_fields) - NOT_IN_LEDGER


def read(path: pathlib.Path) -> list[Row]:
    """Return all rows, the oldest first; none if there is no ledger. Raise Problem that names the first bad line."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header not in (list(COLUMNS), list(COLUMNS_BEFORE)):
                raise Problem(f"{path}, line 1: the header must be {','.join(COLUMNS)}; take the ledger from git.")
            return [parse_row(cells, header, f"{path}, line {reader.line_num}") for cells in reader]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path} cannot be read ({reason_of(error)}); repair it, or take it from git.") from None


def parse_row(cells: list[str], header: list[str], where: str) -> Row:
    if len(cells) != len(header):
        raise Problem(f"{where}: {len(cells)} cells instead of {len(header)}; repair it, or take it from git.")
    values = {name: cell for name, cell in zip(header, cells) if cell}
    try:
        return Row.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(map(str, first["loc"])) or "the row"
        value = repr(values[column][:40]) if column in values else "wrong"
        raise Problem(f"{where}: {column} is {value}: {first['msg']}; repair it, or take it from git.") from None


def put(path: pathlib.Path, row: Row) -> int:
    """Write a row over the row of the same submission, or append it; return its number, counted from 1.

    Rows are matched by content and tag: their numbers change when git merges other people's rows into the ledger.
    """
    rows = read(path)
    matches = [number for number, other in enumerate(rows) if is_same_submission(row, other)]
    number = matches[-1] if matches else len(rows)
    rows[number : number + 1] = [row]
    text, lines = io.StringIO(), ([format_cell(getattr(row, name)) for name in COLUMNS] for row in rows)
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *lines])
    write_text(path, text.getvalue())
    return number + 1


def is_same_submission(row: Row, other: Row) -> bool:
    """Return whether two rows describe the same submission. A known ref never changes."""
    return (row.sha256, row.tag) == (other.sha256, other.tag) and other.ref in (None, row.ref)


def format_cell(value: Any) -> str:
    """Format a cell without line breaks, so that git sees a row as one line."""
    return " ".join(format_value(value).splitlines())


def format_value(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime.datetime():
            return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        case dict():
            return shlex.join(f"{key}={item}" for key, item in value.items())
        case tuple():
            return shlex.join(map(str, value))
    return str(value)


def exclusive(path: pathlib.Path, busy: str) -> contextlib.AbstractContextManager[None]:
    """Lock the ledger for a block, so that only one process submits; raise Problem(busy) if it is locked."""
    return locked(path.with_name(f".{path.name}.lock"), busy)


def updated(row: Row, submissions: list[Submission]) -> Row | None:
    """Return the row with Kaggle's data of its submission, matched by ref or else by tag; None if it is not listed."""
    for theirs in submissions:
        if theirs.ref == row.ref or (row.ref is None and theirs.description.split()[-1:] == [row.tag]):
            status = {"COMPLETE": "complete", "ERROR": "failed"}.get(theirs.status, "pending")
            values = {"ref": theirs.ref, "status": status, "public": theirs.public, "private": theirs.private}
            return row.model_copy(update=values | {"error": theirs.error})
    return None
