"""What the documentation names is there: pages, their sections, files, targets of make, tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
SECTION = re.compile(r"\[[^\]]*\]\(([^)#\s:]*)#([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/.-])((?:src|tests|packaging|bench|scripts)/[\w./-]*\w)(?![\w/{*-])")
TARGET = re.compile(r"`make ([a-z0-9-]+)")
TEST = re.compile(r"`(test_\w+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def sections(page: Path) -> set[str]:
    """The names that a page's headings have in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    links = [(page.parent / link if link else page, name) for link, name in SECTION.findall(text)]
    assert not [f"{target.name}#{name}" for target, name in links if name not in sections(target)]
    assert not [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert not set(TARGET.findall(text)) - targets
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in TEST.findall(text) if f"def {name}(" not in sources]


def test_the_readme_names_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    absent = [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in linked]
    assert not absent
