"""Write points and images for TensorBoard, each to its file at once.

TensorBoard's own writer hands them to a thread, whose error on a full disk cannot be caught.
"""
import os
import pathlib
import socket
import time

import cv2
import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


class TensorBoardLog:
    """`with TensorBoardLog(folder, first_step) as curves:` points from `first_step` on replace older ones."""

    def __init__(self, folder: pathlib.Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard recognises its files by `tfevents`, and reads them in the order of their names.
        path = folder / f"events.out.tfevents.{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self.file = open(path, "xb")
        self.records = RecordWriter(self.file)
        self.write(Event(file_version="brain.Event:2"))
        self.write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> "TensorBoardLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Write one point for each value that is not None."""
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
        self.write(Event(step=step, summary=Summary(value=points)))

    def show(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Write an RGB image, uint8 (rows, columns, 3)."""
        png = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        rows, columns = image.shape[:2]
        summary = Summary.Image(height=rows, width=columns, colorspace=3, encoded_image_string=png)
        self.write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=summary)])))

    def write(self, event: Event) -> None:
        event.wall_time = time.time()
        self.records.write(event.SerializeToString())
        self.records.flush()
