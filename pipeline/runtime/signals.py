"""Requests to stop: Ctrl+C, SIGTERM as Kaggle and spot machines send it, and SIGHUP of a terminal that is closed."""
import contextlib
import signal
import sys


class StopSignals:
    """`with StopSignals() as stop:` a signal only sets `stop.asked`, so that a step can be finished and saved.

    A second Ctrl+C interrupts at once. A second SIGTERM does not: `timeout` and make send several for one.
    """

    asked = False

    def __enter__(self) -> "StopSignals":
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it, and the training goes on
            numbers += [signal.SIGHUP]
        self.before = {number: signal.signal(number, self.ask) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, frame: object) -> None:
        was_asked, self.asked = self.asked, True
        if not was_asked:
            with contextlib.suppress(OSError):  # the terminal, or the process that reads a pipe, may be gone
                print("Stopping as soon as this is saved ...", file=sys.stderr, flush=True)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self.before[signal.SIGINT])
