"""A few of the kills and faults of `make torture`, on the same tiny competition; and that the harness can fail."""
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from pipeline.runtime.files import held, locked
from pipeline.submission.shards import Shards
from pipeline.runtime.problem import Problem
from pipeline.kaggle import reproduce
from tests.torture import __main__ as harness
from tests.torture import clocks, faults, kills, place, warm
from tests.torture.place import Places
from tests.torture.table import Row, figures_of
from tests.torture.warm import Plan

ROOT = pathlib.Path(__file__).parent.parent
QUICK = ("demo-data", "shrink", "folds", "validate", "threshold", "predict")
KILLED = ("demo-data, really drawn", "train on Kaggle", *QUICK, "submit, predicting first", "submit", "report")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """In which all stages were run, undisturbed, and these are then disturbed."""
    threads = torch.get_num_threads()
    yield Places(tmp_path_factory.mktemp("torture") / "places", only=KILLED)
    torch.set_num_threads(threads)


def assert_all_well(rows: list[Row], at_least: int) -> None:
    assert [f"{row.what}: {row.problem}" for row in rows if not row.ok] == []
    assert len(rows) >= at_least


def test_every_stage_that_is_killed_ends_as_if_it_had_not_been(places: Places) -> None:
    rows = list(kills.rows(places, random.Random(0), most=2, at_random=0))
    assert_all_well(rows, at_least=2 * len(KILLED))
    assert {row.what.partition(": ")[0] for row in rows if row.kind == "kills"} == set(KILLED)


def test_a_prediction_whose_submit_was_killed_is_waited_for(places: Places) -> None:
    assert_all_well([kills.killed_alone(places)], at_least=1)


def test_drawing_that_is_killed_in_a_write_is_begun_again(places: Places) -> None:
    (plan,) = [("in a write", Plan(file_bytes=10_000, die_of_it=True))]
    assert_all_well(list(kills.killed(places, place.STAGE["demo-data, really drawn"], [plan])), at_least=1)


def test_training_that_is_killed_between_two_checkpoints_ends_with_the_same_bytes(places: Places) -> None:
    """Once, in the middle: a start of it takes seconds."""
    steps = places.steps["train"]
    renaming = [number for number, step in enumerate(steps) if step.startswith("os.rename") and "last.pt" in step]
    plan = Plan(die_at=renaming[len(renaming) // 2])
    assert_all_well(list(kills.killed(places, faults.STAGE["train"], [("between", plan)])), at_least=1)


@pytest.mark.parametrize("name", QUICK)
def test_a_second_start_says_so_and_leaves(places: Places, name: str) -> None:
    row = faults.second_start(places, faults.STAGE[name])
    assert row.ok and "another process" in row.message, row.problem


@pytest.mark.parametrize("quarters", [0, 2])
@pytest.mark.parametrize("name", ["shrink", "threshold"])
def test_a_real_disk_that_is_full_is_reported_in_a_sentence(places: Places, name: str, quarters: int) -> None:
    """Also where all that the stage writes is one page."""
    row = faults.on_a_small_disk(places, faults.STAGE[name], quarters)
    assert row.ok and (row.kind == "not_here" or "No space left on device" in row.message), row.problem


@pytest.mark.parametrize("fault", list(clocks.of_submit), ids=lambda fault: fault.__name__)
def test_a_clock_that_jumps_back_changes_no_submission(places: Places, fault: Callable[[Places], Row]) -> None:
    row = fault(places)
    assert row.ok, row.problem


@pytest.mark.parametrize("name", QUICK)
def test_a_disk_that_is_full_is_reported_in_a_sentence(places: Places, name: str) -> None:
    row = faults.full_within_a_write(places, faults.STAGE[name])
    assert row.ok and "File too large" in row.message, row.problem


def test_shards_of_another_threshold_never_get_into_a_submission(places: Places) -> None:
    row = faults.shards_that_stay(places)
    assert row.ok and "could not be renamed" in row.message, row.problem


def test_training_twice_gives_the_same_bytes_from_the_checkpoint_to_the_csv(places: Places) -> None:
    first = places.folder / "after" / "predict"
    with places.copy(faults.STAGE["train"]) as again:
        for stage in (faults.STAGE[name] for name in ("train", "refine", "validate", "threshold", "predict")):
            assert places.run(again, stage).code == 0
        weights = ("runs/tiny/fold0/best.pt", "runs/tiny/fold0/refiner.pt")
        for name in (*weights, "runs/tiny/oof/fold0.npz", "submissions/tiny.csv.gz"):
            assert (again / name).read_bytes() == (first / name).read_bytes(), name
        assert place.difference(place.contents(again), place.contents(first)) == ""


# --- the harness can fail -------------------------------------------------------------------------


def test_a_stage_that_loses_something_is_found_out(places: Places) -> None:
    stage = faults.STAGE["predict"]
    with places.copy(stage) as here:
        ended = places.run(here, stage)
        assert ended.code == 0 and ended.steps and places.difference(here, stage) == ""
        (here / "submissions/tiny.json").write_text("{}")
        (here / "submissions/tiny.csv.gz").unlink()
        (here / "submissions/.x.draft").touch()
        assert places.difference(here, stage) == (
            "missing: submissions/tiny.csv.gz; too many: submissions/.x.draft; other bytes: submissions/tiny.json"
        )


def test_a_traceback_is_no_sentence() -> None:
    assert warm.Ended(1, 0.0, "", "folds: Something is wrong.\n").complaint("folds") == ""
    for code, err in ((1, "Traceback\nfolds: x\n"), (1, ""), (0, "folds: x\n"), (70, "folds: x\n"), (1, "train: x\n")):
        assert warm.Ended(code, 0.0, "", err).complaint("folds")


def test_a_plan_kills_before_its_step(places: Places) -> None:
    stage = faults.STAGE["folds"]
    with places.copy(stage) as here:
        renaming = places.steps["folds"].index("os.rename runs/tiny/folds.csv")
        assert places.run(here, stage, Plan(die_at=renaming)).code == -9
        assert (here / "runs/tiny/.folds.csv.draft").exists() and not (here / "runs/tiny/folds.csv").exists()


def test_a_stage_without_a_lock_is_found_out(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "stop_at_first_lock", lambda: None)
    row = faults.second_start(places, faults.STAGE["folds"])
    assert row.problem == "it took no lock, and ended with 0: no message"


def test_a_mistake_of_the_harness_is_a_row_and_not_its_end(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*given: object) -> Row:
        raise ProcessLookupError("nobody")

    monkeypatch.setattr(faults, "second_start", mistaken)
    row = faults.attempted(faults.second_start, places, faults.STAGE["folds"])
    assert row.what == "folds: mistaken" and "ProcessLookupError: nobody" in row.problem

    def suite() -> Iterator[Row]:
        yield Row("kills", "one that went well")
        raise ProcessLookupError("nobody")

    def killed() -> Iterator[Row]:
        yield Row("inputs", "one that went well")
        os.kill(os.getpid(), 9)

    rows = harness.collect_rows({"kills": suite, "inputs": killed, "faults": lambda: iter([Row("faults", "all")])})
    assert [row.ok for row in rows] == [True, False, True, False, True]
    assert rows[1].kind == "kills" and "ProcessLookupError: nobody" in rows[1].problem
    assert rows[3].kind == "inputs" and "its process died" in rows[3].problem


def crash() -> None:
    os.kill(os.getpid(), signal.SIGALRM)


def fail() -> None:
    raise RuntimeError("of its own accord")


@pytest.mark.parametrize("do, says", [(crash, "exit code -14"), (fail, "RuntimeError: of its own accord")])
def test_a_start_that_fails_by_itself_is_no_kill(places: Places, do: Callable[[], None], says: str) -> None:
    """Though the next start heals it."""
    plans = [("at the end", Plan(die_after_s=60, do_at=3, do=do)), ("at once", Plan(die_at=0))]
    (row,) = kills.killed(places, faults.STAGE["folds"], plans)
    assert row.what == "folds: killed at once, os.mkdir runs/tiny" and says in row.problem
    (row,) = kills.killed(places, faults.STAGE["folds"], plans[:1])
    assert row.kind == "not_killed" and says in row.problem


def test_a_hang_is_no_kill(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "LONGEST_S", 0.5)
    hanging = Plan(die_at=1000, do_at=3, do=lambda: time.sleep(60))
    (row,) = kills.killed(places, faults.STAGE["folds"], [("never", hanging)])
    assert row.kind == "not_killed" and "never: not killed, but no end after 0 s" in row.problem


def test_a_plan_that_is_never_reached_is_reported(places: Places) -> None:
    folds = faults.STAGE["folds"]
    (row,) = kills.killed(places, folds, [("too late", Plan(die_at=1000))])
    assert row.problem == "too late: it was not killed, and ended well"
    assert "did not come to pass" in faults.tried(places, folds, "too late", Plan(fail_at=1000, errno=28)).problem
    assert faults.tried(places, folds, "too much room", Plan(file_bytes=10**6)).problem == "no write was refused"
    (row,) = kills.killed(places, folds, [("after it had ended", Plan(die_after_s=60))])
    assert row.ok and row.kind == "not_killed"


def test_too_few_kills_and_inputs_are_reported_and_what_cannot_be_tried_is_not_good() -> None:
    rows = [Row("kills", "x")] * 100 + [Row("bad_inputs", "x")] * 59 + [Row("not_here", "x")]
    figures = figures_of(rows)
    assert figures == {"kills": 100, "kills_survived": 100, "bad_inputs": 59, "bad_inputs_ok": 59, "not_here": 1}
    assert [row.ok for row in harness.check_counts(("kills", "faults", "inputs"), figures)] == [True, False]


def test_a_step_that_says_nothing_new_is_left_out() -> None:
    steps = ["os.mkdir a", "open a/1.gz", "fsync a/b", "os.mkdir a", "open a/2.gz", "fsync a/b"]
    assert faults.different(steps) == [0, 1, 2, 5]


def test_checkpoints_of_a_run_with_workers_may_differ_in_these_alone(places: Places) -> None:
    stage = faults.STAGE["train"]
    with places.copy(faults.STAGE["refine"]) as here:  # as train has left it
        last = here / "runs/tiny/fold0/last.pt"
        state = torch.load(last, weights_only=True)
        state["settings"]["data"]["workers"] = 1
        torch.save(state, last)
        assert places.difference(here, stage) == "other bytes: runs/tiny/fold0/last.pt"
        assert places.difference(here, stage, workers=False) == ""
        state["step"] += 1
        torch.save(state, last)
        assert places.difference(here, stage, workers=False) == "other bytes: runs/tiny/fold0/last.pt"


# --- what was found this way ----------------------------------------------------------------------


def test_a_worker_holds_no_lock_of_its_killed_owner(tmp_path: pathlib.Path) -> None:
    script = (
        "import os, pathlib, time\nfrom pipeline.runtime.files import locked\n"
        f"with locked(pathlib.Path({str(tmp_path / 'lock')!r}), 'busy'):\n"
        "    if os.fork() == 0:\n        print('ready', flush=True)\n        time.sleep(20)\n        os._exit(0)\n"
        "    time.sleep(0.2)\n    os.kill(os.getpid(), 9)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, process_group=0)
    assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
    assert owner.wait() == -9
    with locked(tmp_path / "lock", "busy"):
        assert len(held) == 1
    assert held == []
    os.killpg(owner.pid, 9)  # an error, were the worker gone already and nothing shown


def test_a_line_truncated_by_a_kill_is_ignored(tmp_path: pathlib.Path) -> None:
    shards = Shards(tmp_path, ["a", "b"], 1)
    shards.note_bad_images({"a": "damaged"})
    with open(shards.bad_images_path, "a") as file:
        file.write('\n["b", "dama')
    assert shards.read_bad_images() == {"a": "damaged"}
    shards.note_bad_images({"b": "damaged too"})
    assert shards.read_bad_images() == {"a": "damaged", "b": "damaged too"}


def test_parts_that_cannot_be_removed_are_a_problem(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(tmp_path, ["a", "b"], 1)
    shards.path(0).touch()
    monkeypatch.setattr("shutil.rmtree", lambda *given, **more: None)
    with pytest.raises(Problem, match="cannot be removed"):
        shards.resume_or_start({"threshold": 0.5})


def test_reproducing_again_after_a_kill_keeps_the_file_that_stood_there(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(b"mine, and newer")
    interrupted = reproduce.keep_existing(path)
    interrupted.__enter__()
    path.write_bytes(b"predicted again")  # and killed before it is compared
    with reproduce.keep_existing(path):
        path.write_bytes(b"predicted again")
    assert path.read_bytes() == b"predicted again"
    assert (tmp_path / "before.x.csv.gz").read_bytes() == b"mine, and newer"


@pytest.mark.parametrize("trouble", [faults.worker_dies, faults.worker_without_memory, faults.little_shared_memory])
def test_trouble_of_a_worker_is_a_sentence_and_no_wait(places: Places, trouble: Callable[..., Row]) -> None:
    row = trouble(places, faults.STAGE["predict"])
    messages = ("A process that reads ", "of /dev/shm")
    assert row.ok and (row.kind == "not_here" or any(each in row.message for each in messages)), row.problem


def test_a_full_disk_during_a_checkpoint_is_reported_as_such(tmp_path: pathlib.Path) -> None:
    script = (
        "import pathlib, resource, signal, torch\nfrom pipeline.model import checkpoint\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "from pipeline.runtime.problem import Problem\ntry:\n"
        f"    checkpoint.save(pathlib.Path({str(tmp_path / 'x.pt')!r}), {{'network': torch.zeros(100_000)}})\n"
        "except Problem as problem:\n    print(problem)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'x.pt'} could not be written: File too large.\n", "")
    assert list(tmp_path.iterdir()) == []


def test_drawing_leaves_no_process_behind_when_it_is_killed(tmp_path: pathlib.Path) -> None:
    script = (
        "import os, pathlib, threading, time\nfrom pipeline.synthetic import write_competition\n\n"
        "def wait_for_workers():\n    pid = os.getpid()\n"
        "    while len(open(f'/proc/{pid}/task/{pid}/children').read().split()) < 2:\n        time.sleep(0.05)\n"
        "    time.sleep(2)\n    print(open(f'/proc/{pid}/task/{pid}/children').read(), flush=True)\n"
        "    os.kill(pid, 9)\n\n"
        "if __name__ == '__main__':\n    threading.Thread(target=wait_for_workers, daemon=True).start()\n"
        f"    write_competition.main(pathlib.Path({str(tmp_path / 'demo')!r}), cars=32, test_cars=8, workers=2)\n"
    )
    (tmp_path / "draw.py").write_text(script)
    arguments, surroundings = [sys.executable, str(tmp_path / "draw.py")], os.environ | {"PYTHONPATH": str(ROOT)}
    owner = subprocess.run(arguments, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    workers = owner.stdout.split()
    assert owner.returncode == -9 and len(workers) >= 2
    for _ in range(100):
        left = [pid for pid in workers if pathlib.Path(f"/proc/{pid}").exists()]
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"{len(left)} processes are still there after 10 s")
