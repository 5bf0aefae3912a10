"""Is a file of the competition whole? Its size, the archive's structure, every checksum, and the pictures it must hold.

Which pictures those are, the competition's own tables say: one in `train_masks.csv` is one in `train.zip`, one in
`sample_submission.csv` is one in `test.zip`. That holds for a drawn competition too. Kaggle's is known by its 6,572
cars, and must have the numbers of `carvana.py`.
"""
import csv
import io
import pathlib
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pipeline import carvana
from pipeline.data.zip_reader import DAMAGE, find_table
from pipeline.data.images import check_jpeg
from pipeline.runtime.problem import Problem

PIECE_BYTES = 2**20
LARGEST_FOLLOWED_BYTES = 2**25  # of a member that the Follower takes into memory
LONGEST_FIELD = 2**25  # characters of run lengths
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # PKWARE's APPNOTE, 4.3.7
TABLE_OF = {
    "train.zip": "train_masks.csv", "train_hq.zip": "train_masks.csv", "train_masks.zip": "train_masks.csv",
    "test.zip": "sample_submission.csv", "test_hq.zip": "sample_submission.csv",
}  # fmt: skip


class Damaged(Exception):
    """What is wrong with a file, as a part of a sentence: "its last 12 bytes are missing"."""


class Member(NamedTuple):
    """What was found of an archive's member by reading it; the archive's index must say the same."""

    name: str
    size_bytes: int
    crc: int


Checked = dict[int, Member]  # by the place where the member begins


def verify(path: pathlib.Path, name: str, size_bytes: int, folder: pathlib.Path, checked: Checked = {}) -> str:
    """What a file holds, in words for people. Raises Damaged when it is not whole.

    path: where the file lies, perhaps as a draft; name: what Kaggle calls it; folder: the competition's, whose tables
    say which pictures there must be, as far as they are there. checked: members that a Follower has read.
    """
    if path.stat().st_size != size_bytes:
        raise Damaged(f"it has {path.stat().st_size} bytes, but Kaggle lists {size_bytes}")
    if not name.endswith(".zip"):
        return verify_picture(path)
    names = check_archive(path, checked)
    if name.endswith(".csv.zip"):
        return f"{check_table(path, name, folder):,} rows"
    return f"{check_pictures(name, names, folder):,} pictures"


def verify_picture(path: pathlib.Path) -> str:
    try:
        check_jpeg(path.read_bytes(), carvana.HEIGHT_PX, carvana.WIDTH_PX, "the file")
    except Problem as problem:
        raise Damaged(str(problem).rstrip(".")) from None
    return "1 picture"


def check_archive(path: pathlib.Path, checked: Checked) -> list[str]:
    """File names of the members. Damaged when the structure or a checksum is wrong."""
    names = []
    name = "the index"
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename
                if checked.get(info.header_offset) != Member(info.orig_filename, info.file_size, info.CRC):
                    with archive.open(info) as member:
                        while member.read(PIECE_BYTES):
                            pass
                names.append(name.rpartition("/")[2])
    except DAMAGE as error:
        raise Damaged(f"it is no whole zip archive: {name}: {error}") from None
    return names


def check_pictures(name: str, names: list[str], folder: pathlib.Path) -> int:
    """How many pictures, or masks, are among an archive's files; Damaged when they are not the ones of the table."""
    pattern = carvana.MASK_NAME if name == "train_masks.zip" else carvana.IMAGE_NAME
    pictures = [file_name for file_name in names if pattern.fullmatch(file_name)]
    check_count(name, len(pictures), views_of(pictures), folder)
    table = find_table(folder, TABLE_OF[name]) if name in TABLE_OF else None
    if table is not None:
        in_table = first_column(table)
        if name == "train_masks.zip":
            in_table = [carvana.mask_name(image_name) for image_name in in_table]
        if others := set(pictures) ^ set(in_table):
            raise Damaged(f"{len(others)} pictures are either in it or in {table.name}, the first is {min(others)}")
    return len(pictures)


def check_table(path: pathlib.Path, name: str, folder: pathlib.Path) -> int:
    """How many rows a table has; Damaged when that is not right."""
    rows = first_column(path)
    if len(set(rows)) < len(rows):
        raise Damaged("it has two rows for the same thing")
    if name != "metadata.csv.zip":
        check_count(name, len(rows), views_of(rows), folder)
    return len(rows)


def views_of(names: list[str]) -> int:
    """How many pictures there are of the cars of these pictures."""
    return len({carvana.car_of(name) for name in names}) * carvana.ANGLES


def check_count(name: str, count: int, expected: int, folder: pathlib.Path) -> None:
    """Damaged when there are not as many pictures as expected, or in Kaggle's own competition as in carvana.py."""
    metadata = find_table(folder, "metadata.csv")
    if metadata is not None and len(first_column(metadata)) == carvana.TRAIN_CARS + carvana.TEST_CARS:
        of_training = name.startswith("train")
        expected = (carvana.TRAIN_CARS if of_training else carvana.TEST_CARS) * carvana.ANGLES
    if count != expected or count == 0:
        raise Damaged(f"it has {count:,} pictures, but there must be {expected or 'some':,}")


def first_column(path: pathlib.Path) -> list[str]:
    """The first field of each row below the header, of `name.csv` or of the one member of `name.csv.zip`."""
    csv.field_size_limit(LONGEST_FIELD)
    try:
        if path.suffix == ".csv":
            with open(path, encoding="utf-8-sig", newline="") as text:
                return [row[0] for row in csv.reader(text)][1:]
        with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as member:
            return [row[0] for row in csv.reader(io.TextIOWrapper(member, "utf-8-sig", newline=""))][1:]
    except (*DAMAGE, csv.Error, IndexError) as error:
        raise Damaged(f"{path.name} cannot be read as a table ({error})") from None


class StreamVerifier:
    """Reads the members of an archive in a thread of its own, while the archive is still arriving.

    `with StreamVerifier(path) as verifier:` give `verifier.on_bytes` to the download, and `verifier.finish()` to `verify`.
    It knows the form that most archives have; of any other it reads less, or nothing, and `verify` reads the rest.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.length_bytes = 0
        self.stopped = False
        self.pool = ThreadPoolExecutor(1)  # one thread: what is submitted first is done first
        self.start_again()

    def __enter__(self) -> "StreamVerifier":
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped = True
        self.pool.shutdown(cancel_futures=True)

    def on_bytes(self, count: int) -> None:
        """So many bytes more lie at `path`; fewer when the file is begun again."""
        self.length_bytes += count
        if count < 0:
            self.pool.submit(self.start_again)
        else:
            self.pool.submit(self.read_on, self.length_bytes)

    def finish(self) -> Checked:
        """What was read, when all that has arrived is."""
        return self.pool.submit(lambda: self.checked).result()

    def start_again(self) -> None:
        self.position = 0  # of the next member
        self.checked: Checked = {}

    def read_on(self, length_bytes: int) -> None:
        """Read the members that are whole in a file of which `length_bytes` have arrived."""
        with open(self.path, "rb") as file:
            while not self.stopped and self.position + LOCAL_HEADER.size <= length_bytes:
                file.seek(self.position)
                signature, _, flags, method, _, _, _, packed_bytes, size_bytes, name_bytes, extra_bytes = (
                    LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                )
                # Encrypted (1), or with its sizes behind it (8): where the next one begins cannot be told from here.
                if signature != b"PK\3\4" or flags & 9 or max(packed_bytes, size_bytes) > LARGEST_FOLLOWED_BYTES:
                    self.position = 2**63
                    return
                end = self.position + LOCAL_HEADER.size + name_bytes + extra_bytes + packed_bytes
                if end > length_bytes:
                    return
                name = file.read(name_bytes).decode("utf-8" if flags & 0x800 else "cp437")
                file.seek(extra_bytes, io.SEEK_CUR)
                data = file.read(packed_bytes)
                if method == zipfile.ZIP_DEFLATED:
                    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size_bytes + 1)
                if method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    self.checked[self.position] = Member(name, len(data), zlib.crc32(data))
                self.position = end
