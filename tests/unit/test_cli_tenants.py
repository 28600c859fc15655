"""``orlop tenants`` where the packages of its extra are not installed."""

from __future__ import annotations

import sys

import pytest

from orlop.cli import main


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extra."""
    for name in [*sys.modules]:
        if name.split(".")[0] in ("lightkube", "httpx2") or name == "orlop.tenants.api":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightkube", None)
    monkeypatch.setitem(sys.modules, "httpx2", None)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["orlop", "tenants", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(
    "words", [["ls"], ["show", "a"], ["kubeconfig", "a", "b"], ["operator"]], ids=" ".join
)
def test_what_is_to_be_installed_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(monkeypatch, *words) == 1
    assert "pip install 'orlop[tenants]'" in capsys.readouterr().err


@pytest.mark.usefixtures("plain")
def test_what_is_installed_is_printed_without_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "install", "--image", "example/operator:1", "--handler", "orlop") == 0
    printed = capsys.readouterr().out
    assert "image: example/operator:1" in printed
    assert "- orlop" in printed
