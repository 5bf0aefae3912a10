"""How long to wait for Kaggle, how often to ask again, and what to say when it was no use."""
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

from pipeline import carvana
from pipeline.runtime.problem import Problem

CONNECT_S = 20.0  # until a connection stands; also the longest pause while we send
ANSWER_S = 60.0  # longest silence of the other side
TRIES = 6  # of one call
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0  # between tries, twice as long each time
DEADLINE_S = 300.0  # for one call with all its tries; no new try begins after it
SHOWN_CHARACTERS = 200  # of what Kaggle says

HOW_TO_LOG_IN = (
    "make a token at https://www.kaggle.com/settings/api and set KAGGLE_API_TOKEN or save it as "
    "~/.kaggle/access_token, or set KAGGLE_USERNAME and KAGGLE_KEY, or keep a kaggle.json in ~/.kaggle, "
    "or run `kaggle auth login`"
)
# What a call may raise when it goes wrong on the way. requests wraps most of what urllib3 raises, but not all of it.
TROUBLE = (requests.RequestException, urllib3.exceptions.HTTPError)
Answer = TypeVar("Answer")


class Unusable(requests.RequestException):
    """An answer that came whole but makes no sense; the message says in what way."""


class PatientAdapter(HTTPAdapter):
    """What the requests of a session need whose owner, the `kaggle` package, has no words for it.

    Time limits, and for files (GET; the calls of the API are POST) these headers: the bytes as they are, or a part.
    """

    file_headers: dict[str, str] = {}

    def send(self, request, *args, **options):
        if request.method == "GET":
            request.headers.update({"Accept-Encoding": "identity"} | self.file_headers)
        options["timeout"] = (CONNECT_S, ANSWER_S)
        return super().send(request, *args, **options)


class RetryPolicy:
    """One undertaking that may be tried several times: `wait_or_give_up` after each failure.

    what: the undertaking, as it fits into "… failed". secrets: words that no message may repeat.
    """

    def __init__(self, what: str, secrets: list[str], deadline_s: float | None = None):
        self.what, self.secrets = what, secrets
        self.failures = 0
        self.deadline = time.monotonic() + (DEADLINE_S if deadline_s is None else deadline_s)

    def wait_or_give_up(self, error: Exception) -> None:
        """Sleep before the next try; Problem where none would help, or there were enough."""
        self.failures += 1
        pause_s = self.pause_s(error)
        out_of_time = time.monotonic() + pause_s > self.deadline
        if not may_pass(error) or self.failures == TRIES or out_of_time:
            raise Problem(explain(error, self.what, self.secrets, self.failures)) from None
        time.sleep(pause_s)

    def pause_s(self, error: Exception) -> float:
        """What `Retry-After` asks for; else twice as long each time, and never quite together with others."""
        response = response_of(error)
        asked = None if response is None else seconds_of(response.headers.get("Retry-After", ""))
        doubled = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self.failures - 1))
        return doubled * random.uniform(0.75, 1.25) if asked is None else asked


def patiently(call: Callable[[], Answer], what: str, secrets: list[str], deadline_s: float | None = None) -> Answer:
    """The answer to a call that may be repeated without harm. Problem when there is none."""
    patience = RetryPolicy(what, secrets, deadline_s)
    while True:
        try:
            return call()
        except TROUBLE as error:
            patience.wait_or_give_up(error)


def may_pass(error: Exception) -> bool:
    """Whether the same call may go better a little later."""
    response = response_of(error)
    if response is None:
        return not is_distrust(error)
    # The store of the files refuses a link that has expired; every try asks for a new one.
    return response.status_code in (408, 429) or response.status_code >= 500 or from_store(response)


def is_distrust(error: Exception) -> bool:
    """Whether the other side is not who it should be; other errors of TLS are lines that broke."""
    return isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE" in str(error).upper()


def is_unclear(error: Exception) -> bool:
    """Whether the other side may have done what it was asked to do, in spite of the error."""
    response = response_of(error)
    return response is None or response.status_code >= 500 or response.status_code == 408


def from_store(response: requests.Response) -> bool:
    """Calls of the API are POST; files are fetched and brought elsewhere, under links with a signature."""
    return response.request.method != "POST"


def response_of(error: Exception) -> requests.Response | None:
    """The answer that an error is about; an error response counts as false, so `or` would lose it."""
    return getattr(error, "response", None)


def seconds_of(text: str) -> float | None:
    """`Retry-After` in either of its forms, "120" or "Wed, 21 Oct 2015 07:28:00 GMT"."""
    if re.fullmatch(r"\d{1,9}", text.strip()):
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def explain(error: Exception, what: str, secrets: list[str], tries: int) -> str:
    """One sentence: what failed, why, and what to do."""
    response = response_of(error)
    after = f" after {tries} tries" if tries > 1 else ""
    if response is not None:
        return explain_answer(response, said_by(response, error, secrets), what, after)
    if isinstance(error, Unusable):
        return f"{what} failed{after}: {error}; try again later."
    if is_distrust(error):
        return f"{what} failed: the certificate of the other side is not Kaggle's; look at the proxy, or at the clock."
    slow = isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError))
    why = "there was no answer in time" if slow else "Kaggle cannot be reached, or the connection broke"
    return f"{what} failed{after}: {why}; look at the network, and run the same command again."


def explain_answer(response: requests.Response, said: str, what: str, after: str) -> str:
    status = response.status_code
    if status == 429:
        asked_s = seconds_of(response.headers.get("Retry-After", ""))
        pause = "some minutes" if asked_s is None else f"{asked_s:.0f} seconds"
        return f"{what} failed{after}: Kaggle asks for fewer calls (429{said}); wait {pause} and run it again."
    if status >= 500 or from_store(response):
        return f"{what} failed{after}: Kaggle has trouble of its own ({status}{said}); run the same command later."
    if status == 401:
        return f"{what} failed: Kaggle does not accept the credentials (401{said}); {HOW_TO_LOG_IN}."
    if status == 403:
        return f"{what} failed: Kaggle forbids it (403{said}); accept the rules on {carvana.RULES_PAGE} and try again."
    if status == 404:
        return f"{what} failed: Kaggle does not know the competition {carvana.SLUG} or the file (404{said})."
    advice = "; days begin at 0:00 UTC" if re.search("daily|today|day's", said) else ""
    return f"{what} failed: Kaggle refuses it ({status}{said}){advice}."


def said_by(response: requests.Response, error: Exception, secrets: list[str]) -> str:
    """`: the server's own message`, or nothing where it is no message of the API."""
    if "application/json" not in response.headers.get("Content-Type", ""):
        return ""
    text = " ".join(str(error).split()).rstrip(".")
    text = re.sub(r"\w+://\S+", "(a link)", text)
    for secret in secrets:
        text = text.replace(secret, "(a secret)")
    return f": {text[:SHOWN_CHARACTERS]}"
