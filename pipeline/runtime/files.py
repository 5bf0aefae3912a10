"""Atomic writes, locks and digests of files."""
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from numpy.typing import NDArray

from pipeline.runtime.problem import Problem

WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # a read may raise EIO too


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a name to write to, which becomes `path` in one step; after an error in the block it is removed.

    The bytes are on the disk before the name is, so that a power cut leaves the old file or the new one. Raise Problem
    if the file cannot be written; other errors in the block, such as those of reading other files, pass unchanged.
    """
    draft = path.with_name(f".{path.name}.draft")
    in_block = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        in_block = True
        yield draft
        in_block = False
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        if in_block and not is_write_error(error, draft):
            raise
        raise Problem(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def is_write_error(error: OSError, path: pathlib.Path) -> bool:
    """Return whether an error comes from writing to `path`. Errors of `open` name the file, those of `write` do not."""
    if error.filename is None:
        return error.errno in WRITE_ERRORS
    return str(error.filename) in (str(path), str(path.parent))


def write_text(path: pathlib.Path, text: str) -> None:
    with replacing(path) as draft:
        draft.write_text(text)


def write_json(path: pathlib.Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Read a JSON file. Raise OSError if it cannot be read, ValueError if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("the brackets are nested too deeply") from None


@contextlib.contextmanager
def locked(path: pathlib.Path, busy: str) -> Iterator[None]:
    """Hold a lock for a block; raise Problem(busy) if another process holds it. A killed process holds no lock.

    Raise Problem, too, if the file system has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a")  # "w" would modify an existing file
    except OSError as error:
        raise Problem(f"{path} could not be written: {error.strerror or error}.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Problem(busy) from None
        except OSError as error:  # ENOLCK, ENOSYS: some network file systems have no flock
            what = f"{path} cannot be locked ({error.strerror or error})"
            raise Problem(f"{what}; put its folder on a file system that has flock.") from None
        if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
            raise Problem(busy)  # its holder removed it in the meantime, and another process may hold a new one
        held.append(file)
        try:
            yield
        finally:
            held.remove(file)


held: list[IO[str]] = []  # the locks of this process


def release_locks() -> None:
    """Release all locks in a forked worker: it may outlive a killed owner by seconds and would block a restart."""
    for file in held:
        file.close()


os.register_at_fork(after_in_child=release_locks)


def length_bytes(path: pathlib.Path) -> int:
    """Return the size of a file, 0 if it does not exist."""
    return path.stat().st_size if path.is_file() else 0


def digest(*values: Any) -> str:
    """Return the SHA-256 of values as JSON, in hex: equal values have equal digests."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def digest_arrays(*arrays: NDArray) -> str:
    """Return a hash of arrays, their shapes and dtypes, in 16 hex digits."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str} {array.shape} ".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()[:16]


def stamp(path: pathlib.Path) -> str:
    """Return the size and time of a file, of which one differs after a change; "" if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def sha256(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
