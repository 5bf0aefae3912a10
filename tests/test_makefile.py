"""The Makefile's targets and variables are the commands and options of pipeline/__main__.py."""
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from pipeline.__main__ import COMMANDS, LISTS
from pipeline.options import DEFAULT_CONFIG
from pipeline.runtime.arguments import repeat_list_flags

ROOT = pathlib.Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
# Words that an option gets, and the value that the command then gets.
VALUES: dict[str, tuple[str, object]] = {
    "config": ("c.yaml", "c.yaml"), "fold": ("1", [1]), "data": ("my data", "my data"), "run": ("it's", "it's"),
    "set": ("a.b=1 c.d=$x", ["a.b=1", "c.d=$x"]), "file": ("a b.csv", "a b.csv"), "message": ("it's; so", "it's; so"),
    "ledger": ("my ledger", "my ledger"), "runs": ("a b", ["a", "b"]), "image": ("my x.jpg y.png", ["my x.jpg y.png"]),
    "on": ("kaggle", "kaggle"), "gpu": ("NvidiaTeslaT4", "NvidiaTeslaT4"),
    "only": ("a.zip b.zip", ["a.zip", "b.zip"]), "on_bad_image": ("empty", "empty"), "scale": ("4", 4),
}  # fmt: skip

# The benchmarks, and the variables that stand in brackets in their help texts.
BENCHMARKS = {
    name: variables.split()
    for name, variables in re.findall(r"^(bench-\w+|gpu-proof): ## [^(\n]*(?:\(([A-Z ]+)\))?$", MAKEFILE, re.MULTILINE)
}


def run_make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make without the variables of the shell or of the make that may run these tests."""
    ended = subprocess.run(
        ["make", *arguments], cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return ended


def make(*arguments: str) -> str:
    return run_make(*arguments).stdout


def commands(*arguments: str) -> list[list[str]]:
    """Return the commands that make would run, split as the shell splits them; "py" stands for the interpreter."""
    return [shlex.split(line) for line in make("-n", "PY=py", *arguments).splitlines()]


def options_of(name: str) -> dict[str, object]:
    """Return the options of a command by their parameter names."""
    return {option.name: option for option in COMMANDS[name].params}


def parsed(name: str, arguments: list[str]) -> dict[str, object]:
    params = COMMANDS[name].make_context(name, arguments).params
    return {name: list(value) if isinstance(value, tuple) else value for name, value in params.items()}  # typer 0.24


@pytest.fixture(scope="module")
def everything() -> str:
    return make("help-all")


def test_make_alone_shows_where_to_start() -> None:
    text = make()
    assert len(text.splitlines()) <= 40
    targets = ("demo", "test", "download", "train", "validate", "threshold", "predict", "check", "submit", "submission",
               "report", "leaderboard", "help-all")  # fmt: skip
    assert set(targets) <= set(re.findall(r"^  ([a-z-]+)  +\S", text, flags=re.MULTILINE))
    variables = {"CONFIG", "DATA", "RUN", "FOLD", "SET", "GPUS", "FILE"}
    assert variables <= set(re.findall(r"^  ([A-Z_]+)=\S", text, flags=re.MULTILINE))


def test_help_all_prints_every_target(everything: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, flags=re.MULTILINE)) | COMMANDS.keys()
    assert {"demo", "test", "train", "find-batch", "bench-train"} < targets
    assert set(re.findall(r"^  ([a-z-]+)  +\S", everything, flags=re.MULTILINE)) == targets


def test_help_all_prints_every_variable_with_a_help_text(everything: str) -> None:
    own = set(re.findall(r"(?:\$\(|call pass_\w+,)([A-Z_]+)\b", MAKEFILE)) - {"VARIABLES"}
    own |= {name for names in BENCHMARKS.values() for name in names}
    options = {name.upper() for command in COMMANDS for name in options_of(command)}
    assert set(re.findall(r"^  ([A-Z_]+)=\S+.*  \S", everything, flags=re.MULTILINE)) == own | options


def test_the_pages_fit_a_terminal_and_have_no_colour(everything: str) -> None:
    for text in (everything, make()):
        assert max(map(len, text.splitlines())) <= 110
        assert "\033" not in text


def test_help_of_a_command_names_each_option_and_its_default() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0 and f"[default: {DEFAULT_CONFIG}]" in ended.stdout
    assert set(re.findall(r"^  (--[a-z-]+)", ended.stdout, flags=re.MULTILINE)) == {
        "--config", "--fold", "--data", "--run", "--set", "--debug", "--on", "--gpu", "--gpus", "--deterministic",
        "--pseudo", "--force", "--help",
    }  # fmt: skip


def test_a_command_that_needs_no_network_starts_without_torch() -> None:
    code = (
        "import sys\nfrom pipeline.__main__ import main\n"
        "for arguments in (['--help'], ['train', '--help'], ['check', '--run', 'none'], ['leaderboard']):\n"
        "    main(arguments)\nsys.exit('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_variable_that_nothing_uses_is_warned_of() -> None:
    assert run_make("-n", "PY=py", "train", "FOLD=0", "SET=train.epochs=3").stderr == ""
    warning = run_make("-n", "PY=py", "train", "EPOCHS=3").stderr
    assert "EPOCHS: no target uses it" in warning and 'SET="train.epochs=3"' in warning


def test_train_forwards_the_variables_that_were_given_and_no_others() -> None:
    flags = "--config configs/cpu.yaml --fold 0 --data x --run y --set train.epochs=1 --set data.scale=8".split()
    given = ["FOLD=0", "CONFIG=configs/cpu.yaml", "DATA=x", "RUN=y", "SET=train.epochs=1 data.scale=8"]
    assert commands("train", *given) == [["py", "-m", "pipeline", stage, *flags] for stage in ("folds", "train")]
    assert commands("validate", "RUN=y") == [["py", "-m", "pipeline", "validate", "--run", "y"]]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_target_that_forwards_all_its_options(name: str) -> None:
    options = options_of(name)
    switches = {option for option in options if options[option].is_flag}  # type: ignore[attr-defined]
    arguments = {option: "1" if option in switches else VALUES.get(option, ("7", 7))[0] for option in options}
    wanted = {option: True if option in switches else VALUES.get(option, ("7", 7))[1] for option in options}
    for option in ("out", "solution", "against", "pseudo"):  # texts
        wanted |= {option: "7"} if option in wanted else {}
    variables = [f"{option.upper()}={text.replace('$', '$$')}" for option, text in arguments.items()]
    *_, command = commands(name, *variables)
    assert command[:4] == ["py", "-m", "pipeline", name]
    assert parsed(name, command[4:]) == wanted


@pytest.mark.parametrize("value, given", [("1", True), ("yes", True), ("0", False), ("", False)])
def test_a_switch_is_off_when_it_is_0_or_nothing(value: str, given: bool) -> None:
    (command,) = commands("submit", f"FORCE={value}")
    assert ("--force" in command) == given


def test_a_list_option_may_be_repeated_or_take_several_values() -> None:
    both = [["--set", "a=1", "--set", "b=2", "--gpus", "3"], ["--set", "a=1", "b=2", "--gpus", "3"]]
    assert repeat_list_flags(both[0], LISTS) == repeat_list_flags(both[1], LISTS) == both[0]
    assert repeat_list_flags(["--run", "a", "b"], LISTS) == ["--run", "a", "b"]
    assert repeat_list_flags(["--set=a=1", "b=2"], LISTS) == ["--set=a=1", "--set", "b=2"]


def test_leaderboard_needs_no_config_but_a_named_one_must_exist(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pipeline", "leaderboard"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for arguments, code in {(): 0, ("--config", "none.yaml"): 1}.items():
        ended = subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr


def test_the_last_value_of_an_option_wins() -> None:
    """Training a fold on each GPU appends `--fold 1 --gpus 1` to the command line that it was given."""
    options = parsed("train", "--fold all --gpus 2 --fold 1 --gpus 1".split())
    assert (options["fold"], options["gpus"]) == ([1], 1)


def test_submission_is_four_stages_in_order() -> None:
    stages = ("validate", "threshold", "predict", "check")
    assert commands("submission", "RUN=y") == [["py", "-m", "pipeline", stage, "--run", "y"] for stage in stages]


def test_demo_forwards_what_it_is_given() -> None:
    given = "CONFIG=c.yaml FOLD=1 DATA=d RUN=r CARS=3 OFFLINE=1".split()
    flags = "--config c.yaml --fold 1 --data d --run r --offline --cars 3".split()
    assert commands("demo", *given) == [["py", "-m", "pipeline", "demo", *flags]]
    assert commands("demo") == [["py", "-m", "pipeline", "demo"]]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_gets_the_variables_in_its_brackets_as_flags(name: str) -> None:
    variables = BENCHMARKS[name]
    values = {"SET": "a.b=1 c.d=it's"}
    given = [f"{variable}={values.get(variable, '7 8')}" for variable in variables]
    flags = [word for each in variables for word in (f"--{each.lower()}", values.get(each, "7 8"))]
    module = "benchmarks." + name.removeprefix("bench-").replace("-", "_")
    (command,) = commands(name, "SEED=1", *given)
    assert command[:3] == ["py", "-m", module] and sorted(command[3:]) == sorted(flags)
    path = ROOT / module.replace(".", "/")
    source = (path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    assert {f"--{each.lower()}" for each in variables} <= set(re.findall(r'add_argument\("(--[a-z]+)"', source))


def test_the_benchmarks_are_those_of_the_folder() -> None:
    names = {f"bench-{each}" for each in ("train", "kaggle", "predict", "rooms", "report")}
    assert set(BENCHMARKS) == names | {"gpu-proof"}
