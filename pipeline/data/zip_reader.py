"""Read the files of one set (`train`, `test_hq`, `train_masks`, ...) where Kaggle's download left them.

The same file may lie in three places below the competition folder; the first place that has it wins:

    29bb3ece3180_11.jpg           loose, as Kaggle serves the one repaired image
    test/29bb3ece3180_11.jpg      unpacked
    test.zip                      packed: test/29bb3ece3180_11.jpg inside

In the folder and in the archive files may lie in folders of any depth, as in test/test/. Nothing is ever unpacked or
written. Each read of a member checks its CRC.
"""
import contextlib
import os
import pathlib
import re
import shlex
import struct
import zipfile
import zlib

from pipeline.data.file_kind import DESCRIPTIONS, FIRST_BYTES, kind_of
from pipeline.runtime.files import stamp
from pipeline.runtime.problem import Problem

# What zipfile raises on damage: RuntimeError for an encrypted member, its subclass NotImplementedError for
# an unknown compression or version, the others for bytes that make no sense.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error)
LARGEST_IMAGE_BYTES = 2**26  # unpacked; Kaggle's largest have 0.5 MB
ARCHIVE_DATE = (2017, 7, 24, 0, 0, 0)  # of members that we pack: the same contents give the same bytes
WHERE_TO_GET = "run `make download`, or name the competition's folder with DATA="
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # a few bytes of another may unpack to gigabytes at once


def reason_of(error: Exception) -> str:
    """Return what is wrong in words: for an OSError without its number and path, as "Is a directory"."""
    return str(getattr(error, "strerror", None) or error)


def where_to_get(folder: pathlib.Path, name: str) -> str:
    """Say what to do about a file that a competition folder lacks: unpack what holds it, or name another folder.

    name: such as `train` for train.zip or a folder train/, or that of a table. A browser's "Download All" gives one
    archive that holds all others.
    """
    names = {name, f"{name}.zip"}
    for path in sorted(folder.glob("*/*")):
        if path.name in names:
            return f"it is in {path.parent}: name that folder with DATA={shlex.quote(str(path.parent))}"
    for path in sorted(folder.glob("*.zip")):
        with contextlib.suppress(*DAMAGE), zipfile.ZipFile(path) as archive:
            if any(names & set(split_member(member)) for member in archive.namelist()):
                command = shlex.join(["unzip", "-n", str(path), "-d", str(folder)])
                return f"{path.name} holds it, unpack that: {command}"
    if (folder / "shrink.json").is_file():
        return "it is a copy of `make shrink`, perhaps with TRAIN_ONLY=1: name the whole folder with DATA="
    return WHERE_TO_GET


def split_member(name: str) -> list[str]:
    """Split the name of an archive's member into folders and file; some programs write backslashes."""
    return re.split(r"[/\\]", name)


def check_member(info: zipfile.ZipInfo, largest_bytes: int) -> None:
    """Raise BadZipFile for a member that would flood the memory, by what the archive's directory says of it."""
    if info.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"it is packed by method {info.compress_type}, but must be stored or deflated")
    if info.file_size > largest_bytes:
        raise zipfile.BadZipFile(f"it would unpack to {info.file_size:,} bytes, more than {largest_bytes:,}")


class FileSet:
    """The files of `folder/name/`, `folder/name.zip` and, loose, `folder/` whose names match `pattern`.

    names: all of them, sorted. An instance may be passed to other processes, by fork or by pickle: each
    opens the archive for itself. Raises Problem when neither folder nor archive is there, no name matches, or the
    archive is damaged.
    """

    def __init__(self, folder: pathlib.Path, name: str, pattern: re.Pattern[str]):
        self.archive_path = folder / f"{name}.zip"
        self.owner_pid = -1  # of the process that opened the archive
        self.loose: dict[str, pathlib.Path] = {}
        self.members: dict[str, str] = {}
        unpacked = folder / name
        if not unpacked.is_dir() and not self.archive_path.is_file():
            raise Problem(f"{folder} holds neither {name}.zip nor a folder {name}/; {where_to_get(folder, name)}.")
        if self.archive_path.is_file():
            self.members = self.index_archive(pattern)
        if unpacked.is_dir():
            self.loose = self.index_folder(unpacked, pattern)
        names = self.loose.keys() | self.members.keys()
        self.loose |= {path.name: path for path in folder.iterdir() if path.name in names}
        self.names = sorted(names)
        if not self.names:
            raise Problem(self.describe_others(unpacked, pattern))

    def index_folder(self, unpacked: pathlib.Path, pattern: re.Pattern[str]) -> dict[str, pathlib.Path]:
        """Map the name of each file to its path in an unpacked folder, or in folders inside it."""
        paths: dict[str, pathlib.Path] = {}
        for folder, _, file_names in os.walk(unpacked):
            for file_name in filter(pattern.fullmatch, file_names):
                path = pathlib.Path(folder, file_name)
                if file_name in paths:
                    raise Problem(f"{paths[file_name]} and {path} have the same name; delete one of them.")
                paths[file_name] = path
        return paths

    def describe_others(self, unpacked: pathlib.Path, pattern: re.Pattern[str]) -> str:
        """Say that no name matches, and which files are there instead."""
        members = self.open_archive().namelist() if self.archive_path.is_file() else []
        names = [split_member(name)[-1] for name in members] + [path.name for path in unpacked.rglob("*.*")]
        others = sorted(name for name in names if name)
        there = f", but {len(others)} others, such as {others[0][:60]}" if others else ""
        what = f"{self.archive_path} and {unpacked}/ hold no file whose name matches {pattern.pattern}{there}"
        return f"{what}; download it again, or name another with DATA=."

    def index_archive(self, pattern: re.Pattern[str]) -> dict[str, str]:
        """Map the name of each file to its path inside the archive; ignore other members."""
        members: dict[str, str] = {}
        for info in self.open_archive().infolist():
            *folders, file_name = split_member(info.filename)
            if ".." in folders or "" in folders[:1]:
                what = f"the member {info.filename[:80]!r} would be unpacked outside of its folder"
                raise Problem(f"{self.archive_path}: {what}; download it again, from Kaggle.")
            if pattern.fullmatch(file_name):
                if file_name in members:
                    raise Problem(f"{self.archive_path} holds {file_name} twice; download it again.")
                members[file_name] = info.filename
        return members

    def open_archive(self) -> zipfile.ZipFile:
        """Return this process's own handle; two processes that share one would move each other's position."""
        if self.owner_pid != os.getpid():
            try:
                self.archive = zipfile.ZipFile(self.archive_path)
            except DAMAGE as error:
                raise Problem(f"{self.archive_path} is not a whole zip archive{self.explain(error)}.") from error
            self.owner_pid = os.getpid()
        return self.archive

    def explain(self, error: Exception) -> str:
        """Say what lies in place of the archive, and what to do."""
        kind = ""
        with contextlib.suppress(OSError), open(self.archive_path, "rb") as file:
            kind = kind_of(file.read(FIRST_BYTES))
        if kind == "web page":
            return " but a web page, perhaps Kaggle's login page; accept the rules there and download it again"
        if kind and kind != "zip":
            return f" but {DESCRIPTIONS[kind]}; download it again"
        return f" ({reason_of(error)}); download it again"

    def where(self, name: str) -> str:
        """Where a file lies, for messages."""
        return str(self.loose[name]) if name in self.loose else f"{self.archive_path}, member {self.members[name]}"

    def stamp(self, name: str) -> str:
        """Return a text that differs once a file has changed: of a member, its checksum and the archive's time."""
        if name in self.loose:
            return stamp(self.loose[name])
        info = self.open_archive().getinfo(self.members[name])
        return f"{info.CRC:08x} {info.file_size} {stamp(self.archive_path)}"

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises Problem when they cannot be read or fail their checksum."""
        try:
            if name in self.loose:
                return self.loose[name].read_bytes()
            info = self.open_archive().getinfo(self.members[name])
            check_member(info, LARGEST_IMAGE_BYTES)
            return self.archive.read(info)
        except KeyError:
            raise Problem(f"{self.archive_path} holds no {name}.") from None
        except DAMAGE as error:
            raise Problem(f"{self.where(name)} cannot be read ({reason_of(error)}); download it again.") from error

    def __getstate__(self) -> dict:
        """Leave out the handle, for a process that is not a fork."""
        return {key: value for key, value in self.__dict__.items() if key != "archive"} | {"owner_pid": -1}
