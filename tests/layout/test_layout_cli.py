"""`dsv4core layout`: what it prints is what the layout computes."""

import argparse
import json

import pytest

from dsv4core.cli import layout as command
from dsv4core.cli import main
from dsv4core.layout import layouts


def call(capsys, *argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.add_arguments(parser)
    code = command.run(parser.parse_args(argv))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_list(capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0
    for layout in layouts():
        assert layout.id in out
    assert "37440" in out


@pytest.mark.parametrize("argv", [("list", "--json"), ("--json", "list")])
def test_list_json(capsys, argv):
    code, out, _ = call(capsys, *argv)
    assert code == 0
    assert [page["id"] for page in json.loads(out)] == [layout.id for layout in layouts()]


@pytest.mark.parametrize("layout_id", [layout.id for layout in layouts()])
@pytest.mark.parametrize("rows", ["1", "2", "3", "64"])
def test_show_every_layout(capsys, layout_id, rows):
    code, out, _ = call(capsys, "show", layout_id, "--rows", rows)
    assert code == 0
    _, text, _ = call(capsys, "show", layout_id, "--rows", rows, "--json")
    page = json.loads(text)
    assert page["fingerprint"] in out
    assert str(page["page_bytes"]) in out
    for field in page["fields"]:
        assert field["name"] in out
        assert field["formula"] in out
    assert page["payload_bytes"] + page["padding_bytes"] == page["page_bytes"]


def test_show_draws_the_page(capsys):
    _, out, _ = call(capsys, "show", "fp8_ds_mla")
    lines = out.splitlines()
    assert "   36288  row  63   | nope 448 | rope 128 |" in lines
    assert "   37368  tail 63   | scale 7 | scale_pad 1 |" in lines
    assert "   37376            | (padding, never written) 64 |" in lines
    assert "64 * (576 + 8) = 37376 bytes and 64 of padding to a multiple of 576: 37440" in out


def test_through_the_main_command(capsys):
    assert main(["layout", "show", "index_fp8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["page_bytes"] == 8640
    assert main(["layout", "show", "index_fp9"]) == 2
    assert "did you mean 'index_fp8'?" in capsys.readouterr().err


def test_state_width(capsys):
    _, out, _ = call(capsys, "show", "state_f32", "--width", "256", "--json")
    assert json.loads(out)["page_bytes"] == 8640


@pytest.mark.parametrize(
    "argv",
    [
        ("show", "nothing"),
        ("show", "bf16_row", "--rows", "0"),
        ("show", "bf16_row", "--width", "7"),
    ],
)
def test_errors_exit_2_with_the_reason(capsys, argv):
    code, out, err = call(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("dsv4core layout: layout ")
