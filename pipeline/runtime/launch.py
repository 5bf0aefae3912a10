"""Several GPUs of one machine: all of them on one thing, or, to train folds, a fold on each, which is the faster use.

Several machines together: start `torchrun … -m pipeline train …` on each of them with torchrun's own flags, or
`… predict …` where all of them see the same folder.
"""
import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from pipeline.runtime.problem import Problem
from pipeline.runtime.signals import StopSignals


def train(words: list[str], fold_numbers: list[int], gpus: int) -> None:
    """The command line `words` of the stage `train` once more, in as many processes as there are `gpus`."""
    if len(fold_numbers) == 1:
        launch_processes(words, gpus)
    else:
        check_gpus(gpus)
        a_fold_each(words, fold_numbers, gpus)


def check_gpus(gpus: int) -> None:
    there = torch.cuda.device_count()
    if torch.cuda.is_available() and gpus > there:
        raise Problem(f"--gpus is {gpus}, but this machine has {there}.")


def launch_processes(words: list[str], gpus: int) -> None:
    """The command line `words` once more, in as many processes as there are `gpus`, which know of one another.

    That is torchrun on this machine; its own account of a failure is left out, the stage has told it better.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_gpus(gpus)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    set_thread_count(os.environ, gpus)
    configuration = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=gpus,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(configuration, sys.executable)("-m", "pipeline", *words)
    except SignalException:
        raise SystemExit(1) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            raise SystemExit(1) from None
        raise Problem(
            f"Process {rank} was killed by signal {-failure.exitcode}, as happens when memory runs out; "
            "the same command goes on from what is saved."
        ) from None


def a_fold_each(words: list[str], fold_numbers: list[int], gpus: int) -> None:
    """One trainer a GPU; as soon as one ends, the next fold has its GPU."""
    free: SimpleQueue[str] = SimpleQueue()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    for gpu in (given.split(",") if given else map(str, range(gpus))):
        free.put(gpu)
    running: list[subprocess.Popen] = []
    with StopSignals() as stop, ThreadPoolExecutor(gpus) as pool:

        def train_one(number: int) -> int:
            if stop.asked:
                return 1
            gpu = free.get()
            environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
            set_thread_count(environment, gpus)
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "pipeline", *words, "--fold", str(number), "--gpus", "1"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl+C reaches it through us, once
            )
            running.append(process)
            assert process.stdout is not None
            for line in process.stdout:
                print(f"fold {number} | {line}", end="", flush=True)
            free.put(gpu)
            return process.wait()

        trained = {number: pool.submit(train_one, number) for number in fold_numbers}
        wait_or_stop(list(trained.values()), running, stop)
    if missing := [number for number, result in trained.items() if result.result() != 0]:
        raise Problem(f"fold {', '.join(map(str, missing))} did not end well; the same command goes on with the rest.")


def wait_or_stop(results: list[Future], running: list[subprocess.Popen], stop: StopSignals) -> None:
    told: list[subprocess.Popen] = []
    while not all(result.done() for result in results):
        time.sleep(0.2)
        for process in list(running) if stop.asked else []:
            if process not in told:  # one may have been starting when we were asked
                process.terminate()
                told.append(process)


def set_thread_count(environment: "os._Environ[str] | dict[str, str]", processes: int) -> None:
    """Threads of one process, so that all of them together have as many as there are cores."""
    environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))


# --- a stage as a command --------------------------------------------------------------------------------------------

# A stage as a command of its own, for the stages that call others: no stage imports another.


def run_stage(stage: str, *words: str, environment: dict[str, str] = {}) -> None:
    """`python -m pipeline STAGE WORDS`, with more variables; leaves with its exit code when it is not 0.

    The stage has then said why. It is given the time to save when we are stopped: Ctrl+C reaches it without us, and
    SIGTERM is handed on.
    """
    stopped_by: list[int] = []
    process: subprocess.Popen | None = None

    def wait_on(number: int, frame: object) -> None:
        stopped_by.append(number)
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    before = {number: signal.signal(number, wait_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        sys.stdout.flush()  # what was said before comes before what it says
        process = subprocess.Popen([sys.executable, "-m", "pipeline", stage, *words], env=os.environ | environment)
        if signal.SIGTERM in stopped_by:
            process.terminate()
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code < 0:
        raise Problem(f"The stage {stage} was killed by {signal.Signals(-code).name}; the same command goes on.")
    if code > 0:
        raise SystemExit(code)
    if stopped_by:
        raise KeyboardInterrupt
