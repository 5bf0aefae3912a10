"""A stage as a command of its own, for the stages that call others: no stage imports another."""
import os
import signal
import subprocess
import sys

from pipeline.runtime.problem import Problem


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
