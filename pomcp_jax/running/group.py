"""Processes of one run: they join at an address, agree on facts, share a board and have one fate.

Process 0 listens; the others connect to it. Messages are lines of JSON, relayed by process 0:
entries of a board that every process has a copy of. A connection that closes or stays silent means
that its process is gone, which all others learn at once.

``jax.distributed`` is not used: it ends a process by SIGABRT if process 0 dies, and the whole run
if a process joins late (docs/decisions.md).
"""

import contextlib
import errno
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from pomcp_jax.config import ConfigError

PROTOCOL = "pomcp_jax run 1"
"""First field of a greeting: other programs that connect are turned away."""
MOST_BYTES = 1 << 20
"""Longest line; a greeting with a whole configuration has some ten thousand bytes."""
GREETING = 5.0
"""Seconds in which a new connection must introduce itself."""
BROKEN = (OSError, ValueError, TypeError, KeyError, RecursionError)
"""What a connection that fails, or another program's messages, lead to."""
ENDED = "ended"
"""Name of the board's entry with which a process announces its end."""


class Place(NamedTuple):
    """Where the processes of a run meet, and which of them this is."""

    host: str
    port: int
    process: int
    """Number of this process, below ``processes``; 0 listens."""
    processes: int
    join_timeout: float = 60.0
    """Seconds until all must have joined."""
    heartbeat: float = 30.0
    """Seconds of silence after which a process is gone."""

    @property
    def address(self) -> str:
        """``HOST:PORT``, for messages."""
        return f"{self.host}:{self.port}"


class Link(NamedTuple):
    """A connection to another process."""

    socket: socket.socket
    messages: Iterator[Any]
    """Those that arrive; one iterator for all, since it buffers."""


class Gone(NamedTuple):
    """Why a process counts as gone, and when it was last heard (``time.monotonic``)."""

    why: str
    heard: float


class Group:
    """The processes of a run after all have joined; usable from any thread."""

    def __init__(self, place: Place, links: Mapping[int, Link]):
        """Begin to listen; ``links`` are all others for process 0, process 0 for the others."""
        self.index, self.count, self.heartbeat = place.process, place.processes, place.heartbeat
        self.gone: dict[int, Gone] = {}
        """Processes that vanished without a word."""
        self._board: dict[str, dict[int, Any]] = {}
        self._changed, self._sending = threading.Condition(), threading.Lock()
        self._links, self._closed = dict(links), threading.Event()
        self._readers = [
            threading.Thread(target=self._read, args=item, daemon=True)
            for item in self._links.items()
        ]
        for link in self._links.values():
            link.socket.settimeout(place.heartbeat)
        for thread in (*self._readers, threading.Thread(target=self._beat, daemon=True)):
            thread.start()

    def post(self, name: str, value: Any) -> None:
        """Put JSON on the board for everybody, as this process's entry ``name``."""
        self._put(name, self.index, value)
        self._send({"post": [name, self.index, value]}, self._links)

    def read(self, name: str) -> dict[int, Any]:
        """Entries of that name by process."""
        with self._changed:
            return dict(self._board.get(name, {}))

    def wait(self, ready: Callable[[], bool], until: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the board; returns False if a process is gone or ``until`` comes first."""
        with self._changed:
            while not ready():
                if self.gone or until():
                    return False
                self._changed.wait(0.1)  # ``until`` may depend on other things than the board
        return True

    def close(self) -> None:
        """Leave. Process 0 stays for a moment until the others have left."""
        if self.index == 0:
            deadline = time.monotonic() + GREETING
            for reader in self._readers:
                reader.join(max(0.0, deadline - time.monotonic()))
        self._closed.set()
        for link in self._links.values():
            _close(link)

    def _put(self, name: str, index: int, value: Any) -> None:
        with self._changed:
            self._board.setdefault(name, {})[index] = value
            self._changed.notify_all()

    def _send(self, message: Any, links: Mapping[int, Link]) -> None:
        with self._sending:
            for link in links.values():
                with contextlib.suppress(OSError):  # its reader notices too, and says why
                    _send(link, message)

    def _beat(self) -> None:
        while not self._closed.wait(self.heartbeat / 4):
            self._send(None, self._links)

    def _read(self, index: int, link: Link) -> None:
        why, heard = "its connection closed", 0.0
        try:
            for message in link.messages:
                self._take(index, message)
        except TimeoutError:
            why, heard = f"silent for {self.heartbeat:g} s", self.heartbeat
        except BROKEN as error:
            why = f"its connection failed: {error}"
        self._lose(index, Gone(why, time.monotonic() - heard))
        _close(link)

    def _take(self, sender: int, message: Any) -> None:
        if "gone" in message:
            index, why = message["gone"]
            self._lose(int(index), Gone(str(why), time.monotonic()))
            return
        name, index, value = message["post"]
        if self.index == 0:
            index = sender  # nobody posts in another's name
            others = {i: link for i, link in self._links.items() if i != sender}
            self._send({"post": [name, index, value]}, others)
        self._put(name, index, value)

    def _lose(self, index: int, gone: Gone) -> None:
        with self._changed:
            if self._closed.is_set() or index in self._board.get(ENDED, {}):
                return
            self.gone.setdefault(index, gone)
            self._changed.notify_all()
        if self.index == 0:
            others = {i: link for i, link in self._links.items() if i != index}
            self._send({"gone": [index, gone.why]}, others)


def join(place: Place, facts: Mapping[str, str]) -> Group:
    """Meet the other processes; returns once all are there and agree on ``facts``.

    Raises:
      ConfigError: one line: an address that cannot be used, a process that is missing, superfluous
        or late, or the first fact in which two processes differ.
    """
    if place.process == 0:
        return Group(place, _gather(place, facts))
    return Group(place, {0: _enter(place, facts)})


def _gather(place: Place, facts: Mapping[str, str]) -> dict[int, Link]:
    """Connections to all other processes, for process 0; leaves a door that refuses late ones."""
    deadline = time.monotonic() + place.join_timeout
    listener = _listen(place)
    links: dict[int, Link] = {}
    try:
        while len(links) < place.processes - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = ", ".join(str(i) for i in range(1, place.processes) if i not in links)
                raise ConfigError(
                    f"--coordinator = {place.address}: {len(links) + 1} of {place.processes}"
                    f" processes joined within {place.join_timeout:g} s; missing: process {missing}"
                )
            _admit(listener, links, place, facts, min(left, 1.0))
    except ConfigError as error:
        for link in links.values():
            _answer(link, {"refused": str(error)})
        listener.close()
        raise
    for link in links.values():
        _answer(link, {"joined": place.processes}, close=False)
    threading.Thread(target=_refuse_late, args=(listener, place), daemon=True).start()
    return links


def _admit(
    listener: socket.socket,
    links: dict[int, Link],
    place: Place,
    facts: Mapping[str, str],
    seconds: float,
) -> None:
    """Wait for news at the door: adds a process to ``links``, or removes one that left.

    Raises:
      ConfigError: a process that belongs here has other facts; the run can never be complete.
    """
    doors = [listener, *(link.socket for link in links.values())]
    for ready in select.select(doors, [], [], seconds)[0]:
        if ready is not listener:  # nobody speaks before all have joined: it was closed
            index = next(i for i, link in links.items() if link.socket is ready)
            _close(links.pop(index))
            continue
        link, hello = _greet(listener)
        if hello is None:
            _close(link)
            continue
        index, count = hello["process"], hello["of"]
        if count != place.processes:
            text = f"process {index} has --num_processes = {count}, process 0 has {place.processes}"
            text = f"{text}; all must have the same"
            _answer(link, {"refused": text})
            raise ConfigError(text)
        if index == 0 or index in links:
            text = f"--process_id = {index}: another process of this run has it; must be its own"
            _answer(link, {"refused": text})
            continue
        if text := difference(facts, hello["facts"], index):
            _answer(link, {"refused": text})
            raise ConfigError(text)
        links[index] = link


def difference(facts: Mapping[str, str], theirs: Mapping[str, str], index: int) -> str:
    """The first fact in which process ``index`` differs from process 0, as a line; else empty."""
    for name in dict.fromkeys([*facts, *theirs]):
        ours, other = facts.get(name), theirs.get(name)
        if ours != other:
            return (
                f"process {index} has {name} = {other!s:.100}, process 0 has {ours!s:.100}; all"
                " processes must have the same"
            )
    return ""


def _refuse_late(listener: socket.socket, place: Place) -> None:
    text = f"the run at {place.address} has all its {place.processes} processes and has started"
    while True:
        try:
            listener.settimeout(None)
            link, hello = _greet(listener)
        except OSError:  # closed, or no file descriptor is left
            return
        _answer(link, {"refused": text} if hello else None)


def _listen(place: Place) -> socket.socket:
    # Loopback names stay private to the machine. Any other name may be an address that only the
    # others know (a service, a translated address), so all interfaces are listened at.
    local = place.host in ("localhost", "127.0.0.1", "::1")
    at = (place.host if local else "", place.port)
    try:
        if local:
            family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
            return socket.create_server(at, family=family)
        try:
            return socket.create_server(at, family=socket.AF_INET6, dualstack_ipv6=True)
        except (OSError, ValueError) as error:  # a machine without IPv6
            if getattr(error, "errno", None) == errno.EADDRINUSE:
                raise
            return socket.create_server(at)
    except OSError as error:
        raise ConfigError(
            f"--coordinator = {place.address}: cannot listen ({_text(error)}); must be a free port"
            " of process 0's machine"
        ) from None


def _link(connection: socket.socket) -> Link:
    # Messages are small and must not wait for each other.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Link(connection, _messages(connection))


def _text(error: OSError) -> str:
    # Python adds addresses to the system's text; errors of names have numbers of their own.
    known = error.errno if error.errno and error.errno > 0 else 0
    named = isinstance(error, socket.gaierror)
    return os.strerror(known) if known and not named else error.strerror or str(error)


def _greet(listener: socket.socket) -> tuple[Link, dict[str, Any] | None]:
    """A new connection and its greeting, None if it is none of ours."""
    link = _link(listener.accept()[0])
    link.socket.settimeout(GREETING)
    try:
        hello = next(link.messages)
        fits = hello["protocol"] == PROTOCOL and isinstance(hello["facts"], dict)
        fits = fits and type(hello["process"]) is int and type(hello["of"]) is int
        fits = fits and 0 <= hello["process"] < hello["of"]
        return link, hello if fits else None
    except (*BROKEN, StopIteration):
        return link, None


def _enter(place: Place, facts: Mapping[str, str]) -> Link:
    """The connection to process 0, for all others; tries until ``join_timeout``."""
    deadline, reason = time.monotonic() + place.join_timeout, "no answer"
    hello = {"protocol": PROTOCOL, "process": place.process, "of": place.processes, "facts": facts}
    while (left := deadline - time.monotonic()) > 0:
        try:
            seconds = min(left, GREETING)
            link = _link(socket.create_connection((place.host, place.port), seconds))
        except OSError as error:
            reason = _text(error)
            time.sleep(min(0.2, left))
            continue
        try:
            _send(link, hello)
            # Process 0 says at its own deadline who is missing.
            link.socket.settimeout(left + GREETING)
            answer = next(link.messages)
            if answer.get("joined") == place.processes:
                return link
            text = str(answer["refused"])
        except (ValueError, TypeError, KeyError, AttributeError):
            text = f"--coordinator = {place.address}: another program answers there"
        except (OSError, StopIteration):  # process 0 ended, perhaps to start again
            reason = "the connection closed"
            _close(link)
            time.sleep(min(0.2, left))
            continue
        _close(link)
        raise ConfigError(text)
    raise ConfigError(
        f"--coordinator = {place.address}: process 0 was not reached within"
        f" {place.join_timeout:g} s ({reason}); is it running there?"
    )


def _send(link: Link, message: Any) -> None:
    data = b"" if message is None else json.dumps(message).encode()
    link.socket.sendall(data + b"\n")


def _answer(link: Link, message: Any, close: bool = True) -> None:
    """Send one message, if there is one, and close the connection."""
    with contextlib.suppress(OSError):
        if message is not None:
            _send(link, message)
        if close:
            link.socket.shutdown(socket.SHUT_WR)
    if close:
        link.socket.close()


def _messages(connection: socket.socket) -> Iterator[Any]:
    """Messages until the connection is closed; heartbeats are left out.

    Raises:
      OSError, ValueError: the connection failed, timed out, or sends something else.
    """
    buffer = b""
    while data := connection.recv(1 << 16):
        *lines, buffer = (buffer + data).split(b"\n")
        if len(buffer) > MOST_BYTES:
            raise ValueError("a message is too long")
        yield from (json.loads(line) for line in lines if line)


def _close(link: Link) -> None:
    with contextlib.suppress(OSError):
        link.socket.shutdown(socket.SHUT_RDWR)
    link.socket.close()
