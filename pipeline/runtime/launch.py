"""Starting stages as processes: on several GPUs of this machine, or one stage from another.

`train` on one fold uses all GPUs together; on several folds it trains a fold on each, which is the faster use.
For several machines, start `torchrun … -m pipeline train …` on each of them with torchrun's own flags, or
`… predict …` if all of them see the same folder.
"""
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO

import torch

from pipeline.runtime.memory import PROCESSES_HERE
from pipeline.runtime.problem import Problem
from pipeline.runtime.progress import print_above_bars
from pipeline.runtime.signals import StopSignals

POLL_S = 0.2
WATCH_S = 2.0  # between two calls of `watch` while a stage runs
LIBC = ctypes.CDLL(None)  # loaded before a fork
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def train(arguments: list[str], fold_numbers: list[int], gpus: int) -> None:
    """Run `python -m pipeline ARGUMENTS`, which is `train` or `refine`, on as many processes as there are `gpus`."""
    if len(fold_numbers) == 1:
        launch_processes(arguments, gpus)
    else:
        train_fold_per_gpu(arguments, fold_numbers, gpus)


def check_gpus(gpus: int) -> None:
    available = torch.cuda.device_count()
    if torch.cuda.is_available() and gpus > available:
        raise Problem(f"--gpus is {gpus}, but this machine has {available}.")


def launch_processes(arguments: list[str], gpus: int) -> None:
    """Run `python -m pipeline ARGUMENTS` in as many processes as there are `gpus`, as one group.

    That is torchrun on this machine. Its own report of a failure is left out; the stage has printed a better one.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_gpus(gpus)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    divide_machine(os.environ, gpus)
    configuration = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=gpus, run_id=str(os.getpid()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0,
    )
    try:
        elastic_launch(configuration, sys.executable)("-m", "pipeline", *arguments)
    except SignalException:
        raise SystemExit(1) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            raise SystemExit(1) from None
        killed = f"Process {rank} was killed by signal {-failure.exitcode}, as happens when memory runs out"
        raise Problem(f"{killed}; the same command resumes from what is saved.") from None


def train_fold_per_gpu(arguments: list[str], fold_numbers: list[int], gpus: int) -> None:
    """Run one trainer per GPU; as soon as one ends, the next fold gets its GPU."""
    check_gpus(gpus)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    free_gpus: SimpleQueue[str] = SimpleQueue()
    for gpu in visible.split(",") if visible else map(str, range(gpus)):
        free_gpus.put(gpu)
    running: list[subprocess.Popen] = []
    with StopSignals() as stop, ThreadPoolExecutor(gpus) as pool:

        def train_one(number: int) -> int:
            if stop.asked:
                return 1
            gpu = free_gpus.get()
            process = start_trainer(arguments, number, gpu, gpus)
            running.append(process)
            assert process.stdout is not None
            for line in process.stdout:
                print(f"fold {number} | {line}", end="", flush=True)
            free_gpus.put(gpu)
            return process.wait()

        exit_codes = {number: pool.submit(train_one, number) for number in fold_numbers}
        terminated: list[subprocess.Popen] = []
        while not all(code.done() for code in exit_codes.values()):
            time.sleep(POLL_S)
            for process in list(running) if stop.asked else []:
                if process not in terminated:  # it may have been starting when the signal came
                    process.terminate()
                    terminated.append(process)
    if failed := [number for number, code in exit_codes.items() if code.result() != 0]:
        raise Problem(f"fold {', '.join(map(str, failed))} did not end well; the same command trains what is left.")


def start_trainer(arguments: list[str], fold_number: int, gpu: str, gpus: int) -> subprocess.Popen:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    divide_machine(environment, gpus)
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "pipeline", *arguments, "--fold", str(fold_number), "--gpus", "1"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,  # so that Ctrl+C reaches it once, from this process
        preexec_fn=stop_with_parent,
    )


def divide_machine(environment: MutableMapping[str, str], processes: int) -> None:
    """Set for one of several processes how many threads it has, so that all have as many as there are cores.

    And how many processes share this machine, for those that divide something else, such as /dev/shm.
    """
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    environment[PROCESSES_HERE] = str(processes)


def stop_with_parent() -> None:
    """In a new process: get SIGTERM when its parent is killed, which cannot forward a signal then. Linux only."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_stage(
    stage: str, *arguments: str, environment: dict[str, str] = {}, watch: Callable[[], object] | None = None
) -> None:
    """Run `python -m pipeline STAGE ARGUMENTS` with more environment variables; exit with its code if that is not 0.

    For stages that run others, since no stage imports another. The stage has printed why it failed. When this process
    is stopped, the stage gets the time to save: Ctrl+C reaches it directly, and SIGTERM is forwarded.
    watch: called every WATCH_S, to show a bar; the stage shows none then, and its lines are printed above that one.
    """
    signals: list[int] = []
    process: subprocess.Popen | None = None

    def forward(number: int, frame: object) -> None:
        signals.append(number)
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    piped = subprocess.PIPE if watch else None
    unbuffered = {"PYTHONUNBUFFERED": "1"} if watch else {}
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.stdout.flush()  # what was printed before comes before what the stage prints
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", stage, *arguments], env=os.environ | unbuffered | environment,
            stdout=piped, stderr=piped, text=True, errors="replace", preexec_fn=stop_with_parent,
        )  # fmt: skip
        if signal.SIGTERM in signals:
            process.terminate()
        code = wait_and_watch(process, watch) if watch else process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        raise Problem(f"The stage {stage} was killed by {signal.Signals(-code).name}; the same command resumes.")
    if code > 0:
        raise SystemExit(code)
    if signals:
        raise KeyboardInterrupt


def wait_and_watch(process: subprocess.Popen, watch: Callable[[], object]) -> int:
    """Print the lines of a process above the bars, and call `watch` now and then; return its exit code."""

    def relay(source: IO[str], target: IO[str]) -> None:
        for line in source:
            with contextlib.suppress(OSError, ValueError):  # such as a closed pipe: a full one would stop the stage
                print_above_bars(line.rstrip("\n"), target)

    assert process.stdout is not None and process.stderr is not None
    with ThreadPoolExecutor(2) as pool:
        pool.submit(relay, process.stdout, sys.stdout)
        pool.submit(relay, process.stderr, sys.stderr)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(WATCH_S)
            with contextlib.suppress(OSError):
                watch()
