"""Two runs, and test masks against training masks: known answers and what must not happen."""
import gzip
import pathlib

import numpy as np
import pandas as pd
import pytest

from pipeline import carvana
from pipeline.report.drift import Shape, drift_by_angle, odd_masks, shape_of, shapes_table, submission_masks
from pipeline.report.paired import difference_by, difference_of, paired
from pipeline.masks import rle
from pipeline.runtime.problem import Problem


def table_of(dice: np.ndarray) -> pd.DataFrame:
    """dice: (cars, 16)."""
    cars = [f"{car:012x}" for car in range(len(dice))]
    rows = [
        (carvana.image_name(car, view), car, "kia" if number % 2 else "ford", int(view), dice[number, int(view) - 1])
        for number, car in enumerate(cars)
        for view in carvana.ANGLE_CODES
    ]
    return pd.DataFrame(rows, columns=["img", "car", "make", "view", "dice"])


RNG = np.random.default_rng(0)
DICE = 0.99 + 0.005 * RNG.random((40, 16))


# --- two runs -----------------------------------------------------------------------------------------


def test_a_run_against_itself_differs_by_nothing() -> None:
    found = difference_of(paired(table_of(DICE), table_of(DICE)))
    assert (found.mean, found.low, found.high, found.wins, found.losses) == (0, 0, 0, 0, 0)
    assert (found.images, found.cars, found.is_sure) == (640, 40, False)


def test_a_gain_on_each_car_is_sure_and_a_gain_on_one_is_not() -> None:
    gain = 0.001 + 0.0001 * RNG.standard_normal((40, 1))
    found = difference_of(paired(table_of(DICE), table_of(DICE + gain)))
    assert found.is_sure and found.low < found.mean < found.high and found.mean == pytest.approx(gain.mean())
    assert (found.wins, found.losses) == (640, 0)
    lucky = DICE + 0.0001 * RNG.standard_normal((40, 16))
    lucky[7] += 0.004
    assert not difference_of(paired(table_of(DICE), table_of(lucky))).is_sure


def test_views_of_a_car_are_no_independent_samples() -> None:
    """The interval is as wide as that of the means of cars, four times that of pictures."""
    of_car = 0.001 * RNG.standard_normal((40, 1))
    found = difference_of(paired(table_of(DICE), table_of(DICE + of_car)))
    expected = 2 * 1.96 * of_car.std(ddof=1) / np.sqrt(40)
    assert found.high - found.low == pytest.approx(expected, rel=0.15)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """50 cars of a gain of 0.001; of 100 such samples some 95 should hold it."""
    held = 0
    for _ in range(100):
        dice = RNG.random((50, 16))
        gain = 0.001 + 0.002 * RNG.standard_normal((50, 1)) + 0.001 * RNG.standard_normal((50, 16))
        found = difference_of(paired(table_of(dice), table_of(dice + gain)), resamples=299)
        held += found.low <= 0.001 <= found.high
    assert 88 <= held <= 99


def test_five_cars_have_no_interval_and_six_have_one() -> None:
    five, six = (difference_of(paired(table_of(DICE[:cars]), table_of(DICE[:cars] + 0.001))) for cars in (5, 6))
    assert np.isnan(five.low) and np.isnan(five.high) and not five.is_sure
    assert six.low == pytest.approx(0.001) and six.is_sure


def test_only_pictures_of_both_are_compared() -> None:
    pairs = paired(table_of(DICE[:2]), table_of(DICE[:1] + 0.001))
    assert len(pairs) == 16 and list(pairs.columns) == "img car make view dice_a dice_b difference".split()
    found = difference_of(pairs)
    assert found.mean == pytest.approx(0.001)


def test_where_one_wins() -> None:
    gain = np.zeros((40, 16))
    gain[1::2] += 0.002  # of kia
    gain[:, 4] -= 0.01
    pairs = paired(table_of(DICE), table_of(DICE + gain))
    by_make, by_angle = difference_by(pairs, "make"), difference_by(pairs, "view")
    assert by_make["make"].tolist() == ["kia", "ford"] and by_make["cars"].tolist() == [20, 20]
    assert by_angle["view"].iloc[-1] == 5 and by_angle["mean"].iloc[-1] == pytest.approx(-0.009)
    assert pairs["difference"].is_monotonic_decreasing


# --- test masks ---------------------------------------------------------------------------------------

HEIGHT, WIDTH = carvana.HEIGHT_PX, carvana.WIDTH_PX


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_shape_of_a_mask_from_its_runs() -> None:
    mask = rectangle(10, 20, 30, 40) | rectangle(100, 100, 101, 103)
    assert shape_of(rle.bounds(mask), HEIGHT, WIDTH) == Shape(403, 2, 3, False)
    assert shape_of(rle.bounds(rectangle(0, 5, 9, 9)), HEIGHT, WIDTH).touches_border
    assert shape_of(rle.bounds(rectangle(5, 0, 9, 9)), HEIGHT, WIDTH).touches_border
    assert shape_of(rle.bounds(rectangle(5, 9, 9, WIDTH)), HEIGHT, WIDTH).touches_border
    assert shape_of(rle.bounds(rectangle(5, 9, HEIGHT, 12)), HEIGHT, WIDTH).touches_border
    assert not shape_of(rle.bounds(rectangle(1, 1, HEIGHT - 1, WIDTH - 1)), HEIGHT, WIDTH).touches_border
    assert shape_of(rle.bounds(rectangle(0, 0, 0, 0)), HEIGHT, WIDTH) == Shape(0, 0, 0, False)


def shapes(masks: dict[str, np.ndarray]) -> pd.DataFrame:
    return shapes_table(((name, rle.bounds(mask)) for name, mask in masks.items()), HEIGHT, WIDTH)


TRAINING = {f"00000000000{car}_{view}.jpg": rectangle(100, 100, 200 + 10 * int(car), 300)
            for car in "0123" for view in ("01", "02")}  # fmt: skip


def test_what_is_odd_among_test_masks_is_told_in_words() -> None:
    test = {
        "00000000000a_01.jpg": TRAINING["000000000000_01.jpg"],
        "00000000000a_02.jpg": rectangle(0, 0, 0, 0),
        "00000000000b_01.jpg": rectangle(100, 100, 200, 300) | rectangle(400, 400, 420, 420),
        "00000000000b_02.jpg": rectangle(0, 100, 100, 300),
        "00000000000c_01.jpg": rectangle(100, 100, 150, 300),
        "00000000000c_02.jpg": rectangle(100, 0, 500, 500),
    }
    found = odd_masks(shapes(test), shapes(TRAINING))
    assert dict(zip(found["img"], found["why"])) == {
        "00000000000a_02.jpg": "empty",
        "00000000000c_02.jpg": "touches the border, larger than any in training",
        "00000000000b_02.jpg": "touches the border",
        "00000000000c_01.jpg": "smaller than any in training",
        "00000000000b_01.jpg": "in several pieces",
    }
    assert found["img"].iloc[0] == "00000000000a_02.jpg"
    assert odd_masks(shapes(TRAINING), shapes(TRAINING)).empty


def test_areas_by_view_and_how_far_they_have_moved() -> None:
    larger = {name: rectangle(100, 100, 400, 300) for name in TRAINING if name.endswith("_02.jpg")}
    test = {name: larger.get(name, mask) for name, mask in TRAINING.items()}
    found = drift_by_angle(shapes(test), shapes(TRAINING))
    assert found["view"].tolist() == [1, 2] and found["ks"].tolist() == [0.0, 1.0]
    assert found["test_50"].tolist() == [23000, 60000] and found["training_50"].tolist() == [23000, 23000]
    assert found["test_images"].tolist() == [4, 4]
    assert found["ks_p"].tolist() == pytest.approx([1.0, 2 / 70])  # 70 ways to deal 8 areas out, 2 of them apart


def test_a_submission_is_read_row_by_row_and_a_wrong_row_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.csv.gz"

    def write(*rows: str) -> None:
        path.write_bytes(gzip.compress("\n".join(["img,rle_mask", *rows, ""]).encode()))

    write("00000000000a_01.jpg,1 3 10 2", "00000000000a_02.jpg,")
    found = dict(submission_masks(path))
    assert found["00000000000a_01.jpg"].tolist() == [[0, 3], [9, 11]] and len(found["00000000000a_02.jpg"]) == 0
    write("00000000000a_01.jpg,1 3", "00000000000a_02.jpg,1 x")
    with pytest.raises(Problem, match="line 3, image 00000000000a_02.jpg: 'x' is not a whole number"):
        list(submission_masks(path))
    write("somewhere.jpg,1 3")
    with pytest.raises(Problem, match="line 2: 'somewhere.jpg' is no name of a picture"):
        list(submission_masks(path))
