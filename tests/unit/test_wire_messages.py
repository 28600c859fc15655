"""Every message goes over the wire and comes back; nothing malformed gets in."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.wire import hello, messages
from orlop.wire.codec import AbsolutePath, Length, ProtocolError, Range, RelativePath, decode, loads
from orlop.wire.values import Container, Disks, GuestDevice, GuestMount, PluggedDisk


def strategy(kind: Any, extras: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values that fit an annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return strategy(arguments[0], arguments[1:])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    low, high = next(((e.low, e.high) for e in extras if isinstance(e, Length)), (0, 4))
    high = max(low, min(high, 4))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return st.lists(strategy(arguments[0]), min_size=low, max_size=min(high, 2)).map(tuple)
        return st.tuples(*(strategy(a) for a in arguments))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return st.builds(kind, **{f.name: strategy(hints[f.name]) for f in dataclasses.fields(kind)})
    if type(None) in arguments:
        return st.none() | strategy(arguments[0])
    if kind is int:
        bounds = next((e for e in extras if isinstance(e, Range)), Range(0, (1 << 63) - 1))
        return st.integers(bounds.low, bounds.high)
    if kind is str:
        if any(isinstance(e, AbsolutePath) for e in extras):
            return st.sampled_from(["/", "/a", "/a/b"])
        if any(isinstance(e, RelativePath) for e in extras):
            return st.sampled_from(["", "a", "a/b"])
        return st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=high)
    simple: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        float: st.floats(0, 1e9),
        bytes: st.binary(min_size=low, max_size=high),
    }
    return simple[kind]


MOUNT = st.sampled_from(
    [GuestMount(target="/a", kind="share", source="x"), GuestMount(target="/b", kind="tmpfs")]
)
st.register_type_strategy(GuestMount, MOUNT)
DEVICE = st.sampled_from(
    [GuestDevice(path="/dev/a", source="/dev/fuse"), GuestDevice(path="/dev/b", disk="d", mode=0o640, gid=6)]
)
DISKS = st.builds(
    Disks,
    root=st.just((PluggedDisk(id="r", at=("scsi:1", "scsi:2/3")),)),
    devices=st.just((PluggedDisk(id="d", at=("scsi:4",)),)),
)
_plain = strategy


def requests() -> st.SearchStrategy[Any]:
    return st.one_of([messages_of(kind) for kind in messages.REQUESTS.values()])


def messages_of(kind: Any) -> st.SearchStrategy[Any]:
    return strategy(kind).filter(lambda m: True) if kind is not messages.Create else create()


def create() -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(Container, include_extras=True)
    fields = {
        f.name: strategy(hints[f.name])
        for f in dataclasses.fields(Container)
        if f.name not in ("mounts", "disks", "devices", "root")
    }
    return st.builds(
        lambda c: messages.Create(container=c),
        st.builds(Container, mounts=st.tuples(MOUNT), devices=st.tuples(DEVICE), disks=DISKS, **fields),
    )


@settings(max_examples=200)
@given(requests())
def test_requests_come_back_as_they_went(request: Any) -> None:
    payload = messages.pack_request(request)
    payload.decode("ascii")
    assert messages.unpack_request(payload) == request


@settings(max_examples=100)
@given(st.data())
def test_replies_come_back_as_they_went(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(messages.REQUESTS.values())))
    reply = data.draw(strategy(kind.reply_type()))
    request = data.draw(messages_of(kind))
    assert messages.unpack_reply(request, messages.pack_reply(reply)) == reply


@settings(max_examples=50)
@given(st.data())
def test_events_come_back_as_they_went(data: st.DataObject) -> None:
    event = data.draw(strategy(data.draw(st.sampled_from(list(messages.EVENTS.values())))))
    assert messages.unpack_event(messages.pack_event(event)) == event


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(messages.REQUESTS)), st.data())
def test_wrong_types_are_named_errors(op: str, data: st.DataObject) -> None:
    kind = messages.REQUESTS[op]
    names = [f.name for f in dataclasses.fields(typing.cast(Any, kind))]
    keys = st.sampled_from(names) if names else st.text(max_size=3)
    arguments = data.draw(st.dictionaries(keys, json_values, max_size=4) | json_values)
    try:
        request = messages.unpack_request(json.dumps({"op": op, "args": arguments}).encode())
    except ProtocolError:
        return
    assert isinstance(request, kind)


@given(st.binary(max_size=60))
def test_payloads_that_are_not_ours(payload: bytes) -> None:
    with pytest.raises((ProtocolError, messages.Refused)):
        messages.unpack_request(payload)


def test_unknown_operation() -> None:
    with pytest.raises(messages.Refused) as caught:
        messages.unpack_request(b'{"op": "explode"}')
    assert caught.value.code == "unknown_op"


def test_failure_comes_back_as_refused() -> None:
    with pytest.raises(messages.Refused, match="no such") as caught:
        messages.unpack_reply(messages.Start(id="x"), messages.pack_failure("not_found", "no such container"))
    assert caught.value.code == "not_found"


def test_deep_nesting_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ProtocolError):
        loads(b'{"a":' * 100000 + b"1" + b"}" * 100000)


@pytest.mark.parametrize("path", ["../x", "a/../../b", "/etc", "a\0b"])
def test_paths_stay_below_the_share(path: str) -> None:
    with pytest.raises(ProtocolError):
        decode(GuestMount, {"target": "/x", "kind": "share", "source": path})


def test_ranges_and_lengths() -> None:
    for bad in (-1, 1 << 20, True, 1.0, "1", None):
        with pytest.raises(ProtocolError):
            decode(messages.Connect, {"stream": 1, "port": bad})
    for bad in ({"id": ""}, {"id": "d", "at": ["x" * 65]}, {"id": "d", "at": [1]}, {"at": []}, {}):
        with pytest.raises(ProtocolError):
            decode(PluggedDisk, bad)


def test_what_is_nested_too_deeply_is_not_parsed() -> None:
    many = [{"a": [text]} for text in ("[" * 99, '"[{' * 99, "\\" * 7 + '"' + "{" * 99, "[\\")] * 9
    assert loads(json.dumps({"x": many}).encode()) == {"x": many}
    for deep in (b"[" * 99, b'"a\\\\", ' + b"[" * 99, b'"\\"", ' + b"[" * 99):
        with pytest.raises(ProtocolError, match="nested deeper than 32"):
            loads(b'{"x": [' + deep + b"1" + b"]" * 101 + b"}")
    # Whatever a guest sends, it takes no longer than there are bytes in it.
    for flood in (b'\\"' * (1 << 21), b'"' * (1 << 22), b"\\" * ((1 << 22) + 1), b"[{" * (1 << 21)):
        with pytest.raises(ProtocolError):
            loads(b'{"x": "' + flood + b"[" * 40)


def test_a_container_has_a_root_and_its_image_volumes() -> None:
    container = {"id": "c", "args": ["true"], "disks": {"root": [{"id": "r", "at": ["scsi:1"]}]}}
    assert decode(Container, container).disks.root == (PluggedDisk(id="r", at=("scsi:1",)),)
    with pytest.raises(ProtocolError, match="has no root"):
        decode(Container, container | {"disks": {}})
    assert decode(Container, container | {"disks": {}, "root": "c1-root"}).root == "c1-root"
    with pytest.raises(ProtocolError, match="or two"):
        decode(Container, container | {"root": "c1-root"})
    with pytest.raises(ProtocolError):
        decode(Container, container | {"disks": {}, "root": "../etc"})
    mount = {"target": "/x", "kind": "image", "volume": "v"}
    with pytest.raises(ProtocolError, match="names no volume"):
        decode(Container, container | {"mounts": [mount]})
    with pytest.raises(ProtocolError, match="names no disk"):
        decode(Container, container | {"devices": [{"path": "/dev/x", "disk": "d"}]})


def test_a_greeting_says_its_version_and_without_one_is_the_first() -> None:
    said = hello.pack_hello(hello.Hello(version=hello.VERSION, next_stream=7))
    assert json.loads(said) == {"version": hello.VERSION, "next_stream": 7}
    assert hello.unpack_hello(said).next_stream == 7
    assert hello.unpack_hello(b'{"next_stream": 7}').version == 1
