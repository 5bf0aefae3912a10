"""Every bad input of `make torture`: one sentence, nothing changed, nothing executed; and every good one."""
import multiprocessing
import mmap
import pathlib
import re
import time
from collections.abc import Callable

import pytest

from pipeline.runtime.problem import Problem
from pipeline import threshold
from tests.torture import bad_data, inputs, table


@pytest.fixture(scope="module")
def cases() -> list[inputs.Case]:
    return inputs.all_cases()


def of_kind(kind: str, cases: list[inputs.Case]) -> list[inputs.Case]:
    return [case for case in cases if case.kind == kind]


def test_there_are_enough_of_them_and_no_two_of_one_name(cases: list[inputs.Case]) -> None:
    assert len(of_kind("bad_inputs", cases)) >= 60 and len(of_kind("good_inputs", cases)) >= 10
    assert len({case.what for case in cases}) == len(cases)


def test_bad_inputs(cases: list[inputs.Case], demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    rows = list(inputs.try_inputs(demo_folder, tmp_path / "tried", of_kind("bad_inputs", cases)))
    assert not (worse := [row for row in rows if not row.ok]), table.text_of(worse)


def test_good_inputs_that_look_strange(
    cases: list[inputs.Case], demo_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    rows = list(inputs.try_inputs(demo_folder, tmp_path / "tried", of_kind("good_inputs", cases)))
    assert not (worse := [row for row in rows if not row.ok]), table.text_of(worse)


@pytest.mark.parametrize("data, says", [(b"", "exit code 0"), (None, "changed executed")])
def test_the_harness_sees_what_is_wrong(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, says: str
) -> None:
    """A stage that is content with a bad input, and one that executes it."""
    def stage(run: object) -> None:
        if data is None:
            pathlib.Path("executed").touch()
            raise Problem("Something is wrong.")

    monkeypatch.setattr(threshold, "main", stage)
    (row,) = inputs.try_inputs(demo_folder, tmp_path / "tried", [inputs.bad("x", ("threshold",), lambda place: None)])
    assert not row.ok and says in row.problem


def busy() -> None:
    began = time.process_time()
    while time.process_time() - began < 0.6:
        pass


def patient() -> None:
    """As a stage that takes all that goes wrong for a bad file."""
    try:
        time.sleep(30)
    except Exception as error:
        raise Problem("It could not be read.") from error


def greedy() -> None:
    memory = mmap.mmap(-1, 10**8)  # new pages, and none that malloc has kept from the tests before
    for place in range(0, len(memory), mmap.PAGESIZE):
        memory[place] = 1


@pytest.mark.parametrize(
    "do, limit, value, says",
    [(busy, "LONGEST_S", 0.3, "s of a processor"), (patient, "HANGS_S", 0.5, "exit code -9"),
     (greedy, "MOST_MEMORY_MB", 50, r"took (9|1\d)\d MB")],
)  # fmt: skip
def test_the_limits_are_seen(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, do: Callable[[], None],
    limit: str, value: float, says: str,
) -> None:  # fmt: skip
    """Of each case alone: the second is found out like the first."""

    def stage(run: object) -> None:
        do()
        raise Problem("Something is wrong.")

    monkeypatch.setattr(threshold, "main", stage)
    monkeypatch.setattr(inputs, limit, value)
    twice = [inputs.bad(what, ("threshold",), lambda place: None) for what in ("first", "second")]
    for row in inputs.try_inputs(demo_folder, tmp_path / "tried", twice):
        assert not row.ok and re.search(says, row.problem), row.problem


def test_same_pixels_looks_at_each_image(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    place = inputs.copy_place(inputs.make_place(tmp_path / "place", demo_folder), tmp_path / "copy")
    assert bad_data.same_pixels(place)
    first, last = (name.rpartition("/")[2] for name in (min(place.members("test.zip")), max(place.members("test.zip"))))
    place.put(f"demo/{last}", place.members("test.zip")[f"test/{first}"])
    assert not bad_data.same_pixels(place)


def test_workers_of_who_tries_are_left_alone(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A fork has its parent's list of workers: to end them would fail, or end what is not its own."""
    sleeper = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    sleeper.start()
    try:
        outcome = inputs.call(tmp_path, ["threshold", "--run", "nobody"])
        assert outcome.code == 1 and sleeper.is_alive()
    finally:
        sleeper.kill()
        sleeper.join()
