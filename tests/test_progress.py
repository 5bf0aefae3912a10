"""Threads: every result, in order, and never much work in hand."""
import threading
import time

import pytest

from pipeline.runtime.progress import batches, in_order


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_come_in_the_order_of_the_things(threads: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.01 if number < 3 else 0)
        return number**2

    assert list(in_order(slow_at_first, range(40), threads)) == [number**2 for number in range(40)]
    assert list(in_order(slow_at_first, [], threads)) == []


def test_things_are_drawn_as_they_are_wanted_and_by_the_caller() -> None:
    drawn = []

    def things():
        for number in range(100):
            assert threading.current_thread() is threading.main_thread()
            drawn.append(number)
            yield number

    results = in_order(str, things(), threads=2)
    for wanted in range(10):
        assert next(results) == str(wanted)
        assert len(drawn) <= wanted + 4
    results.close()


def test_what_went_wrong_in_a_thread_is_raised_where_its_result_was_wanted() -> None:
    results = in_order(lambda number: 6 // number, [3, 2, 0, 1], threads=2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_batches_leave_nothing_out() -> None:
    assert list(batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(batches([], 3)) == []
