"""Points for TensorBoard, each in its file as soon as it is told.

TensorBoard's own writer hands them to a thread, whose trouble with a full disk nobody can catch.
"""
import os
import pathlib
import socket
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class Curves:
    """`with Curves(folder, first_step) as curves:` its points from `first_step` on replace those of earlier starts."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard knows its files by the second word, and reads them in the order of their names.
        path = folder / f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self.file = open(path, "xb")
        self.records = RecordWriter(self.file)
        self.write(Event(file_version="brain.Event:2"))
        self.write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """One point for each value that there is."""
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
        self.write(Event(step=step, summary=Summary(value=points)))

    def write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())
        self.records.flush()
