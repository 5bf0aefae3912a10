"""Stage `reproduce`: a row of the ledger in; the commands that make its submission again out, or its bytes.

`--go` runs the prediction, after it has made sure that code, weights and cut are those of the row, and compares the
sha256. Prediction from the same weights gives the same bytes on the same kind of machine; so does training on a CPU.
"""
import contextlib
import json
import pathlib
import re
import shlex
from collections.abc import Iterator

from pipeline.runtime import git
from pipeline.runtime.files import read_json, sha256
from pipeline.kaggle import ledger
from pipeline.kaggle.ledger import Row
from pipeline.paths import Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.launch import run_stage

FOLDER_WORD = "data.folder="


def main(ledger_path: pathlib.Path, number: int, data: str | None, go: bool) -> None:
    """number: of the row, counted from 1. data: the competition folder, where it is not the one of the row."""
    rows = ledger.read(ledger_path)
    if not 1 <= number <= len(rows):
        raise Problem(f"{ledger_path} has no row {number}, but {len(rows)} rows; `make leaderboard` shows them.")
    row = rows[number - 1]
    if not row.runs:
        raise Problem(f"Row {number} of {ledger_path}, {row.file}, is of unknown origin: there is nothing to run.")
    if go:
        predict_again(row, number, data)
    else:
        print("\n".join(lines(row, number, data)))


def lines(row: Row, number: int, data: str | None) -> list[str]:
    """A script for a shell, which begins where the weights are at hand."""
    folds = folds_of(row)
    later = variables(row.predict_overrides, data)
    predicted = {"RUN": joint_of(row).name} | runs_and_folds(row) | later
    hashes = [f"#   {path} {digest}" for path, digest in row.checkpoints.items()]
    said = [f"# Row {number}: {row.file} of {row.time:%Y-%m-%d %H:%M} UTC, sha256 {row.sha256}"]
    if not row.commit or not row.clean:
        said += ["# Its code was not wholly that of a commit, so it may not come out the same."]
    if row.commit:
        said += [f"git checkout {row.commit}"]
    said += ["# The weights, by their sha256:", *hashes]
    if row.config:
        said += ["# Should they be lost, these make them again, on a CPU the same to the last bit:"]
        for name in folds:
            one = {"RUN": name, "FOLD": folds[name]}
            said += [
                "#   " + make("train", {"CONFIG": row.config} | one | variables(row.train_overrides, data)),
                "#   " + make("validate threshold", one | later),
            ]
    if was_blended(row):
        said += [f"# What each weighs is in {joint_of(row).blend}; if it is lost:", "#   " + make("blend", predicted)]
        said += [f"# There {name} weighs nothing, but it must be at hand." for name in row.runs if name not in folds]
    said += [f"# The submission, at the cut {row.threshold}:", make("predict", predicted)]
    return [*said, f"echo '{row.sha256}  {joint_of(row).submission}' | sha256sum --check"]


def joint_of(row: Row) -> Run:
    """The run that gave its name to the submission: of several, that of the file, as in `submissions/a+b.csv.gz`."""
    if len(row.runs) == 1:
        return Run(row.runs[0])
    named = Run(pathlib.Path(row.file).name.removesuffix(".csv.gz"))
    return named if str(named.submission) == row.file else Run("+".join(row.runs))


def folds_of(row: Row) -> dict[str, str]:
    """Each run whose weights are in it -> its folds as FOLD= takes them."""
    if len(row.runs) == 1:
        return {row.runs[0]: ",".join(map(str, row.folds))}
    found: dict[str, list[str]] = {}
    for path in row.checkpoints:
        if not (match := re.fullmatch(r"runs/([^/]+)/fold(\d+)/best\.pt", path)):
            raise Problem(f"The row of {row.file} names {path}, which is no runs/RUN/fold0/best.pt; mend the ledger.")
        found.setdefault(match[1], []).append(match[2])
    return {name: ",".join(folds) for name, folds in found.items()}


def runs_and_folds(row: Row) -> dict[str, str]:
    """RUNS= and FOLD= of the prediction; no FOLD= where each run gave all of its own."""
    several = {"RUNS": " ".join(row.runs)} if len(row.runs) > 1 else {}
    folds = set(folds_of(row).values())
    return several | ({"FOLD": folds.pop()} if len(folds) == 1 else {})


def was_blended(row: Row) -> bool:
    """Whether `blend` found the weights of several runs: it is what gives them a Dice of their own."""
    return len(row.runs) > 1 and row.oof_dice is not None


def variables(words: tuple[str, ...], data: str | None) -> dict[str, str]:
    """SET= and DATA= of words such as `data.folder="x"` and `predict.tta="none"`; `data` wins over the words."""
    folders = [json.loads(word.removeprefix(FOLDER_WORD)) for word in words if word.startswith(FOLDER_WORD)]
    others = [word for word in words if not word.startswith(FOLDER_WORD)]
    given = {"DATA": data or "".join(folders), "SET": " ".join(others)}
    return {name: value for name, value in given.items() if value}


def make(goals: str, given: dict[str, str]) -> str:
    return " ".join(["make", goals, *(f"{name}={shlex.quote(value)}" for name, value in given.items())])


def predict_again(row: Row, number: int, data: str | None) -> None:
    """Predict with the code, the weights and the cut of the row, and compare."""
    run, given = joint_of(row), runs_and_folds(row)
    check_code(row, number)
    check_weights(row, number)
    check_folds(row, number)
    check_threshold(row, run)
    words = ["--run", run.name, *(["--runs", *row.runs] if "RUNS" in given else [])]
    words += [*(["--fold", given["FOLD"]] if "FOLD" in given else []), *(["--data", data] if data else [])]
    with kept(run.submission):
        run_stage("predict", *words, *(["--set", *row.predict_overrides] if row.predict_overrides else []))
    if (found := sha256(run.submission)) != row.sha256:
        raise Problem(
            f"{run.submission} came out with sha256 {found}, but row {number} has {row.sha256}; was it another kind of "
            "machine, were there other packages, or other test pictures?"
        )
    print(f"{run.submission} came out with the sha256 of row {number}, {row.sha256}.")


@contextlib.contextmanager
def kept(path: pathlib.Path) -> Iterator[None]:
    """Put what stands at `path` under another name while it is made anew; keep both when they differ.

    Its origin goes with it, or nobody would know what it was made of.
    """
    origin_path = path.with_name(path.name.removesuffix(".csv.gz") + ".json")
    before, origin_before = (one.with_name(f"before.{one.name}") for one in (path, origin_path))
    if path.exists():
        while before.exists() or origin_before.exists():  # of a start that was killed
            before, origin_before = (one.with_name(f"before.{one.name}") for one in (before, origin_before))
        if origin_path.exists():
            origin_path.replace(origin_before)
        path.replace(before)
    try:
        yield
    finally:
        if before.exists() and (not path.exists() or sha256(path) == sha256(before)):
            before.replace(path)
            if origin_before.exists():
                origin_before.replace(origin_path)
    if before.exists():
        print(f"What stood at {path} was something else; it is {before} now.")


def check_code(row: Row, number: int) -> None:
    here = git.commit()
    if not row.commit:
        raise Problem(f"Row {number} names no commit, so that the code that made it is not known.")
    if not row.clean:
        raise Problem(f"Row {number} was made with changes to {row.commit[:7]} that no commit has; its code is lost.")
    if not here:
        raise Problem(f"git does not know this code, so it cannot be told from that of row {number}; use a git clone.")
    if not git.is_clean():
        raise Problem("This checkout has changes that no commit has; commit them, or put them away with `git stash`.")
    if not git.same_code(here, row.commit):
        raise Problem(
            f"This checkout is at {here[:7]}, but row {number} was made by {row.commit[:7]}; run the commands that "
            f"`make reproduce ROW={number}` prints."
        )


def check_weights(row: Row, number: int) -> None:
    for name, digest in row.checkpoints.items():
        path = pathlib.Path(name)
        if not path.is_file():
            raise Problem(f"There is no {path}; put back the weights of row {number} (sha256 {digest}).")
        if sha256(path) != digest:
            raise Problem(
                f"{path} is not the file of row {number} (sha256 {digest}); put that back, or, if it holds the same "
                f"weights trained again, run the commands that `make reproduce ROW={number}` prints."
            )


def check_folds(row: Row, number: int) -> None:
    """Of several runs that gave other folds each: no FOLD= says so, and all that are trained now would take part."""
    for name, folds in folds_of(row).items():
        trained = ",".join(map(str, Run(name).trained_folds()))
        if "FOLD" not in runs_and_folds(row) and trained != folds:
            raise Problem(f"Row {number} has the folds {folds} of {name}, and here {trained or 'none'} is trained.")


def check_threshold(row: Row, run: Run) -> None:
    """Of several runs the cut and the weights of `blend`, if they were; else they are the mean of the runs' own."""
    if len(row.runs) > 1 and not was_blended(row):
        if run.blend.is_file():
            raise Problem(f"{run.blend} says what each run weighs, but the row has equal weights; move it away.")
        return
    path, goals = (run.threshold, "validate threshold") if len(row.runs) == 1 else (run.blend, "blend")
    try:
        cut = read_json(path)["threshold"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Problem(f"There is no cut in {path}; it was {row.threshold}: run `make {goals}`.") from None
    if cut != row.threshold:
        raise Problem(f"{path} has the cut {cut}, but the row has {row.threshold}; run `make {goals}`.")
