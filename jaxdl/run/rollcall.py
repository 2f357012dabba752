"""The roll call: who is there at the start, who is gone since, and what its last words were.

JAX's runtime does the work of many processes, but does not say who is to blame. Where one is
missing at the start, or process 0 is gone later, it aborts with pages of its own and no number;
where another is gone, only after its heartbeats have failed to come for a minute and more. So each
process opens one connection to process 0, before JAX takes over that port, says its number, and
keeps the line open: however a process ends, its end of the line closes with it. Where a host loses
its power or its network, no line closes, and JAX's heartbeats remain.

Messages are JSON, one a line: {"process": 1, "of": 4} in the beginning, {"start": true} in answer;
{"left": 1} from who is done; {"told": TEXT, "status": N} from who has failed, which process 0
passes on to all.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, NoReturn

from jaxdl.errors import RunFailed, UserError

GONE = "killed, crashed, or cut off"
GRACE = 3.0  # seconds for word to spread before a process ends
POLL = 0.2  # seconds between two tries to reach process 0


class Line:
    """One end of a connection: messages in, messages out."""

    def __init__(self, connection: socket.socket):
        self.socket = connection
        self._heard = b""

    def fileno(self) -> int:
        """What a selector waits for."""
        return self.socket.fileno()

    def send(self, **message: Any) -> None:
        """Sends a message; to somebody who is gone, nothing."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Waits for a message; None where the line is closed, or holds no message of ours."""
        try:
            while b"\n" not in self._heard:
                if not (more := self.socket.recv(4096)):
                    return None
                self._heard += more
            first, _, self._heard = self._heard.partition(b"\n")
            message = json.loads(first)
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    @property
    def closed(self) -> bool:
        """Tells, without waiting, whether the other end is closed."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:  # nothing is said, which is as it should be
            return False
        except OSError:
            return True


class RollCall:
    """The lines of this process: of process 0 to all others, of any other to process 0."""

    def __init__(self, address: str, *, process: int, count: int, seconds: float):
        """Waits until all `count` processes are there.

        Raises RunFailed, naming who is not, after `seconds`; UserError where two have one number.
        """
        self.process, self.address = process, address
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise UserError(
                f"--coordinator {address} is not of the form HOST:PORT, the port from 1 to 65535"
            )
        deadline = time.monotonic() + seconds
        where = host.strip("[]"), int(port)
        if process == 0:
            self.lines = _gather(where, count, deadline)
        else:
            self.lines = {0: _report(where, process, count, deadline)}
        self._spoken = threading.Lock()
        self._status = 1  # of this process, where JAX ends it
        self._watched = threading.Thread(target=self._watch, daemon=True)
        self._watched.start()
        self._answer_abort()

    def fail(self, text: str, status: int) -> None:
        """Tells all others why this process ends; what it prints itself is the caller's."""
        if self._spoken.acquire(blocking=False):
            self._status = status
            self._pass_on(f"process {self.process}: {text}", status)
            self._watched.join(GRACE)  # until all have heard it
            # What is left of the run may wait for the others for ever.
            last = threading.Timer(GRACE, os._exit, (status,))
            last.daemon = True
            last.start()

    def await_verdict(self) -> None:
        """Waits a moment for somebody to be found gone, in which case this process ends here.

        A collective that fails, fails at once; that it was a neighbour's death is heard after it.
        """
        self._watched.join(GRACE)

    def leave(self) -> None:
        """Closes the lines in good order: all are done."""
        self._spoken.acquire(blocking=False)
        for line in self.lines.values():
            line.send(left=self.process)
        self._watched.join(GRACE)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process, line in self.lines.items():
                selector.register(line, selectors.EVENT_READ, process)
            while selector.get_map():
                for key, _ in selector.select():
                    process, line = key.data, self.lines[key.data]
                    message = line.receive()
                    if message is None:
                        self._end(f"process {process} is gone ({GONE})", 1)
                    elif "told" in message:
                        self._end(message["told"], message["status"])
                    if message is None or "left" in message:
                        selector.unregister(line)

    def _end(self, text: str, status: int) -> None:
        """Passes on why the run ends, says so, and ends this process, whatever it waits for."""
        if not self._spoken.acquire(blocking=False):
            return  # it ends already, by its own words
        _say(text)
        if self.process == 0:
            self._pass_on(text, status)
            _await_closed(self.lines.values())
        os._exit(status)

    def _pass_on(self, text: str, status: int) -> None:
        for line in self.lines.values():
            line.send(told=text, status=status)

    def _answer_abort(self) -> None:
        """Has the last word where JAX calls abort(), which Python itself cannot answer."""

        def answer(number: int) -> None:
            if self._spoken.acquire(blocking=False):
                _say(f"process 0 ({self.address}), the coordinator, is gone ({GONE})")
            os._exit(self._status)

        self._answer = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)  # kept: C holds no reference
        ctypes.CDLL(None).signal(signal.SIGABRT, self._answer)


def _gather(where: tuple[str, int], count: int, deadline: float) -> dict[int, Line]:
    """Process 0: waits until every other has said its number, then tells all to start."""
    lines: dict[int, Line] = {}
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    try:
        server = socket.create_server(("", where[1]), family=family, dualstack_ipv6=six)
    except OSError as error:
        raise UserError(f"--coordinator: port {where[1]} cannot be used: {error}") from error
    with server:
        while len(lines) < count - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                line = Line(server.accept()[0])
            except TimeoutError:
                _drop_closed(lines)
                text = f"{named(set(range(1, count)) - set(lines))} did not come to the start"
                _refuse(lines.values(), RunFailed(text), 1)
            line.socket.settimeout(10)
            hello = line.receive() or {}
            process, of = hello.get("process"), hello.get("of")
            if not isinstance(process, int):  # not one of us
                line.socket.close()
                continue
            _drop_closed(lines)
            if process in lines or of != count or not 0 < process < count:
                text = f"a process says that it is {process} of {of}, where {count} are expected"
                text += f" and {sorted({0, *lines})} are there: look at --process-id"
                _refuse([*lines.values(), line], UserError(text), 2)
            line.socket.settimeout(None)
            lines[process] = line
    for line in lines.values():
        line.send(start=True)
    return lines


def _drop_closed(lines: dict[int, Line]) -> None:
    """Forgets who has gone since, so that it may come again, as a pod does that is restarted."""
    for process in [process for process, line in lines.items() if line.closed]:
        lines.pop(process).socket.close()


def _refuse(lines: Iterable[Line], error: Exception, status: int) -> NoReturn:
    for line in lines:
        line.send(told=str(error), status=status)
    raise error


def _report(where: tuple[str, int], process: int, count: int, deadline: float) -> Line:
    """Any other: says its number to process 0, and waits until all have."""
    while True:
        try:
            line = Line(socket.create_connection(where, timeout=10))
            break
        except OSError as error:
            if time.monotonic() > deadline:
                text = f"process 0 cannot be reached at {where[0]}:{where[1]} ({error})"
                raise RunFailed(text) from error
            time.sleep(POLL)
    line.send(process=process, of=count)
    # Process 0 may have begun to wait later than this one: the verdict is its own.
    line.socket.settimeout(max(deadline - time.monotonic(), 0) + 60)
    answer = line.receive()
    line.socket.settimeout(None)
    if answer is None:
        raise RunFailed(f"process 0 is gone ({GONE})")
    if "told" in answer:
        raise (UserError if answer["status"] == 2 else RunFailed)(answer["told"])
    return line


def named(processes: Iterable[int]) -> str:
    """Names processes: `process 3`, `processes 3, 5`."""
    numbers = sorted(processes)
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _say(text: str) -> None:
    """Writes one line past Python's buffers, which no lock and no other thread can hold up."""
    os.write(2, f"\nerror: {' '.join(text.split())}\n".encode())


def _await_closed(lines: Iterable[Line]) -> None:
    """Waits a moment for the others to end first: JAX aborts who loses process 0 too early."""
    deadline = time.monotonic() + GRACE
    for line in lines:
        line.socket.settimeout(max(deadline - time.monotonic(), 0.01))
        while line.receive() is not None:
            pass
