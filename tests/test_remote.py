"""Stages on Kaggle's GPUs, with the real client: sessions that a fake Kaggle really runs, and what can go wrong."""
import json
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import small_checkout
import yaml
from kaggle_server import ALWAYS, Kaggle, answering, asks_for_the_quota, disconnect, leaks, serving
from kagglesdk.kernels.types import kernels_api_service
from tiny_run import CONFIG, Killed, assert_same_training, read_log

from pipeline.__main__ import main
from pipeline.kaggle import homecoming, kernels, remote, retry
from pipeline.kaggle.packing import needed_packages, pack, read_job
from pipeline.kaggle.session import Job, Outputs, find_competition, prepare_checkout
from pipeline.kaggle.submit import describe
from pipeline.config import Settings
from pipeline.paths import Run
from pipeline.runtime import git
from pipeline.runtime.files import sha256
from pipeline.runtime.problem import Problem
from pipeline.submission.provenance import Provenance
from pipeline.synthetic.fake_kaggle import Handler

Capture = pytest.CaptureFixture
Train = Callable[..., int]
FOLD = pathlib.Path("runs/tiny/fold0")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_checkout.make(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def kaggle(
    checkout: pathlib.Path, demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kaggle]:
    """A fake Kaggle, credentials for it, an empty working folder, and short pauses."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pathlib.Path("tiny.yaml").write_text(CONFIG)
    monkeypatch.setattr(git, "CHECKOUT", checkout)
    monkeypatch.setattr(git, "__file__", str(checkout / "pipeline/runtime/git.py"))
    for module, name, value in (
        (retry, "FIRST_PAUSE_S", 0.01), (retry, "TRIES", 3), (kernels, "SEARCH_PAUSE_S", 0.01),
        (remote, "FIRST_PAUSE_S", 0.02), (remote, "LONGEST_PAUSE_S", 0.1),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    with serving(demo_folder, tmp_path, monkeypatch) as server:
        yield server


def command(name: str, *arguments: str, gpu: str = "none") -> int:
    place = [] if name.startswith("remote") else ["--on", "kaggle", "--gpu", gpu]
    return main([name, "--config", "tiny.yaml", *place, *arguments])


def train(*arguments: str, gpu: str = "none") -> int:
    return command("train", *arguments, gpu=gpu)


def behave(kaggle: Kaggle, behaviour: str) -> None:
    """Set what `train` does in the next sessions."""
    kaggle.kernels.variables = {"BEHAVIOUR": behaviour}


def last_error(capsys: Capture) -> str:
    """Return the last line on stderr; there are no traceback and no secret."""
    output = capsys.readouterr()
    assert "Traceback" not in output.err and not leaks(output.out + output.err)
    return output.err.splitlines()[-1]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- no faults -------------------------------------------------------------------------------------------------------


def test_a_run_is_trained_there_and_comes_home_once(kaggle: Kaggle, capsys: Capture) -> None:
    assert train("--fold", "0") == 0
    assert (FOLD / "best.pt").read_text() == "weights" and (FOLD / "last.pt").read_text() == "end"
    assert not (FOLD / "coarse.zip").exists() and not (FOLD.parent / ".remote").exists()
    assert not (FOLD.parent / "inspected.json").exists()  # of files there
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("step")] == [f"step {step} éß" for step in range(40)]
    (begins,) = [line for line in lines if line.startswith("train begins")]
    assert begins.endswith("--config tiny.yaml --run tiny --fold 0 --data data/carvana")
    (mounted,) = [line for line in lines if "files of the competition in" in line]
    assert mounted.endswith("/input/competitions/carvana-image-masking-challenge") and not mounted.startswith("0 ")
    ((slug, (session,)),) = kaggle.kernels.sessions.items()
    assert re.fullmatch("tiny-[0-9a-f]{6}-1", slug)
    assert session.request["isPrivate"] and "machineShape" not in session.request
    assert not session.request.get("enableGpu") and not session.request.get("enableInternet")

    assert train("--fold", "0") == 0 and len(kaggle.kernels.sessions) == 1
    assert "0 new files" in capsys.readouterr().out


def test_the_next_stage_reads_what_the_last_session_left(kaggle: Kaggle) -> None:
    assert train() == 0 and command("validate") == 0
    (_, (first,)), (_, (second,)) = sorted(kaggle.kernels.sessions.items())
    sources = [name.partition("/")[2] for name in second.request["kernelDataSources"]]
    assert sources == [first.request["slug"].partition("/")[2]]
    job = read_job(second.request["text"])
    assert job and [stage[0] for stage in job.stages] == ["validate", "threshold"]
    assert (second.working / FOLD / "coarse.zip").read_text() == "large"


def test_what_an_earlier_session_has_done_is_not_done_again(kaggle: Kaggle, capsys: Capture) -> None:
    """`make train submission ON=kaggle`, started again after it was interrupted, goes on with its last session."""
    assert train() == 0 and command("validate") == 0 and command("predict") == 0
    assert len(kaggle.kernels.sessions) == 3
    assert train() == 0 and command("validate") == 0 and command("predict") == 0
    assert len(kaggle.kernels.sessions) == 3 and "has done that already" in capsys.readouterr().out
    assert train("--set", "train.epochs=4") == 0 and len(kaggle.kernels.sessions) == 4
    assert command("validate") == 0 and len(kaggle.kernels.sessions) == 5  # the weights are others now


def test_a_session_that_stopped_at_its_limit_is_continued(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    behave(kaggle, "stop")
    start_part, sources = remote.start_part, []

    def start(*arguments: object) -> remote.Part:
        part = start_part(*arguments)  # type: ignore[arg-type]
        behave(kaggle, "")
        sources.append(kaggle.kernels.sessions[part.slug][0].request.get("kernelDataSources"))
        return part

    monkeypatch.setattr(remote, "start_part", start)
    assert train() == 0
    assert len(sources) == 2 and sources[0] is None and sources[1]
    second = kaggle.kernels.sessions[sorted(kaggle.kernels.sessions)[1]][0]
    assert "resumed from stop\n" in [event["data"] for event in second.events]
    assert (FOLD / "last.pt").read_text() == "end"


def test_the_gpus_of_a_session_are_used(
    kaggle: Kaggle, capsys: Capture, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(tmp_path, monkeypatch, "Tesla T4\nTesla T4")
    assert train(gpu="NvidiaTeslaT4") == 0
    out = capsys.readouterr().out
    assert "GPUs: Tesla T4, Tesla T4." in out and re.search(r"train begins: .*--gpus 2\n", out)
    ((session,),) = kaggle.kernels.sessions.values()
    assert session.request["machineShape"] == "NvidiaTeslaT4" and session.request["enableGpu"]


@asks_for_the_quota
def test_the_quota_is_shown(kaggle: Kaggle, capsys: Capture) -> None:
    assert command("remote-status") == 0
    expected = "GPU hours left: 26.0 of this week's 30, which begins again at 2030-01-05 00:00 UTC."
    assert expected in capsys.readouterr().out


def test_a_client_that_cannot_ask_for_the_quota_starts_sessions_all_the_same(
    kaggle: Kaggle, capsys: Capture, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(kernels_api_service, "ApiGetAcceleratorQuotaStatisticsRequest", raising=False)
    install_driver(tmp_path, monkeypatch, "Tesla T4")
    assert train(gpu="NvidiaTeslaT4") == 0
    assert "How many GPU hours are left is unknown: The installed Kaggle client (kaggle 2" in capsys.readouterr().out


def install_driver(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    """Put an `nvidia-smi` with these GPUs into the PATH."""
    program = folder / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{names}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_the_real_stages_train_there_as_they_do_here(
    kaggle: Kaggle, tiny_runs: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one test that sends this checkout; its training is that of the fixture, on one thread, to the last bit."""
    monkeypatch.setattr(git, "CHECKOUT", small_checkout.ROOT)
    monkeypatch.setattr(git, "__file__", str(small_checkout.ROOT / "pipeline/runtime/git.py"))
    monkeypatch.setattr(git, "commit", lambda: "1" * 40)  # the real one changes while somebody works in the checkout
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert train("--fold", "0", "--force") == 0
    assert_same_training(FOLD, tiny_runs / "tiny/fold0")
    assert read_log(FOLD)[-1]["commit"] == "1" * 40
    assert yaml.safe_load((FOLD / "config.yaml").read_text())["data"]["folder"] == "data/carvana"  # which is good here


def test_status_and_cancel(kaggle: Kaggle, capsys: Capture, tmp_path: pathlib.Path) -> None:
    assert command("remote-status") == 0 and "Kaggle has no session of tiny" in capsys.readouterr().out
    assert command("remote-cancel") == 0 and "No session of tiny is running." in capsys.readouterr().out
    behave(kaggle, f"wait {tmp_path / 'never'}")
    other_terminal = threading.Thread(target=train)
    other_terminal.start()
    wait_until(lambda: kaggle.kernels.sessions)
    assert command("remote-status") == 0
    out = capsys.readouterr().out
    assert "train --config tiny.yaml" in out and "GPU hours" in out
    assert command("validate", "--run", "tiny") == 1  # another command follows
    assert command("remote-cancel") == 0
    other_terminal.join()
    assert not kaggle.kernels.sessions and "was cancelled" in capsys.readouterr().err


# --- what Kaggle may answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, sentence",
    [
        ({"error": "Phone verification is required to use a GPU."}, "https://www.kaggle.com/settings"),
        ({"invalidCompetitionSources": ["carvana-image-masking-challenge"]}, "accept the rules on https://www.kaggle"),
        ({"invalidKernelSources": ["x/y"]}, "no outputs of x/y any more"),
        ({"error": "The weekly quota is reached."}, "did not start the session: The weekly quota is reached."),
    ],
)
def test_a_session_that_kaggle_does_not_start(
    kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object], sentence: str
) -> None:
    monkeypatch.setattr(kaggle.kernels, "SaveKernel", lambda request: answer)
    assert train() == 1
    assert sentence in last_error(capsys)


def test_the_rules_must_be_accepted(kaggle: Kaggle, capsys: Capture) -> None:
    kaggle.faults["SaveKernel"] = [answering(403, "You must accept this competition's rules")] * ALWAYS
    assert train() == 1
    assert "accept the rules on https://www.kaggle.com/competitions/carvana" in last_error(capsys)


@asks_for_the_quota
def test_no_session_starts_without_quota(kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.synthetic.fake_kernels.USED_HOURS", 30)
    assert train(gpu="NvidiaTeslaT4") == 1
    assert "No GPU hour is left of this week's 30, which begins again at 2030-01-05" in last_error(capsys)
    assert not kaggle.kernels.sessions


@pytest.mark.parametrize("names, sentence", [("Tesla P100-PCIE-16GB", "GPU=NvidiaTeslaT4"), (None, "phone number")])
def test_a_session_with_the_wrong_gpu_fails_at_once(
    kaggle: Kaggle, capsys: Capture, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, names: str | None,
    sentence: str,
) -> None:  # fmt: skip
    if names:
        install_driver(tmp_path, monkeypatch, names)
    assert train(gpu="NvidiaTeslaP100") == 1
    assert sentence in last_error(capsys) and not (FOLD / "last.pt").exists()


def test_a_failed_stage_is_told_by_its_own_sentence_and_tried_again_by_the_same_command(
    kaggle: Kaggle, capsys: Capture
) -> None:
    behave(kaggle, "fail")
    assert train() == 1
    assert "failed: train: The loss is not finite at step 40; lower train.learning_rate; the" in last_error(capsys)
    assert (FOLD / "last.pt").read_text() == "fail"  # what it saved is at home
    behave(kaggle, "")
    assert train() == 0 and len(kaggle.kernels.sessions) == 2
    assert "resumed from fail" in capsys.readouterr().out


def test_a_script_that_dies_is_told_by_the_last_lines_of_its_log(
    kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "import sys\nprint('one')\nsys.exit('ValueError: broken')"
    monkeypatch.setattr(remote, "pack", lambda title, job: script)
    assert train() == 1
    error = last_error(capsys)
    assert "failed: " in error and "ValueError: broken" in error and "exit code 1" in error


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_a_push_whose_answer_is_lost_starts_one_session(kaggle: Kaggle) -> None:
    kaggle.lost["SaveKernel"] = 1
    assert train() == 0
    assert [len(versions) for versions in kaggle.kernels.sessions.values()] == [1]


KILLS = {
    "before the first look at the session": (remote, "follow"),
    "when the session has ended": (remote, "bring_home"),
    "after the start": (kernels, "check_pushed"),
    "before the files are moved": (homecoming, "download_all"),
    "between two files": (homecoming.os, "replace"),
}


@pytest.mark.parametrize("when", KILLS)
def test_a_killed_command_is_continued_by_the_same_one(
    kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    module, name = KILLS[when]
    real, calls = getattr(module, name), []

    def kill(*arguments: object) -> object:
        calls.append(arguments)
        if when == "between two files" and len(calls) == 1:
            return real(*arguments)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, kill)
        train()
    assert train() == 0
    assert [len(versions) for versions in kaggle.kernels.sessions.values()] == [1]
    assert (FOLD / "best.pt").read_text() == "weights" and not (FOLD.parent / ".remote").exists()


def test_ctrl_c_leaves_the_session_running(
    kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(remote, "print_log", lambda *_: exec("raise KeyboardInterrupt"))
        assert train() == 1
    assert "the same command follows it again, `make remote-cancel RUN=tiny` cancels it" in last_error(capsys)
    assert train() == 0 and len(kaggle.kernels.sessions) == 1


def test_a_log_that_breaks_and_replays_is_printed_once(kaggle: Kaggle, capsys: Capture, tmp_path: pathlib.Path) -> None:
    go = tmp_path / "go"
    behave(kaggle, f"wait {go}")

    def break_after(events: int, last: bool = False) -> Callable[[Handler], None]:
        def send(handler: Handler) -> None:
            session = handler.server.kernels.last(handler.path.rpartition("/")[2])
            assert session
            wait_until(lambda: len(session.events) >= 44)
            handler.send_response(200)
            handler.send_header("Content-Type", "text/event-stream")
            handler.end_headers()
            lines = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in session.events[:events])
            handler.wfile.write(lines[:-20])  # in the middle of a line
            handler.close_connection = True
            if last:
                go.touch()

        return send

    kaggle.faults["log"] = [break_after(10), disconnect, answering(502), break_after(30), break_after(20, last=True)]
    assert train() == 0
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert steps == [f"step {step} éß" for step in range(40)] and not kaggle.faults["log"]


def test_a_log_that_comes_in_other_pieces_is_printed_once(capsys: Capture) -> None:
    printer = remote.LogPrinter()
    printer.print_new([("stdout", "one\ntw"), ("stderr", "train: a problem.\n")])
    printer.print_new([("stderr", "train: a"), ("stderr", " problem.\nmore"), ("stdout", "one\n"), ("stdout", "two\n")])
    printer.print_new([("stdout", "one\n")])
    output = capsys.readouterr()
    assert (output.out, output.err) == ("one\ntwo\n", "train: a problem.\nmore")
    assert printer.reason() == "train: a problem."


def test_one_command_at_a_time_follows_a_run(kaggle: Kaggle, capsys: Capture) -> None:
    with remote.locked(Run("tiny").lock("remote"), "busy"):
        assert train() == 1
    assert "Another command follows" in last_error(capsys) and not kaggle.kernels.sessions


# --- the way home ----------------------------------------------------------------------------------------------------


def test_an_output_that_is_cut_short_is_fetched_again(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch) -> None:
    read_manifest = kernels.Kernels.read_manifest

    def read_then_truncate(self: kernels.Kernels, link: str) -> bytes:
        data = read_manifest(self, link)
        kaggle.faults["output"] = [lambda handler: handler.send_bytes(200, b"w", "text/plain"), disconnect]
        return data

    monkeypatch.setattr(kernels.Kernels, "read_manifest", read_then_truncate)
    assert train() == 0
    assert (FOLD / "best.pt").read_text() == "weights" and not kaggle.faults["output"]


@pytest.mark.parametrize("data", [b"wei", b"WEIGHTS"])
def test_an_output_with_other_bytes_is_refused(
    kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    bring_home = homecoming.bring_home

    def spoil_then_bring_home(*arguments: object) -> Outputs:
        ((session,),) = kaggle.kernels.sessions.values()
        (session.working / FOLD / "best.pt").write_bytes(data)
        return bring_home(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(homecoming, "bring_home", spoil_then_bring_home)
    assert train() == 1
    assert "the download of runs/tiny/fold0/best.pt failed after 3 tries: " in last_error(capsys)
    assert not FOLD.exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "runs/../x", "runs/other/x", "submissions/other.csv.gz", "ledger"])
def test_a_list_with_a_foreign_file_is_refused(
    kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    manifest = {"run": "tiny", "state": "done", "message": "", "files": {name: {"bytes": 1, "sha256": "0" * 64}}}
    monkeypatch.setattr(kernels.Kernels, "read_manifest", lambda self, link: json.dumps(manifest).encode())
    assert train() == 1
    assert name in last_error(capsys)
    assert sorted(map(str, pathlib.Path().rglob("x"))) == []


def test_an_output_that_is_missing_at_kaggle_is_named(
    kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = kernels.Kernels.outputs
    monkeypatch.setattr(
        kernels.Kernels, "outputs",
        lambda self, slug: {name: link for name, link in outputs(self, slug).items() if "best.pt" not in name},
    )  # fmt: skip
    assert train() == 1
    assert "Kaggle does not have runs/tiny/fold0/best.pt" in last_error(capsys) and not FOLD.exists()


def test_a_run_that_was_trained_here_is_not_trained_there(kaggle: Kaggle, capsys: Capture) -> None:
    FOLD.mkdir(parents=True)
    (FOLD / "last.pt").write_text("my own")
    assert train() == 1
    assert "runs/tiny/fold0/last.pt was made here" in last_error(capsys) and not kaggle.kernels.sessions


MADE_HERE = [
    ("train", "runs/tiny/fold1/config.yaml"), ("refine", "runs/tiny/fold0/refiner.pt"),
    ("validate", "runs/tiny/fold2/best.pt"), ("validate", "runs/tiny/oof/fold0.npz"),
    ("validate", "runs/tiny/threshold.json"), ("predict", "runs/tiny/threshold.json"),
    ("predict", "submissions/tiny.csv.gz"),
]


def test_what_was_made_here_is_seen_before_a_session_starts(kaggle: Kaggle, capsys: Capture) -> None:
    assert train() == 0
    for stage, made in MADE_HERE:
        pathlib.Path(made).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(made).write_text("my own")
        assert command(stage, "--set", "train.epochs=4") == 1
        assert f"{made} was made here" in last_error(capsys)
        pathlib.Path(made).unlink()
    assert len(kaggle.kernels.sessions) == 1
    pathlib.Path("runs/tiny/fold0.bak").mkdir()
    pathlib.Path("runs/tiny/fold0.bak/best.pt").write_text("my own")  # a copy is no fold
    assert command("validate") == 0 and len(kaggle.kernels.sessions) == 2


def test_what_an_earlier_session_handed_on_and_was_changed_here_is_seen_before_the_next_starts(
    kaggle: Kaggle, capsys: Capture
) -> None:
    behave(kaggle, "table")
    assert train() == 0
    pathlib.Path("runs/tiny/folds.csv").write_text("my own")
    assert command("validate") == 1
    assert "runs/tiny/folds.csv was made here" in last_error(capsys) and len(kaggle.kernels.sessions) == 1


@pytest.mark.parametrize("stage", ["refine", "validate", "predict"])
def test_a_stage_after_training_needs_a_session_that_has_trained(
    kaggle: Kaggle, capsys: Capture, stage: str
) -> None:
    assert command(stage) == 1
    assert "run `make train ON=kaggle RUN=tiny` first" in last_error(capsys) and not kaggle.kernels.sessions


def test_a_known_mistake_of_its_own_masks_ends_no_session(kaggle: Kaggle) -> None:
    """What Kaggle would refuse does; and `submit` checks again."""
    assert train() == 0 and command("predict") == 0
    last = kaggle.kernels.sessions[max(kaggle.kernels.sessions)][0]
    job = read_job(last.request["text"])
    assert job and [stage[:2] for stage in job.stages] == [["predict", "--on-bad-image"], ["check", "--force"]]
    assert "Made by `make predict ON=kaggle`" in last.request["text"]


def test_a_file_that_was_made_here_meanwhile_is_not_replaced(
    kaggle: Kaggle, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = remote.follow

    def write_then_follow(*arguments: object) -> kernels.Status:
        FOLD.mkdir(parents=True)
        (FOLD / "best.pt").write_text("my own")
        return follow(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(remote, "follow", write_then_follow)
    assert train() == 1
    assert "runs/tiny/fold0/best.pt here is not what an earlier session wrote" in last_error(capsys)
    assert [path.name for path in FOLD.iterdir()] == ["best.pt"] and (FOLD / "best.pt").read_text() == "my own"


def test_the_message_of_a_submission_says_that_its_weights_came_from_kaggle(kaggle: Kaggle) -> None:
    assert train() == 0
    digest = sha256(FOLD / "best.pt")
    facts = {"sha256": "0" * 64, "runs": ("tiny",), "folds": (0,), "threshold": 0.5}
    for value, there in ((digest, True), ("1" * 64, False)):
        origin = Provenance(**facts, checkpoints={str(FOLD / "best.pt"): value})  # type: ignore[arg-type]
        assert ("trained on Kaggle" in describe(origin)) == there


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_no_secret_is_sent_or_shown(kaggle: Kaggle, capsys: Capture) -> None:
    assert train() == 0
    ((session,),) = kaggle.kernels.sessions.values()
    output = capsys.readouterr()
    log = "".join(event["data"] for event in session.events)
    assert "environment: " in log
    assert not leaks(session.request["text"] + log + output.out + output.err) and "KAGGLE" not in log


def test_uncommitted_code_is_sent_only_on_demand(
    kaggle: Kaggle, capsys: Capture, checkout: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = checkout / "pipeline/__main__.py"
    committed = path.read_text()
    try:
        path.write_text(committed.replace("begins", "changed"))
        assert train() == 1
        assert "pipeline/__main__.py is not as committed" in last_error(capsys) and not kaggle.kernels.sessions
        assert train("--force") == 0
        assert "train changed" in capsys.readouterr().out
    finally:
        path.write_text(committed)
    ((session,),) = kaggle.kernels.sessions.values()
    job = read_job(session.request["text"])
    assert job and len(job.commit) == 40 and not job.clean


def test_a_packed_checkout_knows_its_commit(
    checkout: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "packed-commit.json"
    state.write_text(json.dumps({"commit": "1" * 40, "clean": True}))
    monkeypatch.setattr(git, "__file__", str(tmp_path / "git.py"))
    monkeypatch.setattr(git, "PACKED_COMMIT", state)
    assert git.commit() == "1" * 40 and git.is_clean()


def test_files_of_a_job_may_lie_where_outputs_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkout/runs").mkdir(parents=True)
    (tmp_path / "working").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    table = "runs/cpu/report/suspects.csv"
    job = Job(
        run="x", stages=[["train"]], files={table: "image\n"}, gpu="none", packages=[], sample_table="s.csv",
        folder="data/x", commit="", clean=False, code="1",
    )  # fmt: skip
    prepare_checkout(job, tmp_path / "working")
    assert pathlib.Path(table).read_text() == (tmp_path / "working" / table).read_text() == "image\n"


def test_a_job_is_read_back_from_its_script(checkout: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "CHECKOUT", checkout)
    job = Job(
        run="a'b", stages=[["train", "--set", "a.b=\"\\n'''\n😀"]], files={"x.yaml": "é\n"}, gpu="none", packages=[],
        sample_table="s.csv", folder="data/x", commit="", clean=False, code="1",
    )  # fmt: skip
    script = pack("a title", job)
    compile(script, "script", "exec")
    assert read_job(script) == job and read_job("print(1)") is None
    assert job.tag == job.model_copy(update={"code": "2", "commit": "3"}).tag
    assert job.tag != job.model_copy(update={"gpu": "NvidiaTeslaT4"}).tag
    assert job.tag == job.model_copy(update={"stages": [[*job.stages[0], "--debug"]]}).tag  # the same session


def test_what_the_image_lacks_is_installed_only_where_it_is_needed() -> None:
    assert needed_packages(Settings()) == []
    for override in ({"model": {"arch": "smp.Unet"}}, {"loss": {"focal": 1.0}}):
        assert needed_packages(Settings.model_validate(override))


@pytest.mark.parametrize("setting", ["data.pseudo", "train.init_from", "refine.init_from", "model.encoder_weights"])
def test_what_stays_here_is_refused_before_a_session_starts(setting: str) -> None:
    section, key = setting.split(".")
    with pytest.raises(Problem, match=f"^{setting} is x.pt, which is not sent to Kaggle"):
        remote.check_nothing_large(Settings.model_validate({section: {key: "x.pt"}}))
    remote.check_nothing_large(Settings())
    remote.check_nothing_large(Settings.model_validate({"model": {"arch": "smp.Unet", "encoder_weights": "imagenet"}}))


def test_names_of_kernels() -> None:
    from pipeline.carvana import CARVANA
    slugs = [remote.slug_of(Run(name), 1, CARVANA) for name in ("unet_640", "unet-640", "Ü", "x" * 99)]
    assert len(set(slugs)) == 4 and all(re.fullmatch("[a-z0-9-]{5,45}", slug) for slug in slugs)
    assert slugs[0].startswith("unet-640-") and slugs[2].startswith("run-")


@pytest.mark.parametrize("folder", ["carvana", "competitions/carvana", "a/b/c"])
def test_the_competition_is_found_wherever_it_is_mounted(tmp_path: pathlib.Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "sample.csv.zip").touch()
    assert find_competition(tmp_path, "sample.csv") == tmp_path / folder
    with pytest.raises(Problem, match="accept the competition's rules"):
        find_competition(tmp_path, "other.csv")
