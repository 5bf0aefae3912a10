"""Credentials for Kaggle, found where its `kaggle` package looks for them and in its order, but as users save them.

The package takes whatever stands in the place of a token for one: with a line break, a byte order mark or quotes around
it, every call fails; and it passes over a kaggle.json that it cannot read. Here what is no part of a token is trimmed,
and what cannot be one is a Problem, which names the place and never shows the text.
"""
import codecs
import contextlib
import json
import os
import pathlib
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.kaggle.retry import LOGIN_ADVICE
from pipeline.runtime.problem import Problem

PAGE = "https://www.kaggle.com/settings/api"
SECRET = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # the characters of a bearer token, RFC 6750; those of names and keys too
AROUND = string.whitespace + "\0\ufeff\u00a0\u200b\u2028" + "\"'`“”‘’"  # blanks, invisible characters, and quotes
TOKEN_FILES = ("~/.kaggle/access_token", "~/.kaggle/access_token.txt")  # Windows likes to add .txt
LARGEST_FILE = 2**16  # bytes that are read
KEY_FILES = ("kaggle.json", "kaggle.json.txt")
OAUTH_FILE = "~/.kaggle/credentials.json"  # of `kaggle auth login`; the package itself reads it
ENCODING_OF_MARK = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip


@dataclass(frozen=True)
class Credentials:
    """An access token; or a user and a key; or nothing, and then the package may have an OAuth login."""

    token: str | None = None
    user: str | None = None
    key: str | None = None
    source: str = ""  # of the token

    @property
    def variables(self) -> dict[str, str | None]:
        """Return the environment variables that give the package these credentials and no others; None: unset."""
        return {"KAGGLE_API_TOKEN": self.token, "KAGGLE_USERNAME": self.user, "KAGGLE_KEY": self.key}

    @property
    def secrets(self) -> list[str]:
        """Return what no message may repeat; a key that is not used, since there is a token, too."""
        other = None
        with contextlib.suppress(Problem):
            other = find_key()
        return [secret for secret in (self.token, self.key, other and other.key) if secret]


def find_credentials() -> Credentials:
    """Find the credentials that the package prefers. Raise Problem for a place that holds something else."""
    empty: list[str] = []
    for source, text in token_places():
        if text.strip():
            return Credentials(token=trim(text, "KAGGLE_API_TOKEN", source, "access token"), source=source)
        empty.append(source)
    has_login = os.path.exists(os.path.expanduser(OAUTH_FILE))
    with contextlib.suppress(*([Problem] if has_login else [])):  # the package passes over what is wrong
        if credentials := find_key():
            return credentials
    if empty and not has_login:
        raise Problem(f"{empty[0]} is empty, and there are no other credentials for Kaggle; {LOGIN_ADVICE}.")
    return Credentials()


def token_places() -> Iterator[tuple[str, str]]:
    """Yield the places of an access token that exist, each with its text."""
    if path := path_of_notebook():
        yield "KAGGLE_API_V1_TOKEN", read_text(path) or ""
    if value := os.environ.get("KAGGLE_API_TOKEN"):
        path = os.path.expanduser(value.strip(AROUND))
        if os.path.exists(path):  # the package takes the path of a file, too
            yield "the file that KAGGLE_API_TOKEN names", read_text(path) or ""
        elif path.startswith(("/", "./", "../", "~")):
            raise Problem("KAGGLE_API_TOKEN names a file that does not exist; set it to a token or to a file with one.")
        else:
            yield "KAGGLE_API_TOKEN", value
    for path in TOKEN_FILES:
        if (text := read_text(path)) is not None:
            yield path, text


def path_of_notebook() -> str:
    """Return the file of the token that Kaggle gives its own notebooks; "" elsewhere."""
    from kagglesdk.kaggle_env import is_in_kaggle_notebook

    path = os.environ.get("KAGGLE_API_V1_TOKEN", "") if is_in_kaggle_notebook() else ""
    return path if os.path.exists(path) else ""


def find_key() -> Credentials | None:
    """Return user and key from their variables, what they lack from kaggle.json; None if there is nothing."""
    variable_of, values, path = {"username": "KAGGLE_USERNAME", "key": "KAGGLE_KEY"}, dict[str, str](), ""
    for name, variable in variable_of.items():
        if (text := os.environ.get(variable, "")).strip():
            values[name] = trim(text, variable, variable, name)
    if len(values) < len(variable_of):
        path, content = read_key_file()
        for name in variable_of:
            if name not in values and (text := str(content.get(name) or "").strip()):
                values[name] = trim(text, name, path, name)
    if missing := [name for name in variable_of if name not in values]:
        if path:
            raise Problem(f"{path} has no {missing[0]}; download it again from {PAGE}.")
        if values:
            given = variable_of[next(iter(values))]
            raise Problem(f"{given} is set, but {variable_of[missing[0]]} is not; set both, or {LOGIN_ADVICE}.")
        return None
    return Credentials(user=values["username"], key=values["key"])


def read_key_file() -> tuple[str, dict[str, Any]]:
    """Return the path of kaggle.json and what it holds; "" and nothing if there is none."""
    folder = credentials_folder()
    if os.environ.get("KAGGLE_CONFIG_DIR") and not folder.is_dir():
        raise Problem("KAGGLE_CONFIG_DIR names no folder; set it to the one that holds kaggle.json, or unset it.")
    for path in (str(folder / name) for name in KEY_FILES):
        if (text := read_text(path)) is not None:
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(content := json.loads(text.strip("\0\ufeff")), dict):
                    return path, content
            what = f"{path} is not a whole kaggle.json, which holds a username and a key"
            raise Problem(f"{what}; download it again from {PAGE}, or save a token as {TOKEN_FILES[0]}.")
    return "", {}


def credentials_folder() -> pathlib.Path:
    """Return the folder in which the package looks for `kaggle.json`."""
    if folder := os.environ.get("KAGGLE_CONFIG_DIR"):
        return pathlib.Path(os.path.expanduser(folder.strip(AROUND)))
    if (old := pathlib.Path(os.path.expanduser("~/.kaggle"))).is_dir():
        return old
    return pathlib.Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "kaggle"


# --- texts -----------------------------------------------------------------------------------------------------------


def trim(text: str, name: str, source: str, what: str) -> str:
    """Return a secret without blanks, quotes and `NAME=` around it. Raise Problem if that leaves none.

    name: a variable that it may be assigned to. source: the place of the text, and what: the secret, for the message.
    """
    before = re.compile(rf"((export|set|setx)\s+|\$env:)?{name}\s*[=:\s]|bearer\s", re.IGNORECASE)
    text = text.strip(AROUND)
    if match := before.match(text):
        text = text[match.end() :].strip(AROUND)
    if not SECRET.fullmatch(text):
        raise Problem(f"{source} holds no {what}, which is one word without blanks; copy it again from {PAGE}.")
    return text


def read_text(path: str) -> str | None:
    """Return the text of a file in UTF-8 or, as PowerShell writes it, in UTF-16; None if there is no file."""
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(LARGEST_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}); it must be a file that you may read.") from None
    encoding = next((name for mark, name in ENCODING_OF_MARK.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in data:
        encoding = "utf-16-be" if data.startswith(b"\0") else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise Problem(f"{path} is not a text in UTF-8 or UTF-16; save it again as one.") from None
