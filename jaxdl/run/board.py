"""Scalars for TensorBoard."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboardX.record_writer import RecordWriter


class Board:
    """An event file, each line of it on the disk when `write` returns.

    Not tensorboardX's SummaryWriter: its thread dies where the disk is full, and then its queue
    fills up and the run waits for ever.
    """

    def __init__(self, folder: Path, *, start: int):
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{start}"
        self._file = RecordWriter(str(folder / name))
        self._write(Event(file_version="brain.Event:2"))
        if start:  # what an interrupted run had written of later steps is void
            self._write(Event(step=start, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes values under their tags."""
        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # what could not be written has been told
            self._file.close()
