"""What a submission was made of: `submissions/RUN.json`, which predict leaves beside `submissions/RUN.csv.gz`.

It names the submission by its sha256. A file of other bytes, whatever its name, is a foreign one: nothing is known
of its origin, and nothing is made up.
"""
import pathlib
import shlex
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.runtime.files import sha256 as sha256_of
from pipeline.runtime.files import write_text
from pipeline.runtime.problem import Problem


def words_of(cell: object) -> object:
    """A cell of the ledger, `0 'a b'`, to its words; JSON brings a list already."""
    return shlex.split(cell) if isinstance(cell, str) else cell


def hashes_of(cell: object) -> object:
    """`runs/x/fold0/best.pt=1a2b…` words to {path: hash}."""
    return dict(word.rpartition("=")[::2] for word in shlex.split(cell)) if isinstance(cell, str) else cell


Dice = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Words = Annotated[tuple[str, ...], BeforeValidator(words_of)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(words_of)]
Hashes = Annotated[dict[str, Sha256], BeforeValidator(hashes_of)]


class Provenance(BaseModel):
    """Of one submission; the defaults are those of a foreign file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sha256: Sha256  # of the submission
    runs: Words = ()
    folds: Numbers = ()
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    oof_dice: Dice | None = None
    oof_dice_cross_fitted: Dice | None = None
    config: str = ""  # the file in configs/ that is nearest to the trained settings; "" when the folds' differ
    train_overrides: Words = ()  # SET= words that make them of it
    predict_overrides: Words = ()  # SET= words that were laid over them to predict
    config_sha256: Sha256 | None = None  # of runs/RUN/fold{k}/config.yaml; of all of them when they differ
    checkpoints: Hashes = {}  # path -> sha256
    commit: str = ""  # of the code that predicted; "" where git did not know it
    clean: bool = False  # whether that code was the commit's
    bad_images: tuple[str, ...] = ()  # pictures whose rows are empty for that reason


def write(path: pathlib.Path, origin: Provenance) -> None:
    write_text(path, origin.model_dump_json(indent=2) + "\n")


def read(path: pathlib.Path) -> Provenance:
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise Problem(f"There is no {path}; `make predict` writes it.") from None
    except (OSError, ValidationError):
        raise Problem(f"{path} is damaged; delete it, or write it again with `make predict`.") from None


def of(folder: pathlib.Path, submission: pathlib.Path) -> Provenance:
    """The origin of a submission: what the .json beside it says when it names this content, else as `find`.

    Two runs may have made the same bytes: a blend that gives one of its runs all the weight does.
    """
    digest = sha256_of(submission)
    beside = submission.with_name(submission.name.removesuffix(".csv.gz") + ".json")
    if beside.parent == folder and beside.is_file() and (about := read(beside)).sha256 == digest:
        return about
    return find(folder, digest)


def bad_images(folder: pathlib.Path, submission: pathlib.Path) -> tuple[str, ...]:
    """The pictures whose rows in a submission may be empty; none in one that is not there."""
    return of(folder, submission).bad_images if submission.is_file() else ()


def find(folder: pathlib.Path, sha256: str) -> Provenance:
    """The origin of a submission by its content; one that says nothing when no .json in the folder names it.

    Problem when none of those that can be read does, and one is damaged.
    """
    damaged: Problem | None = None
    for path in sorted(folder.glob("*.json")):
        try:
            if (about := read(path)).sha256 == sha256:
                return about
        except Problem as problem:
            damaged = problem
    if damaged:
        raise damaged
    return Provenance(sha256=sha256)
