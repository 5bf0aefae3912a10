"""Retries for calls to Kaggle: how long to wait, how often to try again, and what to report when all tries failed."""
import datetime
import email.utils
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

import requests
import urllib3
from requests.adapters import HTTPAdapter

from pipeline.data.competition import Competition
from pipeline.runtime.problem import Problem

CONNECT_S = 20.0  # to open a connection; also the longest pause while we send
ANSWER_S = 60.0  # the longest silence of the server
TRIES = 6  # of one call
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between tries, doubled each time
DEADLINE_S = 300.0  # for one call with all its tries; no new try begins after it
MAX_MESSAGE_CHARS = 200  # of Kaggle's own message

LOGIN_ADVICE = (
    "make a token at https://www.kaggle.com/settings/api and set KAGGLE_API_TOKEN or save it as "
    "~/.kaggle/access_token, or set KAGGLE_USERNAME and KAGGLE_KEY, or keep a kaggle.json in ~/.kaggle, "
    "or run `kaggle auth login`"
)
# What a call may raise when the network or the server fails. requests wraps most of urllib3's errors, but not all.
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError)
Answer = TypeVar("Answer")


class UnusableAnswer(requests.RequestException):
    """An answer that arrived complete but is wrong; the message says what is wrong with it."""


class KaggleAdapter(HTTPAdapter):
    """Give the `kaggle` package's requests what it cannot set itself.

    That is: time limits, and for files (GET; the calls of the API are POST) headers that ask for the bytes uncompressed
    and, with `file_headers`, for a range of them.
    """

    file_headers: dict[str, str] = {}

    def send(self, request, *args, **options):
        if request.method == "GET":
            request.headers.update({"Accept-Encoding": "identity"} | self.file_headers)
        options["timeout"] = (CONNECT_S, ANSWER_S)
        return super().send(request, *args, **options)


class RetryPolicy:
    """Exponential backoff with jitter for one operation: call `wait_or_give_up` after each failure.

    what: the operation, as it fits into "… failed". secrets: words that no message may repeat.
    """

    def __init__(self, what: str, secrets: list[str], competition: Competition, deadline_s: float | None = None):
        self.what, self.secrets, self.competition, self.failures = what, secrets, competition, 0
        self.deadline = time.monotonic() + (DEADLINE_S if deadline_s is None else deadline_s)

    def wait_or_give_up(self, error: Exception) -> None:
        """Sleep before the next try; raise Problem if another try cannot help, or there were enough."""
        self.failures += 1
        pause_s = self.pause_s(error)
        out_of_time = time.monotonic() + pause_s > self.deadline
        if not is_transient(error) or self.failures == TRIES or out_of_time:
            raise Problem(explain(error, self.what, self.secrets, self.failures, self.competition)) from None
        time.sleep(pause_s)

    def pause_s(self, error: Exception) -> float:
        """Return what `Retry-After` asks for, else a pause that doubles each time, with jitter."""
        response = response_of(error)
        asked = None if response is None else parse_retry_after(response.headers.get("Retry-After", ""))
        doubled = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failures - 1))
        return doubled * random.uniform(0.75, 1.25) if asked is None else asked


def with_retries(
    call: Callable[[], Answer], what: str, secrets: list[str], competition: Competition, deadline_s: float | None = None
) -> Answer:
    """Return the answer to a call that may safely be repeated; raise Problem when all tries failed."""
    policy = RetryPolicy(what, secrets, competition, deadline_s)
    while True:
        try:
            return call()
        except NETWORK_ERRORS as error:
            policy.wait_or_give_up(error)


def is_transient(error: Exception) -> bool:
    """Return whether the same call may succeed a little later."""
    response = response_of(error)
    if response is None:
        return not is_certificate_error(error)
    # The file store rejects an expired link, and every try asks for a new one.
    return response.status_code in (408, 429) or response.status_code >= 500 or is_from_file_store(response)


def is_certificate_error(error: Exception) -> bool:
    """Return whether the server failed to prove its identity; other TLS errors are broken connections."""
    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error).upper()


def may_have_succeeded(error: Exception) -> bool:
    """Return whether Kaggle may have done what it was asked to do in spite of the error."""
    response = response_of(error)
    return response is None or response.status_code >= 500 or response.status_code == 408


def is_from_file_store(response: requests.Response) -> bool:
    """Return whether the file store answered: calls of the API are POST, files are GET or PUT with a signed link."""
    return response.request.method != "POST"


def response_of(error: Exception) -> requests.Response | None:
    """Return the response in an error, or None; do not test it with `or`, since an error response is falsy."""
    return getattr(error, "response", None)


def parse_retry_after(text: str) -> float | None:
    """Return the seconds of `Retry-After` in either form: "120", or "Wed, 21 Oct 2015 07:28:00 GMT"."""
    if re.fullmatch(r"\d{1,9}", text.strip()):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def explain(error: Exception, what: str, secrets: list[str], tries: int, competition: Competition) -> str:
    """Return one sentence: what failed, why, and what to do."""
    response = response_of(error)
    after = f" after {tries} tries" if tries > 1 else ""
    if response is not None:
        return explain_response(response, api_message(response, error, secrets), what, after, competition)
    if isinstance(error, UnusableAnswer):
        return f"{what} failed{after}: {error}; run the same command later."
    if is_certificate_error(error):
        return f"{what} failed: the server's certificate is not Kaggle's; check the proxy and the clock."
    slow = isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError))
    why = "there was no answer in time" if slow else "Kaggle cannot be reached, or the connection broke"
    return f"{what} failed{after}: {why}; check the network and run the same command again."


def explain_response(response: requests.Response, message: str, what: str, after: str, facts: Competition) -> str:
    status = response.status_code
    if status == 429:
        asked_s = parse_retry_after(response.headers.get("Retry-After", ""))
        pause = "some minutes" if asked_s is None else f"{asked_s:.0f} seconds"
        return f"{what} failed{after}: Kaggle asks for fewer calls (429{message}); wait {pause} and try again."
    if status >= 500 or is_from_file_store(response):
        return f"{what} failed{after}: Kaggle had an internal error ({status}{message}); run the same command later."
    if status == 401:
        return f"{what} failed: Kaggle does not accept the credentials (401{message}); {LOGIN_ADVICE}."
    if status == 403:
        return f"{what} failed: Kaggle forbids it (403{message}); accept the rules on {facts.rules_page}."
    if status == 404:
        return f"{what} failed: Kaggle does not know the competition {facts.slug} or the file (404{message})."
    advice = "; days begin at 0:00 UTC" if re.search("daily|today|day's", message) else ""
    return f"{what} failed: Kaggle rejects it ({status}{message}){advice}."


def api_message(response: requests.Response, error: Exception, secrets: list[str]) -> str:
    """Return ": " and the API's own message, without links and secrets; "" if the answer is not the API's."""
    if "application/json" not in response.headers.get("Content-Type", ""):
        return ""
    text = re.sub(r"\w+://\S+", "(a link)", " ".join(str(error).split()).rstrip("."))
    for secret in secrets:
        text = text.replace(secret, "(a secret)")
    return f": {text[:MAX_MESSAGE_CHARS]}"
