"""Run a command of this project: show what it prints, return it, and stop the command when its time is over."""
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # as pipeline/__main__.py has it
SAVING_S = 60.0  # time that a training gets to end its step and save, before it is killed


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # its exit code; below 0, the number of the signal that killed it
    printed: str  # on stdout and stderr
    seconds: float
    was_stopped: bool  # its time was over

    @property
    def last_line(self) -> str:
        """Return the last line that is not empty: of a command that failed, its sentence."""
        return next((line.strip() for line in reversed(self.printed.splitlines()) if line.strip()), "")


def run(arguments: list[str], seconds: float | None = None, environment: dict[str, str] = {}) -> Ended:
    """Run `python ARGUMENTS`, and send SIGTERM after so many seconds; a stage that trains saves then, and resumes.

    A signal that reaches this process meanwhile, or Ctrl+C, stops the command in the same way.
    """
    begun, stopped = time.monotonic(), threading.Event()
    print(f"\n$ python {' '.join(arguments)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=ALLOCATOR | os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip

    def stop() -> None:
        stopped.set()
        process.terminate()

    timers = [threading.Timer(max(0.1, seconds), stop)] if seconds is not None else []
    timers += [threading.Timer(max(0.1, seconds) + SAVING_S, process.kill)] if seconds is not None else []
    for timer in timers:
        timer.daemon = True
        timer.start()
    lines: list[str] = []
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            lines.append(line)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        for timer in timers:
            timer.cancel()
    return Ended(code, "".join(lines), time.monotonic() - begun, stopped.is_set())


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
