"""Writing so that a file is either whole or not there."""
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from pipeline.runtime.problem import Problem

ERRORS_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # and EIO of a read, sometimes


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Hand out a name to write to; on success it becomes `path` in one step, on failure it is removed.

    The bytes are on the disk before the name is, so that a power cut leaves the old file or the new one. Problem when
    it cannot be written; what else goes wrong in the block, such as reading other files, passes as it is.
    """
    draft = path.with_name(f".{path.name}.draft")
    in_the_block = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        in_the_block = True
        yield draft
        in_the_block = False
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        if in_the_block and not is_of_writing(error, draft):
            raise
        raise Problem(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def is_of_writing(error: OSError, path: pathlib.Path) -> bool:
    """Whether an error comes of writing to `path`. Opening names the file; a write that fails names none."""
    if error.filename is None:
        return error.errno in ERRORS_OF_WRITING
    return str(error.filename) in (str(path), str(path.parent))


def write_text(path: pathlib.Path, text: str) -> None:
    with replacing(path) as draft:
        draft.write_text(text)


def write_json(path: pathlib.Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds. OSError when it cannot be read, ValueError when it is none."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("brackets in brackets in brackets") from None


@contextlib.contextmanager
def locked(path: pathlib.Path, busy: str) -> Iterator[None]:
    """Be the only process in this block; Problem(busy) when another is. A killed process holds no lock.

    Problem, too, where the file system knows no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # "w" would touch a file that is there
    except OSError as error:
        raise Problem(f"{path} could not be written: {error.strerror or error}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(busy) from None
        except OSError as error:  # ENOLCK, ENOSYS: some file systems of networks have no flock
            raise Problem(
                f"{path} cannot be locked ({error.strerror or error}); put its folder on a file system that has flock."
            ) from None
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise Problem(busy)  # its last holder has removed it meanwhile, and somebody may hold a new one
        held.append(file)
        try:
            yield
        finally:
            held.remove(file)


held: list[IO[str]] = []  # the locks of this process


def let_go() -> None:
    """In a forked worker: it outlives a killed owner by seconds, in which nobody could start again."""
    for file in held:
        file.close()


os.register_at_fork(after_in_child=let_go)


def length_bytes(path: pathlib.Path) -> int:
    """Size of a file, 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def digest(*facts: Any) -> str:
    """Hex digest of what JSON can hold: the same facts, the same digest."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def sha256(path: pathlib.Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
