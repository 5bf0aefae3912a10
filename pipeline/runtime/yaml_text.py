"""Read YAML: the file of a config, and a value of an override."""
import pathlib
import re
from typing import Any

import yaml

from pipeline.runtime.problem import Problem

MAX_BYTES = 2**18  # of a config; PyYAML reads 100 kB a second
# What PyYAML raises for a text that it cannot read, and for one that it can whose values make no sense: a 13th month,
# a number of 5,000 digits, an empty !!int, brackets in brackets in brackets.
NOT_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class Yaml(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number and refuses a repeated key, as YAML 1.2 does and PyYAML does not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.YAMLError(f"the key {key.value[:40]!r} is repeated in line {key.start_mark.line + 1}")
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


EXPONENTIAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
Yaml.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENTIAL, list("-+.0123456789"))


def read_tree(path: pathlib.Path) -> dict[str, Any]:
    """Return the nested dicts of a config, {} if it is empty. Raise Problem if it is missing or holds anything else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Problem(f"The config {path} has {path.stat().st_size:,} bytes; is it another file?")
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=Yaml)
    except FileNotFoundError:
        available = ", ".join(sorted(map(str, pathlib.Path("configs").glob("*.yaml"))))
        raise Problem(f"There is no config {path}; available are {available or 'those in configs/'}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"The config {path} cannot be read: {error}.") from None
    except NOT_YAML as error:
        raise Problem(f"The config {path} is not YAML: {' '.join(str(error).split())[:200]}.") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise Problem(f"The config {path} holds {type(tree).__name__}, but it must hold sections such as `train:`.")
    return tree
