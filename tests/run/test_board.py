import errno
import os

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxdl.run.board import Board


def events(folder):
    """Reads what is on the disk: records of a length, its checksum, an event, its checksum."""
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_a_line_is_on_the_disk_at_once_and_a_number_that_is_not_finite_too(tmp_path):
    board = Board(tmp_path, start=0)
    board.write(7, {"train/loss": 0.5, "train/refused": float("inf")})
    *_, last = events(tmp_path)
    board.close()
    assert last.step == 7
    assert {v.tag: v.simple_value for v in last.summary.value} == {
        "train/loss": 0.5,
        "train/refused": float("inf"),
    }


def test_a_resumed_board_voids_the_steps_that_come_again(tmp_path):
    Board(tmp_path, start=0).close()
    Board(tmp_path, start=14).close()
    assert len(list(tmp_path.iterdir())) == 2  # in the same second, too
    voided = [e.step for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert voided == [14]


def test_a_full_disk_is_told_at_the_line_that_meets_it_and_not_again(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    board = Board(tmp_path, start=0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        board.write(1, {"train/loss": 1.0})
    board.close()
