"""Two runs against each other, and test masks against training masks: known answers."""
import gzip
import pathlib

import numpy as np
import pandas as pd
import pytest

from pipeline import carvana
from pipeline.masks import rle
from pipeline.report.drift import Shape, drift_by_angle, measure_shape, odd_masks, shapes_table, submission_masks
from pipeline.report.paired import difference_by, mean_difference, pair_images
from pipeline.runtime.problem import Problem


def table_of(dice: np.ndarray) -> pd.DataFrame:
    """Return a table of images with these scores, (cars, 16)."""
    cars = [f"{car:012x}" for car in range(len(dice))]
    rows = [
        (carvana.image_name(car, code), car, "kia" if number % 2 else "ford", int(code), dice[number, int(code) - 1])
        for number, car in enumerate(cars)
        for code in carvana.ANGLE_CODES
    ]
    return pd.DataFrame(rows, columns=["img", "car", "group", "angle", "score"])


RNG = np.random.default_rng(0)
DICE = 0.99 + 0.005 * RNG.random((40, 16))


# --- two runs -----------------------------------------------------------------------------------------


def test_a_run_against_itself_differs_by_nothing() -> None:
    difference = mean_difference(pair_images(table_of(DICE), table_of(DICE)))
    assert (difference.mean, difference.low, difference.high, difference.wins) == (0, 0, 0, 0)
    assert (difference.images, difference.clusters, difference.is_significant) == (640, 40, False)


def test_a_gain_on_each_car_is_significant_and_a_gain_on_one_is_not() -> None:
    gain = 0.001 + 0.0001 * RNG.standard_normal((40, 1))
    difference = mean_difference(pair_images(table_of(DICE), table_of(DICE + gain)))
    assert difference.is_significant and difference.low < difference.mean < difference.high
    assert difference.mean == pytest.approx(gain.mean())
    assert difference.wins == difference.images == 640
    lucky = DICE + 0.0001 * RNG.standard_normal((40, 16))
    lucky[7] += 0.004
    assert not mean_difference(pair_images(table_of(DICE), table_of(lucky))).is_significant


def test_angles_of_a_car_are_no_independent_samples() -> None:
    """The interval is as wide as that of the means of cars, four times that of images."""
    of_car = 0.001 * RNG.standard_normal((40, 1))
    difference = mean_difference(pair_images(table_of(DICE), table_of(DICE + of_car)))
    expected = 2 * 1.96 * of_car.std(ddof=1) / np.sqrt(40)
    assert difference.high - difference.low == pytest.approx(expected, rel=0.15)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """50 cars of a gain of 0.001; of 100 such samples some 95 should hold it."""
    held = 0
    for _ in range(100):
        dice = RNG.random((50, 16))
        gain = 0.001 + 0.002 * RNG.standard_normal((50, 1)) + 0.001 * RNG.standard_normal((50, 16))
        difference = mean_difference(pair_images(table_of(dice), table_of(dice + gain)), resamples=299)
        held += difference.low <= 0.001 <= difference.high
    assert 88 <= held <= 99


def test_five_cars_have_no_interval_and_six_have_one() -> None:
    five, six = (mean_difference(pair_images(table_of(DICE[:cars]), table_of(DICE[:cars] + 0.001))) for cars in (5, 6))
    assert np.isnan(five.low) and np.isnan(five.high) and not five.is_significant
    assert six.low == pytest.approx(0.001) and six.is_significant


def test_only_images_of_both_are_compared() -> None:
    pairs = pair_images(table_of(DICE[:2]), table_of(DICE[:1] + 0.001))
    assert len(pairs) == 16 and list(pairs.columns) == "img car group angle score_a score_b difference cluster".split()
    assert mean_difference(pairs).mean == pytest.approx(0.001)


def test_a_cluster_is_a_car_or_a_group_or_an_image_without_one() -> None:
    assert pair_images(table_of(DICE[:2]), table_of(DICE[:2]))["cluster"].nunique() == 2
    table = pd.DataFrame({"img": list("abc"), "group": ["room", "room", ""], "score": [0.1, 0.2, 0.3]})
    assert set(pair_images(table, table)["cluster"]) == {"room", "c"}


def test_where_one_wins() -> None:
    gain = np.zeros((40, 16))
    gain[1::2] += 0.002  # of kia
    gain[:, 4] -= 0.01
    pairs = pair_images(table_of(DICE), table_of(DICE + gain))
    by_make, by_angle = difference_by(pairs, "group"), difference_by(pairs, "angle")
    assert by_make["group"].tolist() == ["kia", "ford"] and by_make["clusters"].tolist() == [20, 20]
    assert by_angle["angle"].iloc[-1] == 5 and by_angle["mean"].iloc[-1] == pytest.approx(-0.009)
    assert pairs["difference"].is_monotonic_decreasing


# --- test masks ---------------------------------------------------------------------------------------

HEIGHT, WIDTH = carvana.HEIGHT_PX, carvana.WIDTH_PX


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_shape_of_a_mask_from_its_runs() -> None:
    mask = rectangle(10, 20, 30, 40) | rectangle(100, 100, 101, 103)
    assert measure_shape(rle.bounds(mask), HEIGHT, WIDTH) == Shape(403, 2, 3, False)
    assert measure_shape(rle.bounds(rectangle(0, 5, 9, 9)), HEIGHT, WIDTH).touches_border
    assert measure_shape(rle.bounds(rectangle(5, 0, 9, 9)), HEIGHT, WIDTH).touches_border
    assert measure_shape(rle.bounds(rectangle(5, 9, 9, WIDTH)), HEIGHT, WIDTH).touches_border
    assert measure_shape(rle.bounds(rectangle(5, 9, HEIGHT, 12)), HEIGHT, WIDTH).touches_border
    assert not measure_shape(rle.bounds(rectangle(1, 1, HEIGHT - 1, WIDTH - 1)), HEIGHT, WIDTH).touches_border
    assert measure_shape(rle.bounds(rectangle(0, 0, 0, 0)), HEIGHT, WIDTH) == Shape(0, 0, 0, False)


def shapes(masks: dict[str, np.ndarray]) -> pd.DataFrame:
    return shapes_table(((name, rle.bounds(mask)) for name, mask in masks.items()), carvana.CARVANA)


TRAINING = {f"00000000000{car}_{angle}.jpg": rectangle(100, 100, 200 + 10 * int(car), 300)
            for car in "0123" for angle in ("01", "02")}  # fmt: skip


def test_each_odd_test_mask_has_its_faults_beside_it() -> None:
    test = {
        "00000000000a_01.jpg": TRAINING["000000000000_01.jpg"],
        "00000000000a_02.jpg": rectangle(0, 0, 0, 0),
        "00000000000b_01.jpg": rectangle(100, 100, 200, 300) | rectangle(400, 400, 420, 420),
        "00000000000b_02.jpg": rectangle(0, 100, 100, 300),
        "00000000000c_01.jpg": rectangle(100, 100, 150, 300),
        "00000000000c_02.jpg": rectangle(100, 0, 500, 500),
    }
    odd = odd_masks(shapes(test), shapes(TRAINING))
    assert dict(zip(odd["img"], odd["why"])) == {
        "00000000000a_02.jpg": "empty",
        "00000000000c_02.jpg": "touches the border, larger than any in training",
        "00000000000b_02.jpg": "touches the border",
        "00000000000c_01.jpg": "smaller than any in training",
        "00000000000b_01.jpg": "in several components",
    }
    assert odd["img"].iloc[0] == "00000000000a_02.jpg"
    assert odd_masks(shapes(TRAINING), shapes(TRAINING)).empty


def test_areas_by_angle_and_how_far_they_have_moved() -> None:
    larger = {name: rectangle(100, 100, 400, 300) for name in TRAINING if name.endswith("_02.jpg")}
    test = {name: larger.get(name, mask) for name, mask in TRAINING.items()}
    drift = drift_by_angle(shapes(test), shapes(TRAINING))
    assert drift["angle"].tolist() == [1, 2] and drift["ks"].tolist() == [0.0, 1.0]
    assert drift["test_50"].tolist() == [23000, 60000] and drift["training_50"].tolist() == [23000, 23000]
    assert drift["test_images"].tolist() == [4, 4]
    assert drift["ks_p"].tolist() == pytest.approx([1.0, 2 / 70])  # 70 ways to deal 8 areas out, 2 of them apart


def test_a_submission_is_read_row_by_row_and_an_invalid_row_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.csv.gz"

    def write(*rows: str) -> None:
        path.write_bytes(gzip.compress("\n".join(["img,rle_mask", *rows, ""]).encode()))

    write("00000000000a_01.jpg,1 3 10 2", "00000000000a_02.jpg,")
    masks = dict(submission_masks(path, carvana.CARVANA))
    assert masks["00000000000a_01.jpg"].tolist() == [[0, 3], [9, 11]] and len(masks["00000000000a_02.jpg"]) == 0
    write("00000000000a_01.jpg,1 3", "00000000000a_02.jpg,1 x")
    with pytest.raises(Problem, match="line 3, image 00000000000a_02.jpg: 'x' is not a whole number"):
        list(submission_masks(path, carvana.CARVANA))
    write("somewhere.jpg,1 3")
    with pytest.raises(Problem, match="line 2: 'somewhere.jpg'"):
        list(submission_masks(path, carvana.CARVANA))
