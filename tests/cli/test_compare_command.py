"""`archloop compare --at-budget`: designs at one size, in a table, as JSON and drawn."""

import json
from pathlib import Path

from typer.testing import CliRunner

from archloop.cli import app
from archloop.stack import cost
from archloop.stack.spec import StackSpec

SMALL = ("--at-budget", "60M", "--vocab-size", "4096")


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_designs_at_one_budget_with_their_costs(tmp_path: Path) -> None:
    status, out, _ = run(
        *SMALL, "lfm3", "llama", "mamba2", "--contexts", "1K,4096", "--json", "--specs",
        str(tmp_path)
    )  # fmt: skip
    assert status == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == ["lfm3", "llama", "mamba2"]
    for name, row in rows.items():
        spec = StackSpec.from_json((tmp_path / f"{name}.json").read_bytes())
        assert row["num_params"] == cost.num_params(spec)
        assert list(row["estimated"]) == ["1000", "4096"]
        for context, at in row["estimated"].items():
            assert at["state_bytes"] == cost.state_bytes(spec, int(context))
            assert at["prefill_flops"] == cost.prefill_flops(spec, int(context))
            assert at["decode_flops"] == cost.decode_flops(spec, int(context))
    state = {name: row["estimated"]["4096"]["state_bytes"] for name, row in rows.items()}
    assert state["lfm3"] < state["llama"]


def test_table_and_picture(tmp_path: Path) -> None:
    status, out, _ = run(*SMALL, "lfm3-1.7b", "qwen3-1.7b", "--plot", str(tmp_path / "designs.svg"))
    assert status == 0
    for words in ("state, MB (estimated)", "decode step, GFLOP (estimated)", "131,072", "6 gqa"):
        assert words in out
    picture = (tmp_path / "designs.svg").read_text()
    assert "<svg" in picture
    assert "lfm3-1.7b" in picture or "path" in picture
    status, _, err = run(*SMALL, "qwen3-1.7b", "--plot", str(tmp_path / "designs.gif"))
    assert (status, "designs.gif: draws .svg, .png, .pdf" in err) == (2, True)


def test_each_design_has_a_file_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "specs"
    status, _, err = run(*SMALL, "lfm3-1.7b", "qwen3-1.7b", "--json", "--specs", str(out))
    assert status == 0, err
    assert sorted(file.name for file in out.iterdir()) == ["lfm3-1.7b.json", "qwen3-1.7b.json"]
    named = [tmp_path / place / "mine.json" for place in ("here", "there")]
    for file, source in zip(named, out.iterdir(), strict=True):
        file.parent.mkdir()
        file.write_text(source.read_text())
    more = tmp_path / "more"
    status, _, err = run(*SMALL, *map(str, named), "--json", "--specs", str(more))
    assert (status, "would both be mine.json" in " ".join(err.split())) == (2, True)
    assert not more.exists()


def test_what_cannot_be_compared_is_said_in_one_line() -> None:
    for arguments, words in (
        (("--at-budget", "many", "lfm3"), "--at-budget 'many' is no number of parameters"),
        (("--at-budget", "9" * 310, "lfm3"), "is no number of parameters"),
        (("--at-budget", "1M", "lfm3"), "lfm3: no width of this design has 1,000,000 parameters"),
        ((*SMALL, "lfm9"), "lfm9: unknown preset 'lfm9'"),
        ((*SMALL, "lfm3", "--train", "1"), "--train needs --recipe"),
        (("lfm3", "--train", "1"), "belong to --at-budget"),
        (("lfm3-1.7b", "--vocab-size", "512"), "belong to --at-budget"),
        ((*SMALL, "lfm3", "--runtime", "openvino"), "give --profile too, or leave them out"),
        ((*SMALL, "lfm3", "--recipe", "a.yaml"), "--recipe belongs to --train"),
        # Before anything is measured.
        (
            (*SMALL, "lfm3", "llama", "--profile", "--train", "1", "--recipe", "nowhere.yaml"),
            "nowhere.yaml",
        ),
        (("lfm2.5",), "'lfm2.5' is a family of presets; name one: lfm2.5-2.6b, lfm2.5-230m"),
        ((*SMALL, "lfm3", "--contexts", "0"), "--contexts '0' is no number of tokens"),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert words in " ".join(err.split())
        assert err.count("\n") == 1


def test_designs_that_no_engine_runs_are_not_measured() -> None:
    status, _, err = run(*SMALL, "mamba3", "--profile", "--runtime", "llama_cpp", "--quant", "q8_0")
    assert status == 2
    assert "mamba3 is not measured" in err
    assert "--runtime llama_cpp runs none of the designs" in " ".join(err.split())
    status, _, err = run("lfm2-350m", "--profile")
    assert (status, "belong to --at-budget" in " ".join(err.split())) == (2, True)


def test_a_familys_name_is_its_smallest_preset() -> None:
    status, out, err = run(*SMALL, "qwen3", "lfm2.5", "--json")
    assert status == 0
    assert "lfm2.5: lfm2.5-230m, the smallest of " in err
    assert "qwen3:" not in err  # qwen3-next is another family
    rows = {row["name"]: row for row in json.loads(out)}
    assert set(rows["qwen3"]["layout"]) == {"gqa"}
