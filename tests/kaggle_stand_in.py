"""The stand-in for Kaggle with faults as switches, and with a TLS end for the real addresses."""
import pathlib
import ssl
import subprocess
import threading
from collections.abc import Callable

from pipeline.synthetic.fake_kaggle import KEY, TOKEN, Answer, Handler, Refusal, FakeKaggle

Fault = Callable[[Handler], None]  # what happens to a request in the place of its answer
ALWAYS = 50  # more often than anything is tried


class Kaggle(FakeKaggle):
    """The stand-in, whose next answers may be faults; afterwards it behaves."""

    def __init__(self, folder: pathlib.Path, inbox: pathlib.Path):
        super().__init__(folder, inbox)
        self.faults: dict[str, list[Fault]] = {}  # by call; files: "blob", "range" (to go on with one), "upload"
        self.lost: dict[str, int] = {}  # how many answers to a call are lost, though it did what was asked
        self.midway: list[tuple[int, Fault]] = []  # after so many bytes of a file, this happens
        self.calls: list[str] = []
        self.sent: list[tuple[str, int]] = []  # each file that was sent, and from which byte on
        self.reached = threading.Event()  # a request stalls
        self.released = threading.Event()

    def __exit__(self, *error: object) -> None:
        self.released.set()
        super().__exit__(*error)

    def fault(self, handler: Handler, call: str) -> bool:
        call = "range" if "Range" in handler.headers else call
        self.calls.append(call)
        fault = next(iter(self.faults.get(call, [])), None)
        if fault is None:
            return False
        self.faults[call].pop(0)
        fault(handler)
        return True

    def answer(self, call: str, asked: Answer) -> Answer:
        answer = super().answer(call, asked)
        if self.lost.get(call, 0) > 0:
            self.lost[call] -= 1
            raise Refusal(500, "Internal error")
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


def answering(status: int, message: str = "", **headers: str) -> Fault:
    """With `message` as the API's JSON, or else as a proxy's page."""
    body = f'{{"code": {status}, "message": "{message}"}}' if message else "<html>trouble</html>"
    kind = "application/json" if message else "text/html"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.send_bytes(status, body.encode(), kind, named)


def cut(handler: Handler) -> None:
    """The connection ends without an answer, after the first byte of an upload."""
    if handler.command == "PUT":
        handler.rfile.read(1)
    handler.close_connection = True
    handler.connection.close()


def stall(handler: Handler) -> None:
    """Nothing more comes until the test is over."""
    handler.server.reached.set()  # type: ignore[attr-defined]
    handler.server.released.wait(30)  # type: ignore[attr-defined]
    handler.close_connection = True


def trickle(handler: Handler) -> None:
    """A byte of the file now and then, until the client has enough of it."""
    while not handler.server.released.wait(0.05):  # type: ignore[attr-defined]
        handler.wfile.write(handler.file.read(1))  # type: ignore[attr-defined]


def garbage(handler: Handler) -> None:
    """As many bytes as were promised, of another file."""
    handler.wfile.write(bytes(2**20) * 20)
    handler.close_connection = True


def leaks(text: str) -> list[str]:
    """The secrets of the stand-in, or the beginnings of signed links, that a text gives away."""
    return [secret for secret in (KEY, TOKEN, "signature=", "secret-") if secret in text]


# --- the real addresses ---------------------------------------------------------------------------


class TlsHandler(Handler):
    """A proxy that is itself every host that it is asked to connect to."""

    def do_CONNECT(self) -> None:
        self.send_response_only(200)
        self.end_headers()
        self.request = self.server.tls.wrap_socket(self.request, server_side=True)  # type: ignore[attr-defined]
        self.setup()
        self.close_connection = False  # though CONNECT comes as HTTP/1.0


def end_tls(server: Kaggle, hosts: tuple[str, ...], folder: pathlib.Path) -> dict[str, str]:
    """Make the server answer for `hosts` under https; the variables that lead the client there."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    names = ",".join(f"DNS:{host}" for host in hosts)
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=stand-in"]
    files = ["-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *words, *files], check=True, capture_output=True)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # type: ignore[attr-defined]
    server.tls.load_cert_chain(certificate, key)  # type: ignore[attr-defined]
    server.RequestHandlerClass = TlsHandler
    server.storage_url = f"https://{hosts[-1]}"
    proxy = f"http://127.0.0.1:{server.server_port}"
    return {"KAGGLE_API_ENVIRONMENT": "PROD", "https_proxy": proxy, "REQUESTS_CA_BUNDLE": str(certificate)}
