"""The rules of the house: short functions, imports in one direction, one word for one thing."""
import ast
import collections
import pathlib
import re
import subprocess
from collections.abc import Iterator

import pytest
from conftest import SLOW_FILES

ROOT = pathlib.Path(__file__).parent.parent
PIPELINE = ROOT / "pipeline"
MODULES = sorted(PIPELINE.rglob("*.py"))
LONGEST_FUNCTION = 60  # lines, a screen


# --- size ------------------------------------------------------------------------------------------------------------


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not long, "\n" + "\n".join(long)


@pytest.mark.parametrize(
    "name, limit", [("pipeline/training/loop.py", 300), ("pipeline/predict.py", 300), ("Makefile", 120)]
)
def test_a_file_that_everyone_reads_is_short(name: str, limit: int) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= limit


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 1300


def test_make_alone_prints_a_page() -> None:
    page = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 10 <= len(page.splitlines()) <= 40


def test_the_slow_files_exist() -> None:
    names = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert sorted(set(SLOW_FILES) - names) == []


def test_the_tests_that_the_docs_name_exist() -> None:
    defined = set(re.findall(r"^def (test_\w+)", "".join(path.read_text() for path in ROOT.glob("tests/*.py")), re.M))
    named = set(re.findall(r"`(test_\w+)`", "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))))
    assert named and sorted(named - defined) == []


# --- imports ---------------------------------------------------------------------------------------------------------

# From the ground up: what is on a floor imports from lower floors and from its own package, and from nothing else.
# A file of pipeline/ that is not named here is a stage.
STAGES = "stages"
FLOORS = [
    {"runtime", "masks", "paths"},
    {"data", "model"},
    {"carvana"},
    {"config"},
    {"inference"},
    {"submission", "training"},
    {"report", "kaggle", "synthetic"},
    {STAGES},
    {"options"},
    {"execution"},
    {"compete"},  # runs the stages
    {"__main__"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def module_name(path: pathlib.Path) -> str:
    """`pipeline/data/images.py` -> "data.images"."""
    return ".".join(path.relative_to(PIPELINE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


NAMES = {module_name(path) for path in MODULES}


def imports_of(path: pathlib.Path) -> set[str]:
    """Return the modules of the pipeline that a file imports, within functions too, by names such as "data.images".

    What stands under `if TYPE_CHECKING:` is never imported: it only names types.
    """
    imports = set()
    tree = ast.parse(path.read_text())
    is_typing = [isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for node in tree.body]
    tree.body = [node for node, skip in zip(tree.body, is_typing) if not skip]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            package = (node.module or "").removeprefix("pipeline").removeprefix(".")
            for alias in node.names:
                name = f"{package}.{alias.name}".removeprefix(".")
                imports.add(name if name in NAMES else package)
        elif isinstance(node, ast.Import):
            names = [alias.name.partition(".") for alias in node.names]
            imports |= {rest for top, _, rest in names if top == "pipeline" and rest}
    return imports


def place_of(module: str) -> str:
    """Return the name in `FLOORS`: a package, a file on the ground floor, or the stages."""
    top, _, rest = module.partition(".")
    return top if rest or top in FLOOR_OF or (PIPELINE / top).is_dir() else STAGES


def test_every_package_has_a_floor() -> None:
    packages = {path.parent.name for path in PIPELINE.glob("*/*.py")}
    assert packages <= FLOOR_OF.keys()


def test_imports_go_down_and_stages_never_import_one_another() -> None:
    upward = []
    for path in MODULES:
        module = module_name(path)
        for other in imports_of(path):
            here, there = place_of(module), place_of(other)
            same_package = here == there != STAGES
            if not same_package and FLOOR_OF[there] >= FLOOR_OF[here]:
                upward.append(f"{module} imports {other}")
    assert not upward, "\n" + "\n".join(upward)


def test_no_imports_go_in_a_circle() -> None:
    graph = {module_name(path): imports_of(path) for path in MODULES}
    while leaves := [module for module, others in graph.items() if not others & (graph.keys() - {module})]:
        for module in leaves:
            del graph[module]
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


def test_no_two_modules_share_a_name() -> None:
    names = collections.Counter(path.stem for path in MODULES if not path.stem.startswith("__"))
    assert {name: count for name, count in names.items() if count > 1} == {}


# --- words -----------------------------------------------------------------------------------------------------------

# Words that the code once had for these things, each with the word that it has now.
REPLACED = """
picture pictures photo photos                  image
cut cuts                                       threshold, threshold_u8
share shares                                   probability, coverage, fraction, rank and world_size
view views undone                              TTA transform, angle
judge judged judges judging                    evaluate, valid
found told tell tells kept together words laid the name of the thing itself: matches, message, saved, overrides
everyone anew of_such stand_in                 dist, again, such, fake
unit units unit_of                             group, group_key
spoilt mend forgive forgiven gaps proven       non_finite, repair, on_bad_image, missing, verified
parts averaged picked enlarged small_shape     shards, micro_batches, templates, downsample, upsample, grid_shape
patience follower unreadable optimiser         retry, verifier, bad_image, optimizer
"""
LEFT_HAND = {
    word: line[47:] for line in REPLACED.strip().splitlines() for word in line[:47].split()
}
# (whole name, kind of the AST node or "", part of the path, reason)
EXCEPTIONS = [
    (r"view", "Attribute", "", "numpy's and torch's method"),
    (r"parts", "Attribute", "", "pathlib's attribute"),
    (r"car_parts|parts|build_parts|Parts", "", "synthetic/car", "parts of a car"),
    (r"cut_out|cut_corners", "", "", "plain English: to cut out"),
    (r"\w*words\w*|\w*WORDS", "", "nyuv2", "a label of NYU Depth v2 is one of 894 words"),
    (r"words|WORDS", "", "rooms", "the same words"),
    (r"picture|PICTURE", "", "synthetic/rooms", "a class of NYU Depth v2: a picture on a wall"),
    (r"picture", "", "nyuv2_classes", "the same class"),
    (r"unit|unit_scale", "keyword", "", "tqdm's parameters"),
    (r"\w*units?\w*", "", "benchmarks", "units of measurement"),
    (r"tell", "", "kaggle/client", "a method of Python's files"),
    (r"(File|Package|Module)NotFoundError", "", "", "Python's exceptions"),
    (r"found_inf|share_memory_|gradient_as_bucket_view", "", "", "torch's names"),
    (r"\w*cut_(off|short)\w*", "", "", "plain English: truncated"),
    (r"view_box|\w*UNITS\w*|units", "", "pipeline/report", "SVG's view box and the units of its drawings"),
]


def identifiers(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield names, attributes, parameters, keywords, and strings that are keys of dicts, each with its node."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name, node
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.alias(asname=str(name)):
                yield name, node
            case ast.Dict(keys=keys):
                texts = [key for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
                yield from ((str(key.value), key) for key in texts if str(key.value).isidentifier())
            case ast.Subscript(slice=ast.Constant(value=str(name)) as key):
                yield name, key


def replaced(name: str) -> set[str]:
    """Return the parts of a snake_case or CamelCase name that have been replaced."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return {word for word in LEFT_HAND if re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", snake)}


def is_exception(name: str, node: ast.AST, path: str) -> bool:
    kind = type(node).__name__
    return any(re.fullmatch(names, name) and of in ("", kind) and part in path for names, of, part, _ in EXCEPTIONS)


@pytest.mark.parametrize(
    "name, matches",
    [("cut_u8", {"cut"}), ("cutout", set()), ("shortcut", set()), ("JudgedPictures", {"judged", "pictures"}),
     ("image_views", {"views"}), ("unit_of_car", {"unit", "unit_of"}), ("memoryview", set()), ("SHARE", {"share"})],
)  # fmt: skip
def test_words_are_compared_as_wholes(name: str, matches: set[str]) -> None:
    assert replaced(name) == matches


def test_no_replaced_word_is_an_identifier_or_a_key() -> None:
    lines: dict[tuple[str, str, str], list[int]] = collections.defaultdict(list)
    for folder in ("pipeline", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            where = str(path.relative_to(ROOT))
            for name, node in identifiers(ast.parse(path.read_text())):
                for word in replaced(name):
                    if not is_exception(name, node, where) and not name.startswith("test_"):
                        lines[where, name, word].append(getattr(node, "lineno", 0))
    offenders = [
        f"{where}: {name} ({word} -> {LEFT_HAND[word]}), line {', '.join(map(str, sorted(set(numbers))[:8]))}"
        for (where, name, word), numbers in sorted(lines.items())
    ]
    assert not offenders, f"{len(offenders)} names:\n" + "\n".join(offenders)
