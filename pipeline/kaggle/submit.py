"""Stage `submit`: upload a submission to Kaggle, wait for its score, and record both in the ledger.

The row is written before the upload begins, and its message ends with a tag made from the file's content. So after any
interruption the same command finds the submission at Kaggle by its tag, or knows that it never arrived there.
"""
import os
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline import config
from pipeline.data.competition import Competition
from pipeline.data.dataset import competition_of
from pipeline.inference.stored_threshold import read_threshold_json
from pipeline.kaggle import homecoming, ledger
from pipeline.kaggle.client import Client, connect
from pipeline.kaggle.ledger import Row
from pipeline.paths import SUBMISSIONS, Run
from pipeline.runtime.files import sha256
from pipeline.runtime.launch import run_stage
from pipeline.runtime.problem import Problem
from pipeline.submission import provenance
from pipeline.submission.checks import check
from pipeline.submission.known_mistakes import read_mean_masks
from pipeline.submission.provenance import Provenance
from pipeline.submission.shards import read_state

WAIT_S = 30 * 60.0  # for the score
SEARCH_PAUSES_S = (2.0, 8.0)  # for an interrupted submission, which Kaggle may not list yet
FIRST_POLL_S, LONGEST_POLL_S = 1.0, 15.0  # between polls, doubled each time
MAX_MESSAGE_CHARS = 250  # Kaggle truncates longer messages, and with them the tag
TAG_DIGITS = 12
OVERRIDES_IN_MESSAGE = ("predict.tta", "predict.refine", "data.scale", "data.hq")
MASK_SETTINGS = {"data": {"scale", "hq"}, "predict": {"tta", "compile", "refine"}}  # those among SET= that change masks


def main(
    run: Run, file: pathlib.Path | None, folds: list[int], folder: pathlib.Path, ledger_path: pathlib.Path,
    message: str | None = None, dry_run: bool = False, force: bool = False,
    overrides: list[str] = [], predict_arguments: list[str] = [], kind: str = "carvana",
) -> None:  # fmt: skip
    """Check a submission, upload it and wait for its score.

    file: None for the run's own submission, which is predicted by the networks of `folds` if it is missing or out of
    date. folder: the competition folder. overrides: of SET=, which the prediction must have been made with; an empty
    list accepts any. predict_arguments: the command line of `predict`. kind: `data.kind` of the competition.
    """
    path = file or run.submission
    if file is None and (reason := reason_to_predict(run, folds, overrides)):
        print(reason)
        run_stage("predict", *predict_arguments)
    competition = competition_of(kind)
    bad_images, (means, why_none) = provenance.read_bad_images(SUBMISSIONS, path), read_mean_masks(folder, competition)
    for note in check(path, competition.read_sample(folder), competition, bad_images, means, force).notes:
        print(note)
    if why_none:
        print(why_none)
    origin = provenance.find_by_file(SUBMISSIONS, path)
    print(f"{path} is valid, {path.stat().st_size / 1e6:.1f} MB; {describe(origin)}.")

    with ledger.exclusive(ledger_path, f"Another `make submit` uses {ledger_path}; wait until it is done."):
        submit_file(path, origin, ledger_path, message, dry_run, force, competition)


def submit_file(
    path: pathlib.Path, origin: Provenance, ledger_path: pathlib.Path, message: str | None, dry_run: bool, force: bool,
    competition: Competition,
) -> None:  # fmt: skip
    number, row = row_for(path, origin, ledger.read(ledger_path), message, force)
    if row.status == "complete":
        print(f"{path} was submitted before; `make submit FORCE=1` submits it again.")
        print(result_line(row, number, ledger_path))
        return
    if dry_run:
        by_hand = manual_command(path, row.message, competition.slug)
        print(f"This dry run uploads nothing. To submit by hand, run:\n{by_hand}")
        ask_kaggle(row, competition)
        return
    client = connect(competition)
    if force and row.ref is not None and ledger.updated(row, client.submissions()) is None:  # of another account
        number, row = None, new_row(path, origin, message, force)
    was_interrupted = number is not None and row.status == "pending"
    row = find_at_kaggle(client, row, SEARCH_PAUSES_S if was_interrupted else ())
    if row.ref is None:
        row = upload(client, path, row, ledger_path)
    for row in wait_for_score(client, row):
        number = ledger.put(ledger_path, row)
    if row.status == "failed":
        raise Problem(f"Kaggle has {path} (ref {row.ref}) but could not score it: {row.error or 'no reason given'}.")
    print(result_line(row, number, ledger_path))


def ask_kaggle(row: Row, competition: Competition) -> None:
    """Print how many submissions are left, and whether Kaggle has the file; or why Kaggle cannot be asked."""
    try:
        client = connect(competition)
        listed_row, left_today = ledger.updated(row, client.submissions()), client.submissions_left()
    except Problem as problem:
        print(f"How many submissions are left today could not be asked: {problem}")
        return
    print(f"Submissions left today: {'unknown' if left_today is None else left_today}.")
    if listed_row is not None:
        print(f"Kaggle has the file (ref {listed_row.ref}).")


def reason_to_predict(run: Run, folds: list[int], overrides: list[str] = []) -> str | None:
    """Return why the run's own submission is out of date; None if, as far as is known, predict would write the same.

    Raise Problem if a prediction was interrupted and it cannot be continued from here.
    """
    path = run.submission
    if not path.is_file():
        return f"There is no {path} yet: predicting."
    origin = provenance.find_by_file(SUBMISSIONS, path)
    if not origin.checkpoints and read_state(run.shards) is not None:
        if not folds:
            raise Problem(f"{run.shards} holds an interrupted prediction; run its `make predict` again first.")
        return f"{run.shards} holds an interrupted prediction: predicting first."
    if not origin.checkpoints:
        return None  # a file that predict did not make: nothing to compare
    if len(origin.runs) > 1 or not folds:  # or made by weights that are not here
        check_weights(run, origin)
        run, folds = Run(origin.runs[0]), list(origin.folds)
    else:
        refined = is_refined(origin, run, folds[0])
        weights = [path for fold in folds for path in run.fold(fold).checkpoints(with_refiner=refined)]
        if origin.checkpoints != {str(path): path.is_file() and sha256(path) for path in weights}:
            return f"{path} was made by other weights than those of the folds {folds}: predicting again."
        if origin.runs == (run.name,) and run.threshold.is_file():
            threshold = read_threshold_json(run.threshold)["threshold"]
            if threshold != origin.threshold:
                was = f"was made with the threshold {origin.threshold}"
                return f"{path} {was}, but {run.threshold} has {threshold}: predicting again."
    if overrides and not made_with(origin, run.fold(folds[0]).config, overrides):
        return f"{path} was not made with SET={shlex.quote(' '.join(overrides))}: predicting again."
    return None


def is_refined(origin: Provenance, run: Run, fold: int) -> bool:
    """Whether a refiner, if there had been one, would have been used for the submission."""
    path = run.fold(fold).config
    trained = config.load(path, check_choices=False) if path.is_file() else config.Settings()
    return config.for_later_stage(trained, list(origin.predict_overrides), check_choices=False).predict.refine


def check_weights(run: Run, origin: Provenance) -> None:
    """Raise Problem if the weights of a network that made the submission have changed."""
    for name, digest in origin.checkpoints.items():
        path = pathlib.Path(name)
        if path.is_file() and sha256(path) != digest:
            runs = f'RUNS="{" ".join(origin.runs)}"' if len(origin.runs) > 1 else f"RUN={run.name}"
            advice = f"run `make predict {runs}` again, or submit the file as it is with FILE={run.submission}"
            raise Problem(f"{path} has changed since it made {run.submission}; {advice}.")


def made_with(origin: Provenance, trained_path: pathlib.Path, overrides: list[str]) -> bool:
    """Return whether these overrides, instead of the ones that made a submission, give the same masks."""
    if not trained_path.is_file():
        return False  # unknown
    trained = config.load(trained_path)
    return gives_same_masks(origin, trained, config.for_later_stage(trained, overrides))


def gives_same_masks(origin: Provenance, trained: config.Settings, now: config.Settings) -> bool:
    """Return whether these settings give the masks of a submission. trained: those of its first network."""
    then = config.for_later_stage(trained, list(origin.predict_overrides))
    one, other = (each.model_dump(include=MASK_SETTINGS) | {"tile_tta": each.predict.tile_tta} for each in (then, now))
    return one == other


def row_for(
    path: pathlib.Path, origin: Provenance, rows: list[Row], message: str | None, force: bool
) -> tuple[int | None, Row]:
    """Return number and row of this content that is pending or scored; else a new row, without a number.

    With `force` return a new row, unless Kaggle may not have the file of the last one yet, or has not scored it.
    """
    same = [(number, row) for number, row in enumerate(rows, start=1) if row.sha256 == origin.sha256]
    if same:
        number, row = same[-1]
        if row.status == "failed" and row.ref is not None and not force:
            what = f"{path} was submitted before (row {number}), and Kaggle could not score it ({row.error})"
            raise Problem(f"{what}; correct the file, or submit it again with `make submit FORCE=1`.")
        if row.status == "pending" or row.ref is None or not force:
            return number, row
    return None, new_row(path, origin, message, force)


def new_row(path: pathlib.Path, origin: Provenance, message: str | None, force: bool) -> Row:
    """Return the row of a file that is not submitted yet. force: its content may have been."""
    text = " ".join((message or describe(origin)).split())
    if len(text) > MAX_MESSAGE_CHARS:
        raise Problem(f"MESSAGE has {len(text)} characters; {MAX_MESSAGE_CHARS} are allowed.")
    tag = f"#{origin.sha256[:TAG_DIGITS]}" + (f".{now():%y%m%d%H%M%S}" if force else "")
    return Row(**origin.model_dump(), time=now(), file=str(path), message=f"{text} {tag}")


def find_at_kaggle(client: Client, row: Row, pauses_s: tuple[float, ...]) -> Row:
    """Return the row with Kaggle's data of it; unchanged if Kaggle does not have the file.

    Raise Problem if the file must still be uploaded but cannot be today. pauses_s: before further searches, when the
    first one finds nothing.
    """
    left_today = client.submissions_left()
    if left_today is not None:
        print(f"Submissions left today: {left_today}.")
    listed_row = ledger.updated(row, client.submissions())
    for pause_s in pauses_s:
        if listed_row is None:
            time.sleep(pause_s)
            listed_row = ledger.updated(row, client.submissions())
    if listed_row is not None:
        print(f"Kaggle has the file (ref {listed_row.ref}).")
        return listed_row
    if row.ref is not None:
        what = f"The ledger says that Kaggle has {row.file} as {row.ref}, but this account has no such submission"
        raise Problem(f"{what}; log in as the user who submitted it, or submit again with `make submit FORCE=1`.")
    if left_today is not None and left_today < 1:
        hours = 24 - (now().hour + now().minute / 60)
        raise Problem(f"No submission is left today; try again in {hours:.1f} h, at 0:00 UTC.")
    return row


def upload(client: Client, path: pathlib.Path, row: Row, ledger_path: pathlib.Path) -> Row:
    """Submit the file; return the row with Kaggle's ref. Record a failure, unless Kaggle cannot be reached at all."""
    row = row.model_copy(update={"time": now(), "status": "pending", "error": ""})
    ledger.put(ledger_path, row)
    try:
        ref = client.submit(path, row.message)
    except Problem as problem:
        try:
            listed_row = ledger.updated(row, client.submissions())
        except Problem:
            raise problem from None  # unknown: the row stays pending
        if listed_row is None:
            ledger.put(ledger_path, row.model_copy(update={"status": "failed", "error": str(problem)}))
            raise
        return listed_row
    print(f"Kaggle has the file (ref {ref}).")
    return row.model_copy(update={"ref": ref})


def wait_for_score(client: Client, row: Row) -> Iterator[Row]:
    """Yield the row whenever Kaggle's data of it changes, until it is scored; raise Problem if that takes too long."""
    deadline, pause_s = time.monotonic() + WAIT_S, FIRST_POLL_S
    yield row
    if row.status == "pending":
        print("Waiting for the score ...")
    while row.status == "pending":
        if time.monotonic() > deadline:
            what = f"Kaggle has the file (ref {row.ref}), but gave no score within {WAIT_S / 60:.0f} minutes"
            raise Problem(f"{what}; run `make leaderboard` later to get it.")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_POLL_S)
        listed_row = ledger.updated(row, client.submissions())
        if listed_row is not None and listed_row != row:
            row = listed_row
            yield row


def describe(origin: Provenance) -> str:
    """Describe in a few words what made a submission: a message for Kaggle's leaderboard."""
    if origin.threshold is None:
        return "origin unknown"
    facts = [*origin.runs, f"folds {','.join(map(str, origin.folds))}", f"threshold {origin.threshold:.3f}"]
    facts += [item.replace('"', "") for item in origin.predict_overrides if item.startswith(OVERRIDES_IN_MESSAGE)]
    facts += [f"pseudo-labels {pathlib.PurePath(path).name} {sha[:7]}" for sha, path in origin.pseudo_labels.items()]
    facts += ["trained on Kaggle"] if homecoming.came_from_kaggle(origin.runs, origin.checkpoints.values()) else []
    facts += [f"OOF {origin.oof_dice:.5f}"] if origin.oof_dice is not None else []
    facts += [f"commit {origin.commit[:7]}{'' if origin.clean else '+'}"] if origin.commit else []
    facts += [f"{len(origin.bad_images)} empty"] if origin.bad_images else []
    return " ".join(facts)


def result_line(row: Row, number: int | None, ledger_path: pathlib.Path) -> str:
    public, private = ("none" if dice is None else f"{dice:.5f}" for dice in (row.public, row.private))
    return f"public {public}  private {private}  row {number} of {ledger_path}"


def manual_command(path: pathlib.Path, message: str, slug: str) -> str:
    """Return the shell command that submits a file; `kaggle` is looked up in the PATH, then beside this Python."""
    beside = os.path.relpath(pathlib.Path(sys.executable).parent / "kaggle")
    program = "kaggle" if shutil.which("kaggle") else beside
    return shlex.join([program, "competitions", "submit", "-f", str(path), "-m", message, slug])


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
