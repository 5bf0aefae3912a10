"""Being asked to stop: Ctrl+C, and SIGTERM as Kaggle and spot machines send it."""
import signal


class StopSignals:
    """`with StopSignals() as stop:` the first signal only sets `stop.asked`, so that a step can be finished
    and saved; a second one does what it did before.
    """

    asked = False

    def __enter__(self) -> "StopSignals":
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        self.restore()

    def ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
