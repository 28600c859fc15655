"""What packaging/kubernetes runs for volumes is what `make csi-life` builds and tries."""

from __future__ import annotations

import re

from tests.csi_life import sidecars
from tests.csi_life.room import PACKAGED


def test_the_manifests_name_the_versions_that_are_tried() -> None:
    texts = [(sidecars.MANIFESTS / name).read_text() for name in PACKAGED]
    found = re.findall(r"^ *image: registry\.k8s\.io/sig-storage/(\S+):(\S+)$", "\n".join(texts), re.M)
    assert sorted(found) == sorted((name, sidecars.version(name)) for name in sidecars.MODULES)
