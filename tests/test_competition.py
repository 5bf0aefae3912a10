"""A competition folder is checked when it is opened: what is missing is a Problem before an image is decoded."""
import io
import pathlib
import re
import shutil
import zipfile

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import carvana
from pipeline.carvana import CARVANA
from pipeline.data.competition import Competition, CsvMasks, FileMasks
from pipeline.config import Data, Task
from pipeline.data import dataset, relabel, shrink
from pipeline.data.images import coverage
from pipeline.kaggle.verify import Damaged, verify
from pipeline.masks import rle
from pipeline.runtime.problem import Problem

CARS = ("011330127438", "331659860e11")  # as Kaggle's, both of which a careless reader takes for numbers
METADATA = "id,year,make,model,trim1,trim2\n" + "".join(f"{car},2012,Acura,One,Base,FWD\n" for car in CARS)


def pack(folder: pathlib.Path, set_name: str, names: list[str]) -> None:
    with zipfile.ZipFile(folder / f"{set_name}.zip", "w") as archive:
        for name in names:
            archive.writestr(f"{set_name}/{name}", b"")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A competition of two cars whose images are never decoded."""
    images = [carvana.image_name(car, angle) for car in CARS for angle in carvana.ANGLE_CODES]
    pack(tmp_path, "train", images)
    pack(tmp_path, "train_masks", [carvana.CARVANA.mask_file(name) for name in images])
    (tmp_path / "metadata.csv").write_text(METADATA)
    return tmp_path


def drop_member(archive_path: pathlib.Path, ending: str) -> None:
    with zipfile.ZipFile(archive_path) as archive:
        rest = [name.rpartition("/")[2] for name in archive.namelist() if not name.endswith(ending)]
    pack(archive_path.parent, archive_path.stem, rest)


def check(folder: pathlib.Path) -> list[str]:
    return list(CARVANA.open_dataset(folder).group_of_key)


# --- the training set -----------------------------------------------------------------------------


def test_a_whole_training_set_is_a_sorted_list_of_cars(folder: pathlib.Path) -> None:
    assert check(folder) == ["011330127438", "331659860e11"]


def test_folds_hold_out_cars_which_are_seen_from_angles(demo_folder: pathlib.Path) -> None:
    cars = CARVANA.open_dataset(demo_folder)
    assert cars.has_angles and cars.group_key("011330127438_01.jpg") == "011330127438"
    table = cars.folds(2)
    assert list(table.columns) == ["car_id", "make", "fold"]
    assert table["car_id"].tolist() == sorted({cars.group_key(name) for name in cars.names})


def test_a_car_without_one_of_its_16_angles_is_a_problem(folder: pathlib.Path) -> None:
    drop_member(folder / "train.zip", "331659860e11_09.jpg")
    with pytest.raises(Problem, match=r"train\.zip: car 331659860e11 has no angle 09"):
        check(folder)


def test_an_image_without_a_mask_is_a_problem(folder: pathlib.Path) -> None:
    drop_member(folder / "train_masks.zip", "331659860e11_16_mask.gif")
    with pytest.raises(Problem, match=r"train_masks.* lacks 1 masks.*331659860e11_16\.jpg"):
        check(folder)


def test_a_training_car_without_metadata_is_a_problem(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_text(METADATA.replace("011330127438", "11330127438"))
    with pytest.raises(Problem, match=r"metadata\.csv lacks 1 cars of .*train\.zip.*011330127438"):
        check(folder)


@pytest.mark.parametrize("missing", ["train.zip", "train_masks.zip", "metadata.csv"])
def test_a_missing_file_is_a_problem_that_names_it(folder: pathlib.Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(Problem, match=re.escape(missing)):
        check(folder)


def test_test_set_cars_in_the_metadata_do_not_matter(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_text(METADATA + "0123456789ab,,,,,\n")
    assert check(folder) == sorted(CARS)


# --- tables ---------------------------------------------------------------------------------------


def test_ids_that_look_like_numbers_stay_text(folder: pathlib.Path) -> None:
    assert set(carvana.read_makes(folder)) == {"011330127438", "331659860e11"}


def test_a_make_that_is_not_known_is_empty_text_and_one_called_na_is_not(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_text("id,make\n0123456789ab,\n0123456789ac,NA\n")
    assert carvana.read_makes(folder) == {"0123456789ab": "", "0123456789ac": "NA"}


def test_csv_zip_holds_the_same_table_as_csv(folder: pathlib.Path) -> None:
    from_csv = carvana.read_makes(folder)
    with zipfile.ZipFile(folder / "metadata.csv.zip", "w") as archive:
        archive.write(folder / "metadata.csv", "metadata.csv")
    (folder / "metadata.csv").unlink()
    assert carvana.read_makes(folder) == from_csv


def test_the_unpacked_table_wins_over_the_packed_one(folder: pathlib.Path) -> None:
    with zipfile.ZipFile(folder / "metadata.csv.zip", "w") as archive:
        archive.writestr("metadata.csv", "id,make\nold,old\n")
    assert set(carvana.read_makes(folder)) == set(CARS)


def test_a_byte_order_mark_is_not_part_of_the_first_column(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + METADATA.encode())
    assert set(carvana.read_makes(folder)) == set(CARS)


def test_other_line_ends_give_the_same_table(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_bytes(METADATA.replace("\n", "\r\n").encode())
    assert carvana.read_makes(folder) == {car: "Acura" for car in CARS}


def test_a_table_without_a_column_is_a_problem_that_names_it(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_text(METADATA.replace("make", "brand"))
    with pytest.raises(Problem, match=r"metadata\.csv has no column make; its first line is id,year,brand"):
        carvana.read_makes(folder)


def test_a_car_that_is_listed_twice_is_a_problem(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_text(METADATA + f"{CARS[0]},2012,BMW,One,Base,FWD\n")
    with pytest.raises(Problem, match=r"metadata\.csv has two rows for id 011330127438"):
        carvana.read_makes(folder)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b'id,make\n"a', b"id,make\na,b,c,d\ne,f,g,h,i\n"])
def test_bytes_that_are_not_a_table_are_a_problem(folder: pathlib.Path, data: bytes) -> None:
    (folder / "metadata.csv").write_bytes(data)
    with pytest.raises(Problem, match=r"metadata\.csv"):
        carvana.read_makes(folder)


@pytest.mark.parametrize("tenths", range(10))
def test_a_packed_table_that_is_cut_short_is_a_problem(demo_copy: pathlib.Path, tenths: int) -> None:
    table = demo_copy / "metadata.csv.zip"
    table.write_bytes(table.read_bytes()[: table.stat().st_size * tenths // 10])
    with pytest.raises(Problem, match=r"metadata\.csv\.zip cannot be read"):
        carvana.read_makes(demo_copy)


def test_a_packed_table_under_another_name_is_a_problem(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").unlink()
    with zipfile.ZipFile(folder / "metadata.csv.zip", "w") as archive:
        archive.writestr("sub/metadata.csv", METADATA)
    with pytest.raises(Problem, match=r"metadata\.csv\.zip has no member metadata\.csv"):
        carvana.read_makes(folder)


# --- images and masks ---------------------------------------------------------------------------


def test_train_masks_csv_and_the_gifs_hold_the_same_masks(demo_folder: pathlib.Path) -> None:
    from_csv, from_gifs = CARVANA.open_masks(demo_folder), FileMasks(demo_folder, CARVANA)
    assert isinstance(from_csv, CsvMasks)
    assert from_csv.names == from_gifs.names and len(from_csv.names) == 4 * carvana.ANGLES
    for name in from_csv.names[::5]:
        mask = from_csv.read(name)
        assert mask.shape == (1280, 1918) and mask.dtype == np.bool_ and mask.any()
        np.testing.assert_array_equal(from_gifs.read(name), mask)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_coverage_is_that_of_the_mask_from_run_lengths_and_from_gifs(demo_folder: pathlib.Path, scale: int) -> None:
    from_csv, from_gifs = CARVANA.open_masks(demo_folder), FileMasks(demo_folder, CARVANA)
    for name in from_csv.names[3::20]:
        expected = coverage(from_csv.read(name), scale)
        np.testing.assert_array_equal(from_csv.coverage(name, scale), expected, strict=True)
        np.testing.assert_array_equal(from_gifs.coverage(name, scale), expected, strict=True)


@pytest.mark.parametrize("highest", [1, 255])
def test_masks_may_be_pngs(demo_folder: pathlib.Path, tmp_path: pathlib.Path, highest: int) -> None:
    gifs = FileMasks(demo_folder, CARVANA)
    (tmp_path / "train_masks").mkdir()
    for name in gifs.names[:3]:
        data = png(gifs.read(name).astype(np.uint8) * np.uint8(highest))
        (tmp_path / "train_masks" / CARVANA.mask_file(name)).with_suffix(".png").write_bytes(data)
    pngs = CARVANA.open_masks(tmp_path)
    assert isinstance(pngs, FileMasks) and pngs.names == gifs.names[:3]
    for name in pngs.names:
        np.testing.assert_array_equal(pngs.read(name), gifs.read(name))
    shutil.copy(demo_folder / "train_masks.zip", tmp_path)  # the competition's own files win
    assert FileMasks(tmp_path, CARVANA).names == gifs.names


def test_a_coloured_png_mask_is_a_problem(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train_masks").mkdir()
    data = png(np.zeros((1280, 1918, 3), np.uint8))
    (tmp_path / "train_masks/011330127438_01_mask.png").write_bytes(data)
    with pytest.raises(Problem, match=r"011330127438_01_mask\.png: the mask has colours, but it must be grey"):
        CARVANA.open_masks(tmp_path).read("011330127438_01.jpg")


def test_without_train_masks_csv_the_gifs_are_read(folder: pathlib.Path) -> None:
    assert isinstance(CARVANA.open_masks(folder), FileMasks)


def test_a_row_of_train_masks_csv_without_a_mask_is_a_problem_that_names_it(folder: pathlib.Path) -> None:
    (folder / "train_masks.csv").write_text("img,rle_mask\n011330127438_01.jpg,1 2 3\n")
    masks = CARVANA.open_masks(folder)
    for read in (masks.read, lambda name: masks.coverage(name, 4)):
        with pytest.raises(Problem, match=r"train_masks\.csv, row 011330127438_01\.jpg: 3 numbers"):
            read("011330127438_01.jpg")


def test_a_damaged_mask_is_a_problem_that_names_archive_and_member(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"train_masks\.zip, member train_masks/011330127438_01_mask\.gif.*GIF"):
        FileMasks(folder, CARVANA).read("011330127438_01.jpg")


def test_a_damaged_image_is_a_problem_that_names_archive_and_member(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"train\.zip, member train/011330127438_01\.jpg.*not a JPEG"):
        CARVANA.open_images(folder, "train").read("011330127438_01.jpg", scale=2)


def test_the_hq_images_are_a_set_of_their_own(folder: pathlib.Path) -> None:
    pack(folder, "train_hq", ["011330127438_01.jpg"])
    assert CARVANA.open_images(folder, "train_hq").names == ["011330127438_01.jpg"]
    assert len(CARVANA.open_images(folder, "train").names) == 32


def test_a_repaired_image_beside_the_archive_is_the_one_that_is_decoded(
    demo_copy: pathlib.Path, jpeg: bytes
) -> None:
    name = CARVANA.open_images(demo_copy, "test").names[3]
    (demo_copy / name).write_bytes(jpeg)  # an image of another car
    other = CARVANA.open_images(demo_copy, "train").names[1]
    np.testing.assert_array_equal(
        CARVANA.open_images(demo_copy, "test").read(name, scale=8),
        CARVANA.open_images(demo_copy, "train").read(other, scale=8),
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"scale": 3}', '{"scale": "2"}', '{"scale": null}'])
def test_a_damaged_marker_of_a_shrunk_copy_is_a_problem(folder: pathlib.Path, text: str) -> None:
    (folder / "shrink.json").write_text(text)
    with pytest.raises(Problem, match=r"shrink\.json is damaged"):
        CARVANA.open_images(folder, "train")


def test_a_shrunk_copy_cannot_be_read_at_a_finer_scale(folder: pathlib.Path) -> None:
    (folder / "shrink.json").write_text('{"scale": 4}')
    with pytest.raises(Problem, match="copy at 1/4, but images at 1/2 are needed"):
        CARVANA.open_images(folder, "train").read("011330127438_01.jpg", scale=2)


# --- another competition ----------------------------------------------------------------------------

SALT = Competition(  # as most later ones: names without a suffix, PNG, run lengths down the columns, no groups
    slug="tgs-salt-identification-challenge", width_px=30, height_px=21, stem="[0-9a-f]{10}",
    submission_header=("id", "rle_mask"), image_suffix=".png", suffix_in_tables=False, mask_set="masks",
    mask_table="train.csv",
)  # fmt: skip
NAMES = ["00a3af90ab", "0a1742c740", "ffe228a7e2"]


def png(values: NDArray) -> bytes:
    Image.fromarray(values).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.fixture
def salt(tmp_path: pathlib.Path) -> tuple[pathlib.Path, NDArray[np.uint8], NDArray[np.bool_]]:
    """A folder of three images (3, 21, 30, 3) and their masks (3, 21, 30), the last one empty."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(3, 21, 30, 3), dtype=np.uint8)
    masks = rng.random((3, 21, 30)) < np.array([0.3, 0.6, 0])[:, None, None]
    rows = ["id,rle_mask", *(f"{name},{rle.encode(mask.T)}" for name, mask in zip(NAMES, masks))]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "sample_submission.csv").write_text("id,rle_mask\n" + "".join(f"{name},1 1\n" for name in NAMES))
    masks_u16 = masks.astype(np.uint16) * np.uint16(65535)
    for set_name, arrays in {"train": images, "test": images, "masks": masks_u16}.items():
        with zipfile.ZipFile(tmp_path / f"{set_name}.zip", "w") as archive:
            for name, array in zip(NAMES, arrays):
                archive.writestr(f"{set_name}/{name}.png", png(array))
    return tmp_path, images, masks


def test_a_line_in_the_table_opens_another_competition(salt, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, images, masks = salt
    monkeypatch.setitem(dataset.COMPETITIONS, "salt", f"{__name__}:SALT")
    data = Data.model_construct(kind="salt", hq=False)
    opened = dataset.open_dataset(data, Task(), folder)
    assert dataset.competition_of("salt") == SALT and dataset.competition_of("carvana") is CARVANA
    assert opened.names == NAMES and (opened.height, opened.width, opened.has_angles) == (21, 30, False)
    for name, image, mask in zip(NAMES, images, masks):
        np.testing.assert_array_equal(opened.read(name, 1), image)
        np.testing.assert_array_equal(opened.truth(name), mask)
        for scale in (1, 2, 4):
            np.testing.assert_array_equal(opened.target(name, scale), coverage(mask, scale), strict=True)
    table = opened.folds(3)
    assert table["image"].tolist() == NAMES == list(map(opened.group_key, NAMES)) and set(table["fold"]) == {0, 1, 2}


def test_run_lengths_down_the_columns_are_the_masks_of_the_files(salt) -> None:
    folder, _, masks = salt
    from_csv, from_files = SALT.open_masks(folder), FileMasks(folder, SALT)
    assert isinstance(from_csv, CsvMasks) and from_csv.names == from_files.names == NAMES
    for name, mask in zip(NAMES, masks):
        np.testing.assert_array_equal(from_csv.read(name), mask, strict=True)
        np.testing.assert_array_equal(from_files.read(name), mask, strict=True)
        assert SALT.encode(mask) == from_csv.text_of[name]
        np.testing.assert_array_equal(from_csv.runs(name), rle.bounds(mask))
    column = np.zeros((21, 30), bool)
    column[:, 1] = True
    assert SALT.encode(column) == "22 21" and SALT.parse("22 21").shape == (21, 2)


def test_another_competition_is_verified_shrunk_and_relabelled_by_its_own_facts(
    salt, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, masks = salt
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert [verify(folder / name, name, sizes[name], folder, SALT) for name in sorted(sizes)] == [
        "3 images", "3 rows", "3 images", "3 rows", "3 images"
    ]  # fmt: skip
    (folder / "train.csv").write_text(f"id,rle_mask\n{NAMES[0]},1 1\n")
    with pytest.raises(Damaged, match=f"2 images are either in it or in train.csv, the first is {NAMES[1]}"):
        verify(folder / "masks.zip", "masks.zip", sizes["masks.zip"], folder, SALT)
    path = str(folder / "train.csv")
    monkeypatch.setitem(dataset.COMPETITIONS, "salt", f"{__name__}:SALT")
    assert relabel.without(NAMES, path, "salt") == NAMES[1:]
    relabelled = relabel.read_relabelled(NAMES, path, "salt")
    assert relabelled is not None and relabelled.read(NAMES[0]).sum() == 1
    (folder / "train.csv").unlink()
    shrink.main(folder, tmp_path / "half", scale=2, quality=95, kind="salt")
    half = SALT.open_dataset(tmp_path / "half")
    assert isinstance(half.masks, CsvMasks) and half.stored_scale == 2
    for name, mask in zip(NAMES, masks):
        np.testing.assert_array_equal(half.truth(name), mask)
        np.testing.assert_array_equal(half.read(name, 2), SALT.open_dataset(folder).read(name, 2))


def test_a_data_set_that_is_not_a_competition_has_no_facts() -> None:
    with pytest.raises(Problem, match="data.kind is folder.*carvana"):
        dataset.competition_of("folder")
