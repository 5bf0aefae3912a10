"""Being asked to stop: Ctrl+C, and SIGTERM as Kaggle and spot machines send it."""
import signal
import sys


class StopSignals:
    """`with StopSignals() as stop:` a signal only sets `stop.asked`, so that a step can be finished and saved.

    A second Ctrl+C interrupts at once. A second SIGTERM does not: `timeout` and make send several for one.
    """

    asked = False

    def __enter__(self) -> "StopSignals":
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, frame: object) -> None:
        if not self.asked:
            print("Stopping as soon as this is saved ...", file=sys.stderr)
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, self.before[signal.SIGINT])
