"""Steps that follow one another: a line for each, a bar over all, and the time that is left, as far as it is known."""
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pipeline.runtime.progress import duration, print_above_bars, progress

Watch = Callable[[], None]  # shows the bar as it is now
SecondsOf = Callable[[str], float | None]  # a kind of work -> seconds of a unit; None before one was measured


class Work(NamedTuple):
    """What a step has to do that takes long."""

    kind: str  # which has a speed of its own, such as training
    total: float  # units
    count_done: Callable[[], float] = lambda: 0.0  # units; 0 where that cannot be seen before the step has ended


class Step(NamedTuple):
    """A step. run: calls the function it is given now and then, or prints by itself and never does."""

    title: str
    run: Callable[[Watch], None]
    is_done: Callable[[], bool] = lambda: False
    work: tuple[Work, ...] = ()


def estimate(work: Iterable[Work], seconds_of: SecondsOf) -> tuple[float, list[str]]:
    """Return the seconds that work takes, and the kinds of work whose speed is not known yet, which are left out."""
    seconds, unknown = 0.0, list[str]()
    for item in work:
        left = max(0.0, item.total - item.count_done())
        speed = seconds_of(item.kind) if left else 0.0
        if speed is None:
            unknown += [item.kind] if item.kind not in unknown else []
        else:
            seconds += left * speed
    return seconds, unknown


def time_left(seconds: float, unknown: list[str]) -> str:
    """Say how long it takes, and what that leaves out."""
    if not seconds:
        return f"the time of {' and '.join(unknown)} is not measured yet" if unknown else "nearly done"
    return " and ".join([f"about {duration(seconds)} left", *(f"{kind}, not measured yet" for kind in unknown)])


class Countdown:
    """The time that a step and those after it take: less the time since the last of its work was seen to be done."""

    def __init__(self, step: Step, later: list[Step], seconds_of: SecondsOf):
        self.step, self.seconds_of, self.started = step, seconds_of, time.monotonic()
        self.later = estimate([item for each in later if not each.is_done() for item in each.work], seconds_of)
        self.done_before = [item.count_done() for item in step.work]
        self.seen, self.since = (-1.0, [""]), self.started
        self.last_done, self.speed = -1.0, 0.0

    def text(self) -> str:
        now = time.monotonic()
        if (current := self.measured() or estimate(self.step.work, self.seconds_of)) != self.seen:
            self.seen, self.since = current, now
        (seconds, unknown), (later_seconds, later_unknown) = self.seen, self.later
        kinds = list(dict.fromkeys([*unknown, *later_unknown]))
        return time_left(max(0.0, seconds - (now - self.since)) + later_seconds, kinds)

    def measured(self) -> tuple[float, list[str]] | None:
        """Return the seconds of what is left at the speed of what this step has done, if that is of one kind."""
        if len(self.step.work) != 1:
            return None
        (item,), (before,) = self.step.work, self.done_before
        if (done := item.count_done()) <= before:
            return None
        if done != self.last_done:
            self.last_done, self.speed = done, (time.monotonic() - self.started) / (done - before)
        return (item.total - done) * self.speed, []

    def fraction(self) -> float:
        """Return how much of the step is done, 0 to 1."""
        total = sum(item.total for item in self.step.work)
        return min(1.0, sum(item.count_done() for item in self.step.work) / total) if total else 0.0


def run_steps(steps: list[Step], seconds_of: SecondsOf) -> None:
    """Run the steps that are not done, with a line for each and a bar over all."""
    with progress(total=len(steps), bar_format="{desc} |{bar}| {postfix}") as bar:
        for number, step in enumerate(steps):
            label = f"{number + 1}/{len(steps)} {step.title}"
            if step.is_done():
                print_above_bars(f"{label}: done already")
                continue
            countdown = Countdown(step, steps[number + 1 :], seconds_of)
            print_above_bars(f"{label}: {countdown.text()}")
            bar.clear()  # until a process is watched, which shows it again: a call prints by itself

            def watch() -> None:
                bar.n = number + countdown.fraction()
                bar.set_description_str(label, refresh=False)
                bar.set_postfix_str(countdown.text())

            step.run(watch)
