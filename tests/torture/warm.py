"""Stages as children of a process that has imported everything: a start costs a fork, not two seconds.

A child may carry a `Plan`: to die, or to be refused, at its n-th step towards the disk, or in the middle of a write.
Steps are what changes the file system: opening a file to write, forcing it onto the disk, renaming, linking, removing,
making a folder; the interpreter's own audit events report them. Dying before each of them, and never after, misses
nothing: after one is before the next.
"""
import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import pathlib
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import torch

from pipeline.runtime import git
from pipeline.__main__ import main
from pipeline.kaggle import client, kernels, remote, retry
from pipeline.synthetic import write_competition
from pipeline.kaggle import download, submit
from pipeline import folds, predict, refine, threshold, train, validate
from pipeline.report import report
from pipeline.data import shrink
from tests import small_checkout

# Imported before any fork.
STAGES_AT_HAND = (
    write_competition, download, folds, predict, refine, report, shrink, submit, threshold, train, validate
)  # fmt: skip
CHANGES = {"os.remove": 0, "os.rename": 1, "os.link": 1, "os.mkdir": 0, "os.rmdir": 0}  # event -> place of its path
LONGEST_S = 120.0
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
Todo = Callable[[], Any] | None  # to be called in a child


@dataclass(frozen=True)
class Plan:
    """What happens to a child; nothing without arguments."""

    die_at: int | None = None  # killed before this step, counted from 0
    fail_at: int | None = None  # this step is refused with `errno` ...
    for_good: bool = False  # ... and so are all that follow
    errno: int = 0
    die_after_s: float | None = None  # killed from outside
    file_bytes: int | None = None  # no file may grow beyond: the write stops there ...
    limit_at: int | None = None  # ... from this step on, without it from the beginning ...
    die_of_it: bool = False  # ... and the process dies of it, else the rest of the write is refused (EFBIG)
    stop_at_lock: bool = False  # stopped (SIGSTOP) as soon as it holds a lock
    do_at: int | None = None  # before this step ...
    do: Todo = None  # ... this is called


@dataclass
class Ended:
    """How a child ended."""

    code: int  # exit code, or minus the signal
    seconds: float
    out: str
    err: str
    steps: list[str] = field(default_factory=list)  # towards the disk; none of one that was killed elsewhere than there
    hung: bool = False  # it came to no end in `LONGEST_S`, and was killed for that

    @property
    def died(self) -> bool:
        """As a plan wants it: of a crash, or after a hang, nothing is known that a kill would show."""
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ) and not self.hung

    def complaint(self, stage: str) -> str:
        """Return what is wrong with a refusal: it must be exit code 1 and one sentence; "" if it was."""
        lines = self.err.splitlines()
        if self.code != 1 or len(lines) != 1 or not lines[0].startswith(f"{stage}: "):
            return f"{self.summary()}, and said: {self.err[-1500:] or 'nothing'}"
        return ""

    def summary(self) -> str:
        return f"no end after {LONGEST_S:.0f} s" if self.hung else f"exit code {self.code}"


def be_ready() -> None:
    """Once in the parent: no threads, which a fork would lose, and what an optimiser imports at its first step."""
    importlib.import_module("torch._dynamo")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def end_with_parent() -> None:
    """In a child: a harness that is stopped leaves none behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stay_on_the_cpu() -> None:
    """In a child: there the same bits come out each time, and a GPU is not for a fork of one that has used it."""
    torch.cuda.is_available = lambda: False


def run(
    folder: pathlib.Path, arguments: list[str], plan: Plan = Plan(), before: Todo = None, after: Todo = None
) -> Ended:
    """`python -m pipeline WORDS` in a folder. before, after: called in the child."""
    return start(folder, arguments, plan, before, after).wait(plan.die_after_s)


def start(
    folder: pathlib.Path, arguments: list[str], plan: Plan = Plan(), before: Todo = None, after: Todo = None
) -> "Child":
    ours, theirs = zip(os.pipe(), os.pipe(), os.pipe())  # what it says, what it complains of, its steps
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            end_with_parent()
            code = child(folder, arguments, plan, before, theirs)
            if after:
                after()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    for pipe in theirs:
        os.close(pipe)
    return Child(pid, ours, time.monotonic())


@dataclass
class Child:
    """One that was started and not yet waited for."""

    pid: int
    pipes: tuple[int, ...]
    began: float

    def wait(self, die_after_s: float | None = None) -> Ended:
        """Its end; it is killed after that time, or when it hangs."""
        limit_s, hung = LONGEST_S if die_after_s is None else die_after_s, False
        while True:
            pid_ended, status = os.waitpid(self.pid, os.WNOHANG)
            seconds = time.monotonic() - self.began
            if pid_ended:
                break
            if seconds >= limit_s:
                hung = die_after_s is None
                (os.killpg if hung else os.kill)(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
                break
            time.sleep(min(0.002, max(0.0, limit_s - seconds)))
        out, err, steps = map(drained, self.pipes)
        return Ended(os.waitstatus_to_exitcode(status), seconds, out, err, json.loads(steps or "[]"), hung)


def drained(pipe: int) -> str:
    """What is in a pipe now; its workers may hold the other end for seconds yet."""
    os.set_blocking(pipe, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(pipe, 2**20):
            data += piece
    os.close(pipe)
    return data.decode(errors="replace")


def child(folder: pathlib.Path, arguments: list[str], plan: Plan, before: Todo, pipes: tuple[int, ...]) -> int:
    for number, pipe in enumerate(pipes[:2], start=1):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 2**20)
        os.dup2(pipe, number)
    # Pipes and no files, to which a limit of their size would apply as well.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    os.chdir(folder)
    stay_on_the_cpu()
    git.commit, git.is_clean = lambda: "", lambda: False  # they would change while somebody works in the checkout
    shorten_pauses()
    if before:
        before()
    if plan.limit_at is None:
        limit_files(plan)
    if plan.stop_at_lock:
        stop_at_first_lock()
    steps: list[str] = []
    fcntl.fcntl(pipes[2], fcntl.F_SETPIPE_SZ, 2**20)
    record_steps(folder, plan, steps, lambda: os.write(pipes[2], json.dumps(steps).encode()))
    try:
        return main(arguments)
    finally:
        watching.clear()
        os.write(pipes[2], json.dumps(steps).encode())


def limit_files(plan: Plan) -> None:
    if plan.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if plan.die_of_it else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.file_bytes, resource.RLIM_INFINITY))


def stop_at_first_lock() -> None:
    flock = fcntl.flock

    def lock_and_stop(file: Any, operation: int) -> None:
        flock(file, operation)
        fcntl.flock = flock
        os.kill(os.getpid(), signal.SIGSTOP)

    fcntl.flock = lock_and_stop


def shorten_pauses() -> None:
    """Wait less for the fake Kaggle, as in tests/test_submit.py."""
    retry.FIRST_PAUSE_S, retry.ANSWER_S, client.SEARCH_PAUSE_S = 0.01, 5.0, 0.01
    submit.FIRST_POLL_S, submit.LONGEST_POLL_S, submit.SEARCH_PAUSES_S = 0.01, 0.1, (0.01, 0.5)
    remote.FIRST_PAUSE_S, remote.LONGEST_PAUSE_S, kernels.SEARCH_PAUSE_S = 0.02, 0.1, 0.1


# --- steps towards the disk -----------------------------------------------------------------------

watching: list[bool] = []  # while it holds something, in a child


def record_steps(folder: pathlib.Path, plan: Plan, steps: list[str], notify: Callable[[], Any]) -> None:
    """Note each step within the folder, and let the plan have its way; for good, as audit hooks cannot be removed.

    notify: called before a death at a step, since nothing can report it afterwards.
    """
    inside, fsync = f"{folder}{os.sep}", os.fsync

    def step(what: str, path: Any) -> None:
        if not watching:
            return
        number = len(steps)
        steps.append(f"{what} {os.fspath(path)}".replace(inside, ""))
        if number == plan.die_at:
            notify()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == plan.limit_at:
            limit_files(plan)
        if number == plan.do_at and plan.do:
            plan.do()
        if plan.fail_at is not None and (number == plan.fail_at or plan.for_good and number > plan.fail_at):
            raise OSError(plan.errno, os.strerror(plan.errno), path)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            if isinstance(path, (str, bytes, os.PathLike)) and flags & writes and is_inside(path):
                step("open", os.fsdecode(path))
        elif event in CHANGES:
            path = args[CHANGES[event]]
            if args[-1] not in (-1, None) or is_inside(path):  # a number of a folder: rmtree within the folder
                step(event, os.fsdecode(path))

    def is_inside(path: Any) -> bool:
        return os.path.abspath(os.fsdecode(path)).startswith(inside)

    def watched_fsync(file: int) -> None:
        step("fsync", os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    os.fsync = watched_fsync  # type: ignore[assignment]
    sys.addaudithook(hook)
    watching.append(True)


# --- stages that start processes ------------------------------------------------------------------


def as_no_module() -> None:
    """`before` of a child that starts Python anew, as drawing does: without this module and all that it imports."""
    __main__ = sys.modules["__main__"]
    __main__.__spec__ = None
    __main__.__dict__.pop("__file__", None)


def run_stages_within() -> None:
    """`before` of a child whose stage runs others: in this very process, so that their steps are steps of it."""

    def run_stage(stage: str, *arguments: str) -> None:
        if code := main([stage, *arguments]):
            raise SystemExit(code)

    submit.run_stage = run_stage  # type: ignore[assignment]


# --- a session on Kaggle ---------------------------------------------------------------------------

checkouts: list[pathlib.Path] = []  # one whose stages take no time


def make_checkout_once(folder: pathlib.Path) -> None:
    checkouts[:] = [small_checkout.make(folder)]


def send_small_checkout() -> None:
    """`before` of a child: the session is real, and its stages only write their files."""
    git.CHECKOUT = checkouts[0]


# --- drawing --------------------------------------------------------------------------------------

drawn: dict[str, list[write_competition.CarImage]] = {}  # by car id


def draw_once(cars: int, test_cars: int) -> None:
    """In the parent, so that children who draw have it done already: it is the writing that is tried."""
    for car in sum(write_competition.invent_cars(cars, test_cars, seed=0), []):
        drawn[car.car_id] = write_competition.draw_car(car)


def draw_from_memory() -> None:
    """`before` of a child."""
    def stored_images(cars: list[write_competition.DemoCar], workers: int) -> Iterator[write_competition.CarImage]:
        return (image for car in cars for image in drawn[car.car_id])

    write_competition.draw_images = stored_images  # type: ignore[assignment]
