"""Files of one set (`train`, `test_hq`, `train_masks`, ...), read where Kaggle's download left them.

The same file may lie in three places below the competition folder, and the first that has it wins:

    29bb3ece3180_11.jpg           loose, as Kaggle serves the one repaired picture
    test/29bb3ece3180_11.jpg      unpacked
    test.zip                      packed: test/29bb3ece3180_11.jpg inside

Nothing is ever unpacked or written. A member of an archive is checked against its CRC on each read.
"""
import os
import pathlib
import re
import struct
import zipfile
import zlib

from pipeline.runtime.problem import Problem

# What zipfile raises on damage: RuntimeError for an encrypted member, its child NotImplementedError for
# an unknown compression or version, the others for bytes that make no sense.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error)
LARGEST_PICTURE_BYTES = 2**26  # unpacked; Kaggle's largest have 0.5 MB
LARGEST_TABLE_BYTES = 2**29  # of a table that is read whole; the run lengths of Kaggle's 5,088 masks have 40 MB
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # of the others a few bytes may unpack to gigabytes at once


def find_table(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """`folder/metadata.csv` or `folder/metadata.csv.zip`, whichever is there first."""
    return next((path for path in (folder / name, folder / f"{name}.zip") if path.is_file()), None)


def check_member(info: zipfile.ZipInfo, largest_bytes: int) -> None:
    """From the archive's directory, before anything is unpacked: BadZipFile for what would flood the memory."""
    if info.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"it is packed by method {info.compress_type}, and neither stored nor deflated")
    if info.file_size > largest_bytes:
        raise zipfile.BadZipFile(f"it would unpack to {info.file_size:,} bytes, more than {largest_bytes:,}")


class FileSet:
    """The files of `folder/name/`, `folder/name.zip` and, loose, `folder/` whose names match `pattern`.

    names: all of them, sorted. An instance may be handed to other processes, by fork or by pickle: each
    opens the archive for itself. Raises Problem when neither folder nor archive is there, or the archive
    is broken.
    """

    def __init__(self, folder: pathlib.Path, name: str, pattern: re.Pattern[str]):
        self.archive_path = folder / f"{name}.zip"
        self.owner_pid = -1  # of the process that opened the archive
        self.loose: dict[str, pathlib.Path] = {}
        self.members: dict[str, str] = {}
        unpacked = folder / name
        if not unpacked.is_dir() and not self.archive_path.is_file():
            raise Problem(
                f"{folder} holds neither {name}.zip nor a folder {name}/; "
                "run `make download`, or name the competition's folder with DATA=."
            )
        if self.archive_path.is_file():
            self.members = self.index_archive(pattern)
        if unpacked.is_dir():
            self.loose |= {path.name: path for path in unpacked.iterdir() if pattern.fullmatch(path.name)}
        known = self.loose.keys() | self.members.keys()
        self.loose |= {path.name: path for path in folder.iterdir() if path.name in known}
        self.names = sorted(known)
        if not self.names:
            raise Problem(f"{self.archive_path} and {unpacked}/ hold no file with a name like 0123456789ab_01.jpg.")

    def index_archive(self, pattern: re.Pattern[str]) -> dict[str, str]:
        """Name of a file -> its path inside the archive; other members are none of our business."""
        members: dict[str, str] = {}
        for info in self.open_archive().infolist():
            *folders, file_name = info.filename.split("/")
            if ".." in folders or "" in folders[:1]:
                raise Problem(
                    f"{self.archive_path} has a member {info.filename[:80]!r}, whose place is outside of the folder "
                    "that it is unpacked to; download it again, from Kaggle."
                )
            if pattern.fullmatch(file_name):
                if file_name in members:
                    raise Problem(f"{self.archive_path} holds {file_name} twice; download it again.")
                members[file_name] = info.filename
        return members

    def open_archive(self) -> zipfile.ZipFile:
        """This process's own handle: two processes that share one would move each other's position."""
        if self.owner_pid != os.getpid():
            try:
                self.archive = zipfile.ZipFile(self.archive_path)
            except DAMAGE as error:
                raise Problem(
                    f"{self.archive_path} is not a whole zip archive ({error}); download it again."
                ) from error
            self.owner_pid = os.getpid()
        return self.archive

    def where(self, name: str) -> str:
        """The place of a file, for messages."""
        return str(self.loose[name]) if name in self.loose else f"{self.archive_path}, member {self.members[name]}"

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises Problem when they cannot be read or fail their checksum."""
        try:
            if name in self.loose:
                return self.loose[name].read_bytes()
            info = self.open_archive().getinfo(self.members[name])
            check_member(info, LARGEST_PICTURE_BYTES)
            return self.archive.read(info)
        except KeyError:
            raise Problem(f"{self.archive_path} holds no {name}.") from None
        except DAMAGE as error:
            raise Problem(f"{self.where(name)}, cannot be read ({error}); download it again.") from error

    def __getstate__(self) -> dict:
        """Without the handle, for a process that is not a fork."""
        return {key: value for key, value in self.__dict__.items() if key != "archive"} | {"owner_pid": -1}
