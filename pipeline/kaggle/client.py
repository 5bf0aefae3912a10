"""Kaggle, through its own `kaggle` package: the only file that knows it.

Every call is patient within bounds: it has time limits, tries again where that can help, and ends in an answer or in
a Problem of one sentence, which never holds a key, a token or a signed link. The package is imported by `connect`,
so that no other stage needs it. Written against kaggle 2.2.4.
"""
import contextlib
import datetime
import io
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from pipeline import carvana
from pipeline.runtime.files import length_bytes, write_text
from pipeline.kaggle.retry import (
    HOW_TO_LOG_IN,
    TROUBLE,
    Answer,
    PatientAdapter,
    RetryPolicy,
    Unusable,
    is_unclear,
    patiently,
)
from pipeline.runtime.problem import Problem

PIECE_BYTES = 2**20  # the most that is held in memory of a file
SLOWEST_BYTES_PER_S = 4_096  # over a window of SLOW_S; a connection below that counts as broken
SLOW_S = 60.0
PROGRESS_BYTES = 2**20  # a connection that brought as much was worth it: the count of tries begins anew
SUBMISSIONS_PER_PAGE = 100
SMALLEST_PAGE = 20  # what Kaggle gives when it does not heed the number above
UPLOAD_DEADLINE_S = 3 * 3600.0  # with all tries; 0.4 GB take their time from a home
LOOKS, LOOK_PAUSE_S = 3, 5.0  # for a submission of which we do not know whether Kaggle took it


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

    def __init__(self, package_client: Any, adapter: PatientAdapter, secrets: list[str]):
        self.calls = package_client.competitions.competition_api_client
        self.adapter, self.secrets = adapter, secrets
        self.store = requests.Session()  # for uploads: it has no credentials to give away
        self.store.mount("http://", adapter)
        self.store.mount("https://", adapter)

    def files(self) -> dict[str, int]:
        """Name -> size in bytes of each of the competition's files, from all pages."""
        from kagglesdk.competitions.types.competition_api_service import ApiListDataFilesRequest

        sizes: dict[str, int] = {}
        request = ApiListDataFilesRequest()
        request.competition_name = carvana.SLUG
        while True:
            answer = self.ask(self.calls.list_data_files, request, "asking Kaggle for its list of files")
            sizes |= {file.name: file.total_bytes for file in answer.files}
            if not answer.next_page_token or answer.next_page_token == request.page_token:
                return sizes
            request.page_token = answer.next_page_token

    def download(self, name: str, path: pathlib.Path, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        """Fetch a file to `path`, going on where an earlier call was cut off.

        path: a draft's name, never the final one; it is whole when this returns. Beside it, `path` with `.tag` says
        of which version of the file the draft is. size_bytes: as `files` says. on_bytes: called with the number of
        bytes of each piece, those of an earlier call included; negative when a draft turns out to be of no use.
        """
        patience = RetryPolicy(f"the download of {name}", self.secrets)
        on_bytes(length_bytes(path))
        while (before_bytes := length_bytes(path)) != size_bytes:
            try:
                self.fetch_rest(name, path, size_bytes, on_bytes)
            except TROUBLE as error:
                if length_bytes(path) - before_bytes >= PROGRESS_BYTES:
                    patience = RetryPolicy(f"the download of {name}", self.secrets)
                patience.wait_or_give_up(error)
            except OSError as error:  # after TROUBLE, much of which is an OSError too
                why = error.strerror or error
                raise Problem(f"{path} could not be written: {why}; mend that, and the same command goes on.") from None

    def fetch_rest(self, name: str, path: pathlib.Path, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        """One connection's worth of a file. The link is a new one each time, since links expire."""
        from kagglesdk.competitions.types.competition_api_service import ApiDownloadDataFileRequest

        tag_path = path.with_name(f"{path.name}.tag")
        tag = tag_path.read_text() if tag_path.is_file() else ""
        begun_bytes = length_bytes(path)
        go_on = tag != "" and 0 < begun_bytes < size_bytes
        self.adapter.file_headers = {"Range": f"bytes={begun_bytes}-", "If-Range": tag} if go_on else {}
        request = ApiDownloadDataFileRequest()
        request.competition_name, request.file_name = carvana.SLUG, name
        response = self.calls.download_data_file(request)  # its body is still to come
        new_tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        is_rest = response.status_code == 206
        check_length(response, size_bytes - begun_bytes if is_rest else size_bytes)
        if not is_rest or new_tag != tag:
            on_bytes(-begun_bytes)
            path.unlink(missing_ok=True)  # before the tag changes: a draft is never of another version than its tag
            write_text(tag_path, new_tag)
            if is_rest:
                response.close()
                raise Unusable("the file changed at Kaggle meanwhile")
        append(response, path, size_bytes, on_bytes)

    def submissions_left(self) -> Left | None:
        """None where Kaggle does not say: before the team's first submission, or when it cannot be asked."""
        from kagglesdk.competitions.types.competition_api_service import ApiGetSubmissionLimitsRequest

        request = ApiGetSubmissionLimitsRequest()
        request.competition_name = carvana.SLUG
        try:
            answer = self.ask(self.calls.get_submission_limits, request, "asking Kaggle for the day's limit")
        except Problem:
            return None
        left = Left(answer.num_allowed_now, answer.num_today, answer.num_total)
        return None if left == Left(0, 0, 0) else left

    def submissions(self) -> list[Submission]:
        """All that the team made, from all pages, the newest first."""
        from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest

        found: dict[int, Submission] = {}
        request = ApiListSubmissionsRequest()
        request.competition_name = carvana.SLUG
        request.page, request.page_size = 1, SUBMISSIONS_PER_PAGE
        while True:
            answer = self.ask(self.calls.list_submissions, request, "asking Kaggle for the submissions")
            new = {item.ref: submission_of(item) for item in answer.submissions if item.ref not in found}
            found |= new
            if not new or (len(answer.submissions) < SMALLEST_PAGE and not answer.next_page_token):
                return sorted(found.values(), key=lambda submission: (submission.date, submission.ref), reverse=True)
            request.page += 1
            request.page_token = answer.next_page_token

    def submit(self, path: pathlib.Path, message: str) -> int:
        """Hand in a file; its `ref`, returned only when Kaggle has it.

        Never twice: after an unclear answer it looks among the `submissions` for a new one with this message
        before it tries again.
        """
        from kagglesdk.competitions.types.competition_api_service import ApiCreateSubmissionRequest

        known = {submission.ref for submission in self.submissions()}
        request = ApiCreateSubmissionRequest()
        request.competition_name, request.submission_description = carvana.SLUG, message
        request.blob_file_tokens = patiently(
            lambda: self.upload(path), f"the upload of {path}", self.secrets, UPLOAD_DEADLINE_S
        )
        patience = RetryPolicy(f"the submission of {path}", self.secrets)
        while True:
            try:
                answer = sensible(self.calls.create_submission, request)
                if not answer.ref:
                    raise Unusable("Kaggle did not say under which number it has the file")
                return answer.ref
            except TROUBLE as error:
                if is_unclear(error) and (ref := self.find_new(message, known)) is not None:
                    return ref
                patience.wait_or_give_up(error)

    def upload(self, path: pathlib.Path) -> str:
        """Bring a file to the store once; the token by which `submit` names it. No submission yet."""
        from kagglesdk.competitions.types.competition_api_service import ApiStartSubmissionUploadRequest

        request = ApiStartSubmissionUploadRequest()
        request.competition_name, request.file_name = carvana.SLUG, path.name
        request.content_length = path.stat().st_size
        request.last_modified_epoch_seconds = int(path.stat().st_mtime)
        place = sensible(self.calls.start_submission_upload, request)
        with PacedFile(path) as file:
            response = self.store.put(place.create_url, data=file)
        if response.status_code not in (200, 201):
            raise requests.HTTPError("the store did not take the file", response=response)
        return place.token

    def find_new(self, message: str, known: set[int]) -> int | None:
        """The ref of a submission with this message that was not there before, looked for several times."""
        for look in range(LOOKS):
            try:
                submissions = self.submissions()
            except Problem as problem:
                raise Problem(
                    f"It is not known whether Kaggle took the submission ({problem}); `make leaderboard` finds out."
                ) from None
            for submission in submissions:
                if submission.description.strip() == message.strip() and submission.ref not in known:
                    return submission.ref
            time.sleep(LOOK_PAUSE_S if look < LOOKS - 1 else 0)
        return None

    def ask(self, call: Callable[[Any], Any], request: Any, what: str) -> Any:
        return patiently(lambda: sensible(call, request), what, self.secrets)


def sensible(call: Callable[..., Answer], *request: Any) -> Answer:
    """The package's answer; Unusable where Kaggle, or something on the way, sent what the package cannot read."""
    try:
        return call(*request)
    except requests.RequestException as error:
        if isinstance(error, ValueError):  # no JSON
            raise Unusable("the answer is not Kaggle's") from None
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Unusable("the answer is not Kaggle's") from None


def submission_of(item: Any) -> Submission:
    return Submission(
        item.ref, item.file_name or "", item.date or datetime.datetime.min, item.description or "", item.status.name,
        score_of(item.public_score), score_of(item.private_score), item.error_description or "",
    )  # fmt: skip


def score_of(text: str | None) -> float | None:
    """"0.99512" -> 0.99512; None for what is no number."""
    try:
        return float(text or "")
    except ValueError:
        return None


def check_length(response: requests.Response, expected_bytes: int) -> None:
    """Unusable, before anything is written, for an answer of another length: no part of our file."""
    given = response.headers.get("Content-Length")
    if given is not None and given != str(expected_bytes):
        response.close()
        raise Unusable(f"{given} bytes were on offer, but {expected_bytes} belong there")


def append(
    response: requests.Response, path: pathlib.Path, size_bytes: int, on_bytes: Callable[[int], None]
) -> None:
    """Write the body to the end of a draft, until it has `size_bytes` or the connection ends; errors as in TROUBLE."""
    with response, open(path, "ab", buffering=0) as file:
        written_bytes = file.tell()
        pace = Pace()
        while written_bytes < size_bytes:
            # read1, unlike iter_content, hands out what is there: neither a copy nor a wait for a full piece.
            piece = response.raw.read1(min(PIECE_BYTES, size_bytes - written_bytes), decode_content=False)
            if not piece:
                raise requests.ConnectionError("the connection ended early")
            file.write(piece)
            written_bytes += len(piece)
            on_bytes(len(piece))
            pace.count(len(piece))


class Pace:
    """Raises Timeout when hardly anything moves: a byte now and then would keep a connection up for ever."""

    def __init__(self) -> None:
        self.moved_bytes, self.began = 0, time.monotonic()

    def count(self, moved_bytes: int) -> None:
        self.moved_bytes += moved_bytes
        if (seconds := time.monotonic() - self.began) > SLOW_S:
            if self.moved_bytes < SLOWEST_BYTES_PER_S * seconds:
                raise requests.Timeout("hardly anything moved")
            self.moved_bytes, self.began = 0, time.monotonic()


class PacedFile(io.FileIO):
    """A file that is sent at some pace, or not at all."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self.pace = Pace()

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.pace.count(len(data))
        return data


def connect() -> Client:
    """Log in with the credentials that the `kaggle` package finds. Problem when it finds none, or they are refused."""
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # its warnings name signed links
    api = import_package()()
    home = credentials_folder()
    api.config_dir, api.config = str(home), str(home / "kaggle.json")
    api.args = ["--local"] if os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST" else []
    adapter, build = PatientAdapter(), api.build_kaggle_client
    api.build_kaggle_client = lambda: with_adapter(build(), adapter)  # also for the calls of the log-in
    token, source = token_at_hand()
    try:
        with surroundings({}):
            patiently(lambda: sensible(api.authenticate), "the log-in", [token] if token else [])
    except SystemExit:
        if not token:
            raise Problem(f"There are no credentials for Kaggle; {HOW_TO_LOG_IN}.") from None
    if token and api.config_values.get("token") != token:
        # The package would go on with user and key, yet send this token all the same.
        raise Problem(f"Kaggle does not accept the access token of {source}; remove it, or {HOW_TO_LOG_IN}.")
    secrets = [str(api.config_values[key]) for key in ("token", "key") if api.config_values.get(key)]
    return Client(api.build_kaggle_client(), adapter, secrets)


def token_at_hand() -> tuple[str | None, str]:
    """The access token that the package will prefer to all else, and where it stands."""
    from kagglesdk.kaggle_env import get_access_token_from_env

    token, source = get_access_token_from_env()
    return token, "~/.kaggle/access_token" if source == "access_token" else str(source)


def with_adapter(package_client: Any, adapter: PatientAdapter) -> Any:
    """The same client, whose requests go through the adapter. The package has no public way to its session."""
    http = package_client.http_client()
    http._init_session()
    http._session.mount("http://", adapter)
    http._session.mount("https://", adapter)
    return package_client


def import_package() -> type:
    """The class KaggleApi.

    Its import logs in, without time limits, makes a folder in HOME and prints help. So for that moment there
    are no credentials, HOME is an empty folder, and nothing is heard.
    """
    hidden: dict[str, str | None] = {name: None for name in os.environ if name.startswith("KAGGLE_")}
    with tempfile.TemporaryDirectory() as empty:
        with surroundings({**hidden, "HOME": empty, "KAGGLE_CONFIG_DIR": empty}):
            try:
                from kaggle.api.kaggle_api_extended import KaggleApi
            except ImportError as error:
                raise Problem(f"The Kaggle client is not installed ({error}); pip install -e '.[kaggle]'.") from None
    return KaggleApi


def credentials_folder() -> pathlib.Path:
    """Where the package looks for `kaggle.json`."""
    if folder := os.environ.get("KAGGLE_CONFIG_DIR"):
        return pathlib.Path(folder)
    old = pathlib.Path(os.path.expanduser("~/.kaggle"))
    if old.is_dir():
        return old
    return pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "kaggle"


@contextlib.contextmanager
def surroundings(variables: dict[str, str | None]) -> Iterator[None]:
    """For the block: these variables set (None: not), no VERBOSE, which prints keys, and all that is printed lost."""
    before = dict(os.environ)
    try:
        for name, value in {**variables, "VERBOSE": None, "VERBOSE_OUTPUT": None}.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)
