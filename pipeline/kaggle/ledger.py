"""The ledger, `submissions/ledger.csv`: one row per submission, tracked by git.

A row is written before its file is uploaded and then told how it went, so that a submission that was cut off at any
moment is found again at Kaggle by the tag that ends its message:

    pending     the upload was begun; with a `ref`, Kaggle has the file and no score yet
    complete    Kaggle has scored it
    failed      Kaggle refused it, or could not score it; `error` says why

Cells that hold several words hold them as a shell would read them. An empty cell: not known.
"""
import contextlib
import csv
import datetime
import io
import pathlib
import shlex
from typing import Any, Literal

from pydantic import AwareDatetime, ValidationError, model_validator

from pipeline.runtime.files import locked, write_text
from pipeline.kaggle.client import Submission
from pipeline.submission.provenance import Dice, Provenance
from pipeline.runtime.problem import Problem

COLUMNS = (
    "time", "file", "sha256", "runs", "folds", "threshold", "oof_dice", "oof_dice_cross_fitted",
    "config", "train_overrides", "predict_overrides", "config_sha256", "checkpoints", "commit", "clean",
    "ref", "status", "public", "private", "message", "error",
)  # fmt: skip


class Row(Provenance):
    """One submission: what it was made of, and what became of it."""

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
        """The last word of the message, which no other submission's message ends with."""
        return self.message.split()[-1]


NOT_KEPT = {"bad_images"}  # `submissions/RUN.json` has it, and the message says how many
assert set(COLUMNS) == set(Row.model_fields) - NOT_KEPT


def read(path: pathlib.Path) -> list[Row]:
    """All rows in the order of their making; none when there is no ledger yet. Problem names the first bad line."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header != list(COLUMNS):
                raise Problem(f"{path}, line 1: the header must be {','.join(COLUMNS)}; take the ledger from git.")
            return [parse(cells, f"{path}, line {reader.line_num}") for cells in reader]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Problem(f"{path} cannot be read ({error}); mend it, or take it from git.") from None


def parse(cells: list[str], where: str) -> Row:
    if len(cells) != len(COLUMNS):
        raise Problem(f"{where}: {len(cells)} cells, but there must be {len(COLUMNS)}; mend it, or take it from git.")
    known = {name: cell for name, cell in zip(COLUMNS, cells) if cell}
    try:
        return Row.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        column = ".".join(map(str, first["loc"])) or "the row"
        value = repr(known[column][:40]) if column in known else "wrong"
        raise Problem(f"{where}: {column} is {value}: {first['msg']}; mend it, or take it from git.") from None


def put(path: pathlib.Path, row: Row) -> int:
    """Write a row: in the place of what was known of the same submission, or below all others; its number, from 1.

    Known by content and tag: numbers change when git merges the rows of somebody else into the ledger.
    """
    rows = read(path)
    of_before = [number for number, other in enumerate(rows) if is_news_of(row, other)]
    number = of_before[-1] if of_before else len(rows)
    rows[number : number + 1] = [row]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([cell_of(getattr(row, name)) for name in COLUMNS] for row in rows)
    write_text(path, text.getvalue())
    return number + 1


def is_news_of(row: Row, other: Row) -> bool:
    """Whether the row tells of the same submission as the other one. A ref that is known does not change."""
    return (row.sha256, row.tag) == (other.sha256, other.tag) and other.ref in (None, row.ref)


def cell_of(value: Any) -> str:
    """A cell without line breaks, so that a row is a line to git."""
    return " ".join(text_of(value).splitlines())


def text_of(value: Any) -> str:
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


def alone(path: pathlib.Path, busy: str) -> contextlib.AbstractContextManager[None]:
    """`with alone(path, …):` no other process submits; Problem(busy) when one does."""
    return locked(path.with_name(f".{path.name}.lock"), busy)


def told(row: Row, submissions: list[Submission]) -> Row | None:
    """The row with what Kaggle says of its submission, found by its ref or else its tag; None if it is not there."""
    for theirs in submissions:
        if theirs.ref == row.ref or (row.ref is None and theirs.description.split()[-1:] == [row.tag]):
            status = {"COMPLETE": "complete", "ERROR": "failed"}.get(theirs.status, "pending")
            news = {"ref": theirs.ref, "status": status, "public": theirs.public, "private": theirs.private}
            return row.model_copy(update=news | {"error": theirs.error})
    return None
