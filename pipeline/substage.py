"""A stage as a command of its own, for the stages that call others: no stage imports another."""
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from pipeline.problem import Problem


def run_stage(stage: str, *words: str, environment: dict[str, str] = {}) -> None:
    """`python -m pipeline STAGE WORDS`, with more variables; leaves with its exit code when it is not 0.

    The stage has then said why. Ctrl+C reaches both processes, and the stage is given the time to save.
    """
    command = [sys.executable, "-m", "pipeline", stage, *words]
    sys.stdout.flush()  # what was said before comes before what it says
    with subprocess.Popen(command, env=os.environ | environment) as process, leaving_signals_to(process):
        code = process.wait()
    if code < 0:
        raise Problem(f"The stage {stage} was killed by {signal.Signals(-code).name}; the same command goes on.")
    if code > 0:
        raise SystemExit(code)


@contextlib.contextmanager
def leaving_signals_to(process: subprocess.Popen) -> Iterator[None]:
    """Wait on through Ctrl+C, and hand SIGTERM on."""
    interrupted: list[int] = []
    handlers = {
        signal.SIGINT: lambda number, frame: interrupted.append(number),
        signal.SIGTERM: lambda number, frame: process.send_signal(number),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted and process.returncode == 0:
        raise KeyboardInterrupt
