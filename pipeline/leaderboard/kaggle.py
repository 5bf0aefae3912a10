"""Kaggle, through its own `kaggle` package: the only file that knows it.

Every call is patient within bounds: it has timeouts, tries again where that can help, and ends in an answer or in a
Problem of one sentence, which never holds a key, a token or a signed link. The package is imported by `connect`, so
that no other stage needs it.
"""
import datetime
import pathlib
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Left:
    """How many submissions the team may still make, as Kaggle counts: days begin at 0:00 UTC."""

    today: int  # that are still allowed
    made_today: int
    made_in_all: int


@dataclass(frozen=True)
class Submission:
    """What Kaggle says of one submission."""

    ref: int
    file_name: str
    date: datetime.datetime  # UTC, without a time zone, as Kaggle gives it
    description: str  # the message that it was submitted with
    status: str  # PENDING, COMPLETE or ERROR
    public: float | None  # Dice on the public pictures; None until Kaggle has scored it
    private: float | None
    error: str  # why Kaggle could not score it, or ""


class Client:
    """One open connection to the competition. Every method raises Problem."""

    def files(self) -> dict[str, int]:
        """Name -> size in bytes of each of the competition's files, from all pages."""
        raise NotImplementedError

    def download(self, name: str, path: pathlib.Path, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        """Fetch a file to `path`, going on where an earlier call was cut off.

        path: a draft's name, never the final one; it is whole when this returns. size_bytes: as `files` says.
        on_bytes: called with the number of bytes of each piece, those of an earlier call included.
        """
        raise NotImplementedError

    def submissions_left(self) -> Left | None:
        """None where Kaggle does not say: before the team's first submission, or when it cannot be asked."""
        raise NotImplementedError

    def submissions(self) -> list[Submission]:
        """All that the team made, from all pages, the newest first."""
        raise NotImplementedError

    def submit(self, path: pathlib.Path, message: str) -> int:
        """Hand in a file; its `ref`, returned only when Kaggle has it.

        Never twice: after an unclear answer it looks among the `submissions` for a new one with this message
        before it tries again.
        """
        raise NotImplementedError


def connect() -> Client:
    """Log in with the credentials that the `kaggle` package finds. Problem when it finds none, or they are refused."""
    raise NotImplementedError
