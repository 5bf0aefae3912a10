"""Results on the device of the predictions equal those of numpy, bit for bit; on a GPU too, if there is one."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from pipeline.masks import dice, on_device, rle
from pipeline.predict import bounds_and_masks_on_device
from pipeline.runtime.device import pick_device

Masks = NDArray[np.bool_]
BATCHES = array_shapes(min_dims=3, max_dims=3, max_side=12).flatmap(lambda shape: arrays(bool, shape))


def reference(mask: NDArray[np.bool_]) -> str:
    """Compare every pixel with its neighbours, in three lines."""
    pixels = [0, *mask.ravel().tolist(), 0]
    bounds = [i for i in range(1, len(pixels)) if pixels[i] != pixels[i - 1]]
    return " ".join(f"{begin} {end - begin}" for begin, end in zip(bounds[0::2], bounds[1::2]))


def texts_on_device(masks: Masks) -> list[str]:
    return [rle.text(bounds) for bounds in on_device.bounds(torch.from_numpy(masks).to(pick_device()))]


def assert_same_texts(masks: Masks) -> None:
    texts = texts_on_device(masks)
    assert len(texts) == len(masks)
    for mask, text in zip(masks, texts):
        assert text == rle.encode(mask) == reference(mask)


@given(BATCHES)
def test_both_encoders_agree_with_the_reference(masks: Masks) -> None:
    assert_same_texts(masks)
    assert_same_texts(~masks)


@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (1, 64), (1, 65), (8, 8), (8, 16), (16, 8), (7, 9), (3, 43)])
def test_masks_that_end_at_a_multiple_of_64_pixels_and_one_pixel_off_it(shape: tuple[int, int]) -> None:
    """The encoder packs 64 pixels into one number: runs that begin, end, fill and cross numbers, at every place."""
    pixels = np.arange(shape[0] * shape[1])
    runs = [(pixels >= begin) & (pixels < begin + length) for begin in pixels for length in (1, 2, 63, 64, 65, 999)]
    combs = [pixels % step == start for step in (2, 3, 63, 64, 65) for start in (0, 1)]
    assert_same_texts(np.array([*runs, *combs, pixels < 0]).reshape(-1, *shape))
    assert_same_texts(~np.array([*runs, *combs]).reshape(-1, *shape))


@pytest.mark.parametrize("density", [1e-4, 0.01, 0.5, 0.99])
def test_millions_of_random_pixels(density: float) -> None:
    assert_same_texts(np.random.default_rng(0).random((4, 500, 499)) < density)


def test_an_empty_batch_and_empty_masks() -> None:
    assert texts_on_device(np.zeros((0, 3, 4), bool)) == []
    assert texts_on_device(np.zeros((2, 3, 4), bool)) == ["", ""]
    assert rle.encode(np.zeros((0, 4), bool)) == ""


def test_a_mask_that_is_a_slice_of_a_larger_tensor() -> None:
    large = np.random.default_rng(0).random((3, 20, 30)) < 0.5
    slice_NHW = torch.from_numpy(large).to(pick_device())[:, 2:9, 3:-5]
    assert [rle.text(bounds) for bounds in on_device.bounds(slice_NHW)] == [reference(one[2:9, 3:-5]) for one in large]


@given(BATCHES.flatmap(lambda masks: st.tuples(st.just(masks), arrays(np.uint8, masks.shape))))
def test_histograms_equal_those_of_numpy(batch: tuple[Masks, NDArray[np.uint8]]) -> None:
    masks, probability_u8 = batch
    histograms = on_device.histograms(*(torch.from_numpy(array).to(pick_device()) for array in (probability_u8, masks)))
    np.testing.assert_array_equal(histograms.cpu(), [dice.histogram(*pair) for pair in zip(probability_u8, masks)])


def test_histograms_count_in_numbers_of_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    bincount, dtypes = torch.Tensor.bincount, []

    def noted(bins: torch.Tensor, **options: int) -> torch.Tensor:
        dtypes.append(bins.dtype)
        return bincount(bins, **options)

    monkeypatch.setattr(torch.Tensor, "bincount", noted)
    on_device.histograms(torch.zeros(2, 3, 4, dtype=torch.uint8), torch.ones(2, 3, 4, dtype=torch.bool))
    assert dtypes == [torch.int32]


@given(BATCHES)
def test_masks_come_back_from_their_bits(masks: Masks) -> None:
    read = list(on_device.read_masks(torch.from_numpy(masks).to(pick_device())))
    assert len(read) == len(masks) and all(np.array_equal(*pair) for pair in zip(read, masks))


@pytest.mark.parametrize("verify", [[True] * 3, [True, False, True], [False] * 3])
def test_masks_are_read_back_where_their_rows_are_verified(verify: list[bool]) -> None:
    prob_u8 = torch.randint(0, 256, (3, 20, 31), dtype=torch.uint8, generator=torch.manual_seed(0))
    rows = bounds_and_masks_on_device((prob_u8 >= 128).to(pick_device()), verify)
    for needed, expected, (bounds, mask) in zip(verify, prob_u8.numpy() >= 128, rows, strict=True):
        assert rle.text(bounds) == rle.encode(expected)
        assert np.array_equal(mask, expected) if needed else mask is None
