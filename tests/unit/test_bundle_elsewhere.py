"""Who can serve what no VM has, in the words of each door."""

from __future__ import annotations

import pytest

from orlop.bundle import elsewhere
from orlop.errors import FailedPrecondition
from orlop.sandbox.rules import OutsideVm


def test_a_kubelet_is_told_of_a_handler_and_others_of_what_they_know() -> None:
    with pytest.raises(
        FailedPrecondition, match="it is the host's; a RuntimeClass with the handler 'process'"
    ):
        raise OutsideVm("it is the host's")
    with (
        pytest.raises(FailedPrecondition, match=r"^it is the host's; crun can serve it$"),
        elsewhere.saying("crun can serve it"),
    ):
        raise OutsideVm("it is the host's")


def test_other_refusals_stay_as_they_are() -> None:
    with (
        pytest.raises(FailedPrecondition, match=r"^it is paused$"),
        elsewhere.saying("crun can serve it"),
    ):
        raise FailedPrecondition("it is paused")
