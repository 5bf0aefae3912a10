"""A plain folder of images and masks is read as it is, and whatever is wrong with it is one sentence."""
import pathlib
import shutil

import numpy as np
import pytest
from PIL import ExifTags, Image
from plain_folder import CLASSES, COLOURS, draw

from pipeline.__main__ import main
from pipeline.config import Data, Settings, Task
from pipeline.data.dataset import open_dataset
from pipeline.data.image_folder import ImageFolder, resize_nearest
from pipeline.data.images import TRANSPOSE_OF
from pipeline.runtime.problem import Problem

SIZE = (64, 96)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return draw(tmp_path_factory.mktemp("plain") / "folder", images=6)


@pytest.fixture
def folder(drawn: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy that a test may damage."""
    return pathlib.Path(shutil.copytree(drawn, tmp_path / "folder"))


def opened(folder: pathlib.Path, classes: tuple[str, ...] = CLASSES, size=SIZE, ignore_index: int = 255) -> ImageFolder:
    return ImageFolder(folder, classes, ignore_index, *size)


def write_mask(folder: pathlib.Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(folder / "masks" / f"{name}.png")


def mask_shape(folder: pathlib.Path, name: str) -> tuple[int, int]:
    with Image.open(folder / "masks" / f"{name}.png") as mask:
        return mask.height, mask.width


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_images_of_different_sizes_are_read_on_one_grid_with_their_classes(drawn: pathlib.Path, scale: int) -> None:
    dataset = opened(drawn)
    for name in dataset.names:
        image, target, truth = dataset.read(name, scale), dataset.target(name, scale), dataset.truth(name)
        assert image.shape == (64 // scale, 96 // scale, 3) and image.dtype == np.uint8
        assert target.shape == image.shape[:2] and truth.shape == SIZE
        assert set(np.unique(truth)) == {0, 1, 2, 255} and (truth[0] == 255).all()
        if scale == 1:
            is_valid = target != 255
            colours = COLOURS[np.where(is_valid, target, 0)]
            wrong = is_valid & (np.abs(image.astype(int) - colours).max(-1) > 60)
            assert wrong.mean() < 0.03  # along the edges
            np.testing.assert_array_equal(target, truth)


def test_a_folder_without_a_size_has_that_of_its_first_image(folder: pathlib.Path) -> None:
    dataset = opened(folder, size=(None, None))
    assert (dataset.height, dataset.width) == mask_shape(folder, "p00")
    assert dataset.read("p00", 1).shape[:2] == mask_shape(folder, "p00")
    with pytest.raises(Problem, match=r"p01\.jpg is \d+x\d+, but the first image .*set data.height and data.width"):
        dataset.read("p01", 1)


def test_a_mask_is_resized_by_nearest_pixels() -> None:
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert resize_nearest(values, 4, 6).tolist() == np.repeat(np.repeat(values, 2, 0), 2, 1).tolist()
    assert resize_nearest(np.arange(9, dtype=np.uint8)[None], 1, 3).tolist() == [[1, 4, 7]]


def test_palette_masks_are_read_by_their_index(folder: pathlib.Path) -> None:
    values = np.zeros(mask_shape(folder, "p00"), np.uint8)
    values[:, 50:] = 2
    mask = Image.fromarray(values, mode="P")
    mask.putpalette([255, 255, 255, 9, 9, 9, 80, 0, 80])
    mask.save(folder / "masks" / "p00.png")
    assert set(np.unique(opened(folder).truth("p00"))) == {0, 2}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_is_turned_as_its_exif_says_and_fits_its_mask(
    folder: pathlib.Path, orientation: int, suffix: str
) -> None:
    """The mask is drawn on what every viewer shows; the pixels lie as the orientation says."""
    mask = np.zeros((60, 90), np.uint8)
    mask[:20, :30] = 1
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
    inverse = TRANSPOSE_OF.get({6: 8, 8: 6}.get(orientation, orientation))
    stored = stored if inverse is None else stored.transpose(inverse)
    (folder / "images" / "p00.jpg").unlink()
    stored.save(folder / "images" / f"p00{suffix}", exif=exif)
    write_mask(folder, "p00", mask)
    dataset = opened(folder, size=(None, None))
    assert (dataset.height, dataset.width) == (60, 90)
    assert ((dataset.read("p00", 1) > 127).all(-1) == (dataset.truth("p00") == 1)).all()


def test_an_exif_that_makes_no_sense_turns_nothing(folder: pathlib.Path) -> None:
    path = folder / "images" / "p00.jpg"
    with Image.open(path) as image:
        image.load()
        for exif in (b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0only some words"):
            image.save(path, exif=exif)
            assert opened(folder, size=(None, None)).read("p00", 1).shape[:2] == mask_shape(folder, "p00")


def test_the_fingerprint_depends_on_names_sizes_and_classes_and_not_on_the_folder(
    drawn: pathlib.Path, folder: pathlib.Path
) -> None:
    original = opened(drawn).fingerprint
    assert opened(folder).fingerprint == original
    assert opened(folder, classes=("ground", "ball", "square")).fingerprint != original
    assert opened(folder, size=(32, 48)).fingerprint != original
    with open(folder / "masks" / "p03.png", "ab") as mask:
        mask.write(b"!")
    longer = opened(folder).fingerprint
    (folder / "masks" / "p03.png").rename(folder / "masks" / "q.png")
    (folder / "images" / "p03.jpg").rename(folder / "images" / "q.jpg")
    (folder / "groups.csv").unlink()
    assert len({original, longer, opened(folder).fingerprint}) == 3


def test_pixels_of_the_ignore_index_have_no_label(folder: pathlib.Path) -> None:
    values = np.full(mask_shape(folder, "p00"), 9, np.uint8)
    values[20:] = 1
    write_mask(folder, "p00", values)
    assert set(np.unique(opened(folder, ignore_index=9).truth("p00"))) == {1, 255}


@pytest.mark.parametrize("high", [1, 255])
def test_a_binary_mask_may_be_0_and_1_or_0_and_255_and_its_target_is_coverage(folder: pathlib.Path, high: int) -> None:
    shape = mask_shape(folder, "p00")
    values = np.zeros(shape, np.uint8)
    values[: shape[0] // 2 + 1, :41] = high
    write_mask(folder, "p00", values)
    dataset = opened(folder, classes=(), size=shape)
    assert dataset.truth("p00").dtype == bool and (dataset.truth("p00") == (values > 0)).all()
    target = dataset.target("p00", 8)
    assert set(np.unique(target)) > {0, 255} and target[0, 5] == pytest.approx(255 / 8, abs=1)  # 1 column of 8


def test_groups_are_never_split_and_without_groups_csv_each_image_is_one(folder: pathlib.Path) -> None:
    table = opened(folder).folds(2)
    assert list(table.columns) == ["image", "group", "fold"] and len(table) == 6
    assert (table.groupby("group")["fold"].nunique() == 1).all() and set(table["fold"]) == {0, 1}
    (folder / "groups.csv").unlink()
    assert len(opened(folder).folds(6)["fold"].unique()) == 6


def test_a_config_opens_it(folder: pathlib.Path) -> None:
    settings = Settings(
        data=Data(kind="folder", height=64, width=96), task=Task(kind="multiclass", classes=list(CLASSES))
    )
    dataset = open_dataset(settings.data, settings.task, folder)
    assert dataset.classes == CLASSES and (dataset.height, dataset.width) == SIZE
    assert dataset.group_key("p00") == "p00" and not dataset.has_angles


# --- what may be wrong ----------------------------------------------------------------------------


def a_mask_is_missing(folder: pathlib.Path) -> str:
    (folder / "masks" / "p02.png").unlink()
    return r"masks lacks the masks of 1 images; the first is p02\.png"


def an_image_is_missing(folder: pathlib.Path) -> str:
    (folder / "images" / "p02.jpg").unlink()
    return r"images lacks the images of 1 masks; the first is p02\."


def there_are_no_masks(folder: pathlib.Path) -> str:
    shutil.rmtree(folder / "masks")
    return r"There is no folder .*masks; a plain folder has images/ and masks/"


def images_is_empty(folder: pathlib.Path) -> str:
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    return r"images holds no file that ends in \.jpg"


def two_images_have_one_name(folder: pathlib.Path) -> str:
    shutil.copy(folder / "images" / "p02.jpg", folder / "images" / "p02.png")
    return r"p02\.jpg and .*p02\.png have the same name"


def the_table_has_other_columns(folder: pathlib.Path) -> str:
    (folder / "groups.csv").write_text("file,patient\np00.jpg,1\n")
    return "must have the columns image,group"


def the_table_lacks_an_image(folder: pathlib.Path) -> str:
    lines = (folder / "groups.csv").read_text().splitlines()
    (folder / "groups.csv").write_text("\n".join(lines[:-1]))
    return r"groups\.csv and images/ do not name the same images: p05"


def the_table_is_empty(folder: pathlib.Path) -> str:
    (folder / "groups.csv").write_text("")
    return "must have the columns image,group"


def an_image_is_in_two_groups(folder: pathlib.Path) -> str:
    with open(folder / "groups.csv", "a") as file:
        file.write("p00,another\n")
    return "has two lines for p00"


def a_line_of_the_table_is_too_long(folder: pathlib.Path) -> str:
    with open(folder / "groups.csv", "a") as file:
        file.write("p06,a,b\n")
    return r"groups\.csv, line 8: 3 fields"


def a_quote_of_the_table_is_not_closed(folder: pathlib.Path) -> str:
    with open(folder / "groups.csv", "a") as file:
        file.write('p06,"a\n')
    return r"groups\.csv cannot be read as a CSV table"


def an_image_is_empty(folder: pathlib.Path) -> str:
    (folder / "images" / "p00.jpg").write_bytes(b"")
    return r"p00\.jpg is not a whole JPEG or PNG image"


def an_image_is_cut_short(folder: pathlib.Path) -> str:
    path = folder / "images" / "p00.jpg"
    path.write_bytes(path.read_bytes()[:-400])
    return r"p00\.jpg is not a whole JPEG or PNG image"


def an_image_has_16_bits(folder: pathlib.Path) -> str:
    (folder / "images" / "p00.jpg").unlink()
    Image.fromarray(np.full(mask_shape(folder, "p00"), 900, np.uint16)).save(folder / "images" / "p00.png")
    return r"p00\.png has 16 bits a colour, but only 8 can be read"


def a_mask_is_cut_short(folder: pathlib.Path) -> str:
    path = folder / "masks" / "p00.png"
    path.write_bytes(path.read_bytes()[:60])
    return r"p00\.png is not a whole JPEG or PNG image"


def a_mask_is_in_colour(folder: pathlib.Path) -> str:
    write_mask(folder, "p00", np.zeros((*mask_shape(folder, "p00"), 3), np.uint8))
    return r"p00\.png: the mask's colours are RGB, but it must be a grey or palette PNG"


def a_mask_has_another_size(folder: pathlib.Path) -> str:
    write_mask(folder, "p00", np.zeros((40, 50), np.uint8))
    return r"p00\.png: the mask is 50x40, but its image \d+x\d+"


def a_mask_has_a_value_beyond_the_classes(folder: pathlib.Path) -> str:
    write_mask(folder, "p00", np.full(mask_shape(folder, "p00"), 3, np.uint8))
    return r"p00\.png: the mask has the value 3, but task\.classes has 3, from 0 to 2"


TROUBLE = [
    a_mask_is_missing, an_image_is_missing, there_are_no_masks, images_is_empty, two_images_have_one_name,
    the_table_has_other_columns, the_table_lacks_an_image, the_table_is_empty, an_image_is_in_two_groups,
    a_line_of_the_table_is_too_long, a_quote_of_the_table_is_not_closed,
    an_image_is_empty, an_image_is_cut_short, an_image_has_16_bits, a_mask_is_cut_short, a_mask_is_in_colour,
    a_mask_has_another_size,
    a_mask_has_a_value_beyond_the_classes,
]  # fmt: skip


@pytest.mark.parametrize("damage", TROUBLE, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_one_sentence(folder: pathlib.Path, damage) -> None:
    expected = damage(folder)
    with pytest.raises(Problem, match=expected) as caught:
        dataset = opened(folder)
        dataset.read("p00", 1), dataset.target("p00", 2)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_binary_mask_of_other_values_is_a_problem(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"p00\.png: the mask has the values 0, 1, 2, 255, but a binary one has 0 and 1"):
        opened(folder, classes=()).truth("p00")


def test_an_ignore_index_that_is_a_class_is_a_problem(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"task\.ignore_index is 1, which is the class disc"):
        opened(folder, ignore_index=1)


def test_more_folds_than_groups_are_a_problem(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"data\.folds is 3, but the \w+ have only 2 groups"):
        opened(folder).folds(3)


def test_folds_counts_images_without_groups_as_a_group_each(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (folder / "groups.csv").unlink()
    monkeypatch.chdir(tmp_path)
    task = f"task: {{kind: multiclass, classes: [{', '.join(CLASSES)}]}}\n"
    pathlib.Path("mine.yaml").write_text(f"data: {{kind: folder, folds: 2, height: 64, width: 96}}\n{task}")
    assert main(["folds", "--config", "mine.yaml", "--data", str(folder)]) == 0
    images = len(list((folder / "images").iterdir()))
    assert f"{images // 2} of {images // 2} groups" in capsys.readouterr().out
