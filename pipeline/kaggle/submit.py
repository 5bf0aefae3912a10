"""Stage `submit`: a submission in; Kaggle has it, and the ledger has a row with its score.

The row is written before the upload begins, and its message ends with a tag of the file's content. So whatever cuts
this stage off, the same command finds the submission at Kaggle by its tag, or knows that it never arrived there.
"""
import os
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from pipeline import carvana, config
from pipeline.data.competition import read_table
from pipeline.runtime.files import sha256
from pipeline.inference.stored_threshold import read_threshold_json
from pipeline.kaggle import ledger
from pipeline.kaggle.client import Client, connect
from pipeline.submission import provenance
from pipeline.submission.checks import check
from pipeline.kaggle.ledger import Row
from pipeline.submission.provenance import Provenance
from pipeline.submission.shards import read_state
from pipeline.paths import SUBMISSIONS, Run
from pipeline.runtime.problem import Problem
from pipeline.runtime.launch import run_stage

WAIT_S = 30 * 60.0  # for the score
LOOK_PAUSES_S = (2.0, 8.0)  # for a submission that was cut off, and may still be on its way into Kaggle's list
FIRST_POLL_S, LONGEST_POLL_S = 1.0, 15.0  # between looks, each twice as long as the one before
LONGEST_MESSAGE = 250  # characters; what Kaggle cuts off could not be found again
TAG_DIGITS = 12
SAID_OF_SET = ("predict.tta", "data.scale", "data.hq")
MASKS_DEPEND_ON = {"data": {"scale", "hq"}, "predict": {"tta", "compile"}}  # of what SET= may lay over a trained run


def main(
    run: Run,
    file: pathlib.Path | None,
    folds: list[int],
    folder: pathlib.Path,
    ledger_path: pathlib.Path,
    message: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    overrides: list[str] = [],
    predict_arguments: list[str] = [],
) -> None:
    """file: without it the run's own, predicted by `folds` if need be. folder: the competition's.

    overrides: words that the prediction is to be made with. None: with whatever words it was made.
    """
    path = file or run.submission
    if file is None and (reason := reason_to_predict(run, folds, overrides)):
        print(reason)
        run_stage("predict", *predict_arguments)
    names = read_table(folder, "sample_submission.csv", carvana.SUBMISSION_HEADER)["img"].tolist()
    check(path, names, provenance.bad_images(SUBMISSIONS, path))
    about = provenance.of(SUBMISSIONS, path)
    print(f"{path}, {path.stat().st_size / 1e6:.1f} MB, is whole; {describe(about)}.")

    with ledger.alone(ledger_path, f"Another `make submit` works with {ledger_path}; wait until it is done."):
        hand_in(path, about, ledger_path, message, dry_run, force)


def hand_in(
    path: pathlib.Path, about: Provenance, ledger_path: pathlib.Path, message: str | None, dry_run: bool, force: bool
) -> None:
    number, row = row_for(path, about, ledger.read(ledger_path), message, force)
    if row.status == "complete":
        print(f"{path} was submitted already; FORCE=1 submits it again.")
        print(result(row, number, ledger_path))
        return
    if dry_run:
        print(f"Nothing is uploaded now. This command would do it:\n{line_by_hand(path, row.message)}")
    client = connect()
    was_cut_off = number is not None and row.status == "pending"
    row = look(client, row, LOOK_PAUSES_S if was_cut_off else ())
    if dry_run:
        return
    if row.ref is None:
        row = upload(client, path, row, ledger_path)
    for row in until_scored(client, row):
        number = ledger.put(ledger_path, row)
    if row.status == "failed":
        raise Problem(f"Kaggle has {path} (ref {row.ref}) but could not score it: {row.error or 'no reason given'}.")
    print(result(row, number, ledger_path))


def reason_to_predict(run: Run, folds: list[int], overrides: list[str] = []) -> str | None:
    """Why the run's own submission is not the one that predict would write now; None when it is, as far as known.

    Problem when it may be one that predict has written and not yet said of what, and nothing here can tell.
    """
    if not run.submission.is_file():
        return f"There is no {run.submission} yet: predicting."
    about = provenance.of(SUBMISSIONS, run.submission)
    if not about.checkpoints and read_state(run.shards) is not None:
        if not folds:
            raise Problem(f"{run.shards} holds a prediction that was cut off; run its `make predict` again beforehand.")
        return f"{run.shards} holds a prediction that was cut off: predicting first."
    if not about.checkpoints:
        return None  # a file that predict did not make: nothing to compare
    if len(about.runs) > 1 or not folds:  # or of weights that lie elsewhere
        check_weights(run, about)
        run, folds = Run(about.runs[0]), list(about.folds)
        if overrides and not made_with(about, run.fold(folds[0]).config, overrides):
            return f"The submission was not made with SET={shlex.quote(' '.join(overrides))}: predicting again."
        return None
    weights = [run.fold(fold).best for fold in folds]
    if about.checkpoints != {str(path): path.is_file() and sha256(path) for path in weights}:
        return f"{run.submission} was made by other weights than those of the folds {folds}: predicting again."
    if about.runs == (run.name,) and run.threshold.is_file() and read_threshold_json(run.threshold)["threshold"] != about.threshold:
        return f"{run.submission} was made with the cut {about.threshold}, and {run.threshold} has another: predicting again."
    if overrides and not made_with(about, run.fold(folds[0]).config, overrides):
        return f"{run.submission} was not made with SET={shlex.quote(' '.join(overrides))}: predicting again."
    return None


def check_weights(run: Run, about: Provenance) -> None:
    """Problem when a network that took part is another by now."""
    for name, digest in about.checkpoints.items():
        path = pathlib.Path(name)
        if path.is_file() and sha256(path) != digest:
            words = f'RUNS="{" ".join(about.runs)}"' if len(about.runs) > 1 else f"RUN={run.name}"
            raise Problem(
                f"{run.submission} was made by another {path}; run `make predict {words}` again, or submit it as it is "
                f"with FILE={run.submission}."
            )


def made_with(about: Provenance, trained_path: pathlib.Path, overrides: list[str]) -> bool:
    """Whether these words, instead of those that a submission was made with, would have given the same masks."""
    if not trained_path.is_file():
        return False  # nobody knows
    trained = config.load(trained_path)
    then, now = (config.for_later_stage(trained, list(words)) for words in (about.predict_overrides, overrides))
    return then.model_dump(include=MASKS_DEPEND_ON) == now.model_dump(include=MASKS_DEPEND_ON)


def row_for(
    path: pathlib.Path, about: Provenance, rows: list[Row], message: str | None, force: bool
) -> tuple[int | None, Row]:
    """The row of this content that still waits for something, or that holds the score; else a new one, without number.

    With `force` a new one, unless there is one of which Kaggle may not have the file yet.
    """
    same = [(number, row) for number, row in enumerate(rows, start=1) if row.sha256 == about.sha256]
    if same:
        number, row = same[-1]
        if row.ref is None:
            return number, row
        if row.status == "failed" and not force:
            raise Problem(
                f"{path} was submitted already (row {number}), and Kaggle could not score it ({row.error}); mend it, "
                "or submit it again with FORCE=1."
            )
        if not force:
            return number, row
    text = " ".join((message or describe(about)).split())
    if len(text) > LONGEST_MESSAGE:
        raise Problem(f"MESSAGE has {len(text)} characters; {LONGEST_MESSAGE} are allowed.")
    tag = f"#{about.sha256[:TAG_DIGITS]}" + (f".{now():%y%m%d%H%M%S}" if force else "")
    return None, Row(**about.model_dump(), time=now(), file=str(path), message=f"{text} {tag}")


def look(client: Client, row: Row, pauses_s: tuple[float, ...]) -> Row:
    """The row with what Kaggle knows of it. Problem when its file is still to be uploaded, and cannot be today.

    pauses_s: between further looks, when the first one does not find it.
    """
    left = client.submissions_left()
    if left is not None:
        print(f"Submissions left today: {left.today}.")
    found = ledger.told(row, client.submissions())
    for pause_s in pauses_s:
        if found is None:
            time.sleep(pause_s)
            found = ledger.told(row, client.submissions())
    if found is not None:
        print(f"Kaggle has it (ref {found.ref}).")
        return found
    if row.ref is not None:
        raise Problem(
            f"The ledger says that Kaggle has {row.file} as {row.ref}, but Kaggle does not list that for this account; "
            "log in as the one that submitted it, or submit again with FORCE=1."
        )
    if left is not None and left.today < 1:
        raise Problem(f"No submission is left today; the next day begins in {hours_left_today():.1f} h, at 0:00 UTC.")
    return row


def upload(client: Client, path: pathlib.Path, row: Row, ledger_path: pathlib.Path) -> Row:
    """The row with Kaggle's ref. A refusal is noted in it, unless Kaggle cannot even be asked."""
    row = row.model_copy(update={"time": now(), "status": "pending", "error": ""})
    ledger.put(ledger_path, row)
    try:
        ref = client.submit(path, row.message)
    except Problem as problem:
        try:
            found = ledger.told(row, client.submissions())
        except Problem:
            raise problem from None  # nobody knows: the row stays pending
        if found is None:
            ledger.put(ledger_path, row.model_copy(update={"status": "failed", "error": str(problem)}))
            raise
        return found
    print(f"Kaggle has it (ref {ref}).")
    return row.model_copy(update={"ref": ref})


def until_scored(client: Client, row: Row) -> Iterator[Row]:
    """Yield the row with Kaggle's news until it is no longer pending. Problem when that takes too long."""
    deadline, pause_s = time.monotonic() + WAIT_S, FIRST_POLL_S
    yield row
    if row.status == "pending":
        print("Waiting for the score ...")
    while row.status == "pending":
        if time.monotonic() > deadline:
            raise Problem(
                f"Kaggle has the file (ref {row.ref}), but no score came within {WAIT_S / 60:.0f} minutes; "
                "`make leaderboard` looks again."
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_POLL_S)
        news = ledger.told(row, client.submissions())
        if news is not None and news != row:
            row = news
            yield row


def describe(about: Provenance) -> str:
    """What made a submission, in a few words: a message for the leaderboard."""
    if about.threshold is None:
        return "origin unknown"
    words = [*about.runs, f"folds {','.join(map(str, about.folds))}", f"cut {about.threshold:.3f}"]
    words += [word.replace('"', "") for word in about.predict_overrides if word.startswith(SAID_OF_SET)]
    words += [f"OOF {about.oof_dice:.5f}"] if about.oof_dice is not None else []
    words += [f"commit {about.commit[:7]}{'' if about.clean else '+'}"] if about.commit else []
    words += [f"{len(about.bad_images)} empty"] if about.bad_images else []
    return " ".join(words)


def result(row: Row, number: int | None, ledger_path: pathlib.Path) -> str:
    public, private = ("none" if dice is None else f"{dice:.5f}" for dice in (row.public, row.private))
    return f"public {public}  private {private}  row {number} of {ledger_path}"


def line_by_hand(path: pathlib.Path, message: str) -> str:
    """The command for a shell; its client is the one beside this Python where the shell finds none."""
    beside = os.path.relpath(pathlib.Path(sys.executable).parent / "kaggle")
    program = "kaggle" if shutil.which("kaggle") else beside
    return shlex.join([program, "competitions", "submit", "-f", str(path), "-m", message, carvana.SLUG])


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def hours_left_today() -> float:
    at = now()
    return 24 - (at.hour + at.minute / 60)
