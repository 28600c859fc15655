"""Our small encoding of protobuf against the library's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.shim.api import door_pb2
from orlop.shim.api import task_v2_pb2 as pb
from orlop.shim.command import protobuf


@given(namespace=st.text(max_size=300), name=st.text(max_size=300), events=st.text(max_size=300))
def test_strings_are_written_as_the_library_reads_them(namespace: str, name: str, events: str) -> None:
    data = b"".join(protobuf.text(number, one) for number, one in enumerate((namespace, name, events), 1))
    found = door_pb2.RegisterRequest.FromString(data)
    assert (found.namespace, found.id, found.events) == (namespace, name, events)
    assert {key: one for key, one in protobuf.strings(data, range(1, 4)).items() if one} == {
        number: one for number, one in enumerate((namespace, name, events), 1) if one
    }


@given(pid=st.integers(0, 2**32 - 1), status=st.integers(0, 2**32 - 1))
def test_numbers_are_read_as_the_library_writes_them(pid: int, status: int) -> None:
    data = pb.DeleteResponse(pid=pid, exit_status=status).SerializeToString()
    assert dict(protobuf.fields(data)) == {
        number: value for number, value in ((1, pid), (2, status)) if value
    }
    assert protobuf.number(1, pid) + protobuf.number(2, status) == data


@given(st.binary(max_size=200))
def test_what_is_no_message_is_a_value_error_and_no_more(data: bytes) -> None:
    try:
        found = list(protobuf.fields(data))
    except ValueError:
        return
    assert sum(len(one) for _, one in found if isinstance(one, bytes)) <= len(data)


@pytest.mark.parametrize("data", [b"\x0a\x05abc", b"\x80" * 11, b"\x0b", b"\x02\x00"])
def test_broken_messages_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|number"):
        list(protobuf.fields(data))
