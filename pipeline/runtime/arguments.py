"""A command line: parsers of values, which raise typer's error for a wrong one, and that error as a sentence."""
import pathlib
import reprlib
from collections.abc import Collection, Sequence
from typing import Any

from typer import BadParameter

from pipeline.runtime.problem import Problem, sentence_of

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


def repeat_list_flags(arguments: list[str], lists: Collection[str]) -> list[str]:
    """`--set a.b=1 c.d=2` -> `--set a.b=1 --set c.d=2`. lists: the flags that take several values."""
    repeated, flag, values = list[str](), "", 0
    for argument in arguments:
        if argument.startswith("-"):
            name, has_value, _ = argument.partition("=")
            flag, values = (name if name in lists else ""), len(has_value)
        elif flag:
            repeated += [flag] if values else []
            values += 1
        repeated.append(argument)
    return repeated


def usage_sentence(error: Any, program: str) -> str:
    """Return a typer error as one sentence; an option is named as in the Makefile and as a flag: CARS (--cars)."""
    text = (error.message or "is required").removeprefix("Value error, ").rstrip(".")
    if "extra argument" in text:
        text += "; a value follows its flag, as in --file x.csv"
    if param := getattr(error, "param", None):
        flag = param.opts[0]
        option = f"{flag.removeprefix('--').upper().replace('-', '_')} ({flag})"
        text = f"{option}: {text}" if error.message else f"{option} {text}"
    return f"{program.split()[-1]}: {sentence_of(Problem(text))}; `{program} --help` shows what it takes."
