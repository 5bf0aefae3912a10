"""Calls to Kaggle about kernels: scripts that run there, in a session each. `client` explains how calls end.

A kernel is named by its slug, which is its title in lower case with dashes, and belongs to the user who is logged in.
"""
import datetime
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from pipeline.kaggle.client import Client, append_body, build_request, call_api, check_length
from pipeline.kaggle.retry import (
    NETWORK_ERRORS, Answer, RetryPolicy, UnusableAnswer, may_have_succeeded, response_of, with_retries
)  # fmt: skip
from pipeline.kaggle.session import NO_GPU, OutputFile
from pipeline.runtime.files import length_bytes, sha256
from pipeline.runtime.problem import Problem

ACTIVE = ("QUEUED", "RUNNING", "NEW_SCRIPT", "CANCEL_REQUESTED")
OUTPUTS_PER_PAGE = 100
END_OF_LOG = "END_OF_LOG"
MAX_MANIFEST_BYTES = 2**24
SEARCHES, SEARCH_PAUSE_S = 3, 5.0  # for a kernel after a push whose outcome is unknown


@dataclass(frozen=True)
class Status:
    """Of a kernel's last session."""

    name: str  # QUEUED, RUNNING, COMPLETE, ERROR, CANCEL_REQUESTED, CANCEL_ACKNOWLEDGED or NEW_SCRIPT
    failure: str  # Kaggle's message, or ""

    @property
    def is_active(self) -> bool:
        return self.name in ACTIVE


@dataclass(frozen=True)
class Quota:
    """GPU hours of the week."""

    left_h: float
    total_h: float
    resets: datetime.datetime | None  # UTC, without a time zone


class Kernels:
    """The kernels of the user who is logged in. Every method raises Problem."""

    def __init__(self, client: Client):
        self.client, self.calls = client, client.package_client.kernels.kernels_api_client

    def page(self, slug: str) -> str:
        return f"https://www.kaggle.com/code/{self.client.user}/{slug}"

    def status(self, slug: str) -> Status | None:
        """Return the status of the kernel's last session; None if there is no such kernel."""
        return self.ask(lambda: self.status_once(slug), f"asking Kaggle for the status of {slug}")

    def status_once(self, slug: str) -> Status | None:
        """As `status`, but in one try, which raises NETWORK_ERRORS."""
        try:
            answer = call_api(self.calls.get_kernel_session_status, self.of_kernel("GetKernelSessionStatus", slug))
        except requests.HTTPError as error:
            if is_unknown_kernel(error):
                return None
            raise
        return Status(answer.status.name, answer.failure_message or "")

    def script(self, slug: str) -> str:
        """Return the source of a kernel."""
        request = self.of_kernel("GetKernel", slug)
        answer = self.ask(lambda: call_api(self.calls.get_kernel, request), f"asking Kaggle for the script of {slug}")
        return answer.blob.source if answer.blob else ""

    def push(self, slug: str, title: str, script: str, source: str | None, gpu: str, internet: bool) -> None:
        """Save a private kernel, which starts its session. source: a kernel whose outputs it reads, or None.

        Never starts two: after a call whose outcome is unknown, look for the kernel before trying again.
        """
        request = self.request(
            "SaveKernel", slug=f"{self.client.user}/{slug}", new_title=title, text=script, language="python",
            kernel_type="script", is_private=True, enable_gpu=gpu != NO_GPU, enable_internet=internet,
            competition_data_sources=[self.client.competition.slug],
            kernel_data_sources=[f"{self.client.user}/{source}"] if source else [],
            **({} if gpu == NO_GPU else {"machine_shape": gpu}),
        )  # fmt: skip
        policy = RetryPolicy(f"the start of {slug}", self.client.secrets, self.client.competition)
        while True:
            try:
                return check_pushed(call_api(self.calls.save_kernel, request), self.client.competition.rules_page)
            except NETWORK_ERRORS as error:
                if may_have_succeeded(error) and self.appears(slug):
                    return
                policy.wait_or_give_up(error)

    def appears(self, slug: str) -> bool:
        for search in range(SEARCHES):
            if self.status(slug) is not None:
                return True
            time.sleep(SEARCH_PAUSE_S if search < SEARCHES - 1 else 0)
        return False

    def read_log(self, slug: str) -> Iterator[tuple[str, str]]:
        """Yield (stream name, text) of the log, from its beginning, in one connection; it raises NETWORK_ERRORS.

        While the session runs, this goes on until the session ends or the connection breaks.
        """
        http = self.client.package_client.http_client()
        url = http._get_request_url("kernels/logs/stream", f"{self.client.user}/{slug}")  # as the package's own CLI
        with http._session.get(url, stream=True, headers={"Accept": "text/event-stream, */*"}) as response:
            response.raise_for_status()
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                yield from parse_saved_log(response.text)
                return
            for line in complete_lines(response):
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == END_OF_LOG:
                    return
                yield from parse_saved_log(f"[{data}]")

    def outputs(self, slug: str) -> dict[str, str]:
        """Return {name: link} of all outputs of the kernel's last session; the links expire."""
        links, request = dict[str, str](), self.of_kernel("ListKernelSessionOutput", slug, page_size=OUTPUTS_PER_PAGE)
        while True:
            answer = self.ask(
                lambda: call_api(self.calls.list_kernel_session_output, request), f"asking for the outputs of {slug}"
            )
            links |= {file.file_name: file.url for file in answer.files or []}
            if not answer.next_page_token or answer.next_page_token == request.page_token:
                return links
            request.page_token = answer.next_page_token

    def read_manifest(self, link: str) -> bytes:
        """Return the bytes of a small output."""
        def read() -> bytes:
            with self.open_link(link) as response:
                return response.raw.read(MAX_MANIFEST_BYTES, decode_content=False)

        return self.ask(read, "the download of the list of outputs")

    def download(
        self, slug: str, name: str, link: str, path: pathlib.Path, file: OutputFile, on_bytes: Callable[[int], None]
    ) -> None:
        """Download an output to `path`; Problem unless it has the size and sha256 that its session wrote down.

        link: from `outputs`; each further try asks for a new one. on_bytes: called with the number of bytes of each
        chunk; negative when a try starts again.
        """
        links = iter([link])

        def download_once() -> None:
            on_bytes(-length_bytes(path))
            path.unlink(missing_ok=True)
            with self.open_link(next(links, None) or self.outputs(slug).get(name, "")) as response:
                check_length(response, file.bytes)
                append_body(response, path, file.bytes, on_bytes)
            if sha256(path) != file.sha256:
                raise UnusableAnswer("it arrived with other bytes than the session wrote")

        self.ask(download_once, f"the download of {name}")

    def open_link(self, link: str) -> requests.Response:
        response = self.client.upload_session.get(link, stream=True)
        if response.status_code != 200:
            raise requests.HTTPError("the file store rejected the link", response=response)
        return response

    def delete(self, slug: str) -> None:
        """Delete a kernel, with its session and its outputs."""
        request = self.of_kernel("DeleteKernel", slug)
        answer = self.ask(lambda: call_api(self.calls.delete_kernel, request), f"the deletion of {slug}")
        if answer.error_message:
            raise Problem(f"Kaggle could not delete {slug}: {answer.error_message}; delete it on {self.page(slug)}.")

    def quota(self) -> Quota | None:
        """Return what is left of the week's GPU hours; None if Kaggle does not say."""
        request = self.request("GetAcceleratorQuotaStatistics")
        answer = self.ask(
            lambda: call_api(self.calls.get_accelerator_quota_statistics, request), "asking for the GPU quota"
        )
        if (quota := answer.gpu_quota) is None or quota.total_time_allowed is None:
            return None
        used = quota.time_used or datetime.timedelta()
        total_h, used_h = (time.total_seconds() / 3600 for time in (quota.total_time_allowed, used))
        return Quota(max(0.0, total_h - used_h), total_h, answer.quota_refresh_time)

    def request(self, name: str, **fields: Any) -> Any:
        """Return the package's request of this name, with these fields."""
        from kagglesdk.kernels.types import kernels_api_service

        return build_request(kernels_api_service, name, fields)

    def of_kernel(self, name: str, slug: str, **fields: Any) -> Any:
        return self.request(name, user_name=self.client.user, kernel_slug=slug, **fields)

    def ask(self, call: Callable[[], Answer], what: str) -> Answer:
        return with_retries(call, what, self.client.secrets, self.client.competition)


def is_unknown_kernel(error: Exception) -> bool:
    """Return whether an error says that there is no such kernel; of one that is not ours Kaggle says 403."""
    response = response_of(error)
    return response is not None and response.status_code in (403, 404)


def check_pushed(answer: Any, rules_page: str) -> None:
    """Raise Problem if Kaggle did not start a session, which it says with status 200."""
    if answer.invalid_competition_sources:
        slug = answer.invalid_competition_sources[0]
        raise Problem(f"Kaggle does not give the session the data of {slug}; accept the rules on {rules_page}.")
    if answer.invalid_kernel_sources:
        raise Problem(f"Kaggle has no outputs of {answer.invalid_kernel_sources[0]} any more; start with another RUN=.")
    message = " ".join((answer.error or "").split()).rstrip(".")
    if "phone" in message.lower() or "verif" in message.lower():
        advice = "verify your phone number at https://www.kaggle.com/settings, or take GPU=none"
        raise Problem(f"Kaggle gives this account no GPU ({message}); {advice}.")
    if message:
        raise Problem(f"Kaggle did not start the session: {message}.")
    if not answer.ref:
        raise UnusableAnswer("Kaggle gave the kernel no name")


def complete_lines(response: requests.Response) -> Iterator[str]:
    """Yield the lines of a body, without an incomplete one at its end, which a broken connection leaves."""
    rest = b""
    while chunk := response.raw.read1(2**16, decode_content=False):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)


def parse_saved_log(text: str) -> Iterator[tuple[str, str]]:
    """Yield (stream name, text) of a JSON array of events; nothing if it is none."""
    try:
        events = json.loads(text or "[]")
    except ValueError:
        return
    for event in events if isinstance(events, list) else []:
        if isinstance(event, dict) and isinstance(event.get("data"), str):
            yield str(event.get("stream_name", "stdout")), event["data"]
