"""docs/cri.md names every metric there is, and no other."""

import re
from pathlib import Path

from orlop.cri.translate import metrics

DOCS = Path(__file__).parents[2] / "docs/cri.md"


def test_every_metric_is_in_the_docs() -> None:
    told = set(re.findall(r"`((?:container|orlop)_[a-z_]+)`", DOCS.read_text(encoding="utf-8")))
    assert told == {one.name for one in metrics.descriptors()}
