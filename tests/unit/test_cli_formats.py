"""What `--format` and `--filter` understand, and what they refuse."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.cli import filters, formats, images, output, processes, ps, units
from orlop.cli.formats import Age, Bytes, Id, Printer, Shape, TextTemplate
from orlop.cli.problems import CliError
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument

SHAPE = Shape({"ID": "THE ID", "Name": "NAME", "Size": "SIZE", "Labels": "LABELS"}, ("ID", "Size"))
ROW = {"ID": Id("sha256:" + "0123456789abcdef" * 4), "Name": "one", "Size": Bytes(2048), "Labels": {"a": "b"}}


def printed(text: str, capsys: pytest.CaptureFixture[str], *, whole: bool = False) -> str:
    Printer(SHAPE, text, whole=whole).show([ROW])
    return capsys.readouterr().out


def test_a_list_is_a_table_json_or_a_template(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed("", capsys) == "THE ID          SIZE\n0123456789abc   2.0 KiB\n"
    assert printed("", capsys, whole=True).splitlines()[1].startswith(ROW["ID"])
    assert json.loads(printed("json", capsys)) == [{**ROW, "Size": 2048}]
    assert printed("{{.ID}} {{ .Name }}", capsys) == "0123456789abc one\n"
    assert printed("{{.ID}}", capsys, whole=True) == ROW["ID"] + "\n"
    assert printed(r"a\t{{.Labels}}\n{{.Labels.a}}", capsys) == "a\ta=b\nb\n"
    assert json.loads(printed("{{json .}}", capsys)) == {**ROW, "Size": 2048}
    assert printed("{{json .Labels}}{{.Size}}", capsys) == '{"a": "b"}2.0 KiB\n'
    assert printed(r"table {{.Name}}\t<{{.Size}}>", capsys) == "NAME   <SIZE>\none    <2.0 KiB>\n"
    assert printed("table {{.Labels.a}}", capsys) == "LABELS\nb\n"
    assert printed("table", capsys) == printed("", capsys)


def test_only_the_fields_that_are_shown_are_asked_for() -> None:
    assert Printer(SHAPE).fields == {"ID", "Size"}
    assert Printer(SHAPE, "{{.Name}}").fields == {"Name"}
    assert Printer(SHAPE, "table {{.Labels.a}}").fields == {"Labels"}
    assert Printer(SHAPE, "json").fields == Printer(SHAPE, "{{json .}}").fields == set(SHAPE.headings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{{.Nope}}", "no field Nope: there are ID, Name, Size, Labels"),
        ("{{range .Labels}}{{.}}{{end}}", "not {{range .Labels}}"),
        ("{{.Name | upper}}", "not {{.Name | upper}}"),
        ("{{index .Labels 0}}", "understands"),
        ("{{.}}", "understands"),
        ("{{}}", "understands"),
        ("{{.Name", "write json"),
        ("yaml", "write json"),
        ("{{.Name}} {{", "write json"),
    ],
)
def test_what_is_not_understood_is_refused_before_anything_is_asked(text: str, said: str) -> None:
    with pytest.raises(CliError) as caught:
        Printer(SHAPE, text)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_a_field_below_one_that_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CliError, match=r"no field Name\.First: it has none below"):
        printed("{{.Name.First}}", capsys)
    with pytest.raises(CliError, match=r"there are Labels\.a"):
        printed("{{.Labels.c}}", capsys)


def test_documents(capsys: pytest.CaptureFixture[str]) -> None:
    one = {"State": {"Status": "running", "Paused": False}, "Args": ["a", "b"], "None": None}
    formats.show_documents("{{.State.Status}} {{.State.Paused}} {{.Args}}{{.None}}", [one, one])
    assert capsys.readouterr().out == "running false a,b\n" * 2
    formats.show_documents("json", [one])
    assert json.loads(capsys.readouterr().out) == [one]
    formats.show_document("json", one)
    assert json.loads(capsys.readouterr().out) == one
    with pytest.raises(CliError, match=r"no field State\.Nope: there are State\.Status, State\.Paused"):
        formats.show_documents("{{.State.Nope}}", [one])


@given(st.text(alphabet="{}. jsonID\\t|"))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        TextTemplate(text).fill(ROW)
    except CliError as error:
        assert error.exit_code == 2


def test_filters() -> None:
    wanted = filters.parse(["name=a", "name=b", "label=x=1", "label=y"], ["name", "label"])
    assert wanted == {"name": ["a", "b"], "label": ["x=1", "y"]}
    tests: dict[str, filters.Test] = {
        "name": lambda one, text: one["name"] == text,
        "label": lambda one, text: filters.labelled(one["labels"], text),
    }
    both = {"x": "1", "y": "2"}
    assert filters.matches({"name": "b", "labels": both}, wanted, tests)
    assert not filters.matches({"name": "c", "labels": both}, wanted, tests)
    assert not filters.matches({"name": "a", "labels": {"x": "1"}}, wanted, tests)
    for wrong, said in (("kind=x", "there are name, label"), ("name", "write name=VALUE")):
        with pytest.raises(InvalidArgument, match=said):
            filters.parse([wrong], ["name", "label"])


@pytest.mark.parametrize("text", ["status=up", "exited=x", "name=(", "volume=x"])
def test_filters_of_containers_that_make_no_sense(text: str) -> None:
    with pytest.raises(InvalidArgument, match="--filter"):
        ps.checked_filters([text])


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("busybox", True),
        ("library/busybox", True),
        ("docker.io/library/busybox:1", True),
        ("busybox:*", True),
        ("*box", True),
        ("box", False),
        ("busybox:2", False),
    ],
)
def test_images_by_reference(pattern: str, found: bool) -> None:
    image = pb.Image(id="sha256:0", repo_tags=["docker.io/library/busybox:1"])
    assert images.referred(image, pattern) is found


def test_times() -> None:
    now = time.time()
    assert units.moment("", 5.0) == 5.0
    assert units.moment("1700000000.5", 0) == 1700000000.5
    assert units.moment("2026-01-31T12:00:00Z", 0) == units.moment("2026-01-31T13:00:00+01:00", 0)
    assert now - 5401 < units.moment("1h30m", 0) <= time.time() - 5400
    for wrong in ("yesterday", "10x", "1h30", "-5m"):
        with pytest.raises(InvalidArgument, match="is no time"):
            units.moment(wrong, 0)
    assert json.dumps(Age(5)) == "5" and str(Age(0)) == "-"


def test_processes_are_those_of_the_container_without_the_script() -> None:
    field, end = "==field==\n", "==end==\n"
    group = "0::/\n"

    def one(pid: int, parent: int, name: str, words: str, where: str = group) -> str:
        numbers = "0 " * 9 + "150 60 " + "0 " * 20
        stat = f"{pid} ({name}) S {parent} {numbers}\n{where}"
        return f"{stat}{field}Name:\tx\nUid:\t7\t7\t7\t7\n{field}{words}{end}"

    told = f"50\n{group}{end}"
    told += one(9, 1, "a b) c", "sleep\x005\x00") + one(50, 1, "sh", "sh\0-c\0") + one(51, 50, "cat", "cat")
    told += one(12, 1, "a\n\x1b[2J)", "")
    told += f"70 (gone) R 1{end}"
    told += one(60, 1, "other", "other", "0::/../x\n") + one(3, 1, "kworker", "") + "half of one"
    assert processes.parse(told) == [
        ("7", "3", "1", "S", "0:02", "[kworker]"),
        ("7", "9", "1", "S", "0:02", "sleep 5"),
        ("7", "12", "1", "S", "0:02", "[a  [2J)]"),
    ]


def test_a_cell_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["A", "B"], [["\x1b]0;x\x07", "\x9b2J\nzwölf"]])
    assert capsys.readouterr().out == "A              B\n\\x1b]0;x\\x07   \\x9b2J\\nzwölf\n"
