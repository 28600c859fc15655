"""What the doctor says of an OCI runtime."""

from __future__ import annotations

import pytest

from orlop.cli.doctor import Check, judge_runtime


@pytest.mark.parametrize(
    ("name", "found", "level"),
    [
        ("runc", "1.1.5+ds1 (/usr/sbin/runc)", "warning"),
        ("runc", "1.2.7 (/usr/sbin/runc)", "warning"),
        ("runc", "1.2.8 (/usr/sbin/runc)", "ok"),
        ("runc", "1.3.2 (/usr/sbin/runc)", "warning"),
        ("runc", "1.3.3 (/usr/sbin/runc)", "ok"),
        ("runc", "1.5.0 (/usr/sbin/runc)", "ok"),
        ("runc", "1.4.0-rc.1 (/usr/sbin/runc)", "warning"),
        ("runc", "1.4.0 (/usr/sbin/runc)", "ok"),
        ("crun", "1.8.1 (/usr/bin/crun)", "ok"),
        ("youki", "0.1.0 (/usr/bin/youki)", "ok"),
        ("runc", "present (/usr/sbin/runc)", "ok"),
    ],
)
def test_a_runtime_older_than_the_fixes_is_told(name: str, found: str, level: str) -> None:
    check = judge_runtime(Check(area="handler process", name=name, level="ok", found=found))
    assert check.level == level
    if level == "warning":
        assert "CVE-2025-31133" in check.remedy
