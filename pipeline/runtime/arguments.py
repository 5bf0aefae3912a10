"""Parsers of the values on a command line; each raises typer's error for a wrong one."""
import pathlib
import reprlib
from collections.abc import Sequence

from typer import BadParameter

MAX_DIGITS = 18  # of a number; Python refuses to convert thousands


def fold_numbers(text: str) -> Sequence[int]:
    """"0" -> [0], "0,1" -> [0, 1], "all" -> []."""
    if text == "all":
        return []
    if not all(number.isdecimal() and len(number) <= MAX_DIGITS for number in text.split(",")):
        raise BadParameter(f"{reprlib.repr(text)} is not a number, several such as 0,1, or all")
    return [int(number) for number in text.split(",")]


def whole_number(text: str | int, least: int = 0) -> int:
    text = str(text)  # typer parses the default too
    if not text.isdecimal() or len(text) > MAX_DIGITS or int(text) < least:
        raise BadParameter(f"{reprlib.repr(text)} must be a whole number from {least} up")
    return int(text)


def positive_number(text: str | int) -> int:
    return whole_number(text, least=1)


def run_name(text: str) -> str:
    if text != pathlib.Path(text).name or text == "..":
        raise BadParameter(f"{reprlib.repr(text)} must be the plain name of a folder")
    return text
