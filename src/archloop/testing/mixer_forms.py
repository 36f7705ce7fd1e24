"""Every way through a mixer gives the same numbers: whole, chunks, steps, padded, packed."""

import pytest
import torch

from archloop.blocks import checks
from archloop.blocks.base import State
from archloop.testing import modules as kit
from archloop.testing.modules import EXACT, Case


class MixerForms:
    """Every way through a mixer gives the same numbers: whole, chunks, steps, padded, packed."""

    @pytest.mark.parametrize("sizes", [[1, 6, 13, 1], [70, 61]], ids=str)
    def test_forward_equals_chunks_and_steps(self, case: Case, sizes: list[int]) -> None:
        mixer = kit.make(case)
        time = sum(sizes)
        x_BTD = kit.inputs(time)
        with torch.no_grad():
            full_BTD, _ = mixer(x_BTD)
        chunked, stepped = kit.init_state(mixer, time + 3), kit.init_state(mixer, time + 3)
        assert kit.error(kit.chunks(mixer, x_BTD, chunked, sizes), full_BTD) < EXACT
        num_steps = min(time, 40)
        assert (
            kit.error(checks.steps(mixer, x_BTD[:, :num_steps], stepped), full_BTD[:, :num_steps])
            < EXACT
        )
        mixer(x_BTD[:, num_steps:], stepped) if num_steps < time else None
        assert kit.state_error(stepped, chunked) < EXACT

    def test_continues_from_any_state_by_steps(self, case: Case) -> None:
        mixer = kit.make(case)
        x_BTD = kit.inputs(29)
        with torch.no_grad():
            full_BTD, _ = mixer(x_BTD)
        state = kit.init_state(mixer, 29)
        mixer(x_BTD[:, :17], state)
        assert (
            kit.error(checks.steps(mixer, x_BTD[:, 17:], state, start=17), full_BTD[:, 17:]) < EXACT
        )

    @pytest.mark.parametrize("num_prefilled", [0, 17, 131])
    def test_is_trained_as_it_decodes(self, case: Case, num_prefilled: int) -> None:
        x_BTD = kit.inputs(num_prefilled + 12)
        checks.whole_is_prefill_and_steps(kit.make(case), x_BTD, num_prefilled, EXACT)

    @pytest.mark.parametrize("first_changed", [1, 64, 130])
    def test_later_tokens_have_no_influence(self, case: Case, first_changed: int) -> None:
        x_BTD = kit.inputs(131)
        checks.later_tokens_have_no_influence(kit.make(case), x_BTD, first_changed, EXACT)
        mixer = kit.make(case, dtype=torch.float32)
        checks.gradients_reach_no_later_token(mixer, x_BTD.float(), first_changed - 1)

    def test_is_causal(self, case: Case) -> None:
        mixer = kit.make(case)
        x_BTD = kit.inputs(21)
        changed = x_BTD.clone()
        changed[:, 11:] += 3.0
        with torch.no_grad():
            assert kit.error(mixer(changed)[0][:, :11], mixer(x_BTD)[0][:, :11]) < EXACT
            assert (mixer(changed)[0][:, 11] - mixer(x_BTD)[0][:, 11]).abs().max() > 1e-6

    @pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
    def test_padding_changes_nothing_for_real_tokens(self, case: Case, warm: bool) -> None:
        mixer = kit.make(case)
        real, held = [7, 12], 5 if warm else 0
        x_BTD, past_BTD = kit.inputs(16), kit.inputs(held, seed=7)
        padded_BTD = 50 * kit.inputs(16, seed=3)
        mask_BT = torch.zeros(2, 16, dtype=torch.bool)
        mask_BT[0, 16 - real[0] :] = True  # left padding
        mask_BT[1, : real[1]] = True  # right padding
        padded_BTD[mask_BT] = x_BTD[mask_BT]
        state = kit.init_state(mixer, 20)
        if warm:
            mixer(past_BTD, state)
        y_BTD, _ = mixer(padded_BTD, state, mask_BT=mask_BT)
        stateless_BTD, _ = mixer(padded_BTD, mask_BT=mask_BT)
        for row in range(2):
            alone = kit.init_state(mixer, 20, batch=1)
            if warm:
                mixer(past_BTD[row : row + 1], alone)
            own_1TD = x_BTD[row][mask_BT[row]][None]
            want_1TD, _ = mixer(own_1TD, alone)
            assert kit.error(y_BTD[row][mask_BT[row]][None], want_1TD) < EXACT
            if not warm:
                assert kit.error(stateless_BTD[row][mask_BT[row]][None], want_1TD) < EXACT
            row_state = State(20, **{k: v[row : row + 1] for k, v in state.tensors.items()})
            assert kit.state_error(row_state, alone) < EXACT
        assert not y_BTD[~mask_BT].any()

    def test_padding_may_be_longer_than_the_state(self, case: Case) -> None:
        """Rows padded to a fixed length, with room for their real tokens only."""
        mixer = kit.make(case)
        x_BTD = kit.inputs(9)
        with torch.no_grad():
            full_BTD, _ = mixer(x_BTD)
        for room, split, longest in ((6, 3, 9), (9, 4, 9)):
            state = kit.init_state(mixer, room)
            mixer(x_BTD[:, :split], state)
            padded_BTD = torch.cat([x_BTD[:, split:room], 9 * kit.inputs(longest, seed=4)], 1)
            padded_BTD = padded_BTD[:, :longest]
            mask_BT = (torch.arange(longest) < room - split).expand(kit.BATCH, longest)
            y_BTD, _ = mixer(padded_BTD, state, mask_BT=mask_BT)
            assert kit.error(y_BTD[:, : room - split], full_BTD[:, split:room]) < EXACT

    def test_a_full_state_and_an_empty_call_are_refused(self, case: Case) -> None:
        mixer = kit.make(case)
        x_BTD, state = kit.inputs(5), kit.init_state(mixer, 4)
        for mask_BT in (None, torch.ones(kit.BATCH, 5, dtype=torch.bool)):
            with pytest.raises(ValueError, match=r"5 tokens.*max_context=4"):
                mixer(x_BTD, state, mask_BT=mask_BT)
        mixer(x_BTD[:, :4], state)
        with pytest.raises(ValueError, match=r"5 tokens.*max_context=4"):
            mixer.step(x_BTD[:, 4], state, positions_B=torch.full((kit.BATCH,), 4))
        with pytest.raises(ValueError, match="at least one token"):
            mixer(x_BTD[:, :0])

    def test_wrong_shapes_are_refused_not_broadcast(self, case: Case) -> None:
        mixer, one_BTD = kit.make(case), kit.inputs(4, batch=1)
        for rows, other_BTD in ((3, one_BTD), (1, kit.inputs(4, batch=3))):
            state, given = kit.init_state(mixer, 8, batch=rows), other_BTD.shape[0]
            if not state.tensors:  # no rows to compare
                continue
            with pytest.raises(ValueError, match=rf"{given} rows and its state {rows}"):
                mixer(other_BTD, state)
            with pytest.raises(ValueError, match=rf"{given} rows and its state {rows}"):
                mixer.step(
                    other_BTD[:, 0], state, positions_B=torch.zeros(given, dtype=torch.int64)
                )
            assert kit.state_error(kit.init_state(mixer, 8, batch=rows), state) == 0
        for wrong in (one_BTD[0], one_BTD[:0], one_BTD[..., :32]):
            with pytest.raises(ValueError, match=r"x_BTD has shape .*\(rows, tokens, d_model=64\)"):
                mixer(wrong)
        for name in ("mask_BT", "segments_BT", "positions_BT"):
            with pytest.raises(ValueError, match=rf"{name} has shape \(1, 4\); must be \(3, 4\)"):
                mixer(one_BTD.expand(3, -1, -1), **{name: torch.ones(1, 4, dtype=torch.bool)})

    def test_packed_sequences_do_not_leak(self, case: Case) -> None:
        mixer = kit.make(case)
        x_BTD = kit.inputs(23)
        segments_BT = torch.tensor([[0] * 9 + [1] * 14, [4] * 1 + [2] * 15 + [4] * 7])
        with torch.no_grad():
            y_BTD, _ = mixer(x_BTD, segments_BT=segments_BT)
            for row, start, stop in ((0, 0, 9), (0, 9, 23), (1, 0, 1), (1, 1, 16), (1, 16, 23)):
                alone, _ = mixer(x_BTD[row : row + 1, start:stop])
                assert kit.error(y_BTD[row : row + 1, start:stop], alone) < EXACT

    def test_packing_takes_no_state(self, case: Case) -> None:
        mixer = kit.make(case)
        segments_BT = torch.zeros(kit.BATCH, 4, dtype=torch.int64)
        with pytest.raises(ValueError, match="segments_BT"):
            mixer(kit.inputs(4), kit.init_state(mixer, 4), segments_BT=segments_BT)

    def test_rows_are_independent(self, case: Case) -> None:
        mixer = kit.make(case)
        x_BTD = kit.inputs(19, batch=3)
        other = x_BTD.clone()
        other[1:] = 9.0
        with torch.no_grad():
            assert kit.error(mixer(other)[0][:1], mixer(x_BTD)[0][:1]) < EXACT

    def test_state_is_written_in_place_and_snapshots_restore(self, case: Case) -> None:
        mixer = kit.make(case)
        x_BTD = kit.inputs(11)
        state = kit.init_state(mixer, 16)
        addresses = {name: tensor.data_ptr() for name, tensor in state.tensors.items()}
        mixer(x_BTD[:, :6], state)
        saved = state.snapshot()
        first = checks.steps(mixer, x_BTD[:, 6:], state, start=6)
        state.restore(saved)
        again = checks.steps(mixer, x_BTD[:, 6:], state, start=6)
        assert torch.equal(first, again)
        assert {name: tensor.data_ptr() for name, tensor in state.tensors.items()} == addresses
