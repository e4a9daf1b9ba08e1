"""The tracker's protocol, the messages of warm processes, and what is read from text."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from device_agents.device_functions import _ranges
from device_agents.frames import BadFrame, Frames, StreamClosed
from device_agents.health import answers
from device_agents.host_facts import device_model
from device_agents.server_loop import lease_s
from device_agents.tracker_wire import (
    RPC_MISMATCH,
    TrackerUnreachable,
    pack_frame,
    pack_int,
    parse_summary,
    take_frame,
    tracker_summary,
    unpack_int,
)


def test_summary_normalises_ports_and_counts_devices() -> None:
    summary = parse_summary(
        [
            0,
            {
                "queue_info": {"pixel6": {"free": 0, "pending": 2}},
                "server_info": [
                    {"key": "server:pixel6", "addr": ["127.0.0.1", "19630"]},
                    {"key": "server:host", "addr": ["127.0.0.1", 19300]},
                ],
            },
        ]
    )
    assert [device.port for device in summary.devices] == [19630, 19300]
    assert summary.keys() == ["host", "pixel6"]
    assert summary.lists("pixel6", 19630) and not summary.lists("pixel6", 1)
    assert summary.free("pixel6") == 0 and summary.queues["pixel6"].pending == 2
    assert summary.free("unknown") == 0


@pytest.mark.parametrize("answer", [None, [-1, {}], [0, {}], [0, {"server_info": [{}]}], "text"])
def test_summary_that_is_none_is_refused(answer: object) -> None:
    with pytest.raises(TrackerUnreachable, match="not understood"):
        parse_summary(answer)


def test_frames_of_the_tracker_come_in_pieces() -> None:
    whole = pack_frame([3, "key", [1, "key:2"], None])
    data = bytearray()
    for byte in whole[:-1]:
        data.append(byte)
        assert take_frame(data) is None
    data += whole[-1:] + pack_frame(0)[:3]
    assert take_frame(data) == [3, "key", [1, "key:2"], None]
    assert bytes(data) == pack_frame(0)[:3]
    with pytest.raises(ValueError):
        take_frame(bytearray(pack_int(1 << 30)))


def test_silent_and_foreign_trackers_are_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(TrackerUnreachable):
            tracker_summary("127.0.0.1", silent.getsockname()[1], timeout_s=0.3)
        assert time.monotonic() - start < 2.0

        def answer() -> None:
            connection, _ = silent.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
                connection.recv(100)

        silent.accept()[0].close()
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(TrackerUnreachable, match="no tracker"):
            tracker_summary("127.0.0.1", silent.getsockname()[1], timeout_s=2.0)
        thread.join()
    with pytest.raises(TrackerUnreachable):
        tracker_summary("127.0.0.1", silent_port(), timeout_s=1.0)


def test_a_phones_server_answers_a_stranger_with_a_long_key_only() -> None:
    """TVM's tvm_rpc hangs up, without a word, on a key shorter than the one it waits for."""
    expected = "client:samsung-galaxy-s24-ultra:0.839483"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                size = unpack_int(connection.recv(8, socket.MSG_WAITALL)[4:])
                if size >= len(expected):
                    connection.recv(size, socket.MSG_WAITALL)
                    connection.sendall(pack_int(RPC_MISMATCH))

        thread = threading.Thread(target=refuse)
        thread.start()
        assert answers("127.0.0.1", server.getsockname()[1], timeout_s=2.0)
        thread.join()
    assert not answers("127.0.0.1", silent_port(), timeout_s=1.0)


def silent_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_messages_travel_with_attachments() -> None:
    left, right = socket.socketpair()
    blob = bytes(range(256)) * 40_000
    message = {"text": "ä" * 1000, "list": [1, 2.5, None], "blob": blob, "empty": b""}
    sender = Frames(left)
    thread = threading.Thread(target=lambda: (sender.send(message), sender.close()))
    thread.start()
    receiver = Frames(right)
    assert receiver.receive(time.monotonic() + 10) == message
    with pytest.raises(StreamClosed):
        receiver.receive(time.monotonic() + 10)
    thread.join()


def test_message_that_does_not_end_meets_its_deadline() -> None:
    left, right = socket.socketpair()
    left.sendall(b"\0\0\0\0\0\0\0\x10half")
    with pytest.raises(TimeoutError):
        Frames(right).receive(time.monotonic() + 0.1)
    ticks: list[int] = []
    with pytest.raises(TimeoutError):  # nobody reads: the send has its deadline too
        Frames(left).send(
            {"b": bytes(8 << 20)}, time.monotonic() + 0.5, on_tick=lambda: ticks.append(1)
        )
    assert ticks


@pytest.mark.parametrize("header", [b"{}", b"[]", b"not json", json.dumps({"body": 1}).encode()])
def test_what_is_no_message_is_refused(header: bytes) -> None:
    left, right = socket.socketpair()
    left.sendall(len(header).to_bytes(8, "big") + header)
    with pytest.raises(BadFrame):
        Frames(right).receive(time.monotonic() + 1)


def test_lease_is_whole_seconds_below_the_cap() -> None:
    assert lease_s(["-timeout=5"], 60) == 5
    assert lease_s(["-timeout=4.2"], 60) == 5
    assert lease_s(["-timeout=100"], 60) == 60
    for wish in ([], ["-timeout=0"], ["-timeout=nan"], ["-timeout=-3"], ["-other=1"]):
        assert lease_s(wish, 60) == 60


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("AMD EPYC 9B14", "amd-epyc-9b14-2t"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-2t"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "amd-ryzen-9-7950x-2t"),
        ("???", "cpu-2t"),
    ],
)
def test_device_model_is_a_plain_name(model: str, name: str) -> None:
    assert device_model(2, model) == name


def test_core_ranges() -> None:
    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert _ranges([]) == ""
