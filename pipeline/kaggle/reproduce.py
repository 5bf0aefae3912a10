"""Stage `reproduce`: print the commands that make a submission of the ledger again, or predict it again.

`make reproduce ROW=1 GO=1` predicts, after checking that code, weights and threshold are those of the row, and compares
the sha256. Prediction from the same weights gives the same bytes on the same kind of machine; so does training on a
CPU.
"""
import contextlib
import json
import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence

from pipeline.data.pseudo import unsure_table
from pipeline.kaggle import ledger
from pipeline.kaggle.ledger import Row
from pipeline.paths import Fold, Run
from pipeline.runtime import git
from pipeline.runtime.files import read_json, sha256
from pipeline.runtime.launch import run_stage
from pipeline.runtime.problem import Problem

FOLDER_OVERRIDE = "data.folder="
WITHOUT_REFINER = "predict.refine=false"


def main(ledger_path: pathlib.Path, number: int, data: str | None, predict: bool) -> None:
    """number: of the row, counted from 1. data: the competition folder, instead of the row's own."""
    rows = ledger.read(ledger_path)
    if not 1 <= number <= len(rows):
        raise Problem(f"{ledger_path} has {len(rows)} rows and no row {number}; `make leaderboard` shows them.")
    row = rows[number - 1]
    if not row.runs:
        raise Problem(f"Row {number} of {ledger_path}, {row.file}, is of unknown origin, so there is nothing to run.")
    if predict:
        predict_again(row, number, data)
    else:
        print("\n".join(script_lines(row, number, data, rows)))


def script_lines(row: Row, number: int, data: str | None, rows: Sequence[Row] = ()) -> list[str]:
    """Return a shell script that starts from the weights; the commands that train them are comments in it.

    rows: of the ledger, among which may be that of a submission whose masks were pseudo-labels.
    """
    folds = folds_of_runs(row)
    overrides = make_variables(overrides_of(row), data)
    prediction = {"RUN": run_of(row).name} | runs_and_folds(row) | overrides
    lines = [f"# Row {number}: {row.file} of {row.time:%Y-%m-%d %H:%M} UTC, sha256 {row.sha256}"]
    if not row.commit or not row.clean:
        lines.append("# Its code was not exactly that of a commit, so the bytes may differ.")
    if row.commit:
        lines.append(f"git checkout {row.commit}")
    lines += ["# The weights and their sha256:", *(f"#   {path} {digest}" for path, digest in row.checkpoints.items())]
    for digest, path in row.pseudo_labels.items():
        row_of_parent = [count for count, other in enumerate(rows, start=1) if other.sha256 == digest][-1:]
        made_again = "".join(f"; `make reproduce ROW={count}` makes it again" for count in row_of_parent)
        lines.append(f"# They were trained on the pseudo-labels {path}, sha256 {digest}{made_again}.")
    if row.config:
        lines.append("# If they are lost, these commands train them again, on a CPU to the same bits:")
        for name in folds:
            run = {"RUN": name, "FOLD": folds[name]}
            training = {"CONFIG": row.config} | run | make_variables(row.train_overrides, data)
            lines.append("#   " + make_command("train", training))
            lines.append("#   " + make_command("validate threshold", run | overrides))
    if is_blended(row):
        lines.append(f"# The weight of each run is in {run_of(row).blend}; if that is lost:")
        lines.append("#   " + make_command("blend", prediction))
        lines += [f"# There {name} has the weight 0, but it must exist." for name in row.runs if name not in folds]
    lines += [f"# The submission, with the threshold {row.threshold}:", make_command("predict", prediction)]
    return [*lines, f"echo '{row.sha256}  {run_of(row).submission}' | sha256sum --check"]


def run_of(row: Row) -> Run:
    """Return the run that the submission is named after, such as `a+b` of `submissions/a+b.csv.gz`."""
    named = Run(pathlib.Path(row.file).name.removesuffix(".csv.gz"))
    return named if str(named.submission) == row.file else Run("+".join(row.runs))


def overrides_of(row: Row) -> tuple[str, ...]:
    """Return the overrides with which the row is predicted again: without a refiner that was trained after it.

    Raise Problem if other networks of the row had theirs already.
    """
    refiners = {Fold(pathlib.Path(path).parent).refiner.best for path in row.checkpoints}
    newer = sorted(path for path in refiners if path.exists() and str(path) not in row.checkpoints)
    if not newer or WITHOUT_REFINER in row.predict_overrides:
        return row.predict_overrides
    if any(str(path) in row.checkpoints for path in refiners):
        raise Problem(f"{newer[0]} was trained after {row.file} was made; move it away to make that again.")
    return (*row.predict_overrides, WITHOUT_REFINER)


def folds_of_runs(row: Row) -> dict[str, str]:
    """Return {run whose weights are in the submission: its folds as FOLD= takes them}."""
    if len(row.runs) == 1:
        return {row.runs[0]: ",".join(map(str, row.folds))}
    folds: dict[str, list[str]] = {}
    for path in row.checkpoints:
        if not (match := re.fullmatch(r"runs/([^/]+)/fold(\d+)/(best|refiner)\.pt", path)):
            raise Problem(f"The row of {row.file} names {path} instead of runs/RUN/fold0/best.pt; repair the ledger.")
        if match[3] == "best":  # its refiner is of the same fold
            folds.setdefault(match[1], []).append(match[2])
    return {name: ",".join(numbers) for name, numbers in folds.items()}


def runs_and_folds(row: Row) -> dict[str, str]:
    """Return RUNS= and FOLD= of the prediction; without RUNS= if it is named after its only run.

    Without FOLD= if the runs have different folds.
    """
    by_name = {"RUNS": " ".join(row.runs)} if row.runs != (run_of(row).name,) else {}
    folds = set(folds_of_runs(row).values())
    return by_name | ({"FOLD": folds.pop()} if len(folds) == 1 else {})


def is_blended(row: Row) -> bool:
    """Return whether `blend` weighted the runs: only then does their mean have an out-of-fold Dice."""
    return len(row.runs) > 1 and row.oof_dice is not None


def make_variables(overrides: tuple[str, ...], data: str | None) -> dict[str, str]:
    """Return SET= and DATA= for overrides such as `data.folder="x"` and `predict.tta="none"`; `data` wins over them."""
    folders = [json.loads(item.removeprefix(FOLDER_OVERRIDE)) for item in overrides if item.startswith(FOLDER_OVERRIDE)]
    others = [item for item in overrides if not item.startswith(FOLDER_OVERRIDE)]
    values = {"DATA": data or "".join(folders), "SET": " ".join(others)}
    return {name: value for name, value in values.items() if value}


def make_command(targets: str, variables: dict[str, str]) -> str:
    return " ".join(["make", targets, *(f"{name}={shlex.quote(value)}" for name, value in variables.items())])


def predict_again(row: Row, number: int, data: str | None) -> None:
    """Predict with the code, weights and threshold of the row; raise Problem if the bytes differ."""
    run, selection = run_of(row), runs_and_folds(row)
    check_code(row, number)
    check_weights(row, number)
    check_folds(row, number)
    check_threshold(row, run)
    arguments = ["--run", run.name, *(["--runs", *row.runs] if "RUNS" in selection else [])]
    arguments += [*(["--fold", selection["FOLD"]] if "FOLD" in selection else []), *(["--data", data] if data else [])]
    arguments += [token for override in overrides_of(row) for token in ("--set", override)]
    with keep_existing(run.submission):
        run_stage("predict", *arguments)
    if (digest := sha256(run.submission)) != row.sha256:
        what = f"{run.submission} has sha256 {digest}, but row {number} has {row.sha256}"
        raise Problem(f"{what}; check that machine, package versions and test images are the same.")
    print(f"{run.submission} has the sha256 of row {number}, {row.sha256}.")


@contextlib.contextmanager
def keep_existing(path: pathlib.Path) -> Iterator[None]:
    """Move the submission at `path` aside while it is made again; keep both if they differ.

    Its provenance and its table of unsure images move with it, without which its origin is not known, and it gives no
    pseudo-labels.
    """
    beside = [path.with_name(path.name.removesuffix(".csv.gz") + ".json"), unsure_table(path)]
    prefix = "before."

    def aside(one: pathlib.Path) -> pathlib.Path:
        return one.with_name(prefix + one.name)

    if path.exists():
        while any(aside(one).exists() for one in (path, *beside)):  # left by a process that was killed
            prefix += "before."
        for one in filter(pathlib.Path.exists, (*beside, path)):
            one.replace(aside(one))
    try:
        yield
    finally:
        if aside(path).exists() and (not path.exists() or sha256(path) == sha256(aside(path))):
            for one in (path, *beside):
                if aside(one).exists():
                    aside(one).replace(one)
    if aside(path).exists():
        print(f"{path} held other bytes; they are in {aside(path)} now.")


def check_code(row: Row, number: int) -> None:
    here = git.commit()
    if not row.commit:
        raise Problem(f"Row {number} names no commit, so the code that made it is unknown.")
    if not row.clean:
        raise Problem(f"Row {number} was made with uncommitted changes to {row.commit[:7]}, so its code is lost.")
    if not here:
        raise Problem(f"This code is not in a git checkout, so it cannot be compared with row {number}; clone it.")
    if not git.is_clean():
        raise Problem("This checkout has uncommitted changes; commit them, or put them away with `git stash`.")
    if not git.same_code(here, row.commit):
        what = f"This checkout is at {here[:7]}, but row {number} was made by {row.commit[:7]}"
        raise Problem(f"{what}; run the commands that `make reproduce ROW={number}` prints.")


def check_weights(row: Row, number: int) -> None:
    for name, digest in row.checkpoints.items():
        path = pathlib.Path(name)
        if not path.is_file():
            raise Problem(f"There is no {path}; put back the weights of row {number} (sha256 {digest}).")
        if sha256(path) != digest:
            advice = f"or, if it is trained again, run the commands that `make reproduce ROW={number}` prints"
            raise Problem(f"{path} is not the file of row {number} (sha256 {digest}); put that file back, {advice}.")


def check_folds(row: Row, number: int) -> None:
    """Check runs with different folds: predict takes no FOLD= for them and would use every fold trained now."""
    for name, folds in folds_of_runs(row).items():
        trained = ",".join(map(str, Run(name).trained_folds()))
        if "FOLD" not in runs_and_folds(row) and trained != folds:
            raise Problem(f"Row {number} has the folds {folds} of {name}, but {trained or 'none'} are trained here.")


def check_threshold(row: Row, run: Run) -> None:
    """Check the threshold and, for several runs, the weights: from `blend`, or else the means of the runs' own."""
    if len(row.runs) > 1 and not is_blended(row):
        if run.blend.is_file():
            raise Problem(f"{run.blend} sets weights for the runs, but the row has equal weights; move that file away.")
        return
    path, targets = run.blend, "blend"
    if len(row.runs) == 1:  # after which the submission need not be named
        path, targets = Run(row.runs[0]).threshold, "validate threshold"
    try:
        threshold = read_json(path)["threshold"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Problem(f"There is no threshold in {path}; it was {row.threshold}: run `make {targets}`.") from None
    if threshold != row.threshold:
        raise Problem(f"{path} has the threshold {threshold}, but the row has {row.threshold}; run `make {targets}`.")
