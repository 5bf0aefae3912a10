"""Downloading with the real client from a fake Kaggle with faults: complete, verified, once, or one sentence."""
import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import kaggle_server
import pytest
from kaggle_server import ALWAYS, Fault, Kaggle, answering, disconnect, garbage, leaks, serving, stall, trickle

from pipeline import carvana
from pipeline.__main__ import main
from pipeline.options import DEFAULT_CONFIG
from pipeline.kaggle import client as kaggle_client
from pipeline.kaggle import download, retry
from pipeline.runtime.files import length_bytes
from pipeline.runtime.problem import Problem
from pipeline.synthetic import fake_kaggle

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = pathlib.Path("data")
FILES = [
    "metadata.csv.zip", "sample_submission.csv.zip", "train_masks.csv.zip", "train_masks.zip", "train.zip", "test.zip",
]  # fmt: skip
LARGE = "train.zip"
needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None and not os.environ.get("CI"), reason="there is no openssl to make a certificate"
)


@pytest.fixture
def kaggle(
    request: pytest.FixtureRequest, demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kaggle]:
    """A fake Kaggle, credentials for it, an empty working folder, and short timeouts where nothing will come."""
    (tmp_path / "work/configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    pathlib.Path(DEFAULT_CONFIG).touch()
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    longest_s = 0.3 if parameters.get("fault") in (stall, trickle) else 20.0
    monkeypatch.setattr(kaggle_client, "PACE_WINDOW_S", longest_s)
    for name, value in (("FIRST_PAUSE_S", 0.01), ("ANSWER_S", longest_s), ("TRIES", 3)):
        monkeypatch.setattr(retry, name, value)
    with serving(demo_folder, tmp_path, monkeypatch) as server:
        yield server


def fetch(*arguments: str) -> int:
    return main(["download", "--data", str(FOLDER), *arguments])


def is_all_there(demo_folder: pathlib.Path, names: list[str] = FILES) -> bool:
    """Exactly these files, byte for byte, and no leftovers."""
    present = {path.name for path in FOLDER.iterdir()} if FOLDER.is_dir() else set()
    same = all((FOLDER / name).read_bytes() == (demo_folder / name).read_bytes() for name in present & set(names))
    return present == {*names, download.MANIFEST} and same


def only_line(capsys: pytest.CaptureFixture) -> str:
    """Return the one line on stderr, without a traceback; neither stdout nor stderr has a secret."""
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert not leaks(output.out + output.err)
    return line


# --- no faults ------------------------------------------------------------------------------------


def test_everything_is_fetched_once_and_a_second_time_nothing(
    kaggle: Kaggle, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert fetch() == 0
    assert is_all_there(demo_folder)
    assert sorted(kaggle.sent) == sorted((name, 0) for name in FILES)
    out = capsys.readouterr().out
    assert re.search(r"into data \(.* free\):\n", out)
    assert re.search(r"train\.zip +[0-9.]+ MB\n", out)
    assert re.search(r"data/train\.zip: .* MB in \d+ s, 64 \w+, verified\.", out)
    manifest = json.loads((FOLDER / download.MANIFEST).read_text())
    assert manifest[LARGE]["bytes"] == (demo_folder / LARGE).stat().st_size

    kaggle.calls.clear()
    assert fetch() == 0
    assert kaggle.calls == []
    assert "data: all files are there" in capsys.readouterr().out


def test_some_files_by_name(kaggle: Kaggle, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    assert fetch("--only", "test.zip", "metadata.csv.zip", "--only", "test.zip") == 0
    assert is_all_there(demo_folder, ["metadata.csv.zip", "test.zip"])
    capsys.readouterr()
    assert fetch("--only", "tset.zip") == 1
    assert "Kaggle has no tset.zip; choose among metadata.csv.zip, " in only_line(capsys)


def test_the_hq_sets_and_the_repaired_image(kaggle: Kaggle, demo_copy: pathlib.Path, jpeg: bytes) -> None:
    for name in ("train", "test"):
        shutil.copy(demo_copy / f"{name}.zip", demo_copy / f"{name}_hq.zip")
    (demo_copy / carvana.CARVANA.repaired).write_bytes(jpeg)
    kaggle.folder = demo_copy
    assert fetch("--hq") == 0
    names = [name for name in FILES if name not in ("train.zip", "test.zip")]
    assert is_all_there(demo_copy, [*names, "train_hq.zip", "test_hq.zip", carvana.CARVANA.repaired])
    assert fetch("--set", "data.hq=true") == 0
    assert len(kaggle.sent) == 7


def test_a_file_from_elsewhere_is_verified_and_kept(
    kaggle: Kaggle, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    FOLDER.mkdir()
    for name in FILES[1:]:
        shutil.copy(demo_folder / name, FOLDER / name)
    assert fetch() == 0
    assert kaggle.sent == [("metadata.csv.zip", 0)] and is_all_there(demo_folder)
    assert "data/train.zip is there already, with 64 " in capsys.readouterr().out
    os.utime(FOLDER / LARGE)
    assert fetch() == 0
    assert len(kaggle.sent) == 1


@pytest.mark.parametrize("size", ["same", "shorter"])
def test_a_wrong_file_is_replaced_though_it_may_have_the_right_size(
    kaggle: Kaggle, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture, size: str
) -> None:
    assert fetch() == 0
    data = bytearray((demo_folder / LARGE).read_bytes())
    data[2**20] ^= 1
    (FOLDER / LARGE).write_bytes(data if size == "same" else data[:-1])
    kaggle.sent.clear()
    assert fetch() == 0
    assert kaggle.sent == [(LARGE, 0)] and is_all_there(demo_folder)
    assert "data/train.zip is damaged (it " in capsys.readouterr().out


def test_a_folder_that_was_made_here_is_left_alone(
    kaggle: Kaggle, demo_copy: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    assert fetch("--data", str(demo_copy)) == 1
    assert "holds demo.json, so it was made here" in only_line(capsys)


# --- transient faults -----------------------------------------------------------------------------


TRANSIENT: dict[str, Fault] = {
    "500": answering(500), "503": answering(503, "Try later"), "429": answering(429, "Slow"),
    "429 Retry-After": answering(429, "Slow", Retry_After="0"), "disconnected": disconnect, "stalled": stall,
    "200 of a captive portal": answering(200),
}  # fmt: skip


@pytest.mark.parametrize("call", ["IntrospectToken", "ListDataFiles", "DownloadDataFile", "blob"])
@pytest.mark.parametrize("fault", TRANSIENT.values(), ids=TRANSIENT)
def test_a_call_with_a_transient_fault_is_retried(
    kaggle: Kaggle, demo_folder: pathlib.Path, call: str, fault: Fault
) -> None:
    kaggle.faults[call] = [fault]
    assert fetch("--only", "test.zip") == 0
    assert kaggle.faults[call] == [] and is_all_there(demo_folder, ["test.zip"])


def test_retry_after_is_waited_for(kaggle: Kaggle) -> None:
    kaggle.faults["ListDataFiles"] = [answering(429, "Slow", Retry_After="1")]
    began = time.monotonic()
    assert fetch("--only", "test.zip") == 0
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("fault", [disconnect, stall, trickle])
def test_a_download_resumes_where_it_stopped_however_often(
    kaggle: Kaggle, demo_folder: pathlib.Path, fault: Fault
) -> None:
    step = kaggle_client.PROGRESS_BYTES
    kaggle.midway = [(step, fault)] * 3  # as often as there are tries without progress
    assert fetch("--only", LARGE) == 0
    assert is_all_there(demo_folder, [LARGE])
    firsts = [first for _, first in kaggle.sent]
    assert len(firsts) == 4 and all(b - a >= step for a, b in zip(firsts, firsts[1:]))


@pytest.mark.parametrize("status", [403, 410, 416, 200])
def test_an_expired_link_is_replaced_and_its_error_page_is_not_part_of_the_file(
    kaggle: Kaggle, demo_folder: pathlib.Path, status: int
) -> None:
    kaggle.midway = [(2**20, disconnect)]
    kaggle.faults["range"] = [answering(status)]
    assert fetch("--only", LARGE) == 0
    assert kaggle.faults["range"] == [] and is_all_there(demo_folder, [LARGE])


@pytest.mark.parametrize("supports_if_range", [True, False], ids=["If-Range supported", "If-Range ignored"])
def test_a_file_that_changed_between_two_connections_begins_again(
    kaggle: Kaggle, demo_copy: pathlib.Path, monkeypatch: pytest.MonkeyPatch, supports_if_range: bool
) -> None:
    kaggle.folder = demo_copy
    kaggle.midway = [(2**20, disconnect)]
    kaggle.faults["range"] = [answering(500)] * ALWAYS
    assert fetch("--only", LARGE) == 1
    os.utime(demo_copy / LARGE, ns=(0, 1))  # another ETag
    if not supports_if_range:
        monkeypatch.setattr(fake_kaggle, "is_still", lambda tag, asked: True)
    kaggle.faults.clear()
    kaggle.sent.clear()
    assert fetch("--only", LARGE) == 0
    assert kaggle.sent[-1] == (LARGE, 0) and is_all_there(demo_copy, [LARGE])


def test_wrong_bytes_of_the_right_length_are_fetched_once_more(
    kaggle: Kaggle, demo_folder: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    kaggle.midway = [(2**20, garbage)]
    assert fetch("--only", LARGE) == 0
    assert is_all_there(demo_folder, [LARGE]) and kaggle.sent == [(LARGE, 0)] * 2
    assert "train.zip arrived damaged (" in capsys.readouterr().out


# --- permanent faults -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, fault, named",
    [
        ("ListDataFiles", answering(401, "Unauthenticated"), "does not accept the credentials (401: Unauthenticated)"),
        ("ListDataFiles", answering(403, "You must accept this competition's rules"), carvana.CARVANA.rules_page),
        ("DownloadDataFile", answering(403, "You must accept this competition's rules"), carvana.CARVANA.rules_page),
        ("ListDataFiles", answering(404, "Not found"), f"does not know the competition {carvana.CARVANA.slug}"),
        ("ListDataFiles", answering(400, "Competition closed"), "rejects it (400: Competition closed)"),
        ("ListDataFiles", answering(429, "Slow"), "fewer calls (429: Slow); wait some minutes"),
        ("ListDataFiles", answering(429, "Slow", Retry_After="9999"), "fewer calls (429: Slow); wait 9999 seconds"),
        ("ListDataFiles", answering(500), "after 3 tries: Kaggle had an internal error (500)"),
        ("ListDataFiles", answering(200), "after 3 tries: the answer is not Kaggle's"),
        ("IntrospectToken", answering(503), "the log-in failed after 3 tries"),
        ("IntrospectToken", stall, "the log-in failed after 3 tries: there was no answer in time"),
        ("DownloadDataFile", stall, "there was no answer in time"),
        ("blob", stall, "the download of train.zip failed after 3 tries: there was no answer in time"),
        ("blob", disconnect, "the connection broke"),
        ("blob", answering(403), "the download of train.zip failed after 3 tries"),
        ("blob", answering(200), "bytes instead of"),
    ],
)  # fmt: skip
def test_a_permanent_fault_is_one_sentence_and_no_file(
    kaggle: Kaggle, capsys: pytest.CaptureFixture, call: str, fault: Fault, named: str
) -> None:
    kaggle.faults[call] = [fault] * ALWAYS
    assert fetch("--only", LARGE) == 1
    line = only_line(capsys)
    assert line.startswith("download: ") and named in line
    assert not (FOLDER / LARGE).exists()


@pytest.mark.parametrize("fault", [garbage, disconnect, stall])
def test_a_file_that_never_arrives_whole_never_has_its_name(
    kaggle: Kaggle, capsys: pytest.CaptureFixture, fault: Fault
) -> None:
    kaggle.midway = [(1000, fault)] * ALWAYS
    assert fetch("--only", LARGE) == 1
    named = "train.zip arrived damaged twice" if fault is garbage else "the download of train.zip failed after 3 tries"
    assert named in only_line(capsys)
    assert not (FOLDER / LARGE).exists() and len(kaggle.sent) <= 4


def test_a_server_that_does_not_answer(kaggle: Kaggle, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch() == 1
    assert "Kaggle cannot be reached" in only_line(capsys)


def test_too_little_disk_space_is_reported_before_anything_is_downloaded(
    kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    assert fetch() == 1
    assert re.search(r"need [0-9.]+ MB more, but data has only 1\.0 MB free", only_line(capsys))
    assert kaggle.sent == []


def test_a_disk_that_fills_up_keeps_what_came(
    kaggle: Kaggle, demo_folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fill(response, path: pathlib.Path, size_bytes: int, on_bytes) -> None:
        path.write_bytes((demo_folder / LARGE).read_bytes()[: 2**20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(kaggle_client, "append_body", fill)
        assert fetch("--only", LARGE) == 1
    assert "train.zip could not be written: No space left on device" in only_line(capsys)
    assert not (FOLDER / LARGE).exists()
    kaggle.sent.clear()
    assert fetch("--only", LARGE) == 0
    assert kaggle.sent[-1] == (LARGE, 2**20) and is_all_there(demo_folder, [LARGE])


def test_two_downloads_into_one_folder_do_not_mix(kaggle: Kaggle, capsys: pytest.CaptureFixture) -> None:
    with download.exclusive(FOLDER):
        assert fetch() == 1
    assert "Another download into data is running" in only_line(capsys)


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [answering(403), disconnect, stall])
def test_a_traceback_has_no_secrets(kaggle: Kaggle, fault: Fault) -> None:
    kaggle.faults["blob"] = [fault] * ALWAYS
    with pytest.raises(Problem) as caught:
        fetch("--only", LARGE, "--debug")
    assert not leaks("".join(traceback.format_exception(caught.value)))


def test_a_home_folder_that_cannot_be_written_does_not_matter(kaggle: Kaggle, tmp_path: pathlib.Path) -> None:
    (tmp_path / "no_folder").touch()
    process = run_apart("--only", "metadata.csv.zip", HOME=str(tmp_path / "no_folder"), VERBOSE="1")
    assert (process.returncode, process.stderr) == (0, "")
    assert not leaks(process.stdout) and "Request" not in process.stdout


# --- in a process of its own ----------------------------------------------------------------------


def start_apart(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "download", "--data", str(FOLDER), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell's `&` would have us ignore
    )  # fmt: skip


def run_apart(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = start_apart(*arguments, **variables)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_resumes_where_it_was(
    kaggle: Kaggle, demo_folder: pathlib.Path, number: signal.Signals
) -> None:
    kaggle.midway = [(3 * 2**20, stall)]
    process = start_apart("--only", LARGE)
    assert kaggle.reached.wait(30)
    wait_for(lambda: length_bytes(FOLDER / download.DRAFTS / LARGE) == 3 * 2**20)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 1)
    assert number == signal.SIGKILL or (err.startswith("download: interrupted") and err.count("\n") == 1)
    assert not (FOLDER / LARGE).exists()
    assert fetch("--only", LARGE) == 0
    assert kaggle.sent[-1] == (LARGE, 3 * 2**20) and is_all_there(demo_folder, [LARGE])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_openssl
def test_the_real_addresses_over_tls(kaggle: Kaggle, demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    hosts = ("api.kaggle.com", "storage.googleapis.com")
    kaggle.midway = [(2**20, disconnect)]
    process = run_apart("--only", LARGE, **kaggle_server.end_tls(kaggle, hosts, tmp_path))
    assert (process.returncode, process.stderr) == (0, "")
    assert len(kaggle.sent) == 2 and is_all_there(demo_folder, [LARGE])


@needs_openssl
def test_another_host_s_certificate_is_not_trusted(kaggle: Kaggle, tmp_path: pathlib.Path) -> None:
    environment = kaggle_server.end_tls(kaggle, ("kaggle.example",), tmp_path)
    process = run_apart("--only", LARGE, **environment)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("download: the log-in failed: the server's certificate is not Kaggle's")
    assert kaggle.sent == []
