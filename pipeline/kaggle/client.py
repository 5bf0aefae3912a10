"""The only module that talks to Kaggle, through Kaggle's own `kaggle` package (written against version 2.2.4).

Every call has time limits, is retried where that can help, and ends in a result or in a Problem of one sentence, which
never contains a key, a token or a signed link. `connect` imports the package, so that no other stage needs it.
"""
import contextlib
import datetime
import importlib.metadata
import io
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from pipeline.data.competition import Competition
from pipeline.kaggle.credentials import find_credentials
from pipeline.kaggle.retry import (
    LOGIN_ADVICE, NETWORK_ERRORS, Answer, KaggleAdapter, RetryPolicy, UnusableAnswer, may_have_succeeded, with_retries
)  # fmt: skip
from pipeline.runtime.files import length_bytes, write_text
from pipeline.runtime.problem import Problem

CHUNK_BYTES = 2**20  # the most of a file that is held in memory
MIN_BYTES_PER_S = 4_096  # over PACE_WINDOW_S; a slower connection counts as broken
PACE_WINDOW_S = 60.0
PROGRESS_BYTES = 2**20  # a connection that brought this much made progress: the count of tries starts over
SUBMISSIONS_PER_PAGE = 100
SMALLEST_PAGE = 20  # what Kaggle gives when it ignores the number above
UPLOAD_DEADLINE_S = 3 * 3600.0  # for all tries; 0.4 GB take their time on a home connection
SEARCHES, SEARCH_PAUSE_S = 3, 5.0  # for a submission after a call whose outcome is unknown


@dataclass(frozen=True)
class Submission:
    """One submission as Kaggle lists it."""

    ref: int
    file_name: str
    date: datetime.datetime  # UTC, without a time zone, as Kaggle gives it
    description: str  # the message that it was submitted with
    status: str  # PENDING, COMPLETE or ERROR
    public: float | None  # Dice on the public images; None until Kaggle has scored it
    private: float | None
    error: str  # why Kaggle could not score it, or ""


class ClientTooOld(Problem):
    """The installed package lacks a call."""


class Client:
    """An authenticated connection to the competition. Every method raises Problem."""

    def __init__(
        self, package_client: Any, adapter: KaggleAdapter, secrets: list[str], competition: Competition, user: str
    ):
        self.package_client, self.user = package_client, user  # user: whose credentials these are
        self.calls = package_client.competitions.competition_api_client
        self.adapter, self.secrets, self.competition = adapter, secrets, competition
        self.upload_session = requests.Session()  # without credentials that could leak
        self.upload_session.mount("http://", adapter)
        self.upload_session.mount("https://", adapter)

    def files(self) -> dict[str, int]:
        """Return {file name: size in bytes} of the competition's files, from all pages."""
        sizes, request = dict[str, int](), self.request("ListDataFiles")
        while True:
            answer = self.call(self.calls.list_data_files, request, "asking Kaggle for its list of files")
            sizes |= {file.name: file.total_bytes for file in answer.files}
            if not answer.next_page_token or answer.next_page_token == request.page_token:
                return sizes
            request.page_token = answer.next_page_token

    def download(self, name: str, path: pathlib.Path, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        """Download a file to `path`, resuming where an earlier call stopped.

        path: a draft's name, never the final one; the draft is complete when this returns. `path` with `.tag` beside
        it holds the ETag of the version that the draft belongs to. size_bytes: from `files`. on_bytes: called with the
        number of bytes of each chunk, those of an earlier call included; negative when a draft is discarded.
        """
        policy = RetryPolicy(f"the download of {name}", self.secrets, self.competition)
        on_bytes(length_bytes(path))
        while (before_bytes := length_bytes(path)) != size_bytes:
            try:
                self.download_rest(name, path, size_bytes, on_bytes)
            except NETWORK_ERRORS as error:
                if length_bytes(path) - before_bytes >= PROGRESS_BYTES:
                    policy = RetryPolicy(f"the download of {name}", self.secrets, self.competition)
                policy.wait_or_give_up(error)
            except OSError as error:  # after NETWORK_ERRORS, many of which are OSErrors too
                why = error.strerror or error
                raise Problem(f"{path} could not be written: {why}; fix that and run the same command again.") from None

    def download_rest(self, name: str, path: pathlib.Path, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        """Download what one connection yields. Each call asks for a new link, since links expire."""
        tag_path = path.with_name(f"{path.name}.tag")
        tag = tag_path.read_text() if tag_path.is_file() else ""
        draft_bytes = length_bytes(path)
        resumes = tag != "" and 0 < draft_bytes < size_bytes
        self.adapter.file_headers = {"Range": f"bytes={draft_bytes}-", "If-Range": tag} if resumes else {}
        response = self.calls.download_data_file(self.request("DownloadDataFile", file_name=name))  # body unread
        new_tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        is_rest = response.status_code == 206
        check_length(response, size_bytes - draft_bytes if is_rest else size_bytes)
        if not is_rest or new_tag != tag:
            on_bytes(-draft_bytes)
            path.unlink(missing_ok=True)  # before the tag changes: a draft always matches its tag
            write_text(tag_path, new_tag)
            if is_rest:
                response.close()
                raise UnusableAnswer("the file changed at Kaggle in the meantime")
        append_body(response, path, size_bytes, on_bytes)

    def submissions_left(self) -> int | None:
        """Return how many submissions the team may still make today; Kaggle's days begin at 0:00 UTC.

        None where that is unknown: before the team's first submission, or when Kaggle cannot be reached.
        """
        try:
            request = self.request("GetSubmissionLimits")  # which older packages do not have
            answer = self.call(self.calls.get_submission_limits, request, "asking Kaggle for the day's limit")
        except Problem:
            return None
        return answer.num_allowed_now if answer.num_allowed_now or answer.num_today or answer.num_total else None

    def submissions(self) -> list[Submission]:
        """Return all submissions of the team, from all pages, the newest first."""
        by_ref: dict[int, Submission] = {}
        request = self.request("ListSubmissions", page=1, page_size=SUBMISSIONS_PER_PAGE)
        while True:
            answer = self.call(self.calls.list_submissions, request, "asking Kaggle for the submissions")
            new = {item.ref: parse_submission(item) for item in answer.submissions if item.ref not in by_ref}
            by_ref |= new
            if not new or (len(answer.submissions) < SMALLEST_PAGE and not answer.next_page_token):
                return sorted(by_ref.values(), key=lambda submission: (submission.date, submission.ref), reverse=True)
            request.page += 1
            request.page_token = answer.next_page_token

    def submit(self, path: pathlib.Path, message: str) -> int:
        """Upload and submit a file; return its `ref` once Kaggle has it.

        Never submits twice: after a call whose outcome is unknown, search `submissions` for a new one with this
        message before trying again.
        """
        known = {submission.ref for submission in self.submissions()}
        request = self.request("CreateSubmission", submission_description=message)
        request.blob_file_tokens = with_retries(
            lambda: self.upload(path), f"the upload of {path}", self.secrets, self.competition, UPLOAD_DEADLINE_S
        )
        policy = RetryPolicy(f"the submission of {path}", self.secrets, self.competition)
        while True:
            try:
                answer = call_api(self.calls.create_submission, request)
                if not answer.ref:
                    raise UnusableAnswer("Kaggle gave the file no number")
                return answer.ref
            except NETWORK_ERRORS as error:
                if may_have_succeeded(error) and (ref := self.find_submission(message, known)) is not None:
                    return ref
                policy.wait_or_give_up(error)

    def upload(self, path: pathlib.Path) -> str:
        """Upload a file to Kaggle's file store once; return the token that `submit` needs. This submits nothing."""
        status = path.stat()
        request = self.request(
            "StartSubmissionUpload", file_name=path.name, content_length=status.st_size,
            last_modified_epoch_seconds=int(status.st_mtime),
        )  # fmt: skip
        target = call_api(self.calls.start_submission_upload, request)
        with PacedFile(path) as file:
            response = self.upload_session.put(target.create_url, data=file)
        if response.status_code not in (200, 201):
            raise requests.HTTPError("the file store rejected the file", response=response)
        return target.token

    def find_submission(self, message: str, known: set[int]) -> int | None:
        """Search several times for a submission with this message whose ref is not `known`; return its ref or None."""
        for search in range(SEARCHES):
            try:
                submissions = self.submissions()
            except Problem as problem:
                what = f"It is unknown whether Kaggle took the submission ({problem})"
                raise Problem(f"{what}; run `make leaderboard` to find out.") from None
            for submission in submissions:
                if submission.description.strip() == message.strip() and submission.ref not in known:
                    return submission.ref
            time.sleep(SEARCH_PAUSE_S if search < SEARCHES - 1 else 0)
        return None

    def request(self, name: str, **fields: Any) -> Any:
        """Return the package's request of this name about the competition, with these fields."""
        from kagglesdk.competitions.types import competition_api_service

        return build_request(competition_api_service, name, {"competition_name": self.competition.slug, **fields})

    def call(self, method: Callable[[Any], Any], request: Any, what: str) -> Any:
        return with_retries(lambda: call_api(method, request), what, self.secrets, self.competition)


def build_request(module: Any, name: str, fields: dict[str, Any]) -> Any:
    """Return the request `Api{name}Request` of a module of kagglesdk; Problem if the package is too old to have it."""
    try:
        request = getattr(module, f"Api{name}Request")()
        for field, value in fields.items():
            setattr(request, field, value)
        return request
    except AttributeError:
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("kaggle", "kagglesdk"))
        what = f"The installed Kaggle client ({versions}) is too old: it has no {name}"
        raise ClientTooOld(f"{what}; pip install -e '.[kaggle]'.") from None


def call_api(call: Callable[..., Answer], *request: Any) -> Answer:
    """Call the package; raise UnusableAnswer for an answer that it cannot read, such as a proxy's page."""
    try:
        return call(*request)
    except requests.RequestException as error:
        if isinstance(error, ValueError):  # not JSON
            raise UnusableAnswer("the answer is not Kaggle's") from None
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UnusableAnswer("the answer is not Kaggle's") from None


def parse_submission(item: Any) -> Submission:
    return Submission(
        item.ref, item.file_name or "", item.date or datetime.datetime.min, item.description or "", item.status.name,
        parse_score(item.public_score), parse_score(item.private_score), item.error_description or "",
    )  # fmt: skip


def parse_score(text: str | None) -> float | None:
    """Parse "0.99512"; return None for anything but a number."""
    try:
        return float(text or "")
    except ValueError:
        return None


def check_length(response: requests.Response, expected_bytes: int) -> None:
    """Raise UnusableAnswer, before anything is written, if the answer's length shows that it is not our file."""
    given = response.headers.get("Content-Length")
    if given is not None and given != str(expected_bytes):
        response.close()
        raise UnusableAnswer(f"the answer has {given} bytes instead of {expected_bytes}")


def append_body(
    response: requests.Response, path: pathlib.Path, size_bytes: int, on_bytes: Callable[[int], None]
) -> None:
    """Append the body to a draft until it has `size_bytes` or the connection ends; raise NETWORK_ERRORS or OSError."""
    with response, open(path, "ab", buffering=0) as file:
        written_bytes, pace = file.tell(), Pace()
        while written_bytes < size_bytes:
            # read1, unlike iter_content, returns what has arrived: no copy, and no wait for a full chunk.
            chunk = response.raw.read1(min(CHUNK_BYTES, size_bytes - written_bytes), decode_content=False)
            if not chunk:
                raise requests.ConnectionError("the connection ended early")
            file.write(chunk)
            written_bytes += len(chunk)
            on_bytes(len(chunk))
            pace.count(len(chunk))


class Pace:
    """Raise Timeout when a transfer is too slow: a byte now and then would keep a connection open for ever."""

    def __init__(self) -> None:
        self.moved_bytes, self.began = 0, time.monotonic()

    def count(self, moved_bytes: int) -> None:
        self.moved_bytes += moved_bytes
        if (seconds := time.monotonic() - self.began) > PACE_WINDOW_S:
            if self.moved_bytes < MIN_BYTES_PER_S * seconds:
                raise requests.Timeout("the transfer is too slow")
            self.moved_bytes, self.began = 0, time.monotonic()


class PacedFile(io.FileIO):
    """A file to upload; `read` raises Timeout when the upload is too slow."""

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        self.pace = Pace()

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.pace.count(len(data))
        return data


def connect(competition: Competition) -> Client:
    """Log in with the credentials that the `kaggle` package finds; Problem if there are none or Kaggle rejects them."""
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)  # its warnings contain signed links
    api = import_package()()
    api.config = ""  # kaggle.json is read below
    api.args = ["--local"] if os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST" else []
    adapter, build = KaggleAdapter(), api.build_kaggle_client
    api.build_kaggle_client = lambda: with_adapter(build(), adapter)  # for the calls of the log-in too
    credentials = find_credentials()
    secrets = credentials.secrets
    with environment(credentials.variables):
        try:
            with_retries(lambda: call_api(api.authenticate), "the log-in", secrets, competition)
        except SystemExit:
            if not credentials.token:
                raise Problem(f"There are no credentials for Kaggle; {LOGIN_ADVICE}.") from None
        if credentials.token and api.config_values.get("token") != credentials.token:
            # The package would continue with user and key, but still send this token.
            what = f"Kaggle does not accept the access token of {credentials.source}"
            raise Problem(f"{what}; remove it, or {LOGIN_ADVICE}.")
        login = api.config_values.get("token")  # of an OAuth login, too
        secrets = [*secrets, *([str(login)] if login else [])]
        user = str(api.config_values.get("username", ""))
        return Client(api.build_kaggle_client(), adapter, secrets, competition, user)


def with_adapter(package_client: Any, adapter: KaggleAdapter) -> Any:
    """Route the client's requests through the adapter. The package has no public way to its session."""
    http = package_client.http_client()
    http._init_session()
    http._session.mount("http://", adapter)
    http._session.mount("https://", adapter)
    return package_client


def import_package() -> type:
    """Import and return the class KaggleApi.

    The import logs in without time limits, makes a folder in HOME and prints help. So during the import there are no
    credentials, HOME is an empty folder, and all output is discarded.
    """
    hidden: dict[str, str | None] = {name: None for name in os.environ if name.startswith("KAGGLE_")}
    with tempfile.TemporaryDirectory() as empty, environment({**hidden, "HOME": empty, "KAGGLE_CONFIG_DIR": empty}):
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise Problem(f"The Kaggle client is not installed ({error}); pip install -e '.[kaggle]'.") from None
        except SystemExit:  # kaggle 2.0.1 of Kaggle's image leaves like this without credentials; the class is loaded
            KaggleApi = sys.modules["kaggle.api.kaggle_api_extended"].KaggleApi
    return KaggleApi


@contextlib.contextmanager
def environment(variables: dict[str, str | None]) -> Iterator[None]:
    """Set these variables (None: unset) for a block, without VERBOSE, which prints keys; discard all output."""
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
