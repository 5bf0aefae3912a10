"""The competition folder is checked at its door: what is missing is told before a picture is decoded."""
import pathlib
import re
import zipfile

import numpy as np
import pytest

from pipeline import carvana
from pipeline.data import competition
from pipeline.data.competition import CsvMasks, GifMasks, ImageSet
from pipeline.data.images import coverage
from pipeline.runtime.problem import Problem

CARS = ("011330127438", "331659860e11")  # as Kaggle's, both of which a careless reader takes for numbers
METADATA = "id,year,make,model,trim1,trim2\n" + "".join(f"{car},2012,Acura,One,Base,FWD\n" for car in CARS)


def pack(folder: pathlib.Path, set_name: str, names: list[str]) -> None:
    with zipfile.ZipFile(folder / f"{set_name}.zip", "w") as archive:
        for name in names:
            archive.writestr(f"{set_name}/{name}", b"")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A competition of two cars whose pictures nobody looks into."""
    images = [carvana.image_name(car, view) for car in CARS for view in carvana.ANGLE_CODES]
    pack(tmp_path, "train", images)
    pack(tmp_path, "train_masks", [carvana.mask_name(name) for name in images])
    (tmp_path / "metadata.csv").write_text(METADATA)
    return tmp_path


def drop_member(archive_path: pathlib.Path, ending: str) -> None:
    with zipfile.ZipFile(archive_path) as archive:
        kept = [name.rpartition("/")[2] for name in archive.namelist() if not name.endswith(ending)]
    pack(archive_path.parent, archive_path.stem, kept)


def check(folder: pathlib.Path) -> list[str]:
    pictures, masks = ImageSet(folder, "train"), competition.open_masks(folder)
    return competition.check_training_set(pictures, masks, carvana.read_makes(folder))


# --- the training set -----------------------------------------------------------------------------


def test_a_whole_training_set_is_a_sorted_list_of_cars(folder: pathlib.Path) -> None:
    assert check(folder) == ["011330127438", "331659860e11"]


def test_a_car_without_one_of_its_16_views_is_a_problem(folder: pathlib.Path) -> None:
    drop_member(folder / "train.zip", "331659860e11_09.jpg")
    with pytest.raises(Problem, match=r"train\.zip: car 331659860e11 has no view 09"):
        check(folder)


def test_a_picture_without_a_mask_is_a_problem(folder: pathlib.Path) -> None:
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


def test_a_byte_order_mark_is_no_part_of_the_first_column(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + METADATA.encode())
    assert set(carvana.read_makes(folder)) == set(CARS)


def test_other_line_ends_make_no_other_table(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_bytes(METADATA.replace("\n", "\r\n").encode())
    assert carvana.read_makes(folder) == {car: "Acura" for car in CARS}


def test_a_table_without_a_column_is_a_problem_that_names_it(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_text(METADATA.replace("make", "brand"))
    with pytest.raises(Problem, match=r"metadata\.csv has no column make; its first line is id,year,brand"):
        carvana.read_makes(folder)


def test_a_car_that_is_there_twice_is_a_problem(folder: pathlib.Path) -> None:
    (folder / "metadata.csv").write_text(METADATA + f"{CARS[0]},2012,BMW,One,Base,FWD\n")
    with pytest.raises(Problem, match=r"metadata\.csv has two rows for id 011330127438"):
        carvana.read_makes(folder)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", b'id,make\n"a', b"id,make\na,b,c,d\ne,f,g,h,i\n"])
def test_what_is_no_table_is_a_problem(folder: pathlib.Path, data: bytes) -> None:
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


# --- pictures and masks ---------------------------------------------------------------------------


def test_train_masks_csv_and_the_gifs_are_the_same_masks(demo_folder: pathlib.Path) -> None:
    from_csv, from_gifs = competition.open_masks(demo_folder), GifMasks(demo_folder)
    assert isinstance(from_csv, CsvMasks)
    assert from_csv.names == from_gifs.names and len(from_csv.names) == 4 * carvana.ANGLES
    for name in from_csv.names[::5]:
        mask = from_csv.read(name)
        assert mask.shape == (1280, 1918) and mask.dtype == np.bool_ and mask.any()
        np.testing.assert_array_equal(from_gifs.read(name), mask)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_coverage_is_that_of_the_mask_from_run_lengths_and_from_gifs(demo_folder: pathlib.Path, scale: int) -> None:
    from_csv, from_gifs = competition.open_masks(demo_folder), GifMasks(demo_folder)
    for name in from_csv.names[3::20]:
        expected = coverage(from_csv.read(name), scale)
        np.testing.assert_array_equal(from_csv.coverage(name, scale), expected, strict=True)
        np.testing.assert_array_equal(from_gifs.coverage(name, scale), expected, strict=True)


def test_without_train_masks_csv_the_gifs_are_read(folder: pathlib.Path) -> None:
    assert isinstance(competition.open_masks(folder), GifMasks)


def test_a_row_of_train_masks_csv_that_is_no_mask_is_a_problem_that_names_it(folder: pathlib.Path) -> None:
    (folder / "train_masks.csv").write_text("img,rle_mask\n011330127438_01.jpg,1 2 3\n")
    masks = competition.open_masks(folder)
    for read in (masks.read, lambda name: masks.coverage(name, 4)):
        with pytest.raises(Problem, match=r"train_masks\.csv, row 011330127438_01\.jpg: 3 numbers"):
            read("011330127438_01.jpg")


def test_a_damaged_mask_is_a_problem_that_names_archive_and_member(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"train_masks\.zip, member train_masks/011330127438_01_mask\.gif.*GIF"):
        GifMasks(folder).read("011330127438_01.jpg")


def test_a_damaged_picture_is_a_problem_that_names_archive_and_member(folder: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"train\.zip, member train/011330127438_01\.jpg.*not a JPEG"):
        ImageSet(folder, "train").read("011330127438_01.jpg", scale=2)


def test_the_hq_pictures_are_a_set_of_their_own(folder: pathlib.Path) -> None:
    pack(folder, "train_hq", ["011330127438_01.jpg"])
    assert ImageSet(folder, "train_hq").names == ["011330127438_01.jpg"]
    assert len(ImageSet(folder, "train").names) == 32


def test_a_repaired_picture_beside_the_archive_is_the_one_that_is_decoded(
    demo_copy: pathlib.Path, jpeg: bytes
) -> None:
    name = ImageSet(demo_copy, "test").names[3]
    (demo_copy / name).write_bytes(jpeg)  # a picture of another car
    other = ImageSet(demo_copy, "train").names[1]
    np.testing.assert_array_equal(
        ImageSet(demo_copy, "test").read(name, scale=8), ImageSet(demo_copy, "train").read(other, scale=8)
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"scale": 3}', '{"scale": "2"}', '{"scale": null}'])
def test_a_damaged_note_of_a_light_copy_is_a_problem(folder: pathlib.Path, text: str) -> None:
    (folder / "shrink.json").write_text(text)
    with pytest.raises(Problem, match=r"shrink\.json is damaged"):
        ImageSet(folder, "train")


def test_a_light_copy_cannot_be_read_at_a_finer_scale(folder: pathlib.Path) -> None:
    (folder / "shrink.json").write_text('{"scale": 4}')
    with pytest.raises(Problem, match="copy at 1/4, but data.scale is 2"):
        ImageSet(folder, "train").read("011330127438_01.jpg", scale=2)
