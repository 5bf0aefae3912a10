"""Files of a set are read wherever they lie, and damaged archives are a Problem."""
import pathlib
import pickle
import re
import threading
import zipfile

import pytest
from torch.utils.data import DataLoader, Dataset

from pipeline.data.zip_reader import FileSet
from pipeline.runtime.problem import Problem

NAMES = re.compile(r"[abcd]\.jpg")
FILES = {"a.jpg": b"apple" * 20, "b.jpg": b"banana" * 20, "c.jpg": b"cherry" * 20}


def pack(folder: pathlib.Path, files: dict[str, bytes], name: str = "test") -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for file_name, data in files.items():
            archive.writestr(f"{name}/{file_name}", data)
    return folder


def read_all(files: FileSet) -> dict[str, bytes]:
    return {name: files.read(name) for name in files.names}


@pytest.fixture
def packed(tmp_path: pathlib.Path) -> pathlib.Path:
    return pack(tmp_path / "competition", FILES)


# --- where files lie ------------------------------------------------------------------------------


def test_members_of_the_archive_are_read(packed: pathlib.Path) -> None:
    assert read_all(FileSet(packed, "test", NAMES)) == FILES


def test_an_unpacked_folder_is_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test").mkdir()
    for name, data in FILES.items():
        (tmp_path / "test" / name).write_bytes(data)
    assert read_all(FileSet(tmp_path, "test", NAMES)) == FILES


def test_a_loose_file_beside_the_archive_wins_over_the_member(packed: pathlib.Path) -> None:
    (packed / "b.jpg").write_bytes(b"repaired")
    files = FileSet(packed, "test", NAMES)
    assert read_all(files) == FILES | {"b.jpg": b"repaired"}
    assert files.where("b.jpg") == str(packed / "b.jpg")


def test_a_loose_file_wins_even_when_the_member_is_damaged(packed: pathlib.Path) -> None:
    damage(packed / "test.zip", b"banana")
    (packed / "b.jpg").write_bytes(b"repaired")
    assert FileSet(packed, "test", NAMES).read("b.jpg") == b"repaired"


def test_a_loose_file_wins_over_the_unpacked_folder_too(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.jpg").write_bytes(b"unpacked")
    (tmp_path / "a.jpg").write_bytes(b"repaired")
    assert FileSet(tmp_path, "test", NAMES).read("a.jpg") == b"repaired"


def test_a_partly_unpacked_folder_is_completed_from_the_archive(packed: pathlib.Path) -> None:
    (packed / "test").mkdir()
    (packed / "test" / "d.jpg").write_bytes(b"date")
    (packed / "test" / "a.jpg").write_bytes(b"unpacked")
    assert read_all(FileSet(packed, "test", NAMES)) == FILES | {"a.jpg": b"unpacked", "d.jpg": b"date"}


def test_a_loose_file_of_another_set_is_ignored(packed: pathlib.Path) -> None:
    (packed / "d.jpg").write_bytes(b"of the other set")
    assert FileSet(packed, "test", NAMES).names == ["a.jpg", "b.jpg", "c.jpg"]


def test_members_with_other_names_are_ignored(tmp_path: pathlib.Path) -> None:
    pack(tmp_path, {"a.jpg": b"apple", "__MACOSX/._a.jpg": b"", "Thumbs.db": b"", "": b""})
    assert FileSet(tmp_path, "test", NAMES).names == ["a.jpg"]


@pytest.mark.parametrize("inner", ["test", "images/part1", "a/b/c"])
def test_files_in_nested_folders_are_read(tmp_path: pathlib.Path, inner: str) -> None:
    (tmp_path / "test" / inner).mkdir(parents=True)
    for name, data in FILES.items():
        (tmp_path / "test" / inner / name).write_bytes(data)
    assert read_all(FileSet(tmp_path, "test", NAMES)) == FILES
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        for name, data in FILES.items():
            archive.writestr(f"train/{inner}/{name}", data)
    assert read_all(FileSet(tmp_path, "train", NAMES)) == FILES


def test_a_name_in_two_folders_of_a_folder_is_a_problem(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test/test").mkdir(parents=True)
    for folder in ("test", "test/test"):
        (tmp_path / folder / "a.jpg").write_bytes(b"apple")
    with pytest.raises(Problem, match=r"test/a\.jpg .*have the same name"):
        FileSet(tmp_path, "test", NAMES)


def test_members_with_backslashes_are_read(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "test.zip", "w") as archive:
        for name, data in FILES.items():
            info = zipfile.ZipInfo("x")
            info.filename = f"test\\{name}"  # the constructor would not keep it on Windows
            archive.writestr(info, data)
    assert read_all(FileSet(tmp_path, "test", NAMES)) == FILES
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
        archive.writestr("..\\a.jpg", b"")
    with pytest.raises(Problem, match="would be unpacked outside"):
        FileSet(tmp_path, "train", NAMES)


@pytest.mark.parametrize("member", ["test.zip", "carvana/test.zip", "test/a.jpg", "test\\test\\a.jpg"])
def test_an_archive_of_all_archives_is_a_problem_with_the_command_that_unpacks_it(
    tmp_path: pathlib.Path, member: str
) -> None:
    with zipfile.ZipFile(tmp_path / "all of it.zip", "w") as archive:
        archive.writestr(member, b"")
    with pytest.raises(Problem, match=rf"all of it\.zip holds it, unpack that: unzip -n '{tmp_path}/all of it.zip' -d"):
        FileSet(tmp_path, "test", NAMES)
    with zipfile.ZipFile(tmp_path / "all of it.zip", "w") as archive:
        archive.writestr("other.zip", b"")
    with pytest.raises(Problem, match="run `make download`"):
        FileSet(tmp_path, "test", NAMES)


def test_an_archive_one_folder_further_down_is_a_problem_that_names_the_folder(tmp_path: pathlib.Path) -> None:
    pack(tmp_path / "carvana-image-masking-challenge", FILES)
    with pytest.raises(Problem, match=rf"DATA={tmp_path}/carvana-image-masking-challenge"):
        FileSet(tmp_path, "test", NAMES)


def test_files_of_other_names_are_shown(tmp_path: pathlib.Path) -> None:
    pack(tmp_path, {"1.jpeg": b"", "2.jpeg": b""})
    with pytest.raises(Problem, match=r"hold no file whose name matches .*, but 2 others, such as 1\.jpeg"):
        FileSet(tmp_path, "test", NAMES)


def test_nothing_is_written(packed: pathlib.Path) -> None:
    (packed / "a.jpg").write_bytes(b"loose")
    before = {path: path.stat().st_mtime_ns for path in [packed, *packed.rglob("*")]}
    read_all(FileSet(packed, "test", NAMES))
    assert {path: path.stat().st_mtime_ns for path in [packed, *packed.rglob("*")]} == before


# --- what may be wrong ----------------------------------------------------------------------------


def damage(archive: pathlib.Path, data: bytes) -> None:
    """Flip one bit of the first of these bytes."""
    archive_bytes = bytearray(archive.read_bytes())
    archive_bytes[archive_bytes.index(data)] ^= 1
    archive.write_bytes(archive_bytes)


def test_neither_archive_nor_folder_is_a_problem_that_says_what_to_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"neither test\.zip nor a folder test/.*run `make download`.*DATA="):
        FileSet(tmp_path, "test", NAMES)


def test_a_missing_competition_folder_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match="nowhere"):
        FileSet(tmp_path / "nowhere", "test", NAMES)


def test_an_archive_without_images_is_a_problem(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"test\.zip.*no file"):
        FileSet(pack(tmp_path, {"readme.txt": b""}), "test", NAMES)


@pytest.mark.parametrize("tenths", range(10))
def test_an_archive_that_is_cut_short_is_a_problem(packed: pathlib.Path, tenths: int) -> None:
    archive = packed / "test.zip"
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * tenths // 10])
    with pytest.raises(Problem, match=r"test\.zip is not a whole zip archive"):
        FileSet(packed, "test", NAMES)


def test_a_web_page_in_place_of_the_archive_is_a_problem(packed: pathlib.Path) -> None:
    (packed / "test.zip").write_text("<html>Accept the rules first.</html>")
    with pytest.raises(Problem, match=r"test\.zip is not a whole zip archive but a web page, .*accept the rules"):
        FileSet(packed, "test", NAMES)
    (packed / "test.zip").write_bytes(b"\x1f\x8b\x08")
    with pytest.raises(Problem, match=r"test\.zip is not a whole zip archive but a gzip file; download it again"):
        FileSet(packed, "test", NAMES)


def test_a_member_that_fails_its_checksum_is_a_problem_that_names_archive_and_member(packed: pathlib.Path) -> None:
    damage(packed / "test.zip", b"banana")
    files = FileSet(packed, "test", NAMES)
    with pytest.raises(Problem, match=r"test\.zip, member test/b\.jpg"):
        files.read("b.jpg")
    assert files.read("a.jpg") == FILES["a.jpg"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_a_problem(packed: pathlib.Path) -> None:
    with zipfile.ZipFile(packed / "test.zip", "a") as archive:
        archive.writestr("test/b.jpg", b"another")
    with pytest.raises(Problem, match=r"test\.zip holds b\.jpg twice"):
        FileSet(packed, "test", NAMES)


def test_the_same_name_in_two_folders_of_the_archive_is_a_problem(packed: pathlib.Path) -> None:
    with zipfile.ZipFile(packed / "test.zip", "a") as archive:
        archive.writestr("copy/b.jpg", b"another")
    with pytest.raises(Problem, match=r"test\.zip holds b\.jpg twice"):
        FileSet(packed, "test", NAMES)


def test_an_encrypted_member_is_a_problem_that_names_it(packed: pathlib.Path) -> None:
    archive = packed / "test.zip"
    whole = bytearray(archive.read_bytes())
    whole[whole.index(b"PK\3\4") + 6] |= 1  # the flags of the first member, in its header ...
    whole[whole.index(b"PK\1\2") + 8] |= 1  # ... and in the archive's directory
    archive.write_bytes(whole)
    with pytest.raises(Problem, match=r"test\.zip, member test/a\.jpg"):
        FileSet(packed, "test", NAMES).read("a.jpg")


def test_a_name_that_is_nowhere_is_a_problem(packed: pathlib.Path) -> None:
    with pytest.raises(Problem, match=r"test\.zip holds no d\.jpg"):
        FileSet(packed, "test", NAMES).read("d.jpg")


def test_a_loose_file_that_vanishes_is_a_problem_that_names_it(packed: pathlib.Path) -> None:
    loose = packed / "b.jpg"
    loose.write_bytes(b"repaired")
    files = FileSet(packed, "test", NAMES)
    loose.unlink()
    with pytest.raises(Problem, match=r"b\.jpg"):
        files.read("b.jpg")


def test_whichever_bit_of_an_archive_is_flipped_a_file_is_read_right_or_a_problem(tmp_path: pathlib.Path) -> None:
    true = {"a.jpg": b"apple, " * 9, "b.jpg": b"banana, " * 9}
    with zipfile.ZipFile(tmp_path / "test.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in true.items():
            archive.writestr(f"test/{name}", data)
    whole = (tmp_path / "test.zip").read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "test.zip").write_bytes(damaged)
        try:
            contents = read_all(FileSet(tmp_path, "test", NAMES))
        except Problem:
            continue
        assert set(contents.values()) <= set(true.values()), f"bit {bit}"


# --- many readers ---------------------------------------------------------------------------------


class Reads(Dataset):
    """The demo's images as bytes."""

    def __init__(self, files: FileSet):
        self.files = files

    def __len__(self) -> int:
        return len(self.files.names)

    def __getitem__(self, index: int) -> bytes:
        return self.files.read(self.files.names[index])


def test_several_forked_workers_read_what_one_process_reads(demo_folder: pathlib.Path) -> None:
    files = FileSet(demo_folder, "train_masks", re.compile(r".*\.gif"))
    expected = [files.read(name) for name in files.names]  # the archive is open before the workers begin
    loader = DataLoader(Reads(files), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert list(loader) == expected


def test_a_forked_process_opens_the_archive_for_itself(packed: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with one handle would move each other's position in the file."""
    files = FileSet(packed, "test", NAMES)
    files.read("a.jpg")
    handle_of_the_parent = files.open_archive()
    assert files.open_archive() is handle_of_the_parent
    monkeypatch.setattr("os.getpid", lambda: -2)
    assert files.open_archive() is not handle_of_the_parent
    assert read_all(files) == FILES


def test_several_threads_read_what_one_reads(demo_folder: pathlib.Path) -> None:
    files = FileSet(demo_folder, "train_masks", re.compile(r".*\.gif"))
    expected = read_all(files)
    results: list[dict[str, bytes]] = []
    threads = [threading.Thread(target=lambda: results.append(read_all(files))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_a_pickled_set_opens_the_archive_for_itself(packed: pathlib.Path) -> None:
    files = FileSet(packed, "test", NAMES)
    files.read("a.jpg")
    copy = pickle.loads(pickle.dumps(files))
    assert read_all(copy) == FILES
    assert copy.open_archive() is not files.open_archive()
