"""The exception for everything that a user can put right."""
import os

LONGEST_SENTENCE = 1000  # characters; a longer message is cut in its middle: what matters stands at its ends


class Problem(Exception):
    """Bad input or a broken environment, in one sentence: what is wrong, where, and what to do.

    The command line prints it on stderr without a traceback and exits with 1. Any other exception that escapes a stage
    is a bug and keeps its traceback.
    """


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun for a sentence: "1 image", "4 images". plural: if not the noun with an s."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def sentence_of(error: Problem | OSError) -> str:
    """Return the message as one printable line, whatever file names and values it quotes."""
    text = str(error)
    if isinstance(error, OSError):  # that no stage expected: an unreadable folder, a broken disk
        name = "A file" if error.filename is None else os.fsdecode(error.filename)
        text = f"{name} cannot be used: {error.strerror or error}; check the disk and the file permissions."
    if len(text) > LONGEST_SENTENCE:
        text = f"{text[: LONGEST_SENTENCE // 2]} ... {text[-LONGEST_SENTENCE // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
