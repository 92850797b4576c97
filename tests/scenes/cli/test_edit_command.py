"""`polyfield edit` as a user types it: files, exit codes and texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.ball_model import ball_model

from polyfield.fields import Model
from polyfield.fields.radiance import FIELDS
from polyfield.scenes.cli import main

ALL = "sphere:0,0,0,0.7"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ball_model(0.3).save("a.safetensors")
    return tmp_path


def edit(*more: str, model: str = "a.safetensors", out: str = "b.safetensors") -> int:
    return main(["edit", model, "--out", out, *more])


def edits_of(path: str) -> list[str]:
    return Model.load(path).provenance["edits"]


def test_one_line_sums_up_and_the_model_is_written(folder, capsys):
    before = Path("a.safetensors").read_bytes()
    assert edit("--erase", "box:-1,-1,-1,0,1,1", "--recolour", f"{ALL}=0.9,0.1,0.1") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    assert out.startswith("erase box:-1,-1,-1,0,1,1: ")
    for part in (
        " vertices, recolour sphere:0,0,0,0.7=0.9,0.1,0.1: ",
        " vertices; 15625 rows, ",
        " MB; b.safetensors\n",
    ):
        assert part in out
    model = Model.load("b.safetensors")
    assert 0 < int(model.occupancy.flags().sum()) < int(ball_model(0.3).occupancy.flags().sum())
    assert Path("a.safetensors").read_bytes() == before


def test_edits_are_done_in_the_order_typed_and_recorded(folder, capsys):
    away, there = f"--move={ALL}=0.66666667,0,0", "sphere:0.66666667,0,0,0.35"
    assert edit("--recolour", f"{ALL}=1,0,0", away, "--erase", there, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    expected = [f"recolour {ALL}=1,0,0", f"move {ALL}=0.66666667,0,0", f"erase {there}"]
    assert [one["edit"] for one in facts["edits"]] == expected == edits_of("b.safetensors")
    assert len({one["vertices"] for one in facts["edits"]}) == 1
    assert facts["format"] == "polyfield-edit"
    assert facts["rows"] == facts["model_rows"] == 25**3
    assert facts["bytes"] == Path("b.safetensors").stat().st_size
    assert edit("--erase", there, away, out="c.safetensors") == 2
    assert f"no vertex with density lies in {there}" in capsys.readouterr().err
    assert edit("--move", f"{ALL}=0,0,0,0.5", "--recolour", f"{ALL}=0,0,1", out="c.safetensors") == 0
    assert edit("--recolour", f"{ALL}=0,1,1", model="c.safetensors", out="d.safetensors") == 0
    assert edits_of("d.safetensors") == [f"move {ALL}=0,0,0,0.5", f"recolour {ALL}=0,0,1", f"recolour {ALL}=0,1,1"]


def check_refused(folder, capsys, text, *arguments, **files):
    before = sorted(folder.rglob("*"))
    assert edit(*arguments, **files) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert err.startswith("polyfield: error: ")
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "there is nothing to do: give --erase, --move or --recolour"),
        (("--erase", "cone:0,0,0,1"), "--erase cone:0,0,0,1: expected a region, box:X0,Y0,Z0,X1,Y1,Z1 or sphere:"),
        (("--erase", ""), "expected a region"),
        (("--erase", "sphere:0,0,0"), "expected sphere:X,Y,Z,RADIUS; got '0,0,0'"),
        (("--erase", "box:0,0,0,1,1"), "expected box:X0,Y0,Z0,X1,Y1,Z1; got '0,0,0,1,1'"),
        (("--erase", "box:0,0,0,1,1,a"), "expected box:X0,Y0,Z0,X1,Y1,Z1; got '0,0,0,1,1,a'"),
        (("--erase", "sphere:0,0,nan,1"), "sphere:0,0,nan,1: numbers must be finite"),
        (("--erase", "box:0,0,0,1,1,0"), "box:0,0,0,1,1,0 is empty"),
        (("--erase", "sphere:0,0,0,-1"), "sphere:0,0,0,-1 is empty: its radius must be positive"),
        (("--erase", f"{ALL}=1,0,0"), "expected a region alone, without '='"),
        (("--erase", "sphere:0.9,0.9,0.9,0.1"), "no vertex with density lies in sphere:0.9,0.9,0.9,0.1"),
        (("--move", ALL), "expected DX,DY,DZ or DX,DY,DZ,SCALE after '='; got ''"),
        (("--move", f"{ALL}=1,0"), "expected DX,DY,DZ or DX,DY,DZ,SCALE after '='; got '1,0'"),
        (("--move", f"{ALL}=0,0,0,0"), "the scale of a move must be positive; got 0"),
        (("--move", f"{ALL}=1,0,0"), "it ends outside [-1, 1]^3"),
        (("--recolour", f"{ALL}=1,0"), "expected R,G,B after '='; got '1,0'"),
        (("--recolour", f"{ALL}=1,0,2"), "red, green and blue from 0 to 1; got 1,0,2"),
        (("--paint", ALL), "unrecognized options: --paint"),
    ],
)
def test_bad_edits_are_one_line_and_code_2(folder, capsys, arguments, text):
    check_refused(folder, capsys, text, *arguments)


def test_bad_files_are_one_line_and_code_2(folder, capsys):
    whole = Path("a.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    Path("foreign.safetensors").write_bytes(b"PK" + whole[:200])
    model = ball_model()
    model.representation = FIELDS["planes"][0]()
    model.save("planes.safetensors")
    erase = ("--erase", ALL)
    for name, why in (
        ("cut", "is cut short"),
        ("foreign", "is not a safetensors file"),
        ("absent", "no such model file or run folder"),
        ("planes", "this is of kind planes: convert it with --to grid first"),
    ):
        check_refused(folder, capsys, why, *erase, model=f"{name}.safetensors")
    check_refused(folder, capsys, "a.safetensors exists; choose another --out", *erase, out="a.safetensors")
    check_refused(folder, capsys, "--out must end in .safetensors; got b.ply", *erase, out="b.ply")
    Path("file").write_text("mine")
    check_refused(folder, capsys, "could not be written", *erase, out="file/b.safetensors")
    assert Path("a.safetensors").read_bytes() == whole
