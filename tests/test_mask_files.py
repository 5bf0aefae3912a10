"""A mask file says what is object, or which class, by one rule; what two rules would read differently is refused."""
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.mask_files import Mask, palette_colours, read_mask
from pipeline.runtime.problem import Problem

OBJECT = np.zeros((40, 60), bool)
OBJECT[5:14, 8:18] = True  # 3.75 %
VOID = 255


def grey(high: int, low: int = 0, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.where(OBJECT, high, low).astype(dtype))


def palette(colours: list[tuple[int, int, int]], indices: np.ndarray, **info) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([value for colour in colours for value in colour])
    image.info.update(info)
    return image


def layers(*channels: np.ndarray | int) -> Image.Image:
    """RGBA, or grey with opacity if there are two, of arrays and constants."""
    return Image.fromarray(np.dstack([np.full(OBJECT.shape, channel, np.uint8) for channel in channels]))


def saved(image: Image.Image, image_format: str = "PNG", **options) -> Image.Image:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return Image.open(file)


def read(image: Image.Image, classes: int = 0, image_format: str = "PNG", **options) -> Mask:
    return read_mask(saved(image, image_format, **options), classes, VOID, "m.png")


BLURRED = cv2.GaussianBlur(OBJECT.astype(np.uint8) * 255, (5, 5), 0)
WHITE, BLACK, RED, GREEN = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 255, 0)


# --- one object -------------------------------------------------------------------------------------

WHITE_ON_BLACK = {
    "0 and 1": grey(1), "0 and 255": grey(255), "0 and 254": grey(254), "0 and 128": grey(128),
    "3 and 250": grey(250, 3),
    "0 and 65535": grey(65535, dtype=np.uint16), "0 and 40000": grey(40000, dtype=np.uint16),
    "0 and 255 of 16 bits": grey(255, dtype=np.uint16), "0 and 1 of 16 bits": grey(1, dtype=np.uint16),
    "1 bit": grey(255).convert("1"),
    "quantize, which puts white first": grey(255).quantize(2), "quantize of RGB": grey(255).convert("RGB").quantize(2),
    "quantize of RGBA": grey(255).convert("RGBA").quantize(2),
    "quantize to 256": grey(255).quantize(256), "quantize of 3 and 250": grey(250, 3).quantize(2),
    "convert P": grey(255).convert("P"), "convert P of 0 and 1": grey(1).convert("P"),
    "convert P of RGB": grey(255).convert("RGB").convert("P"),
    "convert P, adaptive": grey(255).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
    "white, black": palette([WHITE, BLACK], ~OBJECT), "black, white": palette([BLACK, WHITE], OBJECT),
    "two of many entries": palette([RED, WHITE, GREEN, BLACK, RED], np.where(OBJECT, 1, 3)),
    "a palette of VOC": palette([BLACK, (128, 0, 0)], OBJECT), "red on white": palette([WHITE, RED], OBJECT),
    "green on red": palette([RED, GREEN], OBJECT), "a palette all black": palette([BLACK, BLACK], OBJECT),
    "index 255 of a coloured palette": palette([BLACK] * 255 + [(224, 224, 192)], np.where(OBJECT, 255, 0)),
    "RGB": grey(255).convert("RGB"), "RGBA": grey(255).convert("RGBA"), "LA": grey(255).convert("LA"),
    "RGB of 0 and 1": grey(1).convert("RGB"),
    "white on nothing": layers(*[np.where(OBJECT, 255, 0)] * 4), "white, opaque in places": layers(
        255, 255, 255, np.where(OBJECT, 255, 0)),
    "LA, opaque in places": layers(255, np.where(OBJECT, 255, 0)),
}  # fmt: skip


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("name", WHITE_ON_BLACK)
def test_the_object_is_the_same_in_all_files_of_it(name: str, image_format: str) -> None:
    mask = read(WHITE_ON_BLACK[name], image_format=image_format)
    assert mask.truth.dtype == bool and mask.truth.mean() == pytest.approx(0.0375)
    np.testing.assert_array_equal(mask.truth, OBJECT)
    assert mask.grey_px == (90 if name in ("0 and 128", "0 and 40000") else 0)


@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("high", [1, 255])
@pytest.mark.parametrize("mode", ["1", "L", "RGB", "LA", "P", "quantize"])
def test_a_mask_that_is_empty_or_full_is_read_as_such(mode: str, high: int, fill: int) -> None:
    image = Image.new("L", (60, 40), high * fill)
    if mode == "1":
        image = Image.new("1", (60, 40), fill)
    elif mode == "quantize":
        image = image.quantize(2)
    assert (read(image.convert(mode) if mode not in ("1", "quantize") else image).truth == bool(fill)).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("values", [grey(255), Image.fromarray(BLURRED)], ids=["sharp", "blurred"])
def test_a_jpeg_has_its_object_above_half(values: Image.Image, mode: str) -> None:
    mask = read(values.convert(mode), image_format="JPEG", quality=75)
    assert (mask.truth != OBJECT).mean() < 0.01
    assert (read(Image.new(mode, (60, 40)), image_format="JPEG").truth == (mode == "CMYK")).all()  # its 0 is white


def test_grey_pixels_are_counted_and_halved() -> None:
    values = BLURRED.astype(int)
    for dtype, limit in ((np.uint8, 255), (np.uint16, 65535)):
        mask = read(Image.fromarray((values * limit // 255).astype(dtype)))
        np.testing.assert_array_equal(mask.truth, values >= 128)
        assert mask.grey_px == ((values >= 32) & (values <= 223)).sum() > 0
    thirds = np.repeat([0, 127, 128, 255], 10)[None].astype(np.uint8)
    mask = read(Image.fromarray(thirds))
    assert mask.truth.sum() == 20 and mask.grey_px == 20


def test_a_transparent_grey_or_colour_is_no_object_if_the_rest_is() -> None:
    for image in (grey(255), grey(255).convert("RGB")):
        black = 0 if image.mode == "L" else BLACK
        np.testing.assert_array_equal(read(image, transparency=black).truth, OBJECT)
    np.testing.assert_array_equal(read(palette([WHITE, BLACK], ~OBJECT), transparency=1).truth, OBJECT)


def test_a_mask_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for image_format in ("JPEG", "PNG"):
        mask = read(grey(255).transpose(Image.Transpose.ROTATE_90), image_format=image_format, exif=exif)
        assert (mask.truth != OBJECT).mean() < 0.01


TWO_READINGS = {
    "classes": (Image.fromarray(np.arange(3, dtype=np.uint8)[None]), "the values 0, 1, 2, but one object is"),
    "classes and void": (Image.fromarray(np.array([[0, 1, 255]], np.uint8)), "the values 0, 1, 255, but one object is"),
    "dark": (grey(100), "the values 0, 100, but"), "16 bits, dark": (grey(4095, dtype=np.uint16), "the values 0, 4095"),
    "colour": (Image.fromarray(np.full((4, 4, 3), RED, np.uint8)), "in colour; save it as grey PNG for the object"),
    "black behind red": (palette([RED, BLACK], ~OBJECT), "black is index 1 of the mask's palette"),
    "quantized red": (
        Image.fromarray(np.where(OBJECT[..., None], RED, 0).astype(np.uint8)).quantize(2), "black is index 1"),
    "black on nothing": (layers(0, 0, 0, np.where(OBJECT, 255, 0)), "transparent in places"),
    "both on nothing": (layers(np.where(OBJECT, 255, 0), np.tile(np.arange(60) > 20, (40, 1)) * 255), "transparent in"),
    "nothing to see": (layers(*[np.where(OBJECT, 255, 0)] * 3, 0), "transparent in places"),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO_READINGS)
def test_what_has_two_readings_is_one_sentence(name: str) -> None:
    image, expected = TWO_READINGS[name]
    with pytest.raises(Problem, match=f"^m.png: the mask .*{expected}|^m.png: {expected}") as caught:
        read(image)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_other_masks_of_one_object_that_are_refused() -> None:
    for image, expected in (
        (Image.fromarray(np.array([[-1.0, 0.5]], np.float32)), "values below 0"),
        (Image.fromarray(np.array([[np.nan, 0.5]], np.float32)), "values below 0 or no numbers"),
    ):
        with pytest.raises(Problem, match=expected):
            read(image, image_format="TIFF")
    with pytest.raises(Problem, match="the values 0, 1, but one object is"):  # 0 and 1 do not survive as JPEG
        read(grey(1), image_format="JPEG", quality=100)
    deep = cv2.imencode(".png", np.dstack([np.where(OBJECT, 255, 0)] * 3).astype(np.uint16))[1].tobytes()
    with pytest.raises(Problem, match="the mask has 16 bits a colour"):
        read_mask(Image.open(io.BytesIO(deep)), 0, VOID, "m.png")


# --- several classes --------------------------------------------------------------------------------

INDICES = np.zeros((40, 60), np.uint8)
INDICES[:20], INDICES[20:30], INDICES[:, :2] = 1, 2, VOID
UNLABELLED_BLACK = [RED, GREEN, WHITE] + [BLACK] * 253
OF_CLASSES = {
    "grey": Image.fromarray(INDICES), "16 bits": Image.fromarray(INDICES.astype(np.uint16)),
    "RGB": Image.fromarray(INDICES).convert("RGB"), "RGBA": Image.fromarray(INDICES).convert("RGBA"),
    "LA": Image.fromarray(INDICES).convert("LA"), "convert P": Image.fromarray(INDICES).convert("P"),
    "quantize": Image.fromarray(INDICES).quantize(4), "colours": palette(UNLABELLED_BLACK, INDICES),
    "opacity of a palette": palette(UNLABELLED_BLACK, INDICES, transparency=0),
    "greys for viewers": palette([BLACK, (127,) * 3, WHITE] + [WHITE] * 253, INDICES),
}  # fmt: skip


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("name", OF_CLASSES)
def test_classes_are_the_same_in_all_files_of_them(name: str, image_format: str) -> None:
    np.testing.assert_array_equal(read(OF_CLASSES[name], 3, image_format).truth, INDICES, strict=True)


def test_a_bit_is_one_of_two_classes() -> None:
    np.testing.assert_array_equal(read(grey(255).convert("1"), 2).truth, OBJECT.astype(np.uint8), strict=True)


@pytest.mark.parametrize(
    "image, image_format, expected",
    [(Image.fromarray(INDICES), "JPEG", "is a JPEG, whose compression changes class indices"),
     (grey(255).quantize(2), "PNG", "greys of the mask's palette fall while its indices rise"),
     (layers(np.where(OBJECT, 1, 0), np.where(OBJECT, 255, 0)), "PNG", "transparent in places"),
     (Image.fromarray(np.full((4, 4, 3), RED, np.uint8)), "PNG", "in colour; save it as grey PNG with class indices"),
     (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF", "save it as grey PNG with class indices"),
     (Image.fromarray(np.full((4, 4), -1, np.int32)), "TIFF", "the value -1, but task.classes has 3")],
)  # fmt: skip
def test_classes_with_two_readings_are_one_sentence(image: Image.Image, image_format: str, expected: str) -> None:
    with pytest.raises(Problem, match=expected):
        read(image, 3, image_format)


def test_the_colours_of_a_palette_are_known_before_the_mask_is_decoded() -> None:
    for image_format in ("PNG", "TIFF"):
        opened = saved(palette([RED, GREEN], OBJECT), image_format)
        assert palette_colours(opened)[1] == GREEN and opened.tile  # what is decoded has no tile left
    assert palette_colours(saved(grey(255).convert("P"))) == palette_colours(saved(grey(255))) == {}
