"""Processes that join, disagree, come late, vanish and share a board, as threads."""

import contextlib
import socket
import threading
import time

import pytest

from pomcp_jax.config import ConfigError
from pomcp_jax.running import group
from pomcp_jax.running.group import ENDED, Place

FACTS = {"version of jax": "0.10.2", "train.total_decisions": "600"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def places(count, **options):
    port = free_port()
    options = {"join_timeout": 20.0, "heartbeat": 20.0} | options
    return [Place("127.0.0.1", port, i, count, **options) for i in range(count)]


def meet(joining):
    """Results of ``group.join`` for pairs of a place and facts, each in a thread; errors too."""
    results = [None] * len(joining)

    def enter(i, where, facts):
        try:
            results[i] = group.join(where, facts)
        except ConfigError as error:
            results[i] = str(error)

    threads = [
        threading.Thread(target=enter, args=(i, *arguments)) for i, arguments in enumerate(joining)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30.0)
    return results


@contextlib.contextmanager
def joined(count, **options):
    groups = meet([(place, FACTS) for place in places(count, **options)])
    assert all(isinstance(each, group.Group) for each in groups), groups
    try:
        yield groups
    finally:
        for each in groups:
            each.post(ENDED, [0, "done"])
        for each in groups[::-1]:
            each.close()


def soon(ready):
    deadline = time.monotonic() + 20.0
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    return ready()


def test_entries_of_the_board_reach_everybody():
    with joined(3) as groups:
        for each in groups:
            each.post("steps", [each.index])
        for each in groups:
            assert each.wait(lambda each=each: len(each.read("steps")) == 3)
            assert each.read("steps") == {0: [0], 1: [1], 2: [2]}
        groups[1].post("steps", [7])
        assert soon(lambda: groups[2].read("steps")[1] == [7])
        assert not groups[0].wait(lambda: False, until=lambda: True)


def test_a_process_that_vanishes_is_gone_for_all_and_one_that_ends_is_not():
    with joined(3) as groups:
        groups[2].post(ENDED, [0, "done"])
        assert groups[0].wait(lambda: 2 in groups[0].read(ENDED))
        for i in (1, 2):  # as the system does when a process ends
            groups[i]._closed.set()
            groups[i]._links[0].socket.shutdown(socket.SHUT_RDWR)
        assert soon(lambda: 1 in groups[0].gone) and set(groups[0].gone) == {1}
        assert not groups[0].wait(lambda: False)


def test_the_first_process_that_vanishes_is_gone_for_all():
    with joined(3) as groups:
        for link in groups[0]._links.values():
            link.socket.shutdown(socket.SHUT_RDWR)
        assert all(soon(lambda each=each: 0 in each.gone) for each in groups[1:])


def test_silence_is_noticed():
    with joined(2, heartbeat=0.4) as groups:
        time.sleep(0.6)
        assert not groups[0].gone and not groups[1].gone  # heartbeats
        groups[1]._closed.set()  # as a stopped process: it sends none
        assert soon(lambda: 1 in groups[0].gone)
        assert groups[0].gone[1].why == "silent for 0.4 s"


@pytest.mark.parametrize(
    ("name", "value"), [("train.total_decisions", "400"), ("version of jax", "0.11.0")]
)
def test_processes_that_disagree_end_with_the_first_difference(name, value):
    first, second, third = places(3)
    results = meet([(first, FACTS), (second, FACTS), (third, FACTS | {name: value})])
    text = (
        f"process 2 has {name} = {value}, process 0 has {FACTS[name]}; all processes must have the"
        " same"
    )
    assert results[0] == text and results[2] == text
    # Process 1 was at the door already, or found that process 0 had ended.
    assert results[1] == text or "was not reached" in results[1]


def test_another_number_of_processes_is_refused():
    first, _ = places(2)
    results = meet([(first, FACTS), (first._replace(process=2, processes=3), FACTS)])
    text = "process 2 has --num_processes = 3, process 0 has 2; all must have the same"
    assert results == [text, text]


def test_a_missing_process_is_named():
    places_ = places(3, join_timeout=1.0)
    results = meet([(place, FACTS) for place in places_[:2]])
    text = "2 of 3 processes joined within 1 s; missing: process 2"
    assert all(text in result for result in results)


def test_without_the_first_process_nobody_answers():
    where = places(2, join_timeout=0.5)[1]
    with pytest.raises(ConfigError, match=r"process 0 was not reached within 0.5 s \(.*refused"):
        group.join(where, FACTS)
    where = where._replace(host="no-such-host.invalid")
    with pytest.raises(ConfigError, match=r"no-such-host.invalid:.* was not reached within 0.5 s"):
        group.join(where, FACTS)


def test_a_late_process_is_refused_and_the_run_does_not_notice():
    with joined(2) as groups:
        late = Place("127.0.0.1", groups_port(groups), 1, 2, 20.0, 20.0)
        with pytest.raises(ConfigError, match="has all its 2 processes and has started"):
            group.join(late, FACTS)
        groups[1].post("steps", [1])
        assert soon(lambda: groups[0].read("steps") == {1: [1]}) and not groups[0].gone


def groups_port(groups):
    return groups[1]._links[0].socket.getpeername()[1]


@pytest.mark.parametrize("number", [0, 1])
def test_a_number_that_is_taken_is_refused(number):
    first, second, third = places(3)
    results = {}

    def enter(name, where):
        try:
            results[name] = group.join(where, FACTS)
        except ConfigError as error:
            results[name] = str(error)

    threads = [threading.Thread(target=enter, args=("first", first))]
    threads += [threading.Thread(target=enter, args=("second", second))]
    for thread in threads:
        thread.start()
    time.sleep(0.3)  # the second is at the door
    if number == 0:
        enter("twin", first)
        assert "cannot listen (Address already in use)" in results["twin"]
    else:
        enter("twin", second)
        assert results["twin"].startswith("--process_id = 1: another process of this run has it")
    enter("third", third)
    for thread in threads:
        thread.join(timeout=20.0)
    groups = [results[name] for name in ("first", "second", "third")]
    assert all(isinstance(each, group.Group) for each in groups)
    for each in groups:
        each.post(ENDED, [0, "done"])
    for each in groups[::-1]:
        each.close()


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"[1]\n", b"\xff\n", b""])
def test_other_programs_at_the_door_are_turned_away(data):
    first, second = places(2)

    results = []
    host = threading.Thread(target=lambda: results.extend(meet([(first, FACTS)])))
    host.start()
    while not results:
        with contextlib.suppress(ConnectionRefusedError):
            link = socket.create_connection(("127.0.0.1", first.port), 5.0)
            break
        time.sleep(0.02)
    with link, contextlib.suppress(ConnectionResetError):
        link.sendall(data)
        link.shutdown(socket.SHUT_WR)
        assert link.recv(100) == b""
    (other,) = meet([(second, FACTS)])
    host.join(timeout=20.0)
    assert isinstance(other, group.Group) and isinstance(results[0], group.Group)
    for each in (results[0], other):
        each.post(ENDED, [0, "done"])
    for each in (other, results[0]):
        each.close()


def test_another_program_at_the_address_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            link, _ = server.accept()
            link.recv(1 << 16)
            link.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            link.close()

        thread = threading.Thread(target=answer)
        thread.start()
        where = Place("127.0.0.1", server.getsockname()[1], 1, 2, 5.0, 5.0)
        with pytest.raises(ConfigError, match="another program answers there"):
            group.join(where, FACTS)
        thread.join()
