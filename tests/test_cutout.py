"""Images as users have them are cut out: transparent, large, in folders, with blanks in their names, or damaged."""
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import Killed
from torch import Tensor, nn

from pipeline import cutout
from pipeline.__main__ import main
from pipeline.config import Settings
from pipeline.cutout import cut_out, predict_cells, predict_class_map, strips, upsample_rows
from pipeline.data import image_files
from pipeline.data.image_files import find_images, read_image
from pipeline.inference.class_maps import ClassEnsemble
from pipeline.inference.edge import EdgeRefiner
from pipeline.inference.ensemble import Ensemble, Member
from pipeline.inference.tta import TTA_SETS
from pipeline.runtime.problem import Problem

RED, GREEN = (255, 60, 60), (0, 200, 0)


class Red(nn.Module):
    """Returns the red of a pixel as the probability; of two classes with `classes`."""

    def __init__(self, classes: int = 1):
        super().__init__()
        self.classes, self.weight = classes, nn.Parameter(torch.ones(()))

    def forward(self, image_NHWC: Tensor) -> Tensor:
        logit_NHW = (image_NHWC[..., 0].float() / 255 * self.weight).clamp(1e-7, 1 - 1e-7).logit()
        return torch.stack([-logit_NHW, logit_NHW][-self.classes :], dim=1)


def ensemble_of_red(refined: bool) -> Ensemble:
    refiner = EdgeRefiner(Red(), scale=1, tile_px=32, margin_px=4, transforms=TTA_SETS["none"]) if refined else None
    return Ensemble([Member(Red(), 4, TTA_SETS["none"], 1.0, refiner)], 96, 144)


def draw_disc(height: int = 90, width: int = 120) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    return np.where(disc[..., None], RED, GREEN).astype(np.uint8)


@pytest.fixture(params=["coarse", "refined"])
def place(request: pytest.FixtureRequest, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty working folder in which `cutout` finds what is red, with a refiner and without."""
    monkeypatch.chdir(tmp_path)
    pathlib.Path("red.yaml").touch()
    members = ensemble_of_red(request.param == "refined").members
    monkeypatch.setattr(cutout, "load_members", lambda *arguments: (members, [Settings()]))
    monkeypatch.setattr(cutout, "read_size_and_classes", lambda path: ((96, 144), ()))
    monkeypatch.setattr(cutout, "pick_device", lambda: torch.device("cpu"))
    return tmp_path


def run_cutout(*arguments: str) -> int:
    return main(["cutout", "--config", "red.yaml", "--fold", "0", "--out", "out", *arguments])


def save_disc(*paths: str) -> None:
    for path in map(pathlib.Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_disc()).save(path)


def alpha_of(path: str) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGBA"
        return np.asarray(image)[..., 3]


def written() -> list[str]:
    return sorted(str(path.relative_to("out")) for path in pathlib.Path("out").rglob("*") if path.is_file())


# --- transparency ----------------------------------------------------------------------------------------------------


def rgba_disc() -> Image.Image:
    """The disc, its left half opaque, its right half at 100 of 255, and its last columns transparent."""
    alpha = np.full((90, 120), 255, np.uint8)
    alpha[:, 60:], alpha[:, 80:] = 100, 0
    return Image.fromarray(np.dstack((draw_disc(), alpha)))


@pytest.mark.parametrize("suffix, options", [
    ("png", {}), ("tif", {}), ("webp", {"lossless": True, "exact": True}), ("tif", {"compression": "tiff_lzw"}),
])  # fmt: skip
def test_the_transparency_of_an_image_is_multiplied(
    place: pathlib.Path, suffix: str, options: dict[str, object]
) -> None:
    rgba_disc().save(f"a.{suffix}", **options)
    Image.fromarray(draw_disc()).save("opaque.png")
    assert run_cutout("--image", f"a.{suffix}", "opaque.png") == 0
    alpha, opaque = alpha_of("out/a.png"), alpha_of("out/opaque.png")
    assert (opaque[:, 80:] == 255).any() and not alpha[:, 80:].any()
    assert (alpha[:, :60] == opaque[:, :60]).all()
    assert (alpha[:, 60:80] == np.rint(opaque[:, 60:80] * (100 / 255))).all()
    with Image.open("out/a.png") as image:
        assert not np.asarray(image)[alpha == 0].any()  # nothing hides under it


def save_palette(path: pathlib.Path) -> None:
    image = Image.fromarray((np.arange(6) >= 3).astype(np.uint8)[None].repeat(4, axis=0), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(path, transparency=1)


def save_half_opaque_palette(path: pathlib.Path) -> None:
    save_palette(path)
    with Image.open(path) as image:
        image.save(path, transparency=b"\xff\x64")  # the second colour at 100 of 255


def save_grey(path: pathlib.Path) -> None:
    grey = Image.fromarray(np.full((4, 6), 200, np.uint8))
    alpha = Image.fromarray(np.where(np.arange(6) < 3, 255, 0).astype(np.uint8)[None].repeat(4, axis=0))
    Image.merge("LA", (grey, alpha)).save(path)


def save_grey_key(path: pathlib.Path) -> None:
    grey = np.where(np.arange(6) < 3, 9, 7).astype(np.uint8)[None].repeat(4, axis=0)
    Image.fromarray(grey).save(path, transparency=7)


def save_colour_key(path: pathlib.Path) -> None:
    colour = np.where(np.arange(6)[:, None] < 3, (9, 8, 7), (7, 8, 9)).astype(np.uint8)[None].repeat(4, axis=0)
    Image.fromarray(colour).save(path, transparency=(7, 8, 9))


@pytest.mark.parametrize("save, suffix, right", [
    (save_palette, "png", 0), (save_palette, "gif", 0), (save_half_opaque_palette, "png", 100), (save_grey, "png", 0),
    (save_grey, "tif", 0), (save_grey_key, "png", 0), (save_colour_key, "png", 0),
])  # fmt: skip
def test_every_kind_of_transparency_is_read(
    tmp_path: pathlib.Path, save: Callable[[pathlib.Path], None], suffix: str, right: int
) -> None:
    save(tmp_path / f"a.{suffix}")
    pixels = read_image(tmp_path / f"a.{suffix}", 1)
    assert pixels.shape == (4, 6, 4) and pixels[0, :, 3].tolist() == [255] * 3 + [right] * 3


def save_deep_grey(path: pathlib.Path) -> None:
    """A PNG of grey and opacity in 16 bits each, which neither Pillow nor OpenCV writes."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 4, 0, 0, 0)  # 2 x 1 pixels, grey with opacity
    row = zlib.compress(b"\0" + struct.pack(">4H", 40_000, 65_535, 40_000, 300))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b""))


def save_deep_colours(path: pathlib.Path) -> None:
    cv2.imwrite(str(path), np.full((4, 6, 4), 300, np.uint16))


@pytest.mark.parametrize("save, suffix", [
    (save_deep_grey, "png"), (save_deep_colours, "png"), (save_deep_colours, "tif"),
])  # fmt: skip
def test_transparency_of_16_bits_is_refused_as_colours_are(
    tmp_path: pathlib.Path, save: Callable[[pathlib.Path], None], suffix: str
) -> None:
    save(tmp_path / f"a.{suffix}")
    with pytest.raises(Problem, match=f"a.{suffix} has 16 bits a colour"):
        read_image(tmp_path / f"a.{suffix}", 1)


def test_transparency_is_turned_upright_with_the_image(tmp_path: pathlib.Path) -> None:
    rotated = Image.Exif()
    rotated[0x0112] = 6
    rgba_disc().save(tmp_path / "a.png", exif=rotated.tobytes())
    pixels = read_image(tmp_path / "a.png", 1)
    assert pixels.shape == (120, 90, 4)
    assert (pixels[:60, :, 3] == 255).all() and (pixels[60:80, :, 3] == 100).all() and not pixels[80:, :, 3].any()


def test_an_opaque_image_has_three_channels(tmp_path: pathlib.Path) -> None:
    for name, mode in {"a.jpg": "RGB", "b.jpg": "L", "c.jpg": "CMYK", "d.png": "P", "e.png": "1"}.items():
        Image.fromarray(draw_disc()).convert(mode).save(tmp_path / name)
        assert read_image(tmp_path / name, 1).shape == (90, 120, 3)


def test_transparency_does_not_change_what_the_networks_see() -> None:
    rgba, ensemble = np.asarray(rgba_disc()), ensemble_of_red(refined=False)
    (of_rgba,), _ = predict_cells(ensemble, rgba)
    (of_rgb,), _ = predict_cells(ensemble, rgba[..., :3].copy())
    assert (of_rgba == of_rgb).all()


# --- folders, several images -----------------------------------------------------------------------------------------


def test_a_folder_is_cut_out_with_its_structure(place: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    save_disc("photos/a.jpg", "photos/B.JPG", "photos/trip one/a.jpg", "photos/trip one/deep/c.webp")
    save_disc("photos/.hidden.jpg", "photos/.thumbnails/a.jpg")
    pathlib.Path("photos/notes.txt").write_text("no image")
    assert run_cutout("--image", "photos") == 0
    assert written() == ["B.png", "a.png", "trip one/a.png", "trip one/deep/c.png"]
    assert "1, skipped; the first is photos/notes.txt" in capsys.readouterr().out


def test_a_second_run_into_a_folder_of_the_folder_does_the_same(place: pathlib.Path) -> None:
    save_disc("photos/a.jpg")
    for _ in range(2):
        assert run_cutout("--image", "photos", "--out", "photos/out") == 0
    assert [path.name for path in pathlib.Path("photos/out").iterdir()] == ["a.png"]


def test_bad_images_have_a_line_each_and_the_others_are_cut_out(
    place: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    save_disc("photos/a.jpg", "photos/d.jpg")
    pathlib.Path("photos/b.jpg").write_text("no image")
    pathlib.Path("photos/c.png").write_bytes(pathlib.Path("photos/a.jpg").read_bytes()[:400])
    pathlib.Path("photos/lost.png").symlink_to("nowhere.png")
    assert run_cutout("--image", "photos") == 1
    assert written() == ["a.png", "d.png"]
    *lines, last = capsys.readouterr().err.splitlines()
    assert [line.split(" is not")[0] for line in lines[:2]] == ["cutout: photos/b.jpg", "cutout: photos/c.png"]
    assert lines[2:] == ["cutout: There is no photos/lost.png."]
    assert last == "cutout: 3 of 5 images were left out, see above; out has the others."


def test_the_only_image_being_bad_is_one_line(place: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    pathlib.Path("b.jpg").write_text("no image")
    assert run_cutout("--image", "b.jpg") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cutout: b.jpg is not an image")


def test_what_cannot_be_written_stops_at_once(place: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    save_disc("a.jpg", "b.jpg")
    pathlib.Path("out").write_text("a file")
    assert run_cutout("--image", "a.jpg", "b.jpg") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "out/a.png could not be written" in line


@pytest.mark.parametrize("arguments, named", [
    (["--image", "none.jpg"], "There is no none.jpg;"),
    (["--image", "no photo.jpg"], "There is no no photo.jpg;"),
    (["--image", "a/x.jpg none.jpg"], "There is no none.jpg;"),
    (["--image", "none.jpg a/x.jpg"], "There is no none.jpg;"),
    (["--image", "*.jpg"], "There is no *.jpg;"),
    (["--image", "empty"], "empty holds no image"),
    (["--image", "a/x.jpg", "b/x.png"], "a/x.jpg and b/x.png would both become out/x.png"),
    (["--image", "b", "a"], "b/x.png and a/x.jpg would both become out/x.png"),
    (["--image", "b/x.png", "--out", "b"], "b/x.png would be overwritten by the cut-out of b/x.png"),
    (["--image", "b", "--out", "b"], "b/x.png would be overwritten"),
    (["--image", "c/x.jpg", "b/x.png", "--out", "b"], "b/x.png would be overwritten by the cut-out of c/x.jpg"),
    (["--image", "pipe"], "pipe is no file"),
])  # fmt: skip
def test_a_problem_is_one_line_and_nothing_is_written(
    place: pathlib.Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture
) -> None:
    save_disc("a/x.jpg", "b/x.png", "b/y.jpg", "c/x.jpg")
    pathlib.Path("empty").mkdir()
    os.mkfifo("pipe")
    before = pathlib.Path("b/x.png").read_bytes()
    assert run_cutout(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert not pathlib.Path("out").exists() and pathlib.Path("b/x.png").read_bytes() == before


def test_an_image_that_another_one_would_replace_is_kept(place: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    save_disc("a/sub/x.jpg", "out/sub/x.png")
    assert run_cutout("--image", "a", "out/sub/x.png") == 1
    assert "out/sub/x.png would be overwritten by the cut-out of a/sub/x.jpg" in capsys.readouterr().err


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def names(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files with awkward names; nothing reads them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg", "my photo.jpg", "my  two blanks.jpg", "it's.jpg", "photo[1].jpg", "photo1.jpg",
                 "my", "car/x.jpg", "car 1.jpg", "all in/one.png", "all in/two.JPG", "all in/notes.txt"):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    yield


@pytest.mark.parametrize("given, images", [
    (["a.jpg b.jpg"], ["a.jpg", "b.jpg"]),
    (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
    (["a.jpg a.jpg ./a.jpg"], ["a.jpg"]),
    (["my photo.jpg"], ["my photo.jpg"]),
    (["my  two blanks.jpg"], ["my  two blanks.jpg"]),
    (["my photo.jpg", "it's.jpg"], ["my photo.jpg", "it's.jpg"]),
    (["a.jpg my photo.jpg it's.jpg"], ["a.jpg", "my photo.jpg", "it's.jpg"]),
    (["car 1.jpg car"], ["car 1.jpg", "car/x.jpg"]),  # not the folder car and 1.jpg
    ([" a.jpg  b.jpg "], ["a.jpg", "b.jpg"]),
    (["[ab].jpg"], ["a.jpg", "b.jpg"]),
    (["photo[1].jpg"], ["photo[1].jpg"]),  # the file of this name, not photo1.jpg
    (["all in/*"], ["all in/one.png", "all in/two.JPG"]),
    (["all in"], ["all in/one.png", "all in/two.JPG"]),
    (["all in/*.png a.jpg"], ["all in/one.png", "a.jpg"]),
    (["c*"], ["car 1.jpg", "car/x.jpg"]),
    (["**/*.png"], ["all in/one.png"]),
])  # fmt: skip
def test_a_path_that_exists_is_taken_whole(names: None, given: list[str], images: list[str]) -> None:
    assert sorted(map(str, find_images(given, pathlib.Path("out")).names)) == sorted(images)


def test_a_folder_that_cannot_be_read_is_no_gap(names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match="Permission denied"):
        find_images(["car"], pathlib.Path("out"))


def test_many_paths_are_split_quickly(names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    monkeypatch.setattr(image_files, "expand", lambda text: looked_up.append(text) or (
        [pathlib.Path(text)] if text == "a.jpg" else []
    ))  # fmt: skip
    find_images(["a.jpg " * 1000], pathlib.Path("out"))
    assert len(looked_up) < 20_000


# --- masks -----------------------------------------------------------------------------------------------------------


def test_mask_writes_0_and_255_where_the_cut_out_is_half_opaque(place: pathlib.Path) -> None:
    rgba_disc().save("a.png")
    assert run_cutout("--image", "a.png") == 0
    alpha = alpha_of("out/a.png")
    assert run_cutout("--image", "a.png", "--mask", "--out", "masks") == 0
    with Image.open("masks/a.png") as mask:
        assert mask.mode == "L" and mask.size == (120, 90)
        assert (np.asarray(mask) == np.where(alpha >= 128, 255, 0)).all() and (alpha >= 128).any()


def test_a_table_tells_how_unsure_each_mask_is(place: pathlib.Path) -> None:
    save_disc("images/a.png", "images/sub/b.png")
    grey = draw_disc()
    grey[:45, :, 0] = 128  # the upper half: neither object nor background
    Image.fromarray(grey).save("images/c.png")
    assert run_cutout("--image", "images", "--mask") == 0
    rows = dict(line.split(",") for line in pathlib.Path("out/unsure.csv").read_text().splitlines())
    assert list(rows) == ["image", "a", "c", "sub/b"] and rows["a"] == rows["sub/b"]
    assert float(rows["a"]) < 0.4 < float(rows["c"]) < 0.9
    pathlib.Path("out/c.png").unlink()
    assert run_cutout("--image", "images/a.png", "--mask") == 0  # the masks of the first call stay in it
    names = [line.split(",")[0] for line in pathlib.Path("out/unsure.csv").read_text().splitlines()]
    assert names == ["image", "a", "sub/b"]


def test_a_kill_leaves_no_new_mask_with_the_figure_of_the_one_before(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_disc("images/a.png", "images/b.png", "images/image.png")
    assert run_cutout("--image", "images", "--mask") == 0
    table = pathlib.Path("out/unsure.csv")
    before = table.read_text()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cutout, "replacing", kill)
        run_cutout("--image", "images/a.png", "--mask")
    names = [line.split(",")[0] for line in table.read_text().splitlines()]
    assert names == ["image", "b", "image"]
    assert run_cutout("--image", "images/a.png", "--mask") == 0 and table.read_text() == before
    pathlib.Path("images/a.png").write_text("no image")  # the mask before stays, and so does its figure
    assert run_cutout("--image", "images/a.png", "images/b.png", "--mask") == 1 and table.read_text() == before


def kill(*_: object) -> None:
    raise Killed


def test_a_mask_of_several_classes_holds_their_indices() -> None:
    indices = np.array([[0, 1, 2]], np.uint8)
    assert np.asarray(cutout.to_png(indices, classes=3, mask=True)).tolist() == [[0, 1, 2]]
    assert cutout.to_png(indices, classes=3, mask=True).mode == "L"
    assert cutout.to_png(indices, classes=3, mask=False).mode == "P"
    assert cutout.to_png(indices.astype(np.uint16), classes=300, mask=True).mode == "I;16"


# --- large images ----------------------------------------------------------------------------------------------------


def test_an_image_beyond_pillows_limit_is_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(draw_disc()).save(tmp_path / "a.png")
    with warnings.catch_warnings(action="error"):
        assert (read_image(tmp_path / "a.png", 1) == draw_disc()).all()
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_an_image_beyond_the_limit_is_refused_with_its_size_and_the_setting(
    place: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("1", (1500, 1000)).save("large.png")
    assert run_cutout("--image", "large.png", "--max-megapixels", "1") == 1
    line = capsys.readouterr().err
    assert "large.png has 1500x1000, 1.5 megapixels, but MAX_MEGAPIXELS is 1" in line and "bomb" not in line
    assert run_cutout("--image", "large.png", "--max-megapixels", "2") == 0


@pytest.mark.parametrize("height, width", [(1, 1), (1, 700), (700, 1), (24, 36), (50, 35), (331, 477)])
def test_strips_are_upsampled_as_the_whole(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutout, "STRIP_PX", 40 * width)
    maps = [np.random.default_rng(seed).random((24, 36 + seed), np.float32) for seed in (0, 1)]
    wholes = [cv2.resize(prob, (width, height), interpolation=cv2.INTER_CUBIC) for prob in maps]
    pieces = [upsample_rows(maps, rows, height, width) for rows in strips(height, width)]
    assert len(pieces) == -(-height // 40)
    np.testing.assert_allclose(np.concatenate(pieces), sum(wholes), atol=1e-5)


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("height, width", [(1, 1), (2, 900), (900, 2), (331, 477)])
def test_an_image_in_strips_is_cut_out_as_the_whole(
    height: int, width: int, refined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, ensemble = draw_disc(height, width), ensemble_of_red(refined)
    whole = cut_out(ensemble, image)
    monkeypatch.setattr(cutout, "STRIP_PX", 7 * width)
    assert (cut_out(ensemble, image) == whole).all() and whole.shape == (height, width, 4)


def test_a_class_map_in_strips_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    image = draw_disc(331, 477)
    ensemble = ClassEnsemble([Member(Red(classes=2), 4, TTA_SETS["none"], 1.0)], 96, 144)
    whole = predict_class_map(ensemble, image)
    monkeypatch.setattr(cutout, "STRIP_PX", 7 * 477)
    assert (predict_class_map(ensemble, image) == whole).all() and 0.1 < whole.mean() < 0.5


def test_an_image_that_the_memory_cannot_hold_is_left_out(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save_disc("a.jpg", "b.jpg")

    def read(path: pathlib.Path, max_megapixels: int) -> np.ndarray:
        if path.name == "a.jpg":
            raise MemoryError
        return read_image(path, max_megapixels)

    monkeypatch.setattr(cutout, "read_image", read)
    assert run_cutout("--image", "a.jpg", "b.jpg") == 1
    assert "The memory is too small for a.jpg" in capsys.readouterr().err and written() == ["b.png"]


def test_a_damaged_image_is_a_problem_whatever_pillow_raises(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").touch()
    for error in (KeyError("tag"), IndexError(), TypeError(), PermissionError(13, "Permission denied")):
        def fail(*arguments: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(Problem, match="a.jpg (is not an image|cannot be read: Permission denied)"):
            read_image(tmp_path / "a.jpg", 1)
