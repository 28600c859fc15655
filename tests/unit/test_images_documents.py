"""Manifests and configurations."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import DataLoss, FailedPrecondition, OrlopError, ResourceExhausted, Unimplemented
from orlop.images.documents import MAX_LAYERS, Descriptor, Manifest, Platform, choose, read_config
from orlop.images.model import HealthCheck

OWN = Platform(architecture="amd64", os="linux")
ARM = Platform(architecture="arm64", os="linux")
DIGEST = "sha256:" + "ab" * 32
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 1}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 1}


def data(document: Any) -> bytes:
    return json.dumps(document).encode()


def entry(architecture: str, variant: str = "", letter: str = "a") -> dict[str, Any]:
    platform = {"os": "linux", "architecture": architecture, "variant": variant}
    return {"digest": "sha256:" + letter * 64, "size": 5, "platform": platform}


def test_a_manifest_is_taken_as_it_is() -> None:
    found = choose(data({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER, LAYER]}), "x", OWN)
    assert isinstance(found, Manifest)
    assert len(found.layers) == 2


def test_the_entry_for_this_machine_is_taken_from_an_index() -> None:
    attestation = {"digest": DIGEST, "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}}
    index = {"schemaVersion": 2, "manifests": [attestation, entry("arm64"), entry("amd64", letter="c")]}
    found = choose(data(index), "x", OWN)
    assert isinstance(found, Descriptor)
    assert found.digest == "sha256:" + "c" * 64


def test_the_best_variant_wins() -> None:
    index = {
        "schemaVersion": 2,
        "manifests": [entry("arm64"), entry("arm64", "v8", "b"), entry("arm64", "v9")],
    }
    found = choose(data(index), "x", ARM)
    assert isinstance(found, Descriptor)
    assert found.digest == "sha256:" + "b" * 64


def test_an_index_without_this_machine_names_both() -> None:
    index = {"schemaVersion": 2, "manifests": [entry("riscv64"), entry("amd64", "v3")]}
    with pytest.raises(FailedPrecondition, match=r"linux/amd64; there is .*linux/riscv64"):
        choose(data(index), "some/image:1", OWN)


@pytest.mark.parametrize(
    ("document", "error"),
    [
        ({"schemaVersion": 1, "fsLayers": []}, FailedPrecondition),
        (
            {"schemaVersion": 2, "config": {**CONFIG, "mediaType": "application/x"}, "layers": []},
            FailedPrecondition,
        ),
        ({"schemaVersion": 2, "config": {**CONFIG, "digest": "sha512:x"}, "layers": []}, FailedPrecondition),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": -1}, "layers": []}, DataLoss),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": "a"}, "layers": []}, DataLoss),
        ({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER] * (MAX_LAYERS + 1)}, ResourceExhausted),
        (
            {
                "schemaVersion": 2,
                "config": CONFIG,
                "layers": [{**LAYER, "mediaType": "x.tar+gzip+encrypted"}],
            },
            Unimplemented,
        ),
        ([], DataLoss),
    ],
)
def test_what_is_no_image_is_refused(document: Any, error: type[OrlopError]) -> None:
    with pytest.raises(error, match="x"):
        choose(data(document), "x", OWN)


def test_a_configuration_with_nulls() -> None:
    nulls = {
        "Entrypoint": None,
        "Cmd": ["a"],
        "Env": None,
        "Volumes": {"/b": {}, "/a": {}},
        "Labels": None,
        "OnBuild": None,
    }
    document = {"architecture": "amd64", "os": "linux", "config": nulls, "rootfs": {"diff_ids": [DIGEST]}}
    config, diff_ids = read_config(data(document), "x", OWN, 1)
    assert config.entrypoint == ()
    assert config.cmd == ("a",)
    assert config.volumes == ("/a", "/b")
    assert diff_ids == (DIGEST,)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            {"Test": ["CMD", "x"], "Interval": 5, "StartInterval": 7, "Retries": 2},
            HealthCheck(test=("CMD", "x"), interval=5, retries=2),
        ),
        ({"Test": ["NONE"]}, HealthCheck(test=("NONE",))),
        ({}, None), (None, None), ([], None), ("x", None), (7, None), ({"Test": []}, None),
        ({"Test": "x"}, None), ({"Test": ["CMD", "x"], "Interval": -1}, None),
        ({"Test": ["CMD", "x" * 40_000]}, None), ({"Test": ["x"] * 300}, None),
        ({"Test": ["CMD", "x"], "Timeout": 1 << 63}, None),
    ],
)  # fmt: skip
def test_a_health_check_that_nobody_understands_spoils_no_image(said: Any, found: HealthCheck | None) -> None:
    document = {"architecture": "amd64", "os": "linux", "config": {"Healthcheck": said}}
    config, _ = read_config(data(document), "x", OWN, 0)
    assert config.healthcheck == found
    assert read_config(data({"architecture": "amd64", "os": "linux"}), "x", OWN, 0)[0].healthcheck is None


def test_a_configuration_for_another_machine_or_of_other_layers() -> None:
    foreign = {"architecture": "riscv64", "os": "linux", "rootfs": {"diff_ids": []}}
    with pytest.raises(FailedPrecondition, match=r"linux/riscv64.*linux/amd64"):
        read_config(data(foreign), "x", OWN, 0)
    other = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": ["../../etc/passwd"]}}
    for layers in (1, 2):
        with pytest.raises(DataLoss, match="does not fit"):
            read_config(data(other), "x", OWN, layers)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["schemaVersion", "manifests", "config", "layers", "digest", "size", "platform", "rootfs"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_document_is_understood_or_refused(document: Any) -> None:
    for read in (lambda d: choose(d, "x", OWN), lambda d: read_config(d, "x", OWN, 1)):
        with contextlib.suppress(OrlopError):
            read(data(document))


@pytest.mark.parametrize("document", [b'{"mediaType": "\xff"}', b"[" * 100_000, b'{"manifests": "\\ud800"}'])
def test_text_that_is_no_text_is_a_damaged_document(document: bytes) -> None:
    with pytest.raises(DataLoss):
        choose(document, "x", OWN)
