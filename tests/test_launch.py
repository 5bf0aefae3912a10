"""A stage that runs another as a process: exit codes, the time to save when it is stopped, and locks."""
import errno
import os
import pathlib
import subprocess
import sys
import time

import pytest

from pipeline.runtime import launch
from pipeline.runtime.files import locked
from pipeline.runtime.launch import run_stage
from pipeline.runtime.problem import Problem

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def place(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stage_is(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `python -m pipeline STAGE …` by a shell script."""
    path = pathlib.Path("stage.sh").absolute()
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


def test_the_stage_gets_its_arguments_and_variables(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_is('echo "$@ $COLOUR" > printed', monkeypatch)
    run_stage("train", "--run", "x", environment={"COLOUR": "blue"})
    assert pathlib.Path("printed").read_text() == "-m pipeline train --run x blue\n"


@pytest.mark.parametrize("code", [1, 2])
def test_its_exit_code_is_ours(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    stage_is(f"exit {code}", monkeypatch)
    with pytest.raises(SystemExit) as exit:
        run_stage("train")
    assert exit.value.code == code


def test_a_stage_that_is_killed_is_named(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_is("kill -KILL $$", monkeypatch)
    with pytest.raises(Problem, match="train was killed by SIGKILL"):
        run_stage("train")


def test_ctrl_c_leaves_the_stage_time_to_save(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_is("kill -INT $PPID; sleep 0.5; echo > saved", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_stage("train")
    assert pathlib.Path("saved").exists()


def test_sigterm_is_forwarded(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_is("trap 'echo > saved; exit 1' TERM; kill -TERM $PPID; for i in {1..50}; do sleep 0.1; done", monkeypatch)
    with pytest.raises(SystemExit):
        run_stage("train")
    assert pathlib.Path("saved").exists()


def test_lines_of_a_watched_stage_are_printed_above_the_bars(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stage_is("echo one; echo two >&2; test -t 2 && echo terminal; sleep 0.3; echo three; exit 3", monkeypatch)
    monkeypatch.setattr(launch, "WATCH_S", 0.05)
    watched: list[int] = []
    with pytest.raises(SystemExit) as exit:
        run_stage("train", watch=lambda: watched.append(1))
    assert exit.value.code == 3 and len(watched) >= 2
    assert capsys.readouterr() == ("one\nthree\n", "two\n")


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "no reader"), OSError(errno.ENOSPC, "disk full")])
def test_a_watched_stage_goes_on_when_its_lines_cannot_be_printed(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*_: object) -> None:
        raise error

    stage_is("for i in {1..3000}; do echo a line of a hundred characters $i {1..30}; done; echo > saved", monkeypatch)
    monkeypatch.setattr(launch, "WATCH_S", 0.01)
    monkeypatch.setattr(launch, "print_above_bars", fail)
    run_stage("train", watch=fail)
    assert pathlib.Path("saved").exists()


def test_a_stage_is_stopped_when_its_parent_is_killed(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    stage_is("trap 'echo > saved; exit 1' TERM; echo > begun; for i in {1..100}; do sleep 0.1; done", monkeypatch)
    code = f"import sys; sys.executable = {sys.executable!r}; "
    code += "from pipeline.runtime.launch import run_stage; run_stage('x')"
    parent = subprocess.Popen([python, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(pathlib.Path("begun"))
    parent.kill()
    parent.wait()
    wait_for(pathlib.Path("saved"))


def wait_for(path: pathlib.Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


def test_only_one_may_be_in_a_locked_block_and_another_after_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "lock"
    with locked(path, "busy"):
        with pytest.raises(Problem, match="^busy$"), locked(path, "busy"):
            pytest.fail("two in one block")
    with locked(path, "busy"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_problem(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipeline.runtime.files.fcntl.flock", flock)
    with pytest.raises(Problem, match=os.strerror(number)), locked(tmp_path / "lock", "busy"):
        pytest.fail("in a block that is not locked")
