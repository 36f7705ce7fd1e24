"""The contract of checkpoint layouts: whole, bit-exact, and the same logits as transformers."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from archloop import checkpoints
from archloop.checkpoints import families
from archloop.checkpoints.layouts.base import Layout
from archloop.errors import UserError
from archloop.stack import cost, weights
from archloop.stack.decoder import Decoder
from archloop.testing.contract import Contract


def random(decoder: Decoder) -> Decoder:
    """Every number drawn, norms and biases too, so that no two could be confused."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in weights.tensors(decoder).items():
            tensor.normal_(std=0.2)
            if "norm" in name:
                tensor.add_(1)
    return decoder.eval()


class LayoutContract(Contract):
    """Tests of checkpoint layouts, on each of their own `examples`."""

    kind: ClassVar[str] = "layouts"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once for each example of each layout."""
        super().pytest_generate_tests(metafunc)
        if "layout" in metafunc.fixturenames:
            layouts = [families.layout(name) for name in self.plugins()]
            cases = [
                pytest.param(layout, example, id=f"{layout.name}-{number}")
                for layout in layouts
                for number, example in enumerate(layout.examples)
            ]
            metafunc.parametrize("layout, example", cases)

    def test_each_number_has_one_place_on_either_side(
        self, layout: Layout, example: dict[str, Any]
    ) -> None:
        spec = layout.read(example)
        targets = weights.tensors(Decoder(spec))
        for variant in layout.variants:
            taken = {name: torch.zeros(tensor.shape) for name, tensor in targets.items()}
            given: dict[str, torch.Tensor] = {}
            for piece in layout.pieces(spec, variant):
                whole = given.setdefault(piece.name, torch.zeros(piece.shape))
                assert whole.shape == piece.shape, piece.name
                part = whole[piece.source] if piece.source else whole
                part += 1
                target = taken[piece.target][piece.into] if piece.into else taken[piece.target]
                target += 1
                assert part.numel() == target.numel(), piece
            assert all(bool((tensor == 1).all()) for tensor in given.values())
            assert all(bool((tensor == 1).all()) for tensor in taken.values())

    def test_a_configuration_is_read_as_it_is_written(
        self, layout: Layout, example: dict[str, Any]
    ) -> None:
        spec = layout.read(example)
        again = layout.read(layout.write(spec))
        assert cost.num_params(again) == cost.num_params(spec)
        assert layout.write(again) == layout.write(spec)
        assert families.reading(example).name == layout.name

    def test_what_is_saved_is_what_is_loaded(
        self, layout: Layout, example: dict[str, Any], tmp_path: Path
    ) -> None:
        for variant in layout.variants:
            for dtype in (torch.float32, torch.bfloat16):
                decoder = random(Decoder(layout.read(example))).to(dtype)
                folder = tmp_path / f"{variant}-{dtype}"
                checkpoints.save(
                    decoder, folder, layout=layout.name, variant=variant, max_shard_bytes=9_000
                )
                wanted, found = weights.tensors(decoder), weights.tensors(checkpoints.load(folder))
                assert found.keys() == wanted.keys()
                for name, tensor in wanted.items():
                    assert found[name].dtype == tensor.dtype, name
                    assert torch.equal(found[name], tensor), name

    def test_keys_that_nobody_reads_are_refused(
        self, layout: Layout, example: dict[str, Any]
    ) -> None:
        """Those that change nothing pass, at the values where they do."""
        for key in ("no_such_key", "quantization_config", "auto_map"):
            with pytest.raises(UserError, match=f"{key}.*not understood"):
                layout.read({**example, key: {"a": 1}})
            layout.read({**example, key: None})
        layout.read(
            {**example, "tokenizer_class": "X", "attention_dropout": 0.1, "is_decoder": True}
        )
        layout.read(
            {**example, "pad_token_id": 0, "temperature": 0.3, "tie_encoder_decoder": False}
        )

    def test_logits_are_those_of_transformers(
        self, layout: Layout, example: dict[str, Any], tmp_path: Path
    ) -> None:
        """Both ways: what they save we load, what we save they load. Whole, and in steps."""
        transformers = pytest.importorskip("transformers")
        settings = {k: v for k, v in example.items() if k != "model_type"}
        config = transformers.AutoConfig.for_model(example["model_type"], **settings)
        theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                # Norms near what they begin with: 1, or 0 where they multiply by 1 + w.
                begun = parameter.clone() if "norm" in name else 0
                parameter.normal_(std=layout.example_std).add_(begun)
        theirs.save_pretrained(tmp_path / "theirs")
        ours = checkpoints.load(tmp_path / "theirs")
        seeded = torch.Generator().manual_seed(1)
        ids_BT = torch.randint(0, config.vocab_size, (2, 70), generator=seeded)
        with torch.no_grad():
            wanted_BTV = theirs(ids_BT).logits
            found_BTV = ours(ids_BT)
        scale = float(wanted_BTV.abs().max())
        torch.testing.assert_close(found_BTV, wanted_BTV, rtol=0, atol=1e-5 * scale)
        state = ours.init_state(2, 80)
        ours.prefill(ids_BT[:, :51], state)
        for at in range(51, 70):
            logits_BV = ours.step(ids_BT[:, at], state)
            torch.testing.assert_close(logits_BV, wanted_BTV[:, at], rtol=0, atol=1e-5 * scale)
        self._check_chunks_and_padding(ours, ids_BT, wanted_BTV, 1e-5 * scale)
        checkpoints.save(ours, tmp_path / "ours", layout=layout.name)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
        held, wanted = again.state_dict(), theirs.state_dict()
        assert held.keys() == wanted.keys()
        assert all(torch.equal(held[name], tensor) for name, tensor in wanted.items())
        with torch.no_grad():
            # How a mixer's sums are cut into chunks, which orders them, is no part of our spec.
            torch.testing.assert_close(again(ids_BT).logits, wanted_BTV, rtol=0, atol=1e-5 * scale)

    def _check_chunks_and_padding(
        self, ours: Decoder, ids_BT: torch.Tensor, wanted_BTV: torch.Tensor, atol: float
    ) -> None:
        """Chunks of odd lengths, rows padded on either side, and rows packed into one."""
        close = partial(torch.testing.assert_close, rtol=0, atol=atol)
        with torch.no_grad():
            state = ours.init_state(2, 80)
            cuts = (0, 1, 4, 33, 70)
            for start, end in pairwise(cuts):
                close(ours(ids_BT[:, start:end], state), wanted_BTV[:, start:end])
            for side in (0, 9):
                padded_BT = torch.zeros(2, 79, dtype=torch.long)
                mask_BT = torch.zeros(2, 79, dtype=torch.bool)
                padded_BT[:, side : side + 70], mask_BT[:, side : side + 70] = ids_BT, True
                found_BTV = ours(padded_BT, mask_BT=mask_BT)
                close(found_BTV[:, side : side + 70], wanted_BTV)
            segments_1T = torch.arange(2).repeat_interleave(70)[None]
            packed_1TV = ours(ids_BT.reshape(1, -1), segments_BT=segments_1T)
            close(packed_1TV.view_as(wanted_BTV), wanted_BTV)
