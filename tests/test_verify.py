"""`verify` finds damage in files of the competition; a StreamVerifier finds the same during the download."""
import dataclasses
import pathlib
import random
import zipfile
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import carvana
from pipeline.carvana import CARVANA
from pipeline.data.competition import Competition
from pipeline.kaggle import verify as module
from pipeline.kaggle.verify import Damaged, StreamVerifier, check_archive, verify

TABLES = ("metadata.csv.zip", "sample_submission.csv.zip", "train_masks.csv.zip")
FILES = (*TABLES, "train_masks.zip", "train.zip", "test.zip")


def verified(folder: pathlib.Path, name: str, competition: Competition = CARVANA) -> str:
    path = folder / name
    return verify(path, name, path.stat().st_size, folder, competition)


def repack(path: pathlib.Path, keep) -> None:
    """The same archive with some of its members only."""
    with zipfile.ZipFile(path) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist() if keep(info.filename)]
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            archive.writestr(info, data)


def test_whole_files_say_what_they_hold(demo_folder: pathlib.Path) -> None:
    assert [verified(demo_folder, name) for name in FILES] == [
        "5 rows", "16 rows", "64 rows", "64 images", "64 images", "16 images"
    ]  # fmt: skip


def test_the_loose_image_is_a_whole_jpeg_of_the_right_size(tmp_path: pathlib.Path, jpeg: bytes) -> None:
    (tmp_path / carvana.CARVANA.repaired).write_bytes(jpeg)
    assert verified(tmp_path, carvana.CARVANA.repaired) == "1 image"
    (tmp_path / carvana.CARVANA.repaired).write_bytes(jpeg[:-100])
    with pytest.raises(Damaged, match="cut short"):
        verified(tmp_path, carvana.CARVANA.repaired)


def test_another_size_than_listed_is_damage(demo_folder: pathlib.Path) -> None:
    path = demo_folder / "train.zip"
    with pytest.raises(Damaged, match=rf"it has {path.stat().st_size} bytes, but Kaggle lists 7"):
        verify(path, "train.zip", 7, demo_folder, CARVANA)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_anywhere_in_the_data_is_damage(demo_copy: pathlib.Path, name: str) -> None:
    path = demo_copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match="not a whole zip archive"):
        verified(demo_copy, name)


def test_a_lost_index_is_damage(demo_copy: pathlib.Path) -> None:
    path = demo_copy / "test.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Damaged, match="not a whole zip archive"):
        verified(demo_copy, "test.zip")


@pytest.mark.parametrize("name", ["train.zip", "train_masks.zip", "test.zip"])
def test_a_missing_image_is_damage(demo_copy: pathlib.Path, name: str) -> None:
    repack(demo_copy / name, keep=lambda member: "_07" not in member)
    with pytest.raises(Damaged, match=r"it has (60|15) images, but there must be (64|16)"):
        verified(demo_copy, name)


def test_an_archive_without_images_is_damage(demo_copy: pathlib.Path) -> None:
    repack(demo_copy / "train.zip", keep=lambda member: False)
    with pytest.raises(Damaged, match="it has 0 images, but there must be some"):
        verified(demo_copy, "train.zip")


def test_a_missing_car_is_damage_because_the_table_lists_it(demo_copy: pathlib.Path) -> None:
    with zipfile.ZipFile(demo_copy / "train.zip") as archive:
        car = carvana.car_of(archive.namelist()[-1].rpartition("/")[2])
    repack(demo_copy / "train.zip", keep=lambda member: car not in member)
    with pytest.raises(Damaged, match=rf"16 images are either in it or in train_masks.csv.zip, .* {car}_01"):
        verified(demo_copy, "train.zip")
    (demo_copy / "train_masks.csv.zip").unlink()
    assert verified(demo_copy, "train.zip") == "48 images"  # no table says otherwise


def test_kaggles_own_data_must_have_as_many_images_as_kaggle_counts(demo_folder: pathlib.Path) -> None:
    real = dataclasses.replace(CARVANA, rows_if_real=("metadata.csv", 5), train_images=48, test_images=32)
    for name, count, expected in (("train.zip", 64, 48), ("test.zip", 16, 32), ("sample_submission.csv.zip", 16, 32)):
        with pytest.raises(Damaged, match=f"it has {count} images, but there must be {expected}"):
            verified(demo_folder, name, real)


def test_a_table_with_a_row_twice_or_a_blank_row_is_damage(tmp_path: pathlib.Path) -> None:
    for member, text in (("metadata.csv", "id\nx\nx\n"), ("metadata.csv", "id\n\nx\n")):
        with zipfile.ZipFile(tmp_path / "metadata.csv.zip", "w") as archive:
            archive.writestr(member, text)
        with pytest.raises(Damaged):
            verified(tmp_path, "metadata.csv.zip")


# --- during the download --------------------------------------------------------------------------


def stream(path: pathlib.Path, data: bytes, chunk_sizes: list[int]) -> module.Checked:
    """What a StreamVerifier has read of data that arrives in chunks of these sizes."""
    path.write_bytes(b"")
    with StreamVerifier(path) as verifier:
        first = 0
        for count in [*chunk_sizes, len(data)]:
            with open(path, "ab") as file:
                file.write(data[first : first + count])
            verifier.on_bytes(len(data[first : first + count]))
            first += count
        return verifier.finish()


@given(st.lists(st.integers(0, 9000), max_size=6), st.booleans(), st.integers(0, 2**32))
def test_every_member_is_verified_however_it_arrives(
    tmp_path_factory: pytest.TempPathFactory, chunk_sizes: list[int], deflated: bool, seed: int
) -> None:
    path = tmp_path_factory.mktemp("stream") / "x.zip"
    rng = random.Random(seed)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for number in range(4):
            archive.writestr(f"café/{number}.jpg", rng.randbytes(rng.randrange(5000)))
        members = {info.header_offset: (info.filename, info.file_size, info.CRC) for info in archive.infolist()}
    checked = stream(path, path.read_bytes(), chunk_sizes)
    assert checked == members
    assert check_archive(path, checked) == [f"{number}.jpg" for number in range(4)]


def test_damage_is_seen_during_the_download(demo_folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data = bytearray((demo_folder / "test.zip").read_bytes())
    data[len(data) // 2] ^= 1
    checked = stream(tmp_path / "test.zip", bytes(data), [2**20])
    assert len(checked) == 16
    with pytest.raises(Damaged, match="Bad CRC-32"):
        check_archive(tmp_path / "test.zip", checked)


def test_nothing_is_trusted_of_a_file_that_is_begun_again(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    old, new = ((demo_folder / name).read_bytes() for name in ("train.zip", "test.zip"))
    path = tmp_path / "x.zip"
    path.write_bytes(old)
    with StreamVerifier(path) as verifier:
        verifier.on_bytes(len(old))
        verifier.on_bytes(-len(old))
        path.write_bytes(new)
        verifier.on_bytes(len(new))
        checked = verifier.finish()
    with zipfile.ZipFile(path) as archive:
        assert {member.name for member in checked.values()} == set(archive.namelist())


def test_members_whose_sizes_follow_their_data_are_left_to_verify(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"")
    with open(path, "ab") as file, zipfile.ZipFile(Pipe(file), "w") as archive:
        archive.writestr("a.jpg", b"a" * 100)
    assert stream(path, path.read_bytes(), []) == {}
    assert check_archive(path, {}) == ["a.jpg"]


class Pipe:
    """A file that cannot seek back to write a size in front of the data."""

    def __init__(self, file: IO[bytes]):
        self.write, self.flush = file.write, file.flush
