"""Run lengths: known answers first, then every small mask, then random ones."""
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from pipeline import carvana
from pipeline.masks.rle import bits, decode, dice_score, encode, bounds_match_bits, parse

Mask = NDArray[np.bool_]
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))
PAIRS_OF_MASKS = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)

KNOWN = [
    ("empty", [[0, 0, 0], [0, 0, 0]], ""),
    ("full", [[1, 1, 1], [1, 1, 1]], "1 6"),
    ("first pixel", [[1, 0, 0], [0, 0, 0]], "1 1"),
    ("last pixel", [[0, 0, 0], [0, 0, 1]], "6 1"),
    ("first and last pixel", [[1, 0, 0], [0, 0, 1]], "1 1 6 1"),
    ("top right corner", [[0, 0, 1], [0, 0, 0]], "3 1"),
    ("bottom left corner", [[0, 0, 0], [1, 0, 0]], "4 1"),
    ("a run goes on in the next row", [[0, 1, 1], [1, 0, 0]], "2 3"),
    ("all but the first pixel", [[0, 1, 1], [1, 1, 1]], "2 5"),
    ("all but the last pixel", [[1, 1, 1], [1, 1, 0]], "1 5"),
    ("chequered", [[1, 0, 1], [0, 1, 0]], "1 1 3 1 5 1"),
    ("a column", [[1], [0], [1]], "1 1 3 1"),
    ("one pixel, set", [[1]], "1 1"),
    ("one pixel, not set", [[0]], ""),
]


def reference(mask: NDArray) -> str:
    """Encode pixel by pixel, counted from 1, as the competition's page describes it."""
    runs = itertools.groupby(enumerate(mask.ravel(), start=1), key=lambda pixel: bool(pixel[1]))
    starts_and_lengths = [(next(pixels)[0], 1 + sum(1 for _ in pixels)) for is_car, pixels in runs if is_car]
    return " ".join(f"{start} {length}" for start, length in starts_and_lengths)


@pytest.mark.parametrize("mask, text", [case[1:] for case in KNOWN], ids=[case[0] for case in KNOWN])
def test_known_masks_have_known_texts(mask: list[list[int]], text: str) -> None:
    as_bool = np.array(mask, dtype=bool)
    assert encode(as_bool) == text
    np.testing.assert_array_equal(decode(text, *as_bool.shape), as_bool)


def test_the_first_line_of_kaggles_train_masks_is_row_major_from_1_over_1918_columns() -> None:
    mask = decode("879386 40 881253 141", carvana.HEIGHT_PX, carvana.WIDTH_PX)
    assert mask.shape == (1280, 1918)
    rows, columns = np.nonzero(mask)
    assert set(rows) == {458, 459}
    assert columns[rows == 458].tolist() == list(range(941, 941 + 40))  # 458 * 1918 + 941 = 879386 - 1
    assert columns[rows == 459].tolist() == list(range(890, 890 + 141))


def test_the_last_pixel_of_an_image_is_number_2455040() -> None:
    mask = np.zeros((carvana.HEIGHT_PX, carvana.WIDTH_PX), dtype=bool)
    mask[-1, -1] = True
    assert encode(mask) == "2455040 1"


def test_every_mask_of_up_to_3_by_3_pixels_is_encoded_like_the_reference_and_decoded_again() -> None:
    for height, width in itertools.product((1, 2, 3), repeat=2):
        for pixels in itertools.product((False, True), repeat=height * width):
            mask = np.array(pixels).reshape(height, width)
            assert encode(mask) == reference(mask)
            np.testing.assert_array_equal(decode(encode(mask), height, width), mask)


@given(MASKS)
def test_a_mask_comes_back_from_its_text(mask: Mask) -> None:
    np.testing.assert_array_equal(decode(encode(mask), *mask.shape), mask)


@given(MASKS)
def test_the_text_is_that_of_the_reference(mask: Mask) -> None:
    assert encode(mask) == reference(mask)
    assert encode(~mask) == reference(~mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 2), (7, 13), (40, 40)])
def test_stripes_boards_and_lone_pixels_come_back_at_any_shape(shape: tuple[int, int]) -> None:
    rows, columns = np.indices(shape)
    masks = [rows % 2 == 0, columns % 2 == 0, (rows + columns) % 2 == 0, (rows + columns) % 2 == 1]
    for row, column in {(0, 0), (0, shape[1] - 1), (shape[0] - 1, 0), (shape[0] - 1, shape[1] - 1)}:
        corner = (rows == row) & (columns == column)
        masks += [corner, ~corner]
    for mask in masks:
        assert encode(mask) == reference(mask)
        np.testing.assert_array_equal(decode(encode(mask), *shape), mask)


@given(MASKS)
def test_any_value_but_0_belongs_to_the_object_and_strided_arrays_are_read_in_row_order(mask: Mask) -> None:
    assert encode(mask.astype(np.uint8) * 255) == encode(mask)
    assert encode(np.asfortranarray(mask)) == encode(mask)
    assert encode(mask.T) == reference(mask.T)
    assert encode(mask[::-1, ::2]) == reference(mask[::-1, ::2])


def test_encoding_leaves_the_mask_alone() -> None:
    mask = np.ones((3, 4), dtype=bool)
    encode(mask)
    assert mask.all()


def test_runs_that_touch_are_read() -> None:
    np.testing.assert_array_equal(decode("1 2 3 1", 1, 5), [[1, 1, 1, 0, 0]])


def test_runs_are_parsed_to_bounds_counted_from_0() -> None:
    assert parse("2 3 6 1", pixels=6).tolist() == [[1, 4], [5, 6]]
    assert parse("", pixels=6).shape == (0, 2)


@pytest.mark.parametrize(
    "text, named",
    [
        ("5", "1 numbers"),
        ("1 2 4", "3 numbers"),
        ("0 2", "number 0"),
        ("1 0", "number 0"),
        ("-1 2", "-1"),
        ("1 -2", "-2"),
        ("1 3 3 1", "3 1"),
        ("1 2 1 2", "1 2"),
        ("4 1 1 1", "1 1"),
        ("7 1", "7"),
        ("6 2", "7"),
        ("1 7", "7"),
        ("one 1", "one"),
        ("1 x", "x"),
        ("1,1", "1,1"),
        ("1.0 1", "1.0"),
        ("1 1e3", "1e3"),
        ("nan 1", "nan"),
        ("0x1 1", "0x1"),
        ("+1 1", r"\+1"),
        ("1_0 1", "1_0"),
        ("\uff11 1", "\uff11"),  # a full-width digit
        ("1 9223372036854775807", "9223372036854775807"),
        ("9223372036854775807 2", "9223372036854775807"),  # start + length leaves 64 bits
        ("99999999999999999999 1", "99999999999999999999"),
    ],
)
def test_an_invalid_text_raises_an_error_that_names_the_value(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        decode(text, 2, 3)


@given(st.text(alphabet="0123456789 -+._ex", max_size=12))
def test_any_text_is_a_mask_or_a_value_error(text: str) -> None:
    try:
        bounds = parse(text, pixels=20)
    except ValueError:
        return
    assert all(token.isdigit() for token in text.split())
    assert all(0 <= begin < end <= 20 for begin, end in bounds.tolist())
    assert (bounds[1:, 0] >= bounds[:-1, 1]).all()


@given(PAIRS_OF_MASKS)
def test_bounds_match_bits_if_they_decode_to_the_same_mask(masks: tuple[Mask, Mask]) -> None:
    one, other = masks
    bounds = parse(encode(one), one.size)
    assert bounds_match_bits(bounds, bits(one))
    assert bounds_match_bits(bounds, bits(other)) == np.array_equal(one, other)
    assert bounds_match_bits(bounds, bits(other | one)) == (not (other & ~one).any())
    for shift in (1, -1):  # as many pixels in other places
        moved = np.roll(one, shift)
        assert bounds_match_bits(bounds, bits(moved)) == np.array_equal(moved, one)


@given(st.lists(st.integers(1, 80), max_size=9), st.integers(0, 700))
def test_one_wrong_pixel_is_detected_in_runs_of_any_length_at_any_place(lengths: list[int], wrong: int) -> None:
    mask = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)[None]
    bounds = parse(encode(mask), mask.size)
    assert bounds_match_bits(bounds, bits(mask))
    if wrong < mask.size:
        mask[0, wrong] ^= True
        assert not bounds_match_bits(bounds, bits(mask))


@given(PAIRS_OF_MASKS)
def test_dice_of_runs_is_dice_of_pixels(masks: tuple[Mask, Mask]) -> None:
    prediction, truth = masks
    total = prediction.sum() + truth.sum()
    expected = 1.0 if total == 0 else 2 * (prediction & truth).sum() / total
    dice = dice_score(parse(encode(prediction), prediction.size), parse(encode(truth), truth.size))
    assert dice == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "prediction, truth, dice",
    [
        ("", "", 1.0),
        ("", "1 4", 0.0),
        ("1 4", "", 0.0),
        ("1 4", "1 4", 1.0),
        ("1 4", "5 4", 0.0),
        ("1 4", "3 4", 0.5),
        ("1 2 3 2", "1 4", 1.0),  # runs that touch
        ("1 4", "1 1 2 1 3 1 4 1", 1.0),
        ("1 2455040", "1 2455040", 1.0),
        ("1 2455040", "2455040 1", 2 / 2455041),
    ],
)
def test_dice_of_runs_has_known_answers(prediction: str, truth: str, dice: float) -> None:
    assert dice_score(parse(prediction, 2455040), parse(truth, 2455040)) == dice
    assert dice_score(parse(truth, 2455040), parse(prediction, 2455040)) == dice
