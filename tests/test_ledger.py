"""The ledger: rows survive a round trip, damage is named, and Kaggle's data find their row."""
import csv
import pathlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.kaggle import leaderboard, ledger, submit
from pipeline.kaggle.client import Submission
from pipeline.kaggle.ledger import COLUMNS, COLUMNS_BEFORE, Row
from pipeline.paths import LEDGER
from pipeline.runtime.problem import Problem
from pipeline.submission import provenance
from pipeline.submission.provenance import Provenance

HASH = "0123456789abcdef" * 4
OWN = Provenance(
    sha256=HASH, runs=("half size",), folds=(0, 2), threshold=0.498039, oof_dice=0.99123, oof_dice_cross_fitted=0.9912,
    config="configs/cpu.yaml", train_overrides=('model.encoder="a b"', "train.epochs=3"),
    predict_overrides=('predict.tta="none"',),
    config_sha256=HASH[::-1], checkpoints={"runs/half size/fold0/best.pt": HASH, "runs/half size/fold2/best.pt": HASH},
    commit="ab" * 20, clean=True,
)  # fmt: skip
TIME = datetime(2017, 9, 27, 23, 59, 58, tzinfo=UTC)


def row_of(about: Provenance, **other: Any) -> Row:
    return Row(**about.model_dump(), **{"time": TIME, "file": "a.csv.gz", "message": "two folds #0123456789ab"} | other)


PENDING = row_of(OWN)
COMPLETE = row_of(OWN, ref=7, status="complete", public=0.99512, private=0.99487)
FAILED = row_of(Provenance(sha256="f" * 64), status="failed", error='Kaggle said: "no", and\nno more', message="#ffff")


def submission_of(ref: int, description: str, status: str = "COMPLETE", public: float | None = 0.9) -> Submission:
    return Submission(ref, "a.csv.gz", datetime(2017, 9, 27), description, status, public, None, "")


def test_rows_are_read_in_the_order_in_which_they_were_put(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "new" / "ledger.csv"
    assert ledger.read(path) == []
    assert [ledger.put(path, row) for row in (PENDING, FAILED)] == [1, 2]
    assert ledger.put(path, COMPLETE) == 1
    assert ledger.read(path) == [COMPLETE, FAILED.model_copy(update={"error": 'Kaggle said: "no", and no more'})]


def test_a_row_that_git_has_moved_is_written_in_its_new_place(tmp_path: pathlib.Path) -> None:
    """As when other people's rows are pulled while a submission waits for its score."""
    path = tmp_path / "ledger.csv"
    theirs = row_of(Provenance(sha256="f" * 64), ref=5, status="complete", message="theirs #ffffffffffff")
    assert ledger.put(path, PENDING) == 1
    path.unlink()
    assert [ledger.put(path, row) for row in (theirs, PENDING)] == [1, 2]
    assert ledger.put(path, COMPLETE) == 2
    assert ledger.read(path) == [theirs, COMPLETE]
    path.unlink()  # or the row is gone
    assert [ledger.put(path, row) for row in (theirs, COMPLETE)] == [1, 2]


def test_the_same_file_of_another_account_is_another_row(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ledger.csv"
    theirs = COMPLETE.model_copy(update={"ref": 5})
    assert [ledger.put(path, row) for row in (theirs, PENDING, COMPLETE)] == [1, 2, 2]
    assert ledger.read(path) == [theirs, COMPLETE]


def test_a_row_is_a_line(tmp_path: pathlib.Path) -> None:
    ledger.put(tmp_path / "ledger.csv", FAILED)
    assert len((tmp_path / "ledger.csv").read_text().splitlines()) == 2
    assert ledger.read(tmp_path / "ledger.csv")[0].error == 'Kaggle said: "no", and no more'


def test_a_row_reads_as_the_header_says(tmp_path: pathlib.Path) -> None:
    ledger.put(tmp_path / "ledger.csv", COMPLETE)
    with open(tmp_path / "ledger.csv", newline="") as file:
        (cells,) = csv.DictReader(file)
    assert cells == {
        "time": "2017-09-27T23:59:58Z", "file": "a.csv.gz", "sha256": HASH, "runs": "'half size'", "folds": "0 2",
        "threshold": "0.498039", "oof_dice": "0.99123", "oof_dice_cross_fitted": "0.9912", "config": "configs/cpu.yaml",
        "train_overrides": "'model.encoder=\"a b\"' train.epochs=3", "predict_overrides": "'predict.tta=\"none\"'",
        "config_sha256": HASH[::-1],
        "checkpoints": f"'runs/half size/fold0/best.pt={HASH}' 'runs/half size/fold2/best.pt={HASH}'",
        "pseudo_labels": "", "commit": "ab" * 20, "clean": "yes", "ref": "7", "status": "complete", "public": "0.99512",
        "private": "0.99487", "message": "two folds #0123456789ab", "error": "",
    }  # fmt: skip


WORD = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="\x85"))


@settings(max_examples=30)
@given(
    st.builds(
        row_of,
        st.builds(
            Provenance,
            sha256=st.just(HASH),
            runs=st.tuples(WORD),
            folds=st.lists(st.integers(0, 99)).map(tuple),
            threshold=st.none() | st.floats(0, 1),
            oof_dice=st.none() | st.floats(0, 1),
            train_overrides=st.lists(WORD).map(tuple),
            checkpoints=st.dictionaries(WORD, st.just(HASH)),
            clean=st.booleans(),
        ),
        message=WORD.filter(bool),
        error=WORD,
        public=st.none() | st.floats(0, 1),
        ref=st.none() | st.integers(0, 2**63),
    )
)
def test_any_row_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, row: Row) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.unlink(missing_ok=True)
    ledger.put(path, FAILED)
    ledger.put(path, row)
    assert ledger.read(path)[1:] == [row]


def ledger_with(column: str, cell: str) -> str:
    """The text of a ledger with one good row and one with this cell in it."""
    good = {name: ledger.format_cell(getattr(COMPLETE, name)) for name in COLUMNS}
    lines = [COLUMNS, good.values(), (good | {column: cell}).values()]
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in line) + "\n" for line in lines)


@pytest.mark.parametrize(
    "column, cell",
    [
        ("time", "yesterday"), ("time", ""), ("time", "2017-09-27T23:59:58"), ("sha256", "abc"), ("folds", "one"),
        ("threshold", "1.5"), ("public", "nan"), ("oof_dice", "-0.1"), ("clean", "perhaps"), ("status", "done"),
        ("ref", "x"), ("checkpoints", "best.pt"), ("runs", "'"),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_a_problem_that_names_line_and_column(tmp_path: pathlib.Path, column: str, cell: str) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(ledger_with(column, cell))
    with pytest.raises(Problem, match=rf"ledger.csv, line 3: {column}\b.*take it from git\.$"):
        ledger.read(path)


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "line 1: the header"),
        ("time,file\n", "line 1: the header"),
        ("<<<<<<< HEAD\n", "line 1: the header"),
        (",".join(COLUMNS) + "\na,b\n", "line 2: 2 cells"),
        (ledger_with("ref", ""), "line 3: the row is wrong: Value error, a complete submission has a ref"),
        (",".join(COLUMNS) + '\n"a', "cannot be read"),
        (",".join(COLUMNS) + "\n\xff", "cannot be read"),
    ],
)
def test_a_damaged_ledger_is_a_problem(tmp_path: pathlib.Path, text: str, named: str) -> None:
    path = tmp_path / "ledger.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Problem, match=named):
        ledger.read(path)


def test_a_ledger_of_an_earlier_version_is_read_and_gets_the_new_column(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ledger.csv"
    cells = [ledger.format_cell(getattr(COMPLETE, name)) for name in COLUMNS_BEFORE]
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS_BEFORE, cells])
    assert ledger.read(path) == [COMPLETE] and COMPLETE.pseudo_labels == {}
    child = row_of(OWN.model_copy(update={"sha256": "e" * 64, "pseudo_labels": {HASH: "submissions/a b=c.csv.gz"}}))
    assert ledger.put(path, child) == 2 and ledger.read(path) == [COMPLETE, child]
    assert path.read_text().startswith(",".join(COLUMNS) + "\n")


def test_the_projects_own_ledger_can_be_read() -> None:
    assert ledger.read(pathlib.Path(__file__).parent.parent / "submissions" / "ledger.csv") is not None


def test_a_damaged_ledger_is_not_written_over(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text("something else")
    with pytest.raises(Problem):
        ledger.put(path, PENDING)
    assert path.read_text() == "something else"


# --- Kaggle's data --------------------------------------------------------------------------------


@pytest.mark.parametrize("status, ours", [("PENDING", "pending"), ("COMPLETE", "complete"), ("ERROR", "failed")])
def test_a_row_without_ref_is_found_by_its_tag(status: str, ours: str) -> None:
    theirs = [submission_of(9, "another #ffffffffffff"), submission_of(8, "reworded #0123456789ab", status)]
    row = ledger.updated(PENDING, theirs)
    assert row is not None
    assert (row.ref, row.status, row.public, row.private) == (8, ours, 0.9, None)
    assert row.message == PENDING.message and row.checkpoints == PENDING.checkpoints


def test_a_row_with_a_ref_is_found_by_nothing_else() -> None:
    assert ledger.updated(row_of(OWN, ref=7), [submission_of(8, PENDING.message)]) is None
    row = ledger.updated(row_of(OWN, ref=7), [submission_of(8, PENDING.message), submission_of(7, "")])
    assert row is not None and row.ref == 7


@pytest.mark.parametrize("description", ["", "two folds", "#0123456789ab two folds", "two folds #0123456789ab.2"])
def test_other_messages_are_other_submissions(description: str) -> None:
    assert ledger.updated(PENDING, [submission_of(8, description)]) is None


# --- origins --------------------------------------------------------------------------------------


def test_provenance_is_found_by_content_and_a_foreign_file_has_none(tmp_path: pathlib.Path) -> None:
    provenance.write(tmp_path / "run.json", OWN)
    provenance.write(tmp_path / "other.json", Provenance(sha256="f" * 64, runs=("other",)))
    assert provenance.find_by_hash(tmp_path, HASH) == OWN
    assert provenance.find_by_hash(tmp_path, "0" * 64) == Provenance(sha256="0" * 64)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sha256": "abc"}', f'{{"sha256": "{HASH}", "colour": 1}}'])
def test_a_damaged_origin_is_a_problem_that_names_it(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(Problem, match="run.json is damaged"):
        provenance.find_by_hash(tmp_path, HASH)


def test_the_message_says_what_made_the_submission() -> None:
    assert submit.describe(OWN) == "half size folds 0,2 threshold 0.498 predict.tta=none OOF 0.99123 commit abababa"
    changed = OWN.model_copy(update={"clean": False})
    assert submit.describe(changed).endswith("commit abababa+")
    assert submit.describe(OWN.model_copy(update={"bad_images": ("a.jpg",)})).endswith("commit abababa 1 empty")
    assert submit.describe(Provenance(sha256=HASH)) == "origin unknown"


# --- the table ------------------------------------------------------------------------------------


def test_leaderboard_shows_scores_side_by_side_and_where_they_would_have_stood(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "ledger.csv"
    ledger.put(path, row_of(OWN, ref=7, status="complete", public=0.99812, private=0.99712))
    ledger.put(path, FAILED.model_copy(update={"error": "no such column"}))
    leaderboard.main(path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-6:] == ["0.498", "0.99123", "0.99120", "0.99812", "0.99712", "complete"]
    assert lines[2].split()[-2:] == ["unknown", "failed"]
    assert "a.csv.gz: no such column" in lines
    private = lines[lines.index("Among published private scores:") + 2 :][:3]
    assert [line.split()[0] for line in private] == ["0.997332", "0.99712", "0.9969"]
    public = lines[lines.index("Among published public scores:") + 2]
    assert public.split() == ["0.99812", "▶", "row", "1:", "a.csv.gz"]


def test_a_missing_ledger_is_a_problem_if_it_was_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match="There is no ledger submisions/ledger.csv"):
        leaderboard.main(pathlib.Path("submisions/ledger.csv"))
    leaderboard.main(LEDGER)
    assert "has no submission yet" in capsys.readouterr().out
