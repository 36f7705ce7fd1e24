"""archloop export --format transformers: stacks of every family, and which field is in the way."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from archloop import checkpoints
from archloop.checkpoints import families, padding
from archloop.cli import app
from archloop.runtimes.exporting import build_random
from archloop.search import plan
from archloop.search.recipe.recipe import load
from archloop.space import seeding
from archloop.space.specs import to_spec
from archloop.stack.spec import BlockSpec, ChannelMixerSpec, MixerSpec, StackSpec

transformers = pytest.importorskip("transformers")
RECIPES = Path(__file__).parents[2] / "recipes"


def stack(pattern: str, *expansions: float, **attention: object) -> StackSpec:
    mixers = {
        "C": MixerSpec(name="short_conv"),
        "A": MixerSpec(name="gqa", config={"head_dim": 32, **attention}),
        "M": MixerSpec(name="mamba2"),
        "G": MixerSpec(name="gla"),
    }
    widths = expansions or (2.0,) * len(pattern)
    blocks = tuple(
        BlockSpec(
            mixers=(mixers[letter],),
            channel_mixer=ChannelMixerSpec(name="swiglu", config={"expansion": width}),
        )
        for letter, width in zip(pattern, widths, strict=True)
    )
    return StackSpec(d_model=64, vocab_size=128, blocks=blocks)


def export(spec: StackSpec, folder: Path, *more: str) -> tuple[int, str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "spec.json").write_text(spec.to_json())
    call = ["export", str(folder / "spec.json"), "--format", "transformers"]
    result = CliRunner().invoke(app, [*call, "-o", str(folder / "out"), *more])
    return result.exit_code, result.stdout, result.stderr


def logits_of_transformers(folder: Path, ids_BT: torch.Tensor) -> torch.Tensor:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = theirs(ids_BT).logits
    return found


@pytest.mark.parametrize(
    "spec, model_type",
    [
        (stack("CACC"), "lfm2"),
        (stack("AA", qk_norm=False), "llama"),
        (stack("MAM", qk_norm=False), "granitemoehybrid"),
    ],
    ids=["lfm2", "llama", "granite"],
)
def test_transformers_loads_it_with_the_same_logits(
    spec: StackSpec, model_type: str, tmp_path: Path
) -> None:
    status, told, problem = export(spec, tmp_path, "--json")
    assert status == 0, problem
    facts = json.loads(told)
    assert (facts["model_type"], facts["weights"]) == (model_type, "random")
    assert facts["parity_error"] < 1e-4
    ids_BT = torch.arange(40).reshape(2, 20)
    wanted_BTV = build_random(spec, 0)(ids_BT)
    found_BTV = logits_of_transformers(tmp_path / "out", ids_BT)
    scale = float(wanted_BTV.abs().max())
    torch.testing.assert_close(found_BTV, wanted_BTV, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(
    "spec, named",
    [
        (stack("CACC", 2.0, 2.0, 3.0, 2.0), r"lfm2: block 2 has channel_mixer\.d_ff=192"),
        (stack("CACC", scale=0.3), r"lfm2: block 1 has mixers\[0\]\.scale=0\.3"),
        (stack("CACG"), "lfm2: block 3 has the mixer gla"),
        (stack("AAGA", qk_norm=False), "llama: block 2 has the mixer gla"),
    ],
)
def test_the_first_field_in_the_way_of_the_nearest_family_is_named(
    spec: StackSpec, named: str, tmp_path: Path
) -> None:
    status, _, problem = export(spec, tmp_path)
    assert status == 2
    assert problem.count("\n") == 1
    with pytest.raises(ValueError, match=f"nearest is {named}"):
        families.saying(spec)
    assert ("--pad" in problem) == ("d_ff" in named)
    assert ("--runtime torch_eager writes" in problem) == ("d_ff" not in named)
    assert "layout=" not in problem
    assert not (tmp_path / "out").exists()


def test_a_width_by_block_is_filled_up_with_zeros(tmp_path: Path) -> None:
    spec = stack("CACC", 2.0, 3.0, 2.5, 2.0)
    decoder = build_random(spec, 3)
    wide = padding.padded(decoder)
    assert len({str(block.channel_mixer) for block in wide.spec.blocks}) == 1
    ids_BT = torch.arange(60).reshape(2, 30)
    torch.testing.assert_close(wide(ids_BT), decoder(ids_BT), rtol=1e-5, atol=1e-5)
    state = wide.init_state(2, 40)
    wide.prefill(ids_BT[:, :20], state)
    torch.testing.assert_close(
        wide.step(ids_BT[:, 20], state), decoder(ids_BT)[:, 20], rtol=1e-4, atol=1e-5
    )
    checkpoints.save(decoder, tmp_path / "mine", layout="archloop")
    call = ["export", str(tmp_path / "mine"), "--format", "transformers", "--pad"]
    shown = CliRunner().invoke(app, [*call, "-o", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "zeros to fill up" in shown.stdout
    found_BTV = logits_of_transformers(tmp_path / "out", ids_BT)
    torch.testing.assert_close(found_BTV, decoder(ids_BT), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["swiglu", "relu2"])
def test_an_adapter_is_filled_up_as_what_it_adds_to(name: str) -> None:
    blocks = tuple(
        BlockSpec(
            channel_mixer=ChannelMixerSpec(
                name=name, config={"expansion": width, "adapter_rank": 4}
            )
        )
        for width in (2.0, 3.0)
    )
    decoder = build_random(StackSpec(d_model=64, vocab_size=128, blocks=blocks), 3)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.3)
    ids_BT = torch.arange(60).reshape(2, 30)
    torch.testing.assert_close(
        padding.padded(decoder)(ids_BT), decoder(ids_BT), rtol=1e-4, atol=1e-5
    )


def test_stacks_of_the_quickstart_are_of_a_family_once_their_widths_are_one() -> None:
    recipe = plan.resolve(load(RECIPES / "quickstart.yaml"))
    layouts = {
        "lfm2": ["short_conv", "short_conv", "gqa", "short_conv", "gqa", "short_conv"],
        "qwen3": ["gqa"] * 6,
        "granite_hybrid": ["mamba2"] * 6,
    }
    for layout in layouts.values():
        spec = to_spec(recipe.space, seeding.from_layout(recipe.space, layout), "ship")
        family, _ = families.saying(padding.padded_spec(spec))
        assert family.name in layouts


def test_one_of_the_two_ways_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(stack("CA").to_json())
    for options, what in [
        ((), "give one of --runtime NAME and --format"),
        (("--format", "gguf"), "--runtime, such as llama_cpp"),
        (("--format", "transformers", "--quant", "int8"), "--quant belongs to --runtime"),
        (("--runtime", "torch_eager", "--pad"), "--pad belongs to --format"),
    ]:
        call = ["export", str(tmp_path / "spec.json"), "-o", str(tmp_path / "out"), *options]
        shown = CliRunner().invoke(app, call)
        assert (shown.exit_code, what in shown.stderr) == (2, True), shown.stderr
