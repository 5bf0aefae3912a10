"""Folds that no make crosses."""
import pathlib

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import carvana
from pipeline.carvana import CARVANA, car_of, normal_make
from pipeline.data.grouping import assign_folds, digest, find_missing_keys, read_folds, split
from pipeline.runtime.problem import Problem

CARS_OF_MAKE = st.lists(st.integers(1, 30), min_size=5, max_size=30)


def cars(makes: list[str]) -> dict[str, str]:
    return {f"{number:012x}": make for number, make in enumerate(makes)}


def assign_cars(make_of_car: dict[str, str], folds: int) -> pd.DataFrame:
    """The folds of Carvana's cars with these makes, spelt as in metadata.csv."""
    normal = {car: normal_make(make) for car, make in make_of_car.items()}
    return assign_folds(normal, folds, CARVANA.group_columns)


def kaggle_like() -> dict[str, str]:
    """The 318 training cars by make, as the competition has them."""
    counts = {"Chevrolet": 27, "INFINITI": 25, "Ford": 23, "Audi": 22, "Lexus": 20, "Kia": 17, "Mercedes-Benz": 16}
    counts |= {"BMW": 14, "Cadillac": 13, "Hyundai": 13, "Acura": 12, "Mazda": 12, "MINI": 12, "Honda": 12}
    counts |= {"Dodge": 12, "Jeep": 10, "Lincoln": 10, "Mitsubishi": 8, "Land Rover": 7, "GMC": 7, "Buick": 7}
    counts |= {"Jaguar": 5, "FIAT": 4, "Chrysler": 4, "Nissan": 3, "Mercury": 2, "Maserati": 1}
    return cars([make for make, count in counts.items() for _ in range(count)])


@given(CARS_OF_MAKE, st.integers(2, 5))
def test_no_make_is_in_two_folds_and_no_fold_is_empty(counts: list[int], folds: int) -> None:
    table = assign_cars(cars([f"make {i}" for i, count in enumerate(counts) for _ in range(count)]), folds)
    assert (table.groupby("make")["fold"].nunique() == 1).all()
    assert set(table["fold"]) == set(range(folds))
    assert len(table) == sum(counts) and table["car_id"].is_unique


def test_the_training_cars_fall_into_five_folds_of_about_64_cars() -> None:
    table = assign_cars(kaggle_like(), folds=5)
    assert len(table) == 318
    assert table.groupby("fold").size().between(60, 68).all()


@pytest.mark.parametrize("other", ["INFINITI", " Infiniti ", "infiniti\t"])
def test_a_make_is_one_however_it_is_spelt(other: str) -> None:
    assert normal_make(other) == normal_make("Infiniti")
    table = assign_cars(cars(["Infiniti", other, "Ford", "Kia"]), folds=3)
    assert table["fold"][0] == table["fold"][1]
    assert table["make"][0] == table["make"][1]


def test_blanks_inside_a_make_count_as_one() -> None:
    assert normal_make("Land  Rover") == normal_make("land rover") != normal_make("landrover")


def test_each_car_of_unknown_make_is_a_group_of_its_own() -> None:
    table = assign_cars(cars(["", "", " ", "Ford"]), folds=4)
    assert sorted(table["fold"]) == [0, 1, 2, 3]


def test_the_order_in_which_cars_are_given_does_not_matter() -> None:
    makes = kaggle_like()
    backwards = dict(reversed(makes.items()))
    pd.testing.assert_frame_equal(assign_cars(makes, 5), assign_cars(backwards, 5))


def test_the_table_has_one_row_a_car_sorted_by_text_ids() -> None:
    table = assign_cars({"331659860e11": "Ford", "011330127438": "Kia"}, folds=2)
    assert list(table.columns) == ["car_id", "make", "fold"]
    assert table["car_id"].tolist() == ["011330127438", "331659860e11"]
    assert table["make"].tolist() == ["kia", "ford"]


def test_more_folds_than_makes_is_a_problem_that_names_both_numbers() -> None:
    with pytest.raises(Problem, match="data.folds is 4, .* only 3 makes, .*; set data.folds to 3 or less"):
        assign_cars(cars(["Ford", "FORD", "Kia", ""]), folds=4)


def test_folds_csv_comes_back_as_it_was(tmp_path: pathlib.Path) -> None:
    table = assign_cars({"331659860e11": "Ford", "011330127438": "", "0123456789ab": "NA"}, folds=2)
    table.to_csv(tmp_path / "folds.csv", index=False)
    pd.testing.assert_frame_equal(read_folds(tmp_path / "folds.csv"), table, check_dtype=False)


def test_a_digest_depends_on_who_is_held_out_in_which_fold_and_on_nothing_else(tmp_path: pathlib.Path) -> None:
    table = assign_cars(kaggle_like(), folds=5)
    table.to_csv(tmp_path / "folds.csv", index=False, lineterminator="\r\n")
    same = [read_folds(tmp_path / "folds.csv"), table[::-1], table.assign(make=""), table.reset_index(drop=True)]
    assert {digest(one) for one in same} == {digest(table)}
    other = [table.assign(fold=(table["fold"] + 1) % 5), table[1:], assign_cars(kaggle_like(), folds=4)]
    assert len({digest(one) for one in [table, *other]}) == 4


@pytest.mark.parametrize(
    "text", ["", "car_id,make,fold\na,b,c\n", "car_id,fold\na,0\n", "car_id,make,fold\na,b,\n", "\0"]
)
def test_a_damaged_folds_csv_is_a_problem(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(Problem, match=r"folds\.csv.*make folds"):
        read_folds(tmp_path / "folds.csv")


def test_a_missing_folds_csv_is_a_problem_that_names_the_stage(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match="run `make folds` first"):
        read_folds(tmp_path / "folds.csv")


def test_a_split_keeps_whole_cars_and_whole_makes_on_one_side() -> None:
    makes = cars(["Ford", "Kia", "Ford", "Acura", "Kia"])
    names = [carvana.image_name(car, angle) for angle in carvana.ANGLE_CODES for car in makes]  # angles first
    table = assign_cars(makes, folds=3)
    held_out_of_all = []
    for fold in range(3):
        training, held_out = split(table, fold, names, car_of)
        assert sorted(training + held_out) == sorted(names)
        assert not {makes[carvana.car_of(name)] for name in training} & {
            makes[carvana.car_of(name)] for name in held_out
        }
        assert training == [name for name in names if name in training]  # in the given order
        held_out_of_all += held_out
    assert sorted(held_out_of_all) == sorted(names)  # each image is held out once


def test_a_split_leaves_out_cars_that_the_table_does_not_name() -> None:
    table = assign_cars(cars(["Ford", "Kia"]), folds=2)
    training, held_out = split(table, 0, ["000000000000_01.jpg", "000000000001_01.jpg", "ffffffffffff_01.jpg"], car_of)
    assert len(training) == len(held_out) == 1


def test_a_fold_that_is_not_there_is_a_problem() -> None:
    with pytest.raises(Problem, match="no fold 2; the folds are 0 to 1"):
        split(assign_cars(cars(["Ford", "Kia"]), folds=2), 2, [], car_of)


def test_held_out_cars_without_an_image_are_known() -> None:
    table = pd.DataFrame({"car_id": ["a" * 12, "b" * 12, "c" * 12], "make": "kia", "fold": [0, 0, 1]})
    assert find_missing_keys(table, 0, [f"{'a' * 12}_01.jpg"], car_of) == ["b" * 12]
    assert find_missing_keys(table, 1, [f"{'c' * 12}_16.jpg"], car_of) == []


def test_another_competition_names_the_columns_of_its_folds(tmp_path: pathlib.Path) -> None:
    patients = {"p1": "north", "p2": "", "p3": "south"}
    table = assign_folds(patients, 3, ("patient", "hospital"))
    table.to_csv(tmp_path / "folds.csv", index=False)
    assert (tmp_path / "folds.csv").read_text().startswith("patient,hospital,fold\n")
    pd.testing.assert_frame_equal(read_folds(tmp_path / "folds.csv"), table, check_dtype=False)
