"""Verify a file of the competition: its size, the archive's structure, every checksum, and the images it must hold.

The competition's own tables say which images those are: one in `train_masks.csv` is one in `train.zip`, one in
`sample_submission.csv` is one in `test.zip`. That holds for a drawn competition too. Kaggle's own data, which
`Competition.rows_if_real` recognises (Carvana by its 6,572 cars), must also have Kaggle's numbers.
"""
import io
import pathlib
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pipeline.data.competition import Competition
from pipeline.data.csv_table import find_table, stream_rows
from pipeline.data.images import decode_image
from pipeline.data.zip_reader import DAMAGE, split_member
from pipeline.runtime.problem import Problem

BLOCK_BYTES = 2**20
LARGEST_STREAMED_BYTES = 2**25  # of a member that StreamVerifier takes into memory
LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # PKWARE's APPNOTE, 4.3.7


class Damaged(Exception):
    """What is wrong with a file, as a part of a sentence: "its last 12 bytes are missing"."""


class Member(NamedTuple):
    """An archive's member as it was read; the archive's index must say the same."""

    name: str
    size_bytes: int
    crc: int


Checked = dict[int, Member]  # offset of the member in the archive -> the member


def verify(
    path: pathlib.Path, name: str, size_bytes: int, folder: pathlib.Path, competition: Competition,
    checked: Checked = {},
) -> str:  # fmt: skip
    """Describe what a file holds, such as "64 images". Raises Damaged when it is not whole.

    path: where the file lies, perhaps as a draft; name: what Kaggle calls it; folder: the competition's, whose tables
    say which images there must be, as far as they are there. checked: members that a StreamVerifier has read.
    """
    if path.stat().st_size != size_bytes:
        raise Damaged(f"it has {path.stat().st_size} bytes, but Kaggle lists {size_bytes}")
    if name.endswith(".csv"):
        return f"{check_table(path, name, folder, competition):,} rows"
    if not name.endswith(".zip"):
        return verify_image(path, competition)
    names = check_archive(path, checked)
    if name.endswith(".csv.zip"):
        return f"{check_table(path, name, folder, competition):,} rows"
    return f"{check_images(name, names, folder, competition):,} images"


def verify_image(path: pathlib.Path, competition: Competition) -> str:
    height, width, suffix = competition.height_px, competition.width_px, competition.image_suffix
    try:
        decode_image(path.read_bytes(), suffix, 1, height, width, "the file")
    except Problem as problem:
        raise Damaged(str(problem).rstrip(".")) from None
    return "1 image"


def check_archive(path: pathlib.Path, checked: Checked) -> list[str]:
    """Return the file names of the members. Raises Damaged when the structure or a checksum is wrong."""
    names, name = list[str](), "the index"
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename
                if checked.get(info.header_offset) != Member(info.orig_filename, info.file_size, info.CRC):
                    with archive.open(info) as member:
                        while member.read(BLOCK_BYTES):
                            pass
                names.append(split_member(name)[-1])
    except DAMAGE as error:
        raise Damaged(f"it is not a whole zip archive: {name}: {error}") from None
    return names


def check_images(name: str, names: list[str], folder: pathlib.Path, competition: Competition) -> int:
    """Count the images, or masks, among an archive's files. Raises Damaged when they are not those of its table."""
    set_name = name.removesuffix(".zip")
    suffix = competition.mask_suffix if set_name == competition.mask_set else competition.image_suffix
    images = [competition.name_of_file(file, suffix) for file in names if competition.pattern(suffix).fullmatch(file)]
    table_name = competition.table_of_set.get(set_name, "")
    check_count(table_name, images, folder, competition)
    table = find_table(folder, table_name)
    if table is not None and (others := set(images) ^ set(first_column(table, table_name))):
        raise Damaged(f"{len(others)} images are either in it or in {table.name}, the first is {min(others)}")
    return len(images)


def check_table(path: pathlib.Path, name: str, folder: pathlib.Path, competition: Competition) -> int:
    """Count the rows of a table. Raises Damaged when two are for the same image, or images are missing."""
    name = name.removesuffix(".zip")
    rows = first_column(path, name)
    if len(set(rows)) < len(rows):
        raise Damaged("it has two rows for the same thing")
    if name in (competition.mask_table, competition.sample_table):
        check_count(name, rows, folder, competition)
    return len(rows)


def check_count(table_name: str, images: list[str], folder: pathlib.Path, competition: Competition) -> None:
    """Raise Damaged unless each group has all angles, and Kaggle's own data as many images as Kaggle counts.

    table_name: the table that lists these images.
    """
    expected = len(set(map(competition.group_key, images))) * competition.angles
    counts = {competition.mask_table: competition.train_images, competition.sample_table: competition.test_images}
    real_table, rows = competition.rows_if_real or ("", 0)
    table = find_table(folder, real_table)
    if table is not None and len(first_column(table, real_table)) == rows:
        expected = counts.get(table_name) or expected
    if len(images) != expected or not images:
        raise Damaged(f"it has {len(images):,} images, but there must be {f'{expected:,}' if expected else 'some'}")


def first_column(path: pathlib.Path, name: str) -> list[str]:
    """The first field of each row below the header of the table `name`, packed as `name.zip` or not."""
    try:
        return ["".join(fields[:1]) for _, fields in stream_rows(path, member=name, skip_blank=False)][1:]
    except (Problem, OSError) as error:
        raise Damaged(str(error).rstrip(".")) from None


class StreamVerifier:
    """Verify the members of an archive in a thread, while the archive is still being downloaded.

    `with StreamVerifier(path) as verifier:` pass `verifier.on_bytes` to the download, and `verifier.finish()` to
    `verify`. It reads the format that most archives have; of any other it reads less, or nothing, and `verify` reads
    the rest.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.length_bytes, self.stopped = path, 0, False
        self.pool = ThreadPoolExecutor(1)  # one thread: tasks run in their order
        self.restart()

    def __enter__(self) -> "StreamVerifier":
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped = True
        self.pool.shutdown(cancel_futures=True)

    def on_bytes(self, count: int) -> None:
        """Take note of so many new bytes at `path`; a negative count says that the file is begun again."""
        self.length_bytes += count
        if count < 0:
            self.pool.submit(self.restart)
        else:
            self.pool.submit(self.read_members, self.length_bytes)

    def finish(self) -> Checked:
        """Wait until all that has arrived is read, and return the members."""
        return self.pool.submit(lambda: self.checked).result()

    def restart(self) -> None:
        self.position = 0  # of the next member
        self.checked: Checked = {}

    def read_members(self, length_bytes: int) -> None:
        """Read the members that are whole in a file of which `length_bytes` have arrived."""
        with open(self.path, "rb") as file:
            while not self.stopped and self.position + LOCAL_HEADER.size <= length_bytes:
                file.seek(self.position)
                header = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                signature, _, flags, method, _, _, _, packed_bytes, size_bytes, name_bytes, extra_bytes = header
                # Encrypted (flag 1), or with its sizes behind its data (8): the start of the next member is unknown.
                if signature != b"PK\3\4" or flags & 9 or max(packed_bytes, size_bytes) > LARGEST_STREAMED_BYTES:
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
