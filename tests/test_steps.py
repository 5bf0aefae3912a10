"""Steps that follow one another: which run, what is said of the time left, and nothing that was not measured."""
import time
from collections.abc import Callable

import pytest

from pipeline.runtime.steps import Countdown, Step, Work, estimate, run_steps, time_left

SPEEDS: dict[str, float | None] = {"training": 60.0, "predicting": 0.5, "refining": None}


def nothing(watch: Callable[[], None]) -> None:
    pass


@pytest.mark.parametrize(
    "seconds, unknown, text",
    [
        (7384.0, [], "about 2 h 3 min left"),
        (61.0, ["predicting"], "about 1 min left and predicting, not measured yet"),
        (0.0, ["training", "predicting"], "the time of training and predicting is not measured yet"),
        (0.0, [], "nearly done"),
    ],
)
def test_the_time_left_says_what_it_leaves_out(seconds: float, unknown: list[str], text: str) -> None:
    assert time_left(seconds, unknown) == text


def test_an_estimate_adds_what_was_measured_and_names_the_rest() -> None:
    work = [Work("training", 5, lambda: 2.0), Work("refining", 3), Work("predicting", 100), Work("refining", 1)]
    assert estimate(work, SPEEDS.get) == (3 * 60 + 50, ["refining"])
    assert estimate([Work("refining", 3, lambda: 3.0)], SPEEDS.get) == (0.0, [])  # nothing is left to measure


def test_the_time_left_falls_between_two_measurements_and_not_below_that_of_later_steps(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    now, done = 100.0, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    later = [Step("a", nothing, work=(Work("predicting", 240),))]
    later.append(Step("b", nothing, lambda: True, (Work("training", 9),)))
    step = Step("c", nothing, work=(Work("training", 4, lambda: done), Work("training", 0)))
    countdown = Countdown(step, later, SPEEDS.get)
    texts = []
    for now, done in ((100.0, 0.0), (160.0, 0.0), (220.0, 1.0), (1000.0, 1.0)):
        texts.append(countdown.text())
    assert texts == [f"about {minutes} min left" for minutes in (6, 5, 5, 2)]
    assert countdown.fraction() == 0.25


def test_a_step_that_counts_its_images_is_measured_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = 0.0, 40.0  # an earlier start has predicted 40
    monkeypatch.setattr(time, "monotonic", lambda: now)
    countdown = Countdown(Step("predict", nothing, work=(Work("predicting", 100, lambda: done),)), [], SPEEDS.get)
    assert countdown.text() == "about 30 s left"
    now, done = 100.0, 50.0
    assert countdown.text() == "about 8 min left"  # 50 at 10 s each


def test_steps_that_are_done_do_not_run_and_a_bar_counts_them(capsys: pytest.CaptureFixture) -> None:
    ran = []
    steps = [
        Step("first", lambda watch: ran.append("first"), lambda: True),
        Step("second", lambda watch: (ran.append("second"), watch())[0], work=(Work("predicting", 240),)),
        Step("third", lambda watch: ran.append("third"), lambda: "second" not in ran),
    ]
    run_steps(steps, SPEEDS.get)
    assert ran == ["second", "third"]
    assert capsys.readouterr().out.splitlines() == [
        "1/3 first: done already", "2/3 second: about 2 min left", "3/3 third: nearly done"
    ]  # fmt: skip
