"""Being asked to stop: Ctrl+C, and SIGTERM as Kaggle and spot machines send it."""
import signal


class StopSignals:
    """From now on the first signal only sets `asked`, so that a step can be finished and saved.

    A second Ctrl+C interrupts at once. `restore` brings back what a signal did before.
    """

    def __init__(self) -> None:
        self.asked = False
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
