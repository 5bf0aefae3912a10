"""What pydantic finds wrong in settings, as one sentence that names the key."""
import difflib
import reprlib
from typing import get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first error that pydantic found in nested sections, as one sentence. model: of the whole."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))[:60]
    if first["type"] == "value_error":  # a sentence of our own, about several keys of a section
        return f"{key}: {first['ctx']['error']}." if key else f"{first['ctx']['error']}."
    if first["type"] != "extra_forbidden":
        value = reprlib.repr(first["input"])[:60]  # deeply nested values may be very long
        if first["type"] == "invalid_key":
            return f"{key.rpartition('.')[0] or 'it'} has a key that is read as {value}; a key is a setting's name."
        if first["type"] == "string_type" and not isinstance(first["input"], (list, dict)):
            return f"{key} is {value}: it is not read as text; put it in quotes."
        return f"{key or 'the whole'} is {value}: {first['msg'][0].lower()}{first['msg'][1:]}."
    *parents, unknown = first["loc"]
    section = model
    for name in parents:
        annotation = section.model_fields[str(name)].annotation  # a section, or a section or None
        section = next(one for one in (*get_args(annotation), annotation) if one is not type(None))
    prefix = "".join(f"{name}." for name in parents)
    return f"{key} is no setting; {suggest(str(unknown), list(section.model_fields), prefix)}."


def suggest(unknown: str, known: list[str], prefix: str) -> str:
    """Return the known name that an unknown one resembles; all of them if it resembles none."""
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5)
    return f"the nearest is {prefix}{near[0]}" if near else f"there are {', '.join(prefix + name for name in known)}"
