"""A fake Kaggle on the loopback interface: it serves a competition folder, scores submissions, and runs kernels.

The real `kaggle` package talks to it, unchanged, when it runs with `FakeKaggle.environment`. The demo shows both ends
with it, without an account; the tests add faults. It answers the calls of kaggle 2.2.4.
"""
import base64
import datetime
import itertools
import json
import pathlib
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pipeline.carvana import CARVANA
from pipeline.data.competition import Competition
from pipeline.runtime.problem import Problem
from pipeline.submission.scoring import score
from pipeline.synthetic.fake_kernels import FakeKernels

USER, KEY, TOKEN = "newcomer", "key-of-the-fake-kaggle", "token-of-the-fake-kaggle"
SOLUTION = "solution.csv"
PAGE_FILES = 5  # fewer than the competition has, so that the client must follow pages
DAILY_SUBMISSIONS = 5
PENDING_LISTINGS = 1  # how many times a submission is listed as pending
Answer = dict[str, Any]


class ErrorAnswer(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class FakeKaggle(ThreadingHTTPServer):
    """`with FakeKaggle(folder, inbox) as server:` serves on a free port of 127.0.0.1 until the block ends.

    folder: a competition folder with `solution.csv`, which Kaggle keeps secret. inbox: an empty folder for uploads.
    """

    daemon_threads = True
    storage_url = "http://localhost"  # of files; the proxy setting directs the client back here

    def __init__(self, folder: pathlib.Path, inbox: pathlib.Path, competition: Competition = CARVANA):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.inbox, self.competition = folder, inbox, competition
        self.lock, self.numbers = threading.Lock(), itertools.count(1)
        self.uploads: dict[str, str] = {}  # token -> name of the file
        self.submissions: list[Answer] = []  # the newest first
        self.listings: dict[int, int] = {}  # ref of a submission -> how many times it was listed
        self.kernels = FakeKernels(inbox / "kernels", competition.slug, self.files, self.storage_url)

    def __enter__(self) -> "FakeKaggle":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kernels.stop()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up; other errors are bugs and are shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def environment(self) -> dict[str, str]:
        """Return variables that direct the client here and nowhere else, with credentials for this server."""
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "KAGGLE_API_TOKEN": TOKEN,  # overrides all credential files of the user
            "KAGGLE_API_V1_TOKEN": "",
            "http_proxy": f"http://127.0.0.1:{self.server_port}",
            "https_proxy": "http://127.0.0.1:9",  # nothing listens there
            "no_proxy": "", "NO_PROXY": "",
        }  # fmt: skip

    def files(self) -> list[pathlib.Path]:
        """Return the files that the competition serves."""
        patterns = ("*.zip", "*.csv", f"*{self.competition.image_suffix}")
        return sorted(path for each in patterns for path in self.folder.glob(each) if path.name != SOLUTION)

    def inject_fault(self, handler: "Handler", call: str) -> bool:
        """Return whether a fault has answered instead of the call; tests override this."""
        return False

    def send_file(self, handler: "Handler", path: pathlib.Path, first: int) -> None:
        with open(path, "rb") as file:
            handler.connection.sendfile(file, first)

    def answer(self, call: str, request: Answer) -> Answer:
        """Answer a call of Kaggle's API; raise ErrorAnswer for a status other than 200."""
        if request.get("competitionName", self.competition.slug) != self.competition.slug:
            raise ErrorAnswer(404, "Competition not found")
        with self.lock:
            answer = getattr(self if hasattr(self, call) else self.kernels, call)(request)
        if answer is None:
            raise ErrorAnswer(403, "Permission 'kernels.get' was denied")  # as Kaggle says of what does not exist
        return answer

    # --- the calls, named as in Kaggle's API ---

    def IntrospectToken(self, request: Answer) -> Answer:
        return {"active": request.get("token") == TOKEN, "username": USER, "userId": 1, "scope": "", "exp": 2**31}

    def ListDataFiles(self, request: Answer) -> Answer:
        first, files = int(request.get("pageToken") or 0), self.files()
        page = [
            {"ref": path.name, "name": path.name, "totalBytes": path.stat().st_size, "creationDate": now()}
            for path in files[first : first + PAGE_FILES]
        ]
        return {"files": page} | next_page(first + PAGE_FILES, len(files))

    def DownloadDataFile(self, request: Answer) -> Answer:
        name = request.get("fileName", "")
        if name not in {path.name for path in self.files()}:
            raise ErrorAnswer(404, "File not found")
        return {"Location": f"{self.storage_url}/blob/{quote(name)}?signature=secret-{next(self.numbers)}"}

    def StartSubmissionUpload(self, request: Answer) -> Answer:
        token = f"upload-{next(self.numbers)}"
        self.uploads[token] = request["fileName"]
        return {"token": token, "createUrl": f"{self.storage_url}/upload/{token}?signature=secret-{token}"}

    def CreateSubmission(self, request: Answer) -> Answer:
        token = request.get("blobFileTokens", "")
        path = self.inbox / token / pathlib.Path(self.uploads.get(token, "")).name
        if not path.is_file():
            raise ErrorAnswer(400, "The uploaded file was not found")
        if self.GetSubmissionLimits({}).get("numAllowedNow", 0) < 1:
            raise ErrorAnswer(400, f"Your team has used its daily submission allowance ({DAILY_SUBMISSIONS}) today")
        submission = {
            "ref": next(self.numbers), "fileName": path.name, "date": now(), "teamName": USER, "submittedBy": USER,
            "description": request.get("submissionDescription", ""), "totalBytes": path.stat().st_size,
        }  # fmt: skip
        self.submissions.insert(0, submission | grade(path, self.folder / SOLUTION, self.competition))
        return {"message": f"Successfully submitted to {self.competition.slug}", "ref": submission["ref"]}

    def GetSubmissionLimits(self, request: Answer) -> Answer:
        made = len(self.submissions)
        return {"numToday": made, "numTotal": made, "numAllowedNow": max(0, DAILY_SUBMISSIONS - made)}

    def ListSubmissions(self, request: Answer) -> Answer:
        first, size = int(request.get("pageToken") or 0), int(request.get("pageSize") or 20)
        page = [self.list_once(submission) for submission in self.submissions[first : first + size]]
        return {"submissions": page} | next_page(first + size, len(self.submissions))

    def list_once(self, submission: Answer) -> Answer:
        """Return a submission as it is listed; the first listings show it as pending."""
        count = self.listings[submission["ref"]] = self.listings.get(submission["ref"], 0) + 1
        if count > PENDING_LISTINGS:
            return submission
        hidden = ("publicScore", "privateScore", "errorDescription")
        return {key: value for key, value in submission.items() if key not in hidden} | {"status": "PENDING"}


def grade(path: pathlib.Path, solution: pathlib.Path, competition: Competition) -> Answer:
    try:
        result = score(path, solution, competition)
    except Problem as problem:
        return {"status": "ERROR", "errorDescription": str(problem)}
    public, private = ("" if dice is None else f"{dice:.5f}" for dice in (result.public, result.private))
    return {"status": "COMPLETE", "publicScore": public, "privateScore": private}


def next_page(first: int, count: int) -> Answer:
    return {"nextPageToken": str(first)} if first < count else {}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


class Handler(BaseHTTPRequestHandler):
    """One connection: `POST …/v1/SERVICE/CALL` for the API, `GET /blob/NAME` and `PUT /upload/TOKEN` for files."""

    server: FakeKaggle
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        call = urlsplit(self.path).path.rpartition("/")[2]
        if self.server.inject_fault(self, call):
            return
        try:
            if call != "IntrospectToken":
                self.check_credentials()
            answer = self.server.answer(call, json.loads(body or b"{}"))
        except ErrorAnswer as error:
            self.send_answer(error.status, {"code": error.status, "message": error.message})
        else:
            self.send_answer(302 if "Location" in answer else 200, answer)

    def do_GET(self) -> None:
        """Send a log, an output, or a file of the competition, or the part of it that `Range: bytes=N-` asks for."""
        name = unquote(urlsplit(self.path).path)
        if "/kernels/logs/stream/" in name:
            self.send_log(name.rpartition("/")[2])
        elif name.startswith("/output/"):
            self.send_output(name.removeprefix("/output/"))
        else:
            self.send_blob()

    def send_log(self, slug: str) -> None:
        """Send server-sent events while the session runs, and the whole log as JSON afterwards."""
        session = self.server.kernels.last(slug)
        if self.server.inject_fault(self, "log"):
            return
        if session is None:
            self.send_answer(403, {"code": 403, "message": "Permission 'kernels.get' was denied"})
        elif session.has_ended():
            self.send_bytes(200, json.dumps(session.events).encode(), "application/json")
        else:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for piece in session.stream():
                self.wfile.write(piece)

    def send_output(self, name: str) -> None:
        path = self.server.kernels.path_of_output(name)
        if self.server.inject_fault(self, "output"):
            return
        if path is None or "signature" not in parse_qs(urlsplit(self.path).query):
            self.send_bytes(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
            return
        self.send_bytes(200, path.read_bytes(), "application/octet-stream")

    def send_blob(self) -> None:
        """Send a file, or the part that `Range: bytes=N-` asks for if `If-Range` names its version."""
        if self.server.inject_fault(self, "blob"):
            return
        path = self.server.folder / unquote(urlsplit(self.path).path.removeprefix("/blob/"))
        if path not in self.server.files() or "signature" not in parse_qs(urlsplit(self.path).query):
            self.send_bytes(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
            return
        size_bytes = path.stat().st_size
        tag = f'"{size_bytes:x}-{path.stat().st_mtime_ns:x}"'  # changes when the file does
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted and is_still(tag, self.headers.get("If-Range")) else None
        if first is not None and first >= size_bytes:
            self.send_bytes(416, b"", "application/xml")
            return
        self.send_response(200 if first is None else 206)
        if first is not None:
            self.send_header("Content-Range", f"bytes {first}-{size_bytes - 1}/{size_bytes}")
        self.send_header("Content-Length", str(size_bytes - (first or 0)))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", tag)
        self.end_headers()
        self.server.send_file(self, path, first or 0)

    def do_PUT(self) -> None:
        token = urlsplit(self.path).path.removeprefix("/upload/")
        if self.server.inject_fault(self, "upload"):
            return
        if token not in self.server.uploads:
            self.send_bytes(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
            return
        path = self.server.inbox / token / pathlib.Path(self.server.uploads[token]).name
        path.parent.mkdir(exist_ok=True)
        draft, left_bytes = path.with_suffix(".draft"), int(self.headers["Content-Length"])
        with open(draft, "wb") as file:
            while chunk := self.rfile.read(min(left_bytes, 2**20)):
                file.write(chunk)
                left_bytes -= len(chunk)
        if left_bytes:  # the client hung up
            self.close_connection = True
            return
        draft.replace(path)
        self.send_bytes(201, b"", "text/plain")

    def check_credentials(self) -> None:
        basic = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()
        if self.headers.get("Authorization", "") not in (f"Bearer {TOKEN}", basic):
            raise ErrorAnswer(401, "Unauthenticated")

    def send_answer(self, status: int, answer: Answer) -> None:
        headers = {"Location": answer["Location"]} if "Location" in answer else {}
        self.send_bytes(status, json.dumps(answer).encode(), "application/json", headers)

    def send_bytes(self, status: int, body: bytes, kind: str, headers: dict[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


def is_still(tag: str, wanted: str | None) -> bool:
    """Return whether a file with this tag is still the version that `If-Range` names, if it names one."""
    return wanted is None or wanted == tag
