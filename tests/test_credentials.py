"""Credentials for Kaggle: found where its own client finds them, never shown, and one sentence when they fail."""
import json
import pathlib
import re
from collections.abc import Iterator

import pytest
from kaggle_server import Kaggle, answering, leaks

from pipeline.__main__ import DEFAULT_CONFIG, main
from pipeline.synthetic import fake_kaggle

CREDENTIALS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME")


@pytest.fixture
def kaggle(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kaggle]:
    """A fake Kaggle, an empty working folder, and no credentials."""
    for folder in ("work/configs", "inbox", "home"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    pathlib.Path(DEFAULT_CONFIG).touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with Kaggle(demo_folder, tmp_path / "inbox") as server:
        for name, text in server.environment().items():
            monkeypatch.setenv(name, text)
        for name in CREDENTIALS:
            monkeypatch.delenv(name, raising=False)
        yield server


def fetch(name: str = "metadata.csv.zip") -> int:
    return main(["download", "--data", "data", "--only", name])


def only_line(capsys: pytest.CaptureFixture) -> str:
    """Return the one line of output, on stderr, without a secret."""
    output = capsys.readouterr()
    (line,) = output.err.splitlines()
    assert output.out == "" and not leaks(line)
    return line


def test_without_credentials(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert fetch() == 1
    assert re.search("There are no credentials for Kaggle; .*KAGGLE_API_TOKEN.*kaggle.json", only_line(capsys))
    assert kaggle.calls == []


@pytest.mark.parametrize("place", ["variables", ".kaggle", ".config/kaggle", "KAGGLE_CONFIG_DIR", "access_token"])
def test_credentials_are_found_where_kaggles_own_client_finds_them(
    kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, place: str
) -> None:
    folder = tmp_path / "home" / place
    if place == "variables":
        monkeypatch.setenv("KAGGLE_USERNAME", fake_kaggle.USER)
        monkeypatch.setenv("KAGGLE_KEY", fake_kaggle.KEY)
    elif place == "access_token":
        (tmp_path / "home/.kaggle").mkdir()
        (tmp_path / "home/.kaggle/access_token").write_text(fake_kaggle.TOKEN + "\n")
    else:
        folder.mkdir(parents=True)
        (folder / "kaggle.json").write_text(json.dumps({"username": fake_kaggle.USER, "key": fake_kaggle.KEY}))
        if place == "KAGGLE_CONFIG_DIR":
            monkeypatch.setenv(place, str(folder))
    assert fetch() == 0


def test_wrong_credentials(kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "stolen")
    monkeypatch.setenv("KAGGLE_USERNAME", fake_kaggle.USER)
    monkeypatch.setenv("KAGGLE_KEY", fake_kaggle.KEY)
    assert fetch() == 1
    line = only_line(capsys)
    assert "does not accept the access token of KAGGLE_API_TOKEN; remove it" in line and "stolen" not in line
    monkeypatch.setenv("KAGGLE_API_TOKEN", "")
    monkeypatch.setenv("KAGGLE_KEY", "guessed")
    assert fetch() == 1
    line = only_line(capsys)
    assert "does not accept the credentials (401" in line and "guessed" not in line


def test_kaggles_messages_are_cleaned_of_links_and_secrets(
    kaggle: Kaggle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    message = f"No, {fake_kaggle.TOKEN}, see https://kaggle.example/x?signature=secret-1 " + "and so on " * 50
    kaggle.faults["ListDataFiles"] = [answering(400, message)]
    monkeypatch.setenv("KAGGLE_API_TOKEN", fake_kaggle.TOKEN)
    assert fetch() == 1
    line = only_line(capsys)
    assert "(400: No, (a secret), see (a link) and so on" in line and len(line) < 400
