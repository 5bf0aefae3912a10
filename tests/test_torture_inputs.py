"""Every bad input of `make torture`: one sentence, nothing changed, nothing executed; and a few of the good ones."""
import pathlib

import pytest

from tests.torture import inputs, table


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
    quick = [case for case in of_kind("good_inputs", cases) if case.words[0] in ("folds", "check")]
    rows = list(inputs.try_inputs(demo_folder, tmp_path / "tried", quick))
    assert not (worse := [row for row in rows if not row.ok]), table.text_of(worse)


@pytest.mark.parametrize("data, says", [(b"", "exit code 0"), (None, "changed executed")])
def test_the_harness_sees_what_is_wrong(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, says: str
) -> None:
    """A stage that is content with a bad input, and one that executes it."""
    from pipeline.problem import Problem
    from pipeline.stages import threshold

    def stage(run: object) -> None:
        if data is None:
            pathlib.Path("executed").touch()
            raise Problem("Something is wrong.")

    monkeypatch.setattr(threshold, "run", stage)
    (row,) = inputs.try_inputs(demo_folder, tmp_path / "tried", [inputs.bad("x", ("threshold",), lambda place: None)])
    assert not row.ok and says in row.problem
