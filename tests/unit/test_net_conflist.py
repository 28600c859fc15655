"""Network configuration lists: what is understood, what is refused, the default one."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.net import conflist

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["name", "cniVersion", "cniVersions", "plugins", "type", "disableCheck", "capabilities"]
)


def test_default_list_is_valid_and_describes_itself() -> None:
    network = conflist.parse(conflist.default_conflist(["10.1.0.0/16", "fd01::/64"]).encode(), "default")
    assert [plugin.type for plugin in network.plugins] == ["bridge", "portmap"]
    assert network.masquerade == ("10.1.0.0/16", "fd01::/64")
    assert network.plugins[1].capabilities == {"portMappings": True}
    routes = network.plugins[0].document["ipam"]["routes"]
    assert routes == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


def test_single_plugin_is_a_list_of_one() -> None:
    network = conflist.parse(b'{"name": "n", "type": "ptp", "cniVersion": "0.4.0", "mtu": 9}', "x")
    assert len(network.plugins) == 1
    assert network.plugins[0].document["mtu"] == 9
    assert network.at_least("0.4.0")
    assert not network.at_least("1.0.0")


def test_newest_common_version_is_taken() -> None:
    data = {"name": "n", "cniVersions": ["0.4.0", "1.0.0", "9.0.0"], "plugins": [{"type": "ptp"}]}
    assert conflist.parse(json.dumps(data).encode(), "x").version == "1.0.0"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "truncated"),
        ("[]", "Expected"),
        ('{"name": "n", "plugins": []}', "no plug-ins"),
        ('{"name": "", "plugins": [{"type": "a"}]}', "no name"),
        ('{"name": "n", "plugins": [{"type": "../../bin/sh"}]}', "no plug-in type"),
        ('{"name": "n", "cniVersion": "0.1.0", "plugins": [{"type": "a"}]}', "0.1.0"),
        ('{"name": "n", "plugins": [{"type": "a"}], "orlop.masquerade": ["x"]}', "masquerade"),
    ],
)
def test_unusable_files_are_refused_with_name_and_cause(text: str, cause: str) -> None:
    with pytest.raises(InvalidArgument, match=cause) as caught:
        conflist.parse(text.encode(), "/etc/cni/net.d/10-a.conf")
    assert "10-a.conf" in str(caught.value)


@given(st.dictionaries(KEYS, JSON, max_size=6))
def test_any_document_is_understood_or_refused(document: dict[str, object]) -> None:
    with contextlib.suppress(InvalidArgument):
        conflist.parse(json.dumps(document).encode(), "x")


def test_first_file_by_name_wins(tmp_path: Path) -> None:
    assert conflist.load(tmp_path / "none") is None
    (tmp_path / "20-b.conflist").write_text('{"name": "b", "plugins": [{"type": "ptp"}]}')
    (tmp_path / "10-a.conf").write_text('{"name": "a", "type": "ptp"}')
    (tmp_path / "00-readme.txt").write_text("not a network")
    network = conflist.load(tmp_path)
    assert network is not None
    assert network.name == "a"


def test_the_default_is_what_is_packaged(tmp_path: Path) -> None:
    packaged = Path(__file__).parents[2] / "src/orlop/cli/node/data/10-orlop.conflist"
    assert packaged.read_text() == conflist.default_conflist()
    (tmp_path / packaged.name).write_text(packaged.read_text())
    network = conflist.load(tmp_path)
    assert network is not None
    assert network.name == "orlop"
