"""Submitting with the real client to a fake Kaggle with faults: once, and with a row in the ledger."""
import errno
import gzip
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
from kaggle_server import ALWAYS, Fault, Kaggle, answering, asks_for_the_limit, disconnect, serving, stall

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.options import DEFAULT_CONFIG
from pipeline.kaggle import client as kaggle_client
from pipeline.kaggle import ledger, retry, submit
from pipeline.kaggle.ledger import Row
from pipeline.masks import rle
from pipeline.paths import SUBMISSIONS, Run
from pipeline.runtime.files import sha256, write_json
from pipeline.runtime.problem import Problem
from pipeline.submission import provenance
from pipeline.submission.reader import read_rows
from pipeline.synthetic import fake_kaggle
from pipeline.synthetic.fake_kaggle import Answer

ROOT = pathlib.Path(__file__).parent.parent
Capture, Patch = pytest.CaptureFixture, pytest.MonkeyPatch
Submit = Callable[..., int]  # arguments -> exit code
LEDGER = pathlib.Path("submissions/ledger.csv")
MINE = pathlib.Path("mine.csv.gz")
LONG_S = 120.0  # for what takes seconds on an idle machine


@pytest.fixture
def kaggle(demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: Patch) -> Iterator[Kaggle]:
    """A fake Kaggle, credentials for it, an empty working folder with `mine.csv.gz`, and short timeouts."""
    (tmp_path / "work/configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    pathlib.Path(DEFAULT_CONFIG).touch()
    rows = [row[:2] for _, row in read_rows(demo_folder / "solution.csv", carvana.CARVANA.solution_header)]
    lines = [",".join(row) for row in [list(carvana.CARVANA.submission_header), *rows]]
    MINE.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))
    for module, name, value in (
        (retry, "FIRST_PAUSE_S", 0.01), (retry, "ANSWER_S", 1.0), (retry, "TRIES", 3),
        (kaggle_client, "SEARCH_PAUSE_S", 0.01), (submit, "FIRST_POLL_S", 0.01), (submit, "WAIT_S", 20.0),
        (submit, "LONGEST_POLL_S", 0.1), (submit, "SEARCH_PAUSES_S", (0.01, 0.5)),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    with serving(demo_folder, tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def submit_mine(kaggle: Kaggle, demo_folder: pathlib.Path) -> Submit:
    """`submit_mine("--force")` -> exit code."""
    return lambda *arguments: main(["submit", "--file", str(MINE), "--data", str(demo_folder), *arguments])


def rows() -> list[Row]:
    return ledger.read(LEDGER)


def uploads(kaggle: Kaggle) -> int:
    return len(kaggle.submissions)


def only_line(capsys: Capture) -> str:
    """Return the one line on stderr, without a traceback and without a secret."""
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    ledger_text = LEDGER.read_text() if LEDGER.exists() else ""
    for secret in (fake_kaggle.KEY, fake_kaggle.TOKEN, "signature="):
        assert secret not in output.out + output.err + ledger_text
    return line


# --- no faults ------------------------------------------------------------------------------------


def test_a_submission_ends_with_its_score_and_a_row(kaggle: Kaggle, submit_mine: Submit, capsys: Capture) -> None:
    assert submit_mine("--message", "my words,\n two lines") == 0
    (row,) = rows()
    assert (row.status, row.public, row.private, row.ref) == ("complete", 1.0, 1.0, kaggle.submissions[0]["ref"])
    assert row.message == f"my words, two lines #{row.sha256[:12]}" == kaggle.submissions[0]["description"]
    assert row.runs == () and row.commit == "" and not row.clean
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == "public 1.00000  private 1.00000  row 1 of submissions/ledger.csv"


def test_the_same_content_is_submitted_once_unless_forced(kaggle: Kaggle, submit_mine: Submit, capsys: Capture) -> None:
    assert submit_mine() == 0
    MINE.touch()
    assert submit_mine() == 0
    assert "make submit FORCE=1" in capsys.readouterr().out
    assert uploads(kaggle) == 1
    assert submit_mine("--force") == 0
    assert uploads(kaggle) == 2
    first, second = rows()
    assert first.sha256 == second.sha256 and first.ref != second.ref and first.tag != second.tag


def test_force_waits_for_a_submission_that_kaggle_has_not_scored_yet(
    kaggle: Kaggle, submit_mine: Submit, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(submit, "WAIT_S", 0.0)
    monkeypatch.setattr(fake_kaggle, "PENDING_LISTINGS", 1000)
    assert submit_mine("--force") == 1 and submit_mine("--force") == 1
    assert uploads(kaggle) == 1
    assert [row.status for row in rows()] == ["pending"]


def test_without_a_ledger_the_submission_is_found_at_kaggle(kaggle: Kaggle, submit_mine: Submit) -> None:
    assert submit_mine() == 0
    (before,) = rows()
    LEDGER.unlink()
    assert submit_mine() == 0
    (after,) = rows()
    assert uploads(kaggle) == 1 and (after.ref, after.public) == (before.ref, before.public)


@asks_for_the_limit
@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_the_number_left_today_is_shown(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, options: list[str]
) -> None:
    assert submit_mine(*options) == 0
    assert "Submissions left today: 5." in capsys.readouterr().out


def test_dry_run_prints_a_line_that_works_and_uploads_nothing(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture
) -> None:
    assert submit_mine("--dry-run", "--message", "it's a \"try\"; $HOME") == 0
    out = capsys.readouterr().out
    assert uploads(kaggle) == 0 and rows() == []
    (line,) = [line for line in out.splitlines() if "kaggle competitions submit" in line]
    process = subprocess.run(line, shell=True, capture_output=True, text=True)
    assert "Successfully submitted" in process.stdout, process
    assert kaggle.submissions[0]["description"].startswith("it's a \"try\"; $HOME #")
    assert submit_mine() == 0  # finds what was submitted by hand
    assert uploads(kaggle) == 1 and rows()[0].public == 1.0


def test_a_file_that_check_refuses_is_not_submitted(kaggle: Kaggle, submit_mine: Submit, capsys: Capture) -> None:
    MINE.write_bytes(gzip.compress(gzip.decompress(MINE.read_bytes()).replace(b"_02.jpg", b"_03.jpg", 1)))
    assert submit_mine() == 1
    assert "mine.csv.gz, line 4" in only_line(capsys)
    assert uploads(kaggle) == 0 and rows() == []


def test_the_run_s_own_submission_is_predicted_when_it_is_not_there(
    kaggle: Kaggle, demo_folder: pathlib.Path, monkeypatch: Patch
) -> None:
    predicted = []

    def pretend(stage: str, *arguments: str) -> None:
        predicted.append((stage, *arguments))
        pathlib.Path("submissions").mkdir(exist_ok=True)
        MINE.rename("submissions/own.csv.gz")

    monkeypatch.setattr(submit, "run_stage", pretend)
    arguments = ("--config", DEFAULT_CONFIG, "--run", "own", "--data", str(demo_folder))
    for _ in range(2):
        assert main(["submit", *arguments]) == 0
    assert predicted == [("predict", *arguments)]
    assert uploads(kaggle) == 1 and rows()[0].file == "submissions/own.csv.gz"


def test_a_submission_with_another_threshold_than_the_run_has_now_is_predicted_again(kaggle: Kaggle) -> None:
    run = Run("mine")
    about = provenance.Provenance(sha256=sha256(MINE), runs=("mine",), folds=(0,), threshold=0.5)
    run.fold(0).folder.mkdir(parents=True)
    run.fold(0).best.write_text("weights")
    about = about.model_copy(update={"checkpoints": {str(run.fold(0).best): sha256(run.fold(0).best)}})
    run.submission.parent.mkdir()
    shutil.copy(MINE, run.submission)
    provenance.write(run.provenance, about)
    write_json(run.threshold, {"threshold": 0.5})
    assert submit.reason_to_predict(run, [0]) is None
    write_json(run.threshold, {"threshold": 0.47})
    reason = submit.reason_to_predict(run, [0])
    assert reason is not None and "threshold 0.5" in reason and "runs/mine/threshold.json has 0.47" in reason


def test_a_submission_is_its_own_runs_though_another_has_the_same_bytes(kaggle: Kaggle) -> None:
    """A blend that gives one run all the weight has the same bytes as that run."""
    run, blend = Run("mine"), Run("a+mine")
    for one, runs in ((run, ("mine",)), (blend, ("a", "mine"))):
        one.submission.parent.mkdir(exist_ok=True)
        shutil.copy(MINE, one.submission)
        origin = provenance.Provenance(sha256=sha256(MINE), runs=runs, folds=(0,), threshold=0.5)
        provenance.write(one.provenance, origin)
    assert provenance.find_by_file(SUBMISSIONS, run.submission).runs == ("mine",)
    assert provenance.find_by_file(SUBMISSIONS, blend.submission).runs == ("a", "mine")
    assert provenance.find_by_file(SUBMISSIONS, MINE).runs == ("a", "mine")  # by its content
    (SUBMISSIONS / "0.json").write_text("{")
    assert provenance.find_by_file(SUBMISSIONS, run.submission).runs == ("mine",)


def test_a_mean_of_runs_of_which_one_was_trained_again_is_not_submitted(kaggle: Kaggle) -> None:
    both, one = Run("a+b"), Run("a").fold(0).best
    one.parent.mkdir(parents=True)
    one.write_text("weights")
    both.submission.parent.mkdir()
    shutil.copy(MINE, both.submission)
    about = {"sha256": sha256(MINE), "runs": ("a", "b"), "folds": (0,), "checkpoints": {str(one): sha256(one)}}
    provenance.write(both.provenance, provenance.Provenance(**about))
    assert submit.reason_to_predict(both, []) is None
    one.write_text("other weights")
    with pytest.raises(Problem, match=r'^runs/a/fold0/best.pt .*`make predict RUNS="a b"`'):
        submit.reason_to_predict(both, [])


def test_the_message_says_how_it_was_predicted() -> None:
    overrides = ('predict.tta="none"', 'data.folder="x"', "data.scale=4")
    origin = provenance.Provenance(
        sha256="0" * 64, runs=("a",), folds=(0, 1), threshold=0.5, predict_overrides=overrides
    )
    assert submit.describe(origin) == "a folds 0,1 threshold 0.500 predict.tta=none data.scale=4"


# --- transient faults -----------------------------------------------------------------------------


CALLS = (
    pytest.param("GetSubmissionLimits", marks=asks_for_the_limit), "ListSubmissions", "StartSubmissionUpload",
    "CreateSubmission",
)  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "fault",
    [
        answering(500), answering(503, "Try later"), answering(429, "Slow"), answering(429, Retry_After="0"),
        disconnect, stall,
    ],
    ids=["500", "503", "429", "429 Retry-After", "disconnected", "stalled"],
)
def test_a_call_with_a_transient_fault_is_retried(
    kaggle: Kaggle, submit_mine: Submit, call: str, fault: Fault
) -> None:
    kaggle.faults[call] = [fault]
    assert submit_mine() == 0
    assert kaggle.faults[call] == [] and uploads(kaggle) == 1 and rows()[0].public == 1.0


@pytest.mark.parametrize(
    "fault",
    [answering(500), answering(503), answering(403), disconnect, stall],
    ids=["500", "503", "403", "disconnected", "stalled"],
)
def test_an_upload_that_breaks_begins_again(kaggle: Kaggle, submit_mine: Submit, fault: Fault) -> None:
    kaggle.faults["upload"] = [fault, fault]
    assert submit_mine() == 0
    assert kaggle.faults["upload"] == [] and uploads(kaggle) == 1 and rows()[0].public == 1.0


def test_an_answer_that_is_lost_after_kaggle_took_the_file_does_not_make_a_second_submission(
    kaggle: Kaggle, submit_mine: Submit
) -> None:
    kaggle.lost["CreateSubmission"] = 1
    assert submit_mine() == 0
    assert uploads(kaggle) == 1 and rows()[0].public == 1.0


def test_rows_that_are_pulled_while_the_score_is_awaited_are_kept(
    kaggle: Kaggle, submit_mine: Submit, monkeypatch: Patch
) -> None:
    theirs = Row(sha256="f" * 64, time=submit.now(), file="theirs.csv.gz", message="#ffffffffffff", ref=1)
    create = kaggle.CreateSubmission

    def create_and_pull(asked: Answer) -> Answer:
        (ours,) = rows()
        LEDGER.unlink()
        for row in (theirs, ours):
            ledger.put(LEDGER, row)
        return create(asked)

    monkeypatch.setattr(kaggle, "CreateSubmission", create_and_pull)
    assert submit_mine() == 0
    first, second = rows()
    assert first == theirs and second.file == str(MINE) and second.status == "complete"


# --- permanent faults -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, fault, named",
    [
        ("CreateSubmission", answering(400, "Submission not allowed: competition closed"), "competition closed"),
        ("CreateSubmission", answering(400, "Your team used its daily allowance (5)"), "daily allowance (5)"),
        ("CreateSubmission", answering(403, "You must accept this competition's rules"), carvana.CARVANA.rules_page),
        ("StartSubmissionUpload", answering(404, "Competition not found"), "does not know the competition"),
        ("StartSubmissionUpload", answering(429, "Too many", Retry_After="0"), "fewer calls"),
        ("StartSubmissionUpload", answering(500), "internal error (500)"),
        ("StartSubmissionUpload", answering(401, "Unauthenticated"), "credentials"),
        ("upload", answering(503), "the upload of mine.csv.gz failed after 3 tries"),
        ("upload", disconnect, "the upload of mine.csv.gz failed after 3 tries"),
        ("upload", stall, "there was no answer in time"),
    ],
)  # fmt: skip
def test_a_refusal_is_one_sentence_and_a_failed_row_that_the_next_try_fills(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, call: str, fault: Fault, named: str
) -> None:
    kaggle.faults[call] = [fault] * ALWAYS
    assert submit_mine() == 1
    line = only_line(capsys)
    assert line.startswith("submit: ") and named in line
    (row,) = rows()
    assert row.status == "failed" and named in row.error and row.ref is None
    kaggle.faults.clear()
    assert submit_mine() == 0
    (row,) = rows()
    assert row.status == "complete" and row.error == "" and uploads(kaggle) == 1


@pytest.mark.parametrize(
    "status, named", [(401, "credentials"), (403, carvana.CARVANA.rules_page), (500, "internal error")]
)
def test_a_submission_list_that_cannot_be_read_leaves_no_row(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, status: int, named: str
) -> None:
    kaggle.faults["ListSubmissions"] = [answering(status, "No")] * ALWAYS
    assert submit_mine() == 1
    assert named in only_line(capsys)
    assert rows() == []


@asks_for_the_limit
def test_the_daily_limit_is_reported_before_anything_is_uploaded(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(fake_kaggle, "DAILY_SUBMISSIONS", 1)
    assert submit_mine() == 0 and submit_mine("--force") == 1
    assert "No submission is left today; try again in" in only_line(capsys)
    assert len(rows()) == 1 and len(kaggle.uploads) == 1


def test_what_kaggle_cannot_score_is_a_failed_row(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, monkeypatch: Patch
) -> None:
    error = {"status": "ERROR", "errorDescription": "Submission has a wrong column"}
    monkeypatch.setattr(fake_kaggle, "grade", lambda *paths: error)
    assert submit_mine() == 1
    assert "could not score it: Submission has a wrong column" in only_line(capsys)
    (row,) = rows()
    assert (row.status, row.error) == ("failed", "Submission has a wrong column") and row.ref is not None
    assert submit_mine() == 1
    assert "(row 1), and Kaggle could not score it" in only_line(capsys)
    assert uploads(kaggle) == 1


def test_a_score_that_does_not_come_is_filled_in_later(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(submit, "WAIT_S", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(fake_kaggle, "PENDING_LISTINGS", 1000)
        assert submit_mine() == 1
        assert "`make leaderboard`" in only_line(capsys)
    assert rows()[0].status == "pending" and rows()[0].ref is not None
    assert main(["leaderboard"]) == 0
    assert (rows()[0].status, rows()[0].private) == ("complete", 1.0)
    assert submit_mine() == 0
    assert uploads(kaggle) == 1


def test_leaderboard_shows_what_it_has_when_kaggle_cannot_be_asked(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(submit, "WAIT_S", 0.05)
    monkeypatch.setattr(fake_kaggle, "PENDING_LISTINGS", 1000)
    assert submit_mine() == 1
    kaggle.faults["ListSubmissions"] = [answering(401, "Unauthenticated")] * ALWAYS
    assert main(["leaderboard"]) == 0
    out = capsys.readouterr().out
    assert "could not be updated: " in out and "credentials" in out and "mine.csv.gz" in out


def test_a_submission_of_another_account_is_a_problem(kaggle: Kaggle, submit_mine: Submit, capsys: Capture) -> None:
    assert submit_mine() == 0
    ledger.put(LEDGER, rows()[0].model_copy(update={"status": "pending"}))
    kaggle.submissions.clear()
    assert submit_mine() == 1
    assert "this account has no such submission" in only_line(capsys)
    assert submit_mine("--force") == 0


def test_without_credentials_nothing_is_written(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert submit_mine() == 1
    assert "There are no credentials for Kaggle" in only_line(capsys)
    assert rows() == []


@pytest.mark.parametrize("fault", ["no credentials", "no network", "401"])
def test_a_dry_run_needs_no_kaggle_and_says_that_it_could_not_ask(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, monkeypatch: Patch, fault: str
) -> None:
    if fault == "no credentials":
        monkeypatch.delenv("KAGGLE_API_TOKEN")
    elif fault == "no network":
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    else:
        kaggle.faults["ListSubmissions"] = [answering(401, "Unauthenticated")] * ALWAYS
    assert submit_mine("--dry-run") == 0
    out, err = capsys.readouterr()
    assert err == "" and "mine.csv.gz is valid" in out and "kaggle competitions submit -f mine.csv.gz" in out
    assert "How many submissions are left today could not be asked: " in out.splitlines()[-1]
    assert rows() == [] and uploads(kaggle) == 0
    MINE.write_bytes(gzip.compress(b"img,rle_mask\n"))
    assert submit_mine("--dry-run") == 1  # what check refuses is still refused
    assert "has 0 of" in only_line(capsys)


def test_a_submission_that_looks_like_a_known_mistake_is_not_sent_unless_forced(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture
) -> None:
    lines = gzip.decompress(MINE.read_bytes()).decode().splitlines()
    texts = [line.partition(",")[2] for line in lines[1:]]
    upside_down = [rle.encode(rle.decode(text, carvana.HEIGHT_PX, carvana.WIDTH_PX)[::-1]) for text in texts]
    names = [line.partition(",")[0] for line in lines[1:]]
    MINE.write_text("\n".join([lines[0], *(f"{name},{text}" for name, text in zip(names, upside_down)), ""]))
    MINE.write_bytes(gzip.compress(MINE.read_bytes(), mtime=0))
    assert submit_mine() == 1
    assert "upside down" in only_line(capsys) and uploads(kaggle) == 0 and rows() == []
    assert submit_mine("--force") == 0
    assert uploads(kaggle) == 1 and rows()[0].status == "complete"


def test_a_message_that_is_too_long_is_a_problem(kaggle: Kaggle, submit_mine: Submit, capsys: Capture) -> None:
    assert submit_mine("--message", "x" * 251) == 1
    assert "MESSAGE has 251 characters; 250 are allowed" in only_line(capsys)


# --- interrupted ----------------------------------------------------------------------------------


def begin(demo_folder: pathlib.Path) -> subprocess.Popen:
    arguments = [sys.executable, "-m", "pipeline", "submit", "--file", str(MINE), "--data", str(demo_folder)]
    return subprocess.Popen(
        arguments, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
        # Tests that a shell runs in the background inherit that Ctrl+C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize(
    "call, number",
    [
        ("ListSubmissions", signal.SIGKILL),
        ("upload", signal.SIGKILL),
        ("upload", signal.SIGINT),
        ("CreateSubmission", signal.SIGKILL),
        ("after CreateSubmission", signal.SIGKILL),
    ],
)
def test_an_interrupted_submit_is_finished_by_the_next_and_never_doubled(
    kaggle: Kaggle,
    submit_mine: Submit,
    demo_folder: pathlib.Path,
    monkeypatch: Patch,
    call: str,
    number: signal.Signals,
) -> None:
    if call == "after CreateSubmission":
        create = kaggle.CreateSubmission

        def create_and_stall(asked: Answer) -> Answer:
            answer = create(asked)
            kaggle.reached.set()
            kaggle.released.wait(30)
            return answer

        monkeypatch.setattr(kaggle, "CreateSubmission", create_and_stall)
    else:
        kaggle.faults[call] = [stall]
    process = begin(demo_folder)
    assert kaggle.reached.wait(LONG_S)
    process.send_signal(number)
    _, err = process.communicate(timeout=LONG_S)
    kaggle.released.set()
    kaggle.faults.clear()
    if number == signal.SIGINT:
        assert process.returncode == 1 and err.startswith("submit: interrupted") and err.count("\n") == 1
    assert [row.status for row in rows()] == ([] if call == "ListSubmissions" else ["pending"])
    assert submit_mine() == 0
    assert uploads(kaggle) == 1 and rows()[0].public == 1.0 and len(rows()) == 1


@pytest.mark.parametrize("good_writes, uploaded", [(0, 0), (1, 1), (2, 1)])
def test_a_full_disk_is_a_problem_and_no_second_submission(
    kaggle: Kaggle, submit_mine: Submit, capsys: Capture, good_writes: int, uploaded: int
) -> None:
    results = [None] * good_writes + [OSError(errno.ENOSPC, "No space left on device")]
    with mock.patch("os.fsync", side_effect=results):
        assert submit_mine() == 1
    assert only_line(capsys) == "submit: submissions/ledger.csv could not be written: No space left on device."
    assert uploads(kaggle) == uploaded
    assert submit_mine() == 0
    assert uploads(kaggle) == 1 and rows()[0].public == 1.0 and len(rows()) == 1


def test_a_submission_that_kaggle_lists_late_is_not_doubled(
    kaggle: Kaggle, submit_mine: Submit, monkeypatch: Patch
) -> None:
    assert submit_mine() == 0
    (row,) = rows()
    LEDGER.unlink()
    ledger.put(LEDGER, row.model_copy(update={"status": "pending", "ref": None}))
    taken = kaggle.submissions.copy()
    kaggle.submissions.clear()
    threading.Timer(0.3, lambda: kaggle.submissions.extend(taken)).start()
    assert submit_mine() == 0
    assert kaggle.submissions == taken and rows()[0].status == "complete"


def test_two_at_once_do_not_submit_twice(
    kaggle: Kaggle, submit_mine: Submit, demo_folder: pathlib.Path, capsys: Capture
) -> None:
    kaggle.faults["upload"] = [stall]
    process = begin(demo_folder)
    assert kaggle.reached.wait(LONG_S)
    assert submit_mine() == 1
    assert "Another `make submit` uses submissions/ledger.csv" in only_line(capsys)
    kaggle.released.set()
    assert process.wait(timeout=LONG_S) == 0
    assert uploads(kaggle) == 1 and len(rows()) == 1


# --- an older package, such as the one in Kaggle's image --------------------------------------------------------------


def test_an_older_package_submits_without_the_count_of_the_day(
    kaggle: Kaggle, submit_mine: Submit, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from kagglesdk.competitions.types import competition_api_service
    monkeypatch.delattr(competition_api_service, "ApiGetSubmissionLimitsRequest", raising=False)
    assert submit_mine() == 0 and uploads(kaggle) == 1
    assert "left today" not in capsys.readouterr().out


def test_a_call_that_an_older_package_lacks_is_named(
    kaggle: Kaggle, submit_mine: Submit, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from kagglesdk.competitions.types import competition_api_service
    monkeypatch.delattr(competition_api_service, "ApiListSubmissionsRequest")
    assert submit_mine() == 1 and uploads(kaggle) == 0
    assert "is too old: it has no ListSubmissions; pip install" in only_line(capsys)
