"""Images, masks and probabilities prob one grid, and files that are not what they should be are a Problem."""
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pipeline import carvana
from pipeline.data.images import (
    coverage,
    coverage_of_runs,
    decode_image,
    decode_jpeg,
    decode_mask,
    grid_shape,
    runs_by_row,
    upright_rgb,
    upright_size,
    upsample_u8,
)
from pipeline.masks import rle
from pipeline.runtime.problem import Problem
from pipeline.synthetic import cars
from pipeline.synthetic.car_makes import make_car

HEIGHT, WIDTH = carvana.HEIGHT_PX, carvana.WIDTH_PX
SHAPES = {1: (1280, 1918), 2: (640, 959), 4: (320, 480), 8: (160, 240)}
Mask = NDArray[np.bool_]


def area_average(full: NDArray, scale: int) -> NDArray[np.float64]:
    """The straightforward way: repeat the last column and row until cells fit, then average each cell."""
    rows, columns = -(-full.shape[0] // scale), -(-full.shape[1] // scale)
    missing = [(0, rows * scale - full.shape[0]), (0, columns * scale - full.shape[1])]
    padded = np.pad(full, missing + [(0, 0)] * (full.ndim - 2), mode="edge")
    return padded.reshape(rows, scale, columns, scale, *full.shape[2:]).mean(axis=(1, 3))


def dice(a: Mask, b: Mask) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def mask() -> Mask:
    return cars.draw_car(make_car("Fjord", 7), [3])[0][1]


# --- the grid -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SHAPES)
def test_the_grid_has_room_for_every_column(scale: int) -> None:
    assert grid_shape(HEIGHT, WIDTH, scale) == SHAPES[scale]


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=30)), st.sampled_from(list(SHAPES)))
def test_coverage_is_the_exact_area_average(mask: Mask, scale: int) -> None:
    decoded = coverage(mask, scale)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded - 255 * area_average(mask, scale)).max() <= 0.501  # rounding to 8 bits


def test_the_last_cell_of_1918_columns_hangs_over_the_edge() -> None:
    """1918 = 4 * 479 + 2: the 480th cell has two columns of its own, and sees the last one twice more."""
    last_but_one, last = np.zeros((2, 4, 1918), dtype=bool)
    last_but_one[:, -2] = last[:, -1] = True
    assert coverage(last_but_one, 4)[0, -2:].tolist() == [0, 64]
    assert coverage(last, 4)[0, -2:].tolist() == [0, 191]


@pytest.mark.parametrize("scale", SHAPES)
def test_coverage_at_full_size_is_the_exact_area_average(mask: Mask, scale: int) -> None:
    decoded = coverage(mask, scale)
    assert decoded.shape == SHAPES[scale]
    assert np.abs(decoded - 255 * area_average(mask, scale)).max() <= 0.501


def from_runs(mask: Mask, scale: int) -> NDArray[np.uint8]:
    return coverage_of_runs(rle.parse(rle.encode(mask), mask.size), *mask.shape, scale)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=30)), st.sampled_from(list(SHAPES)))
def test_runs_have_the_coverage_of_their_mask(mask: Mask, scale: int) -> None:
    for one in (mask, ~mask, np.zeros_like(mask), np.ones_like(mask)):
        np.testing.assert_array_equal(from_runs(one, scale), coverage(one, scale), strict=True)


@pytest.mark.parametrize("scale", SHAPES)
def test_runs_at_full_size_have_the_coverage_of_their_mask(mask: Mask, scale: int) -> None:
    for one in (mask, ~mask):  # runs of the latter continue from row to row and cover the whole edge
        np.testing.assert_array_equal(from_runs(one, scale), coverage(one, scale), strict=True)


def test_runs_that_touch_have_the_coverage_of_the_merged_run() -> None:
    one, three = rle.parse("3 9", 4 * 5), rle.parse("3 2 5 1 6 6", 4 * 5)
    for scale in SHAPES:
        np.testing.assert_array_equal(coverage_of_runs(three, 4, 5, scale), coverage_of_runs(one, 4, 5, scale))


def test_runs_are_split_at_the_ends_of_rows() -> None:
    """In 5 columns: pixels 3 to 11 of the first to third row, then the whole fourth row."""
    row, begin, end = runs_by_row(np.array([(3, 12), (15, 20)]), width=5)
    assert row.tolist() == [0, 1, 2, 3]
    assert begin.tolist() == [3, 0, 0, 0]
    assert end.tolist() == [5, 5, 2, 5]


@pytest.mark.parametrize("scale, lowest_dice", [(1, 1.0), (2, 0.9999), (4, 0.999), (8, 0.997)])
def test_a_mask_comes_back_from_its_coverage(mask: Mask, scale: int, lowest_dice: float) -> None:
    prob = coverage(mask, scale).astype(np.float32) / 255
    assert dice(upsample_u8(prob, scale, HEIGHT, WIDTH) >= 128, mask) >= lowest_dice


def test_coverage_preserves_more_of_a_mask_than_a_bit_for_each_cell(mask: Mask) -> None:
    prob = coverage(mask, 4).astype(np.float32) / 255
    bits = (prob >= 0.5).astype(np.float32)
    from_fraction, from_bits = (dice(upsample_u8(one, 4, HEIGHT, WIDTH) >= 128, mask) for one in (prob, bits))
    assert 1 - from_fraction < (1 - from_bits) / 3


@pytest.mark.parametrize("scale", SHAPES)
def test_upsampling_gives_the_size_of_the_image_and_rounds_once(scale: int) -> None:
    half = np.full(SHAPES[scale], 0.5, dtype=np.float32)
    full_size = upsample_u8(half, scale, HEIGHT, WIDTH)
    assert full_size.shape == (HEIGHT, WIDTH) and full_size.dtype == np.uint8
    assert set(np.unique(full_size)) <= {127, 128}
    assert upsample_u8(half + 1, scale, HEIGHT, WIDTH).min() == 255


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_upsampling_does_not_shift(scale: int) -> None:
    """A straight edge between two cells comes back where it was."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[: 80 * scale, : 100 * scale] = True
    prob = coverage(mask, scale).astype(np.float32) / 255
    np.testing.assert_array_equal((upsample_u8(prob, scale, HEIGHT, WIDTH) >= 128)[5], mask[5])
    np.testing.assert_array_equal((upsample_u8(prob, scale, HEIGHT, WIDTH) >= 128)[:, 5], mask[:, 5])


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SHAPES)
def test_an_image_is_decoded_at_every_scale(jpeg: bytes, scale: int) -> None:
    image = decode_jpeg(jpeg, scale, HEIGHT, WIDTH, "a.jpg")
    assert image.shape == (*SHAPES[scale], 3) and image.dtype == np.uint8


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_small_image_lies_on_the_grid_of_the_masks(jpeg: bytes, scale: int) -> None:
    """JPEG's scaled decoding agrees with area averages, and less so when shifted by a cell or half of one."""
    small = decode_jpeg(jpeg, scale, HEIGHT, WIDTH, "a.jpg").astype(np.float64)
    full = decode_jpeg(jpeg, 1, HEIGHT, WIDTH, "a.jpg")
    expected = area_average(full, scale)

    def mean_difference(other: NDArray) -> float:
        return float(np.abs(small - other)[2:-2, 2:-2].mean())

    in_place = mean_difference(expected)
    assert in_place < 1
    for axis in (0, 1):
        assert mean_difference(np.roll(expected, 1, axis)) > 1.5 * in_place
        assert mean_difference(np.roll(expected, -1, axis)) > 1.5 * in_place
        assert mean_difference(area_average(np.roll(full, scale // 2, axis), scale)) > 1.1 * in_place


def test_colours_are_red_green_blue() -> None:
    image = decode_jpeg(save(Image.new("RGB", (WIDTH, HEIGHT), (250, 120, 10))), 8, HEIGHT, WIDTH, "a.jpg")
    assert np.abs(image.reshape(-1, 3).mean(0) - (250, 120, 10)).max() < 3


def test_an_exif_orientation_does_not_turn_a_jpeg_of_the_competition(jpeg: bytes) -> None:
    image = Image.open(io.BytesIO(jpeg))
    upright = save(image)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation
    with_exif = save(image, exif=turned.tobytes())
    assert with_exif != upright
    for scale in (1, 8):
        np.testing.assert_array_equal(
            decode_jpeg(with_exif, scale, HEIGHT, WIDTH, "a.jpg"), decode_jpeg(upright, scale, HEIGHT, WIDTH, "a.jpg")
        )


def save(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("tenths", range(10))
def test_an_image_that_is_cut_short_is_a_problem_that_names_it(jpeg: bytes, tenths: int) -> None:
    with pytest.raises(Problem, match="somewhere/a.jpg"):
        decode_jpeg(jpeg[: len(jpeg) * tenths // 10], 4, HEIGHT, WIDTH, "somewhere/a.jpg")


def test_an_image_without_its_last_byte_is_cut_short(jpeg: bytes) -> None:
    with pytest.raises(Problem, match="cut short"):
        decode_jpeg(jpeg[:-1], 1, HEIGHT, WIDTH, "a.jpg")


@pytest.mark.parametrize(
    "mode, size, format, sentence",
    [
        ("RGB", (1920, 1280), "JPEG", "is 1920x1280, but it must be 1918x1280"),
        ("RGB", (1280, 1918), "JPEG", "is 1280x1918"),
        ("RGB", (959, 640), "JPEG", "is 959x640"),
        ("CMYK", (1918, 1280), "JPEG", "are CMYK, but they must be RGB"),
        ("L", (1918, 1280), "JPEG", "are L, but they must be RGB"),
        ("RGB", (1918, 1280), "PNG", "not a JPEG"),
        ("RGB", (1918, 1280), "BMP", "not a JPEG"),
    ],
)
def test_another_kind_of_image_is_a_problem(mode: str, size: tuple[int, int], format: str, sentence: str) -> None:
    data = save(Image.new(mode, size), format)
    for scale in SHAPES:
        with pytest.raises(Problem, match=f"somewhere/a.jpg.*{sentence}"):
            decode_jpeg(data, scale, HEIGHT, WIDTH, "somewhere/a.jpg")


@pytest.mark.parametrize("data", [b"", b"\0" * 1000, b"<html>Log in first.</html>", b"\xff\xd8\xff\xd9"])
def test_bytes_that_are_not_an_image_are_a_problem(data: bytes) -> None:
    with pytest.raises(Problem, match="somewhere/a.jpg.*not a JPEG"):
        decode_jpeg(data, 2, HEIGHT, WIDTH, "somewhere/a.jpg")


# --- masks ----------------------------------------------------------------------------------------


def gif_of(values: NDArray[np.uint8]) -> bytes:
    """A palette GIF with exactly these values."""
    image = Image.fromarray(values).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255, 255, 0, 0])
    return save(image, "GIF", optimize=False)


def test_a_gif_of_0_and_1_is_a_mask(mask: Mask) -> None:
    decoded = decode_mask(gif_of(mask.astype(np.uint8)), ".gif", HEIGHT, WIDTH, "a.gif")
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize("value", [0, 1])
def test_a_mask_may_have_one_value_only(value: int) -> None:
    decoded = decode_mask(gif_of(np.full((HEIGHT, WIDTH), value, dtype=np.uint8)), ".gif", HEIGHT, WIDTH, "a.gif")
    assert (decoded == bool(value)).all()


def test_a_mask_with_a_value_of_2_is_a_problem(mask: Mask) -> None:
    with pytest.raises(Problem, match="a.gif.*values up to 2"):
        decode_mask(gif_of(mask.astype(np.uint8) * 2), ".gif", HEIGHT, WIDTH, "a.gif")


def test_a_grey_mask_with_0_and_255_is_a_problem(mask: Mask) -> None:
    data = save(Image.fromarray(mask.astype(np.uint8) * 255), "GIF", optimize=False)
    with pytest.raises(Problem, match="a.gif.*values up to 255"):
        decode_mask(data, ".gif", HEIGHT, WIDTH, "a.gif")


def test_a_mask_of_another_size_is_a_problem() -> None:
    with pytest.raises(Problem, match="a.gif.*is 1920x1280, but it must be 1918x1280"):
        decode_mask(gif_of(np.zeros((1280, 1920), dtype=np.uint8)), ".gif", HEIGHT, WIDTH, "a.gif")


@pytest.mark.parametrize("tenths", range(10))
def test_a_mask_that_is_cut_short_is_a_problem(gif: bytes, tenths: int) -> None:
    with pytest.raises(Problem, match="a.gif"):
        decode_mask(gif[: len(gif) * tenths // 10], ".gif", HEIGHT, WIDTH, "a.gif")


def test_a_mask_that_is_a_png_is_a_problem(mask: Mask) -> None:
    with pytest.raises(Problem, match="a.gif.*not a whole GIF"):
        decode_mask(save(Image.fromarray(mask.astype(np.uint8)), "PNG"), ".gif", HEIGHT, WIDTH, "a.gif")


def test_opencv_uses_one_thread_because_processes_share_the_work() -> None:
    assert cv2.getNumThreads() == 1


# --- PNG, as other competitions pack ----------------------------------------------------------------


def test_a_png_is_decoded_on_the_same_grid() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(101, 90, 3), dtype=np.uint8)
    data = save(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(decode_image(data, ".png", 1, 101, 90, "a.png"), pixels)
    half = decode_image(data, ".png", 2, 101, 90, "a.png")
    assert half.shape == (51, 45, 3) and np.abs(half - area_average(pixels, 2)).max() <= 0.501
    with pytest.raises(Problem, match="a.png: the image is 90x101, but it must be 101x101"):
        decode_image(data, ".png", 1, 101, 101, "a.png")
    for length in range(0, len(data), 997):
        with pytest.raises(Problem, match="a.png"):
            decode_image(data[:length], ".png", 1, 101, 90, "a.png")


@pytest.mark.parametrize("high, dtype", [(1, np.uint8), (255, np.uint8), (65535, np.uint16)])
def test_a_png_mask_has_0_and_one_other_value(high: int, dtype: type) -> None:
    mask = np.random.default_rng(0).random((101, 90)) < 0.3
    data = save(Image.fromarray(mask.astype(dtype) * dtype(high)), "PNG")
    np.testing.assert_array_equal(decode_mask(data, ".png", 101, 90, "a.png"), mask, strict=True)
    assert not decode_mask(save(Image.new("L", (90, 101)), "PNG"), ".png", 101, 90, "a.png").any()
    for other in (np.zeros((101, 90, 3), np.uint8), np.arange(101 * 90, dtype=np.uint16).reshape(101, 90)):
        with pytest.raises(Problem, match="a.png: the mask has"):
            decode_mask(save(Image.fromarray(other), "PNG"), ".png", 101, 90, "a.png")


# --- more than 8 bits a colour ------------------------------------------------------------------------

DARK = np.random.default_rng(0).integers(100, 896, (20, 30, 3), dtype=np.uint16)  # upper bytes from 0 to 3


def encoded(suffix: str, values: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(suffix, values, options)[1].tobytes()


def png_of_16_bits(colour_type: int, channels: int) -> bytes:
    """A PNG as the standard says; neither Pillow nor OpenCV writes grey with opacity of 16 bits."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([2, 9] * 30 * channels) for _ in range(20))
    header = struct.pack(">IIBBBBB", 30, 20, 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


DEEP = {
    "rgb.png": encoded(".png", DARK), "rgba.png": encoded(".png", np.dstack([DARK, DARK[..., :1]])),
    "grey.png": encoded(".png", DARK[..., 0]), "grey with opacity.png": png_of_16_bits(4, 2),
    "rgb.tif": encoded(".tif", DARK), "rgb uncompressed.tif": encoded(".tif", DARK, cv2.IMWRITE_TIFF_COMPRESSION, 1),
    "rgba.tif": encoded(".tif", np.dstack([DARK, DARK[..., :1]])), "grey.tif": encoded(".tif", DARK[..., 0]),
    "float.tif": save(Image.fromarray(DARK[..., 0].astype(np.float32)), "TIFF"),
    "32 bits.tif": save(Image.fromarray(DARK[..., 0].astype(np.int32)), "TIFF"),
    "rgb.ppm": b"P6 30 20 65535\n" + DARK.astype(">u2").tobytes(),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_an_image_of_more_than_8_bits_a_colour_is_refused(name: str) -> None:
    with pytest.raises(Problem, match=rf"{name} has (16|32) bits a colour, but only 8 can be read"):
        upright_rgb(Image.open(io.BytesIO(DEEP[name])), name)


@pytest.mark.parametrize("name", [name for name in DEEP if name.endswith(".png")])
def test_so_is_that_of_a_competition(name: str) -> None:
    with pytest.raises(Problem, match=rf"{name} has 16 bits a colour"):
        decode_image(DEEP[name], ".png", 1, 20, 30, name)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "JPEG", "PPM", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_one_of_8_bits_or_less_is_read_whatever_its_mode(mode: str, image_format: str) -> None:
    try:
        data = save(Image.new("RGB", (30, 20), (204, 204, 204)).convert(mode), image_format)
    except OSError:
        return  # this format has no such mode
    values = upright_rgb(Image.open(io.BytesIO(data)), "a")
    assert values.shape == (20, 30, 3) and (mode == "1" or np.abs(values - 204.0).max() <= 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_the_size_in_the_header_is_that_of_the_upright_image(image_format: str, orientation: int) -> None:
    """Pillow turns a TIFF itself, and says so in its size before it is decoded."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:20, :32] = 255  # of the stored image, the top left quarter
    Image.fromarray(pixels).save(file := io.BytesIO(), image_format, exif=exif)
    with Image.open(file) as image:
        size = upright_size(image)
        upright = upright_rgb(image, "a")
    assert size == upright.shape[:2] == ((40, 64) if orientation < 5 else (64, 40))
    row, column = [(0, 0), (0, -1), (-1, -1), (-1, 0)][(orientation - 1) % 4]
    assert upright[row, column].min() > 200 and (upright.min(2) > 128).mean() == pytest.approx(0.25, abs=0.02)
