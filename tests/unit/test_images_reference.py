"""Names of images."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.images.reference import parse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("127.0.0.1:5000/a/b:tag", "127.0.0.1:5000/a/b:tag"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        (f"a.b/c@{DIGEST}", f"a.b/c@{DIGEST}"),
        (f"a.b/c:tag@{DIGEST}", f"a.b/c@{DIGEST}"),
        ("Example/app", "Example/app:latest"),
    ],
)
def test_names_are_completed(text: str, full: str) -> None:
    assert str(parse(text)) == full
    assert str(parse(full)) == full


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        ("a.b/Upper", "lower case"),
        ("a b", "invalid"),
        ("a:", "tag"),
        ("a:-x", "tag"),
        ("a@sha256:12", "digest"),
        ("a@md5:" + "a" * 32, "digest"),
        ("a..b/c", "registry"),
        ("a/../b", "invalid"),
        ("a//b", "invalid"),
        ("--tls-verify=false", "invalid"),
        ("a.b:123456/c", "registry"),
        ("a" * 300, "longer"),
        ("x" * 5000, "too long"),
        ("f" * 64, "id"),
    ],
)
def test_what_is_no_name_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        parse(text)


@given(st.text(max_size=80))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        reference = parse(text)
    except InvalidArgument:
        return
    assert str(parse(str(reference))) == str(reference)
    assert not str(reference).startswith("-")
