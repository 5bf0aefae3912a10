"""Iterating over work: every result in order, few items held, and timers that are due in time."""
import threading
import time

import pytest

from pipeline.runtime.progress import Timer, batches, in_order


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.01 if number < 3 else 0)
        return number**2

    assert list(in_order(slow_at_first, range(40), threads)) == [number**2 for number in range(40)]
    assert list(in_order(slow_at_first, [], threads)) == []


def test_items_are_drawn_when_they_are_needed_and_by_the_caller() -> None:
    drawn = []

    def items():
        for number in range(100):
            assert threading.current_thread() is threading.main_thread()
            drawn.append(number)
            yield number

    results = in_order(str, items(), threads=2)
    for number in range(10):
        assert next(results) == str(number)
        assert len(drawn) <= number + 4
    results.close()


def test_an_error_in_a_thread_is_raised_where_its_result_is_requested() -> None:
    results = in_order(lambda number: 6 // number, [3, 2, 0, 1], threads=2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches_leave_nothing_out() -> None:
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []


def test_a_timer_is_due_after_its_seconds_and_at_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    timer, with_steps = Timer(5), Timer(5, every_steps=3)
    assert [with_steps.is_due(step) for step in (1, 2, 3)] == [False, False, True] and not timer.is_due(3)
    monkeypatch.setattr(time, "monotonic", lambda: 105.5)
    assert timer.is_due(1)
    timer.restart()
    assert not timer.is_due(1)
