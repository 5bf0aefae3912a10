"""A tiny run of three short epochs, for tests that stop it, damage it, or take it through all stages."""
import json
import pathlib
from typing import Any

import pytest
import torch

from pipeline.__main__ import main
from pipeline.model import checkpoint

EPOCHS, STEPS_PER_EPOCH = 3, 8  # of 32 images, 4 a step
CONFIG = """
data: {scale: 8, folds: 2, workers: 0, cache: true}
model: {width: 16, depth: 2, patch: 2}
train: {epochs: 3, batch_size: 4, learning_rate: 1e-2, ema_decay: 0.9}
"""
RUN = pathlib.Path("runs/tiny")


class Pipeline:
    """`pipeline("train", "--fold", "0")` -> exit code."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def __call__(self, stage: str, *arguments: str) -> int:
        return main([stage, "--config", "tiny.yaml", "--data", str(self.folder), *arguments])


def with_set(*overrides: str) -> list[str]:
    """Each override behind a --set of its own."""
    return [word for override in overrides for word in ("--set", override)]


def listing(folder: pathlib.Path) -> dict[pathlib.Path, tuple[int, int]]:
    """Size and time of each file in a folder."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def read_log(fold: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fold / "log.jsonl").read_text().splitlines()]


def only_line(capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr; a traceback would have more."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def assert_equal(one: object, other: object) -> None:
    """Nested dicts and lists of tensors and numbers, to the last bit."""
    assert type(one) is type(other)
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other):
            assert_equal(mine, theirs)
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_training(one: pathlib.Path, other: pathlib.Path) -> None:
    for name, keys in {"best.pt": ("network",), "last.pt": ("network", "average", "optimizer", "step")}.items():
        states = [checkpoint.load(fold / name, keys) for fold in (one, other)]
        for key in keys:
            assert_equal(states[0][key], states[1][key])
    timeless = ("epoch", "train_loss", "val_dice", "val_dice_threshold", "lr")
    logs = [[[row[key] for key in timeless] for row in read_log(fold)] for fold in (one, other)]
    assert_equal(*logs)


class Killed(BaseException):
    """Simulates kill -9: none of our code handles it."""
