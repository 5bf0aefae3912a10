"""What a submission was made of: `submissions/RUN.json`, which predict writes beside `submissions/RUN.csv.gz`.

It names the submission by its sha256. A file of other bytes, whatever its name, is foreign: its provenance is unknown,
and nothing is guessed.
"""
import pathlib
import shlex
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.runtime.files import sha256 as sha256_of
from pipeline.runtime.files import write_text
from pipeline.runtime.problem import Problem


def split_cell(cell: object) -> object:
    """Split a cell of the ledger, `0 'a b'`, as a shell would; JSON gives a list already."""
    return shlex.split(cell) if isinstance(cell, str) else cell


def split_hashes(cell: object) -> object:
    """Split a cell `runs/x/fold0/best.pt=1a2b… …` into {path: hash}; JSON gives a dict already."""
    return dict(item.rpartition("=")[::2] for item in shlex.split(cell)) if isinstance(cell, str) else cell


def split_parents(cell: object) -> object:
    """Split a cell `1a2b…=submissions/x.csv.gz …` into {hash: path}; JSON gives a dict already."""
    return dict(item.partition("=")[::2] for item in shlex.split(cell)) if isinstance(cell, str) else cell


Dice = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Texts = Annotated[tuple[str, ...], BeforeValidator(split_cell)]
Integers = Annotated[tuple[int, ...], BeforeValidator(split_cell)]
Hashes = Annotated[dict[str, Sha256], BeforeValidator(split_hashes)]
Parents = Annotated[dict[Sha256, str], BeforeValidator(split_parents)]


class Provenance(BaseModel):
    """Of one submission; the defaults are those of a foreign file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sha256: Sha256  # of the submission
    runs: Texts = ()
    folds: Integers = ()
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    oof_dice: Dice | None = None
    oof_dice_cross_fitted: Dice | None = None
    config: str = ""  # the file in configs/ that is nearest to the trained settings; "" when the folds' differ
    train_overrides: Texts = ()  # SET= that turns that file into the trained settings
    predict_overrides: Texts = ()  # SET= with which they predicted
    config_sha256: Sha256 | None = None  # of the trained settings; of all of them when they differ
    checkpoints: Hashes = {}  # path -> sha256
    pseudo_labels: Parents = {}  # that trained them: sha256 -> data.pseudo
    commit: str = ""  # of the code that predicted; "" if git did not know it
    clean: bool = False  # whether that code was exactly the commit's
    bad_images: tuple[str, ...] = ()  # images that could not be read, whose rows are empty
    test_images: str = ""  # `plan.fingerprint` of them; "" if an earlier version predicted


def write(path: pathlib.Path, origin: Provenance) -> None:
    write_text(path, origin.model_dump_json(indent=2) + "\n")


def read(path: pathlib.Path) -> Provenance:
    """Read a `submissions/RUN.json`. Raises Problem if it is missing or damaged."""
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise Problem(f"There is no {path}; `make predict` writes it.") from None
    except (OSError, ValidationError):
        raise Problem(f"{path} is damaged; delete it, or write it again with `make predict`.") from None


def find_by_file(folder: pathlib.Path, submission: pathlib.Path) -> Provenance:
    """Return the provenance of a submission: the .json beside it if that names this content, else `find_by_hash`.

    Two runs may have made the same bytes: a blend that gives one of its runs all the weight does.
    """
    digest = sha256_of(submission)
    beside = submission.with_name(submission.name.removesuffix(".csv.gz") + ".json")
    if beside.parent == folder and beside.is_file() and (origin := read(beside)).sha256 == digest:
        return origin
    return find_by_hash(folder, digest)


def find_by_hash(folder: pathlib.Path, sha256: str) -> Provenance:
    """Return the provenance of the submission with this content; an empty one if no .json in the folder names it.

    Raises Problem if none of the readable ones does and another is damaged.
    """
    damaged: Problem | None = None
    for path in sorted(folder.glob("*.json")):
        try:
            if (origin := read(path)).sha256 == sha256:
                return origin
        except Problem as problem:
            damaged = problem
    if damaged:
        raise damaged
    return Provenance(sha256=sha256)


def read_bad_images(folder: pathlib.Path, submission: pathlib.Path) -> tuple[str, ...]:
    """Return the images whose rows in a submission may be empty; none if the file does not exist."""
    return find_by_file(folder, submission).bad_images if submission.is_file() else ()
