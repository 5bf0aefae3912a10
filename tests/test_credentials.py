"""Credentials for Kaggle: found where its own client finds them, never shown, and one sentence when they fail."""
import builtins
import codecs
import json
import os
import pathlib
import re
from collections.abc import Iterator

import pytest
from kaggle_server import Kaggle, answering, leaks, serving

from pipeline.__main__ import main
from pipeline.options import DEFAULT_CONFIG
from pipeline.kaggle.credentials import Credentials, find_credentials
from pipeline.runtime.problem import Problem
from pipeline.synthetic import fake_kaggle

Patch = pytest.MonkeyPatch
CREDENTIALS = ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME")


@pytest.fixture
def kaggle(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kaggle]:
    """A fake Kaggle, an empty working folder, and no credentials."""
    (tmp_path / "work/configs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    pathlib.Path(DEFAULT_CONFIG).touch()
    with serving(demo_folder, tmp_path, monkeypatch) as server:
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


# --- as users save them ----------------------------------------------------------------------------------------------

TOKEN, KEY_FILE = "KGAT_0f3e-a.b~c+d/e==", {"username": "newcomer", "key": "0f3e"}
DRESSED = {  # what users save instead of TOKEN
    "line break": "TOKEN\n", "Windows": "TOKEN\r\n", "blanks": "  TOKEN \t", "quotes": '"TOKEN"', "quotes '": "'TOKEN'",
    "mark": "\ufeffTOKEN", "mark at the end": "TOKEN\ufeff", "no-break space": "\u00a0TOKEN",
    "zero width": "TOKEN\u200b", "assignment": "KAGGLE_API_TOKEN=TOKEN", "export": 'export KAGGLE_API_TOKEN="TOKEN"\n',
    "set": "set KAGGLE_API_TOKEN=TOKEN", "setx": 'setx KAGGLE_API_TOKEN "TOKEN"', "header": "Bearer TOKEN",
    "PowerShell": '$env:KAGGLE_API_TOKEN = "TOKEN"', "YAML": "KAGGLE_API_TOKEN: TOKEN", "typographic": "“TOKEN”",
}  # fmt: skip
NO_TOKENS = {
    "two lines": "a-secret\nanother", "two words": "a-secret another", "JSON": json.dumps(KEY_FILE), "HTML": "<html>",
    "placeholder": "<your token>", "quotes alone": '""', "only a name": "KAGGLE_API_TOKEN=", "umlaut": "a-secret-ä",
}  # fmt: skip


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder ~/.kaggle of somebody without credentials."""
    for name in [name for name in os.environ if name.startswith(("KAGGLE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".kaggle").mkdir()
    return tmp_path / ".kaggle"


def refusal() -> str:
    """Return the message; it never shows what it refuses."""
    with pytest.raises(Problem) as problem:
        find_credentials()
    assert not re.search("a-secret|another|0f3e", str(problem.value))
    return str(problem.value)


@pytest.mark.parametrize("text", DRESSED.values(), ids=DRESSED)
def test_what_is_no_part_of_a_token_is_trimmed(home: pathlib.Path, monkeypatch: Patch, text: str) -> None:
    text = text.replace("TOKEN", TOKEN).replace(f"KAGGLE_API_{TOKEN}", "KAGGLE_API_TOKEN")
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        (home / "access_token").write_text(text, encoding)
        assert find_credentials() == Credentials(token=TOKEN, source="~/.kaggle/access_token"), encoding
    (home / "access_token").write_bytes(codecs.BOM_UTF16_BE + text.encode("utf-16-be"))
    assert find_credentials().token == TOKEN
    (home / "access_token").rename(home / "access_token.txt")
    assert find_credentials() == Credentials(token=TOKEN, source="~/.kaggle/access_token.txt")
    (home / "access_token.txt").unlink()
    monkeypatch.setenv("KAGGLE_API_TOKEN", text)
    assert find_credentials() == Credentials(token=TOKEN, source="KAGGLE_API_TOKEN")


@pytest.mark.parametrize("text", NO_TOKENS.values(), ids=NO_TOKENS)
def test_what_is_no_token_is_named_and_not_shown(home: pathlib.Path, monkeypatch: Patch, text: str) -> None:
    (home / "kaggle.json").write_text(json.dumps(KEY_FILE))  # the package would send the token all the same
    (home / "access_token").write_text(text)
    assert refusal().startswith("~/.kaggle/access_token holds no access token")
    monkeypatch.setenv("KAGGLE_API_TOKEN", text)
    assert refusal().startswith("KAGGLE_API_TOKEN holds no access token")


def test_an_image_in_place_of_a_token_is_named(home: pathlib.Path) -> None:
    (home / "access_token").write_bytes(b"\x89PNG\xff\xfe")
    assert refusal().startswith("~/.kaggle/access_token is not a text")


def test_kaggle_api_token_may_name_a_file(home: pathlib.Path, monkeypatch: Patch) -> None:
    (home / "mine").write_text(f"{TOKEN}\n", "utf-16")
    for path in (str(home / "mine"), "~/.kaggle/mine", f'"{home / "mine"}"'):
        monkeypatch.setenv("KAGGLE_API_TOKEN", path)
        assert find_credentials() == Credentials(token=TOKEN, source="the file that KAGGLE_API_TOKEN names")
    for path in ("~/.kaggle/none", str(home / "none")):
        monkeypatch.setenv("KAGGLE_API_TOKEN", path)
        assert refusal().startswith("KAGGLE_API_TOKEN names a file that does not exist")


def test_an_empty_token_is_passed_over_and_named_if_there_is_nothing_else(
    home: pathlib.Path, monkeypatch: Patch
) -> None:
    (home / "access_token").write_text(" \n")
    assert refusal().startswith("~/.kaggle/access_token is empty, and there are no other credentials")
    monkeypatch.setenv("KAGGLE_API_TOKEN", " ")
    assert refusal().startswith("KAGGLE_API_TOKEN is empty, and there are no other credentials")
    (home / "access_token").write_text(TOKEN)
    assert find_credentials().token == TOKEN
    (home / "access_token").unlink()
    (home / "kaggle.json").write_text(json.dumps(KEY_FILE))
    assert find_credentials() == Credentials(user="newcomer", key="0f3e")


@pytest.mark.parametrize("name", ["access_token", "kaggle.json"])
def test_a_file_that_cannot_be_read_is_named(home: pathlib.Path, monkeypatch: Patch, name: str) -> None:
    (home / name).mkdir()
    assert re.match(rf".*\.kaggle/{name} cannot be read \(Is a directory\)", refusal())
    (home / name).rmdir()
    (home / name).write_text(TOKEN)
    read = builtins.open

    def refuse(path: str, *arguments: object) -> object:
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", path)
        return read(path, *arguments)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        assert re.match(rf".*\.kaggle/{name} cannot be read \(Permission denied\)", refusal())


# --- user and key ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["kaggle.json", "kaggle.json.txt"])
def test_kaggle_json_is_read_however_it_is_saved(home: pathlib.Path, name: str, encoding: str) -> None:
    (home / name).write_text(json.dumps({"username": " newcomer\n", "key": "0f3e\r\n", "proxy": None}), encoding)
    assert find_credentials() == Credentials(user="newcomer", key="0f3e")


NO_KEY_FILES = {
    "cut off": ('{"username": "newcomer", "key": "a-sec', "is not a whole kaggle.json"),
    "empty": ("", "is not a whole kaggle.json"),
    "a list": ("[1]", "is not a whole kaggle.json"),
    "a token": ("a-secret", "is not a whole kaggle.json"),
    "nested": ("[" * 10_000, "is not a whole kaggle.json"),
    "no username": ('{"key": "a-secret"}', "has no username"),
    "no key": ('{"username": "newcomer"}', "has no key"),
    "null": ('{"username": null, "key": "a-secret"}', "has no username"),
    "blank": ('{"username": "newcomer", "key": " "}', "has no key"),
    "two words": ('{"username": "newcomer", "key": "a-secret another"}', "holds no key"),
    "a list in it": ('{"username": ["newcomer"], "key": "a-secret"}', "holds no username"),
}


@pytest.mark.parametrize("text, message", NO_KEY_FILES.values(), ids=NO_KEY_FILES)
def test_a_kaggle_json_without_user_and_key_is_named(home: pathlib.Path, text: str, message: str) -> None:
    (home / "kaggle.json").write_text(text)
    assert refusal().startswith(f"{home / 'kaggle.json'} {message}")
    (home / "credentials.json").touch()  # `kaggle auth login` comes next
    assert find_credentials() == Credentials()


def test_variables_come_before_kaggle_json_and_are_trimmed_too(home: pathlib.Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", '"other"\r')
    assert refusal().startswith("KAGGLE_USERNAME is set, but KAGGLE_KEY is not")
    (home / "kaggle.json").write_text('{"key": "0f3e"}')
    assert find_credentials() == Credentials(user="other", key="0f3e")
    monkeypatch.setenv("KAGGLE_KEY", "KAGGLE_KEY='77'\n")
    (home / "kaggle.json").write_text("damaged, but not needed")
    assert find_credentials() == Credentials(user="other", key="77")
    monkeypatch.setenv("KAGGLE_KEY", "a-secret another")
    assert refusal().startswith("KAGGLE_KEY holds no key")
    monkeypatch.setenv("KAGGLE_USERNAME", "")
    assert refusal().startswith("KAGGLE_KEY holds no key")


def test_a_key_that_is_not_used_is_a_secret_too(home: pathlib.Path, monkeypatch: Patch) -> None:
    (home / "access_token").write_text(TOKEN)
    assert find_credentials().secrets == [TOKEN]
    (home / "kaggle.json").write_text(json.dumps(KEY_FILE))
    assert find_credentials().secrets == [TOKEN, "0f3e"]
    (home / "kaggle.json").write_text("damaged")
    assert find_credentials().secrets == [TOKEN]
    (home / "access_token").unlink()
    monkeypatch.setenv("KAGGLE_USERNAME", "newcomer")
    monkeypatch.setenv("KAGGLE_KEY", "77")
    assert set(find_credentials().secrets) == {"77"}


def test_a_folder_of_kaggle_json_that_does_not_exist_is_named(home: pathlib.Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", "~/none")
    assert refusal().startswith("KAGGLE_CONFIG_DIR names no folder")
    (home / "kaggle.json").write_text(json.dumps(KEY_FILE))
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", '"~/.kaggle"')
    assert find_credentials() == Credentials(user="newcomer", key="0f3e")


def test_the_package_gets_what_was_trimmed(
    kaggle: Kaggle, monkeypatch: Patch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "home/.kaggle"
    folder.mkdir()
    (folder / "access_token").write_text(f"{fake_kaggle.TOKEN}\r\n", "utf-16")
    assert fetch() == 0 and "KAGGLE_API_TOKEN" not in os.environ
    (folder / "access_token").unlink()
    (folder / "kaggle.json").write_text(json.dumps({"username": fake_kaggle.USER, "key": fake_kaggle.KEY}), "utf-8-sig")
    assert fetch("sample_submission.csv.zip") == 0 and "KAGGLE_KEY" not in os.environ
    capsys.readouterr()
    kaggle.calls.clear()
    monkeypatch.setenv("KAGGLE_API_TOKEN", f"{fake_kaggle.TOKEN}\n{fake_kaggle.TOKEN}")
    assert fetch("test.zip") == 1 and kaggle.calls == []  # at once, without a call
    assert only_line(capsys).startswith("download: KAGGLE_API_TOKEN holds no access token")
