"""The one exception that a user is meant to see."""
import os

LONGEST_SENTENCE = 1000  # letters; what is wrong stands at its ends


class Problem(Exception):
    """Bad input or a broken surrounding, told in one sentence: what is wrong, where, and what to do.

    The command line prints it on stderr without a traceback and exits with 1. Anything else that
    escapes a stage is a bug of ours, and keeps its traceback.
    """


def sentence_of(error: Problem | OSError) -> str:
    """What to print of it: one line, whatever names of files and values of strangers are quoted in it."""
    text = str(error)
    if isinstance(error, OSError):  # that no stage has expected: a folder that may not be read, a broken disk
        name = "A file" if error.filename is None else os.fsdecode(error.filename)
        text = f"{name} cannot be used: {error.strerror or error}; look at the disk, and at who may read and write."
    if len(text) > LONGEST_SENTENCE:
        text = f"{text[: LONGEST_SENTENCE // 2]} ... {text[-LONGEST_SENTENCE // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
