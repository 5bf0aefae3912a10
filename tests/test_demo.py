"""Parts of the demo that tests/test_whole_run.py does not reach."""
import pathlib

from pipeline.synthetic import demo


def test_downloaded_files_with_other_cars_are_removed(tmp_path: pathlib.Path) -> None:
    drawn, copy = tmp_path / "demo", tmp_path / "demo-downloaded"
    for folder, contents in {drawn: (b"one", b"two", b"new"), copy: (b"one", b"old")}.items():
        folder.mkdir()
        for name, data in zip(("train.zip", "test.zip", "metadata.csv.zip"), contents):
            (folder / name).write_bytes(data)
    (copy / "download.json").write_text("{}")
    demo.remove_outdated(drawn, copy)
    assert sorted(path.name for path in copy.iterdir()) == ["download.json", "train.zip"]


def test_a_first_demo_has_nothing_to_remove(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.zip").write_bytes(b"one")
    demo.remove_outdated(tmp_path, tmp_path / "not there")
