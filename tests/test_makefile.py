"""The Makefile is the table of contents: it lists what is there, and its targets are the command line's."""
import os
import pathlib
import re
import shlex
import subprocess

import pytest

from pipeline.__main__ import DEFAULT_CONFIG, build_parser

ROOT = pathlib.Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
STAGES = list(build_parser()._subparsers._group_actions[0].choices)  # argparse has no public way to list them


def run_make(*words: str) -> subprocess.CompletedProcess:
    """Told nothing by the make that may run these tests, nor by variables of the shell."""
    done = subprocess.run(
        ["make", *words], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done


def make(*words: str) -> str:
    return run_make(*words).stdout


def commands(*words: str) -> list[list[str]]:
    """The commands that make would run, split as the shell splits them; "py" stands for the interpreter."""
    return [shlex.split(line) for line in make("-n", "PY=py", *words).splitlines()]


@pytest.fixture(scope="module")
def page() -> str:
    return make()


def test_make_alone_prints_every_target(page: str) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, flags=re.MULTILINE)
    assert {"demo", "test", "train"} < set(targets)
    assert set(re.findall(r"^  ([a-z-]+)  +\S", page, flags=re.MULTILINE)) == set(targets)


def test_make_alone_prints_every_variable(page: str) -> None:
    recipes = MAKEFILE.replace("MAKEFILE_LIST", "").replace("MAKE_TERMOUT", "")
    read = set(re.findall(r"\$\(([A-Z_]+)\)|(?:given|switch),[a-z-]*,([A-Z_]+)\)", recipes))
    assert set(re.findall(r"^  ([A-Z_]+)=\S+.*  \S", page, flags=re.MULTILINE)) == {a or b for a, b in read}
    assert f"without it {DEFAULT_CONFIG}\n" in page


def test_the_page_fits_a_terminal_and_has_no_colour_in_a_pipe(page: str) -> None:
    assert max(map(len, page.splitlines())) <= 110
    assert "\033" not in page


def test_a_variable_that_does_not_exist_is_told() -> None:
    assert run_make("-n", "PY=py", "train", "FOLD=0", "SET=train.epochs=3").stderr == ""
    said = run_make("-n", "PY=py", "train", "EPOCHS=3").stderr
    assert "EPOCHS: not among the variables that `make` lists" in said and 'SET="train.epochs=3"' in said


def test_train_forwards_the_variables_that_were_given_and_no_others() -> None:
    flags = "--config configs/cpu.yaml --fold 0 --data x --run y --set train.epochs=1 --set data.scale=8".split()
    given = ["FOLD=0", "CONFIG=configs/cpu.yaml", "DATA=x", "RUN=y", "SET=train.epochs=1 data.scale=8"]
    assert commands("train", *given) == [["py", "-m", "pipeline", stage, *flags] for stage in ("folds", "train")]
    assert commands("validate", "RUN=y") == [["py", "-m", "pipeline", "validate", "--run", "y"]]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_target_whose_flags_it_takes(stage: str) -> None:
    given = dict(
        CONFIG="c.yaml", FOLD="1", DATA="my data", RUN="it's", SET="a.b=1 c.d=x", FILE="a b.csv", SOLUTION="s.csv",
        CARS="3", TEST_CARS="2", SEED="7", OUT="o", SCALE="4", QUALITY="80", MESSAGE="it's; so", DRY_RUN="1",
        FORCE="1", LEDGER="my ledger", ROW="3", GO="1", OFFLINE="1", HQ="1", ONLY="a.zip",
        RUNS="a b", PHOTO="x.jpg y.png", GPUS="2", ON_BAD_IMAGE="empty", SCENES="6", SPLITS="1",
    )  # fmt: skip
    switches = ("DRY_RUN", "FORCE", "GO", "OFFLINE", "HQ", "SPLITS")
    *_, command = commands(stage, *(f"{name}={value}" for name, value in given.items()))
    args = build_parser().parse_args(command[3:])
    assert (args.stage, args.config, args.data, args.run) == (stage, "c.yaml", "my data", "it's")
    assert args.set == ["a.b=1", "c.d=x"]
    assert args.fold == [1]
    wanted = given | {name: "True" for name in switches}
    own = {name: value for name, value in vars(args).items() if name.upper() in wanted.keys() - {"SET", "FOLD"}}
    words = {name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in own.items()}
    assert words == {name: wanted[name.upper()] for name in own}


@pytest.mark.parametrize("value, given", [("1", True), ("yes", True), ("0", False), ("", False)])
def test_a_switch_is_off_when_it_is_0_or_nothing(value: str, given: bool) -> None:
    (command,) = commands("submit", f"FORCE={value}")
    assert ("--force" in command) == given


def test_demo_forwards_what_it_is_given() -> None:
    given = "CONFIG=c.yaml FOLD=1 DATA=d RUN=r CARS=3 OFFLINE=1".split()
    words = "--offline --cars 3 --config c.yaml --fold 1 --data d --run r".split()
    assert commands("demo", *given) == [["py", "-m", "pipeline", "demo", *words]]
    assert commands("demo") == [["py", "-m", "pipeline", "demo"]]
