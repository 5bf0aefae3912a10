"""How long retries wait, which errors end them, and that a slow connection is not a broken one."""
import datetime
import email.utils
import pathlib

import pytest
import requests

from pipeline.kaggle import client, retry
from pipeline.carvana import CARVANA
from pipeline.kaggle.retry import RetryPolicy, UnusableAnswer, may_have_succeeded, is_transient, parse_retry_after
from pipeline.runtime.problem import Problem


def error_of(status: int, method: str = "POST", **headers: str) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.request = requests.Request(method, "https://api.kaggle.com/v1/x").prepare()
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError("no", response=response)


def test_retry_after_comes_in_two_forms() -> None:
    assert parse_retry_after("120") == 120
    when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    assert parse_retry_after(email.utils.format_datetime(when, usegmt=True)) == pytest.approx(60, abs=3)
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [parse_retry_after(text) for text in ("", "soon", "-1", "1.5e9")] == [None] * 4


def test_pauses_double_up_to_a_limit_and_retry_after_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: 1.0)
    monkeypatch.setattr(retry, "TRIES", 9)
    policy = RetryPolicy("it", [], CARVANA)
    for error in [error_of(503)] * 7 + [error_of(429, Retry_After="7")]:
        policy.wait_or_give_up(error)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 7]
    with pytest.raises(Problem, match=r"^it failed after 9 tries: .* \(503\)"):
        policy.wait_or_give_up(error_of(503))


def test_no_try_begins_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(Problem, match="wait 301 seconds"):
        RetryPolicy("it", [], CARVANA).wait_or_give_up(error_of(429, Retry_After="301"))


@pytest.mark.parametrize(
    "error, transient, unknown",
    [
        (error_of(400), False, False),
        (error_of(401), False, False),
        (error_of(403), False, False),  # from the API: the rules are not accepted
        (error_of(403, "GET"), True, False),  # from the file store: an expired link
        (error_of(404), False, False),
        (error_of(429), True, False),
        (error_of(500), True, True),
        (requests.ConnectionError("disconnected"), True, True),
        (requests.Timeout("stalled"), True, True),
        (UnusableAnswer("a proxy's page"), True, True),
        (requests.exceptions.SSLError("CERTIFICATE_VERIFY_FAILED"), False, True),
        (requests.exceptions.SSLError("EOF occurred"), True, True),
    ],
)
def test_which_errors_are_transient_and_which_leave_the_outcome_unknown(
    error: Exception, transient: bool, unknown: bool
) -> None:
    assert (is_transient(error), may_have_succeeded(error)) == (transient, unknown)


def test_a_slow_connection_is_not_a_broken_one(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    now = 0.0
    monkeypatch.setattr(client.time, "monotonic", lambda: now)
    (tmp_path / "file").write_bytes(bytes(1_000_000))
    with client.PacedFile(tmp_path / "file") as file:
        for _ in range(100):
            now += 1
            file.read(5_000)
        with pytest.raises(requests.Timeout):
            for _ in range(121):
                now += 1
                file.read(3_000)
