"""Scores: public and private mean Dice, as Kaggle computes them."""
import pathlib

import pytest
from submission_rows import CAR, HEADER, NAMES, Rows, good_rows, save

from pipeline import carvana, score
from pipeline.runtime.problem import Problem


def last_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, truth: Rows, submission: Rows) -> str:
    """Score a submission; return the last line that the stage prints."""
    solution = save(tmp_path / "solution.csv", [list(carvana.CARVANA.solution_header), *truth])
    score.main(save(tmp_path / "run.csv.gz", [list(HEADER), *submission]), solution)
    return capsys.readouterr().out.splitlines()[-1]


def test_a_perfect_submission_scores_1(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    truth = [[NAMES[0], CAR, "Public"], [NAMES[1], CAR, "Private"]]
    assert last_line(tmp_path, capsys, truth, [row[:2] for row in truth]) == "public 1.00000  private 1.00000  images 2"


def test_public_and_private_scores_are_means_over_their_images(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    truth = [
        [NAMES[0], "1 4", "Public"],
        [NAMES[1], "1 1000000", "Public"],  # a mean over pixels would be 0.99999...
        [NAMES[2], "1 3", "Private"],
        [NAMES[3], "1 4", "Private"],
        [NAMES[4], "", "Private"],
        [NAMES[5], "1 4", "Ignored"],
    ]
    submission = [
        [NAMES[0], "3 4"],  # 2 * 2 / (4 + 4) = 1/2
        [NAMES[1], "1 1000000"],  # 1
        [NAMES[2], "3 3"],  # 2 * 1 / (3 + 3) = 1/3
        [NAMES[3], ""],  # 0
        [NAMES[4], ""],  # both empty: 1
        [NAMES[5], "5 4"],  # does not count
    ]
    assert last_line(tmp_path, capsys, truth, submission) == "public 0.75000  private 0.44444  images 5"


def test_the_gain_over_another_submission_has_an_interval_over_cars(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    """Two images a car, of a third and two thirds of overlap before, and whole after, but for one private car."""
    cars = [f"{car:012x}" for car in range(8)]
    names = [carvana.image_name(car, code) for car in cars for code in ("01", "02")]
    usages = ["Private"] * 14 + ["Public"] * 2
    solution = save(
        tmp_path / "solution.csv",
        [list(carvana.CARVANA.solution_header), *([name, "1 3", usage] for name, usage in zip(names, usages))],
    )
    before = [[name, "3 3" if number % 2 else "2 3"] for number, name in enumerate(names)]
    after = [[name, "1 3"] for name in names[2:]] + before[:2]
    paths = [save(tmp_path / name, [list(HEADER), *rows]) for name, rows in (("a.csv", before), ("b.csv", after))]
    score.main(paths[1], solution, against=paths[0])
    result, other, *gains = capsys.readouterr().out.splitlines()
    assert result == "public 1.00000  private 0.92857  images 16"
    assert other == f"{paths[0]}: public 0.50000  private 0.50000  images 16"
    assert gains[0] == "public +0.50000, without an interval, which needs 6 cars, over 2 images of 1 car"
    assert gains[1].startswith("private +0.42857, 95 % interval +0.") and gains[1].endswith("over 14 images of 7 cars")
    assert gains[2].startswith("all +0.43750, 95 % interval +0.") and gains[2].endswith("over 16 images of 8 cars")


def test_the_order_of_rows_and_images_that_are_not_scored_do_not_matter(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    truth = [[NAMES[0], "1 4", "Public"], [NAMES[1], "9 4", "Private"]]
    submission = [[NAMES[2], "7 7"], [NAMES[1], "9 4"], [NAMES[0], "3 4"]]
    assert last_line(tmp_path, capsys, truth, submission) == "public 0.50000  private 1.00000  images 2"


def test_a_missing_image_is_a_problem_that_names_it(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    truth = [[name, CAR, "Private"] for name in NAMES]
    with pytest.raises(Problem, match=rf"lacks 2 images .*{NAMES[2]}"):
        last_line(tmp_path, capsys, truth, [[name, CAR] for name in (*NAMES[:2], *NAMES[4:])])


def test_an_image_twice_is_a_problem_that_names_the_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    truth = [[NAMES[0], CAR, "Private"]]
    with pytest.raises(Problem, match=rf"line 3: .*{NAMES[0]}.* twice"):
        last_line(tmp_path, capsys, truth, [[NAMES[0], CAR], [NAMES[0], CAR]])


def test_a_row_without_a_valid_mask_is_a_problem_that_names_its_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    truth = [[name, CAR, "Private"] for name in NAMES[:2]]
    with pytest.raises(Problem, match=r"run\.csv\.gz, line 3: 3 numbers"):
        last_line(tmp_path, capsys, truth, [[NAMES[0], CAR], [NAMES[1], "1 2 3"]])


def test_a_missing_solution_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"no .*solution\.csv"):
        score.main(save(tmp_path / "run.csv", good_rows()), tmp_path / "solution.csv")
