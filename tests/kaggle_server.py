"""The fake Kaggle with faults to switch on, and with TLS for the real addresses."""
import contextlib
import pathlib
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
from kagglesdk.competitions.types import competition_api_service
from kagglesdk.kernels.types import kernels_api_service

from pipeline.synthetic.fake_kaggle import KEY, TOKEN, Answer, FakeKaggle, Handler, ErrorAnswer

# Kaggle's image has kaggle 2.0.1 (tests/kaggle-image.txt), without these two calls; all works there but what they tell.
asks_for_the_quota = pytest.mark.skipif(
    not hasattr(kernels_api_service, "ApiGetAcceleratorQuotaStatisticsRequest"),
    reason="the installed kaggle package has no call for the week's GPU hours",
)
asks_for_the_limit = pytest.mark.skipif(
    not hasattr(competition_api_service, "ApiGetSubmissionLimitsRequest"),
    reason="the installed kaggle package has no call for the submissions left today",
)
Fault = Callable[[Handler], None]  # what happens to a request instead of its answer
ALWAYS = 50  # more than the number of tries


class Kaggle(FakeKaggle):
    """The fake Kaggle; its next answers may be faults, after which it behaves."""

    def __init__(self, folder: pathlib.Path, inbox: pathlib.Path):
        super().__init__(folder, inbox)
        self.faults: dict[str, list[Fault]] = {}  # by call; files: "blob", "range" (a resumed one), "upload"
        self.lost: dict[str, int] = {}  # how many answers to a call are lost, though the call takes effect
        self.midway: list[tuple[int, Fault]] = []  # after so many bytes of a file, this happens
        self.calls: list[str] = []
        self.sent: list[tuple[str, int]] = []  # each file that was sent, and its first byte
        self.reached = threading.Event()  # a request stalls
        self.released = threading.Event()

    def __exit__(self, *error: object) -> None:
        self.released.set()
        super().__exit__(*error)

    def inject_fault(self, handler: Handler, call: str) -> bool:
        call = "range" if "Range" in handler.headers else call
        self.calls.append(call)
        fault = next(iter(self.faults.get(call, [])), None)
        if fault is None:
            return False
        self.faults[call].pop(0)
        fault(handler)
        return True

    def answer(self, call: str, request: Answer) -> Answer:
        answer = super().answer(call, request)
        if self.lost.get(call, 0) > 0:
            self.lost[call] -= 1
            raise ErrorAnswer(500, "Internal error")
        return answer

    def send_file(self, handler: Handler, path: pathlib.Path, first: int) -> None:
        self.sent.append((path.name, first))
        if not self.midway:
            return super().send_file(handler, path, first)
        count, fault = self.midway.pop(0)
        with open(path, "rb") as file:
            file.seek(first)
            handler.wfile.write(file.read(count))
            handler.file = file  # type: ignore[attr-defined]
            fault(handler)


@contextlib.contextmanager
def serving(folder: pathlib.Path, place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kaggle]:
    """A fake Kaggle that has `folder`, with credentials for it in the environment, and an empty HOME in `place`."""
    for name in ("inbox", "home"):
        (place / name).mkdir()
    monkeypatch.setenv("HOME", str(place / "home"))
    with Kaggle(folder, place / "inbox") as server:
        for name, text in server.environment().items():
            monkeypatch.setenv(name, text)
        yield server


def answering(status: int, message: str = "", **headers: str) -> Fault:
    """Answer with `message` as the API's JSON, or without one as a proxy's page."""
    body = f'{{"code": {status}, "message": "{message}"}}' if message else "<html>error</html>"
    kind = "application/json" if message else "text/html"
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send_bytes(status, body.encode(), kind, headers)


def disconnect(handler: Handler) -> None:
    """Close the connection without an answer, after the first byte of an upload."""
    if handler.command == "PUT":
        handler.rfile.read(1)
    handler.close_connection = True
    handler.connection.close()


def stall(handler: Handler) -> None:
    """Send nothing more until the test is over."""
    handler.server.reached.set()  # type: ignore[attr-defined]
    handler.server.released.wait(30)  # type: ignore[attr-defined]
    handler.close_connection = True


def trickle(handler: Handler) -> None:
    """Send a byte of the file now and then, until the client gives up."""
    while not handler.server.released.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(handler.file.read(1))  # type: ignore[attr-defined]


def garbage(handler: Handler) -> None:
    """Send as many bytes as were promised, but zeros."""
    handler.wfile.write(bytes(2**20) * 20)
    handler.close_connection = True


def leaks(text: str) -> list[str]:
    """Return the secrets, or beginnings of signed links, that a text contains."""
    return [secret for secret in (KEY, TOKEN, "signature=", "secret-") if secret in text]


# --- the real addresses ---------------------------------------------------------------------------


class TlsHandler(Handler):
    """A proxy that plays every host that it is asked to connect to."""

    def do_CONNECT(self) -> None:
        self.send_response_only(200)
        self.end_headers()
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)  # type: ignore[attr-defined]
        self.setup()
        self.close_connection = False  # though CONNECT comes as HTTP/1.0


def end_tls(server: Kaggle, hosts: tuple[str, ...], folder: pathlib.Path) -> dict[str, str]:
    """Make the server answer for `hosts` with TLS; return the variables that lead the client there."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ",".join(f"DNS:{host}" for host in hosts)
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=fake"]
    files = ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *options, *files], check=True, capture_output=True)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # type: ignore[attr-defined]
    server.tls.load_cert_chain(certificate, key)  # type: ignore[attr-defined]
    server.RequestHandlerClass = TlsHandler
    server.storage_url = f"https://{hosts[-1]}"
    proxy = f"http://127.0.0.1:{server.server_port}"
    return {"KAGGLE_API_ENVIRONMENT": "PROD", "https_proxy": proxy, "REQUESTS_CA_BUNDLE": str(certificate)}
