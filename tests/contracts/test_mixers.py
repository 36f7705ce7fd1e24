"""What must hold for every sequence mixer, whatever its family (the table of contracts in
`blocks.base`). Runs over the registry: a new file in blocks/mixers/ is tested with no edit here.
"""

from typing import Any

import pytest
import torch

from archloop import registry
from archloop.blocks.base import SequenceMixer, State
from contracts import mixers as kit

Case = tuple[str, dict[str, Any]]

EXACT = 1e-9
every_case = pytest.mark.parametrize("case", kit.cases(), ids=kit.case_id)


def init_state(
    mixer: SequenceMixer,
    max_context: int,
    batch: int = kit.BATCH,
    dtype: torch.dtype = torch.float64,
) -> State:
    return mixer.init_state(batch, max_context, dtype)


@every_case
@pytest.mark.parametrize("sizes", [[1, 6, 13, 1], [70, 61]], ids=str)
def test_forward_equals_chunks_and_steps(case: Case, sizes: list[int]) -> None:
    mixer = kit.make(case)
    time = sum(sizes)
    x_BTD = kit.inputs(time)
    with torch.no_grad():
        full_BTD, _ = mixer(x_BTD)
    chunked, stepped = init_state(mixer, time + 3), init_state(mixer, time + 3)
    assert kit.error(kit.chunks(mixer, x_BTD, chunked, sizes), full_BTD) < EXACT
    num_steps = min(time, 40)
    assert (
        kit.error(kit.steps(mixer, x_BTD[:, :num_steps], stepped), full_BTD[:, :num_steps]) < EXACT
    )
    mixer(x_BTD[:, num_steps:], stepped) if num_steps < time else None
    assert kit.state_error(stepped, chunked) < EXACT


@every_case
def test_continues_from_any_state_by_steps(case: Case) -> None:
    mixer = kit.make(case)
    x_BTD = kit.inputs(29)
    with torch.no_grad():
        full_BTD, _ = mixer(x_BTD)
    state = init_state(mixer, 29)
    mixer(x_BTD[:, :17], state)
    assert kit.error(kit.steps(mixer, x_BTD[:, 17:], state, start=17), full_BTD[:, 17:]) < EXACT


@every_case
def test_is_causal(case: Case) -> None:
    mixer = kit.make(case)
    x_BTD = kit.inputs(21)
    changed = x_BTD.clone()
    changed[:, 11:] += 3.0
    with torch.no_grad():
        assert kit.error(mixer(changed)[0][:, :11], mixer(x_BTD)[0][:, :11]) < EXACT
        assert (mixer(changed)[0][:, 11] - mixer(x_BTD)[0][:, 11]).abs().max() > 1e-6


@every_case
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_padding_changes_nothing_for_real_tokens(case: Case, warm: bool) -> None:
    mixer = kit.make(case)
    real, held = [7, 12], 5 if warm else 0
    x_BTD, past_BTD = kit.inputs(16), kit.inputs(held, seed=7)
    padded_BTD = 50 * kit.inputs(16, seed=3)
    mask_BT = torch.zeros(2, 16, dtype=torch.bool)
    mask_BT[0, 16 - real[0] :] = True  # left padding
    mask_BT[1, : real[1]] = True  # right padding
    padded_BTD[mask_BT] = x_BTD[mask_BT]
    state = init_state(mixer, 20)
    if warm:
        mixer(past_BTD, state)
    y_BTD, _ = mixer(padded_BTD, state, mask_BT=mask_BT)
    stateless_BTD, _ = mixer(padded_BTD, mask_BT=mask_BT)
    for row in range(2):
        alone = init_state(mixer, 20, batch=1)
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


@every_case
def test_padding_may_be_longer_than_the_state(case: Case) -> None:
    """Rows padded to a fixed length, with room for their real tokens only."""
    mixer = kit.make(case)
    x_BTD = kit.inputs(9)
    with torch.no_grad():
        full_BTD, _ = mixer(x_BTD)
    for room, split, longest in ((6, 3, 9), (9, 4, 9)):
        state = init_state(mixer, room)
        mixer(x_BTD[:, :split], state)
        padded_BTD = torch.cat([x_BTD[:, split:room], 9 * kit.inputs(longest, seed=4)], 1)
        padded_BTD = padded_BTD[:, :longest]
        mask_BT = (torch.arange(longest) < room - split).expand(kit.BATCH, longest)
        y_BTD, _ = mixer(padded_BTD, state, mask_BT=mask_BT)
        assert kit.error(y_BTD[:, : room - split], full_BTD[:, split:room]) < EXACT


@every_case
def test_a_full_state_and_an_empty_call_are_refused(case: Case) -> None:
    mixer = kit.make(case)
    x_BTD, state = kit.inputs(5), init_state(mixer, 4)
    for mask_BT in (None, torch.ones(kit.BATCH, 5, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"5 tokens.*max_context=4"):
            mixer(x_BTD, state, mask_BT=mask_BT)
    mixer(x_BTD[:, :4], state)
    with pytest.raises(ValueError, match=r"5 tokens.*max_context=4"):
        mixer.step(x_BTD[:, 4], state, positions_B=torch.full((kit.BATCH,), 4))
    with pytest.raises(ValueError, match="at least one token"):
        mixer(x_BTD[:, :0])


@every_case
def test_wrong_shapes_are_refused_not_broadcast(case: Case) -> None:
    mixer, one_BTD = kit.make(case), kit.inputs(4, batch=1)
    for rows, other_BTD in ((3, one_BTD), (1, kit.inputs(4, batch=3))):
        state, given = init_state(mixer, 8, batch=rows), other_BTD.shape[0]
        with pytest.raises(ValueError, match=rf"{given} rows and its state {rows}"):
            mixer(other_BTD, state)
        with pytest.raises(ValueError, match=rf"{given} rows and its state {rows}"):
            mixer.step(other_BTD[:, 0], state, positions_B=torch.zeros(given, dtype=torch.int64))
        assert kit.state_error(init_state(mixer, 8, batch=rows), state) == 0
    for wrong in (one_BTD[0], one_BTD[:0], one_BTD[..., :32]):
        with pytest.raises(ValueError, match=r"x_BTD has shape .*\(rows, tokens, d_model=64\)"):
            mixer(wrong)
    for name in ("mask_BT", "segments_BT", "positions_BT"):
        with pytest.raises(ValueError, match=rf"{name} has shape \(1, 4\); must be \(3, 4\)"):
            mixer(one_BTD.expand(3, -1, -1), **{name: torch.ones(1, 4, dtype=torch.bool)})


@every_case
def test_packed_sequences_do_not_leak(case: Case) -> None:
    mixer = kit.make(case)
    x_BTD = kit.inputs(23)
    segments_BT = torch.tensor([[0] * 9 + [1] * 14, [4] * 1 + [2] * 15 + [4] * 7])
    with torch.no_grad():
        y_BTD, _ = mixer(x_BTD, segments_BT=segments_BT)
        for row, start, stop in ((0, 0, 9), (0, 9, 23), (1, 0, 1), (1, 1, 16), (1, 16, 23)):
            alone, _ = mixer(x_BTD[row : row + 1, start:stop])
            assert kit.error(y_BTD[row : row + 1, start:stop], alone) < EXACT


@every_case
def test_packing_takes_no_state(case: Case) -> None:
    mixer = kit.make(case)
    segments_BT = torch.zeros(kit.BATCH, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="segments_BT"):
        mixer(kit.inputs(4), init_state(mixer, 4), segments_BT=segments_BT)


@every_case
def test_rows_are_independent(case: Case) -> None:
    mixer = kit.make(case)
    x_BTD = kit.inputs(19, batch=3)
    other = x_BTD.clone()
    other[1:] = 9.0
    with torch.no_grad():
        assert kit.error(mixer(other)[0][:1], mixer(x_BTD)[0][:1]) < EXACT


@every_case
def test_state_is_written_in_place_and_snapshots_restore(case: Case) -> None:
    mixer = kit.make(case)
    x_BTD = kit.inputs(11)
    state = init_state(mixer, 16)
    addresses = {name: tensor.data_ptr() for name, tensor in state.tensors.items()}
    mixer(x_BTD[:, :6], state)
    saved = state.snapshot()
    first = kit.steps(mixer, x_BTD[:, 6:], state, start=6)
    state.restore(saved)
    again = kit.steps(mixer, x_BTD[:, 6:], state, start=6)
    assert torch.equal(first, again)
    assert {name: tensor.data_ptr() for name, tensor in state.tensors.items()} == addresses


@every_case
def test_gradients_match_finite_differences(case: Case) -> None:
    mixer = kit.make(case).train()
    x_BTD = kit.inputs(9).requires_grad_()
    weights_BTD = kit.inputs(9, seed=5)
    leaves = [x_BTD, *mixer.parameters()]

    def loss() -> torch.Tensor:
        return (mixer(x_BTD)[0] * weights_BTD).sum()

    gradients = torch.autograd.grad(loss(), leaves, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        step = 1e-5
        with torch.no_grad():
            leaf += step * direction
            above = loss()
            leaf -= 2 * step * direction
            below = loss()
            leaf += step * direction
        numeric = float((above - below) / (2 * step))
        analytic = 0.0 if gradient is None else float((gradient * direction).sum())
        assert analytic == pytest.approx(numeric, rel=1e-5, abs=1e-5)


@every_case
def test_low_precision_stays_near_float64(case: Case) -> None:
    x_BTD = kit.inputs(50)
    with torch.no_grad():
        want_BTD, _ = kit.make(case)(x_BTD)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 6e-2)):
            mixer = kit.make(case, dtype=dtype)
            state = mixer.init_state(kit.BATCH, 50)
            y_BTD, _ = mixer(x_BTD.to(dtype), state)
            assert y_BTD.dtype == dtype
            assert kit.error(y_BTD.double(), want_BTD) < tolerance
            assert kit.error(mixer(x_BTD.to(dtype))[0].double(), want_BTD) < tolerance


@every_case
def test_autocast_is_as_near_to_float32_as_a_cast(case: Case) -> None:
    """What is kept in float32 in a cast is kept so there too, in both directions."""
    mixer = kit.make(case, dtype=torch.float32)
    x_BTD = kit.inputs(130, dtype=torch.float32).requires_grad_()
    leaves = [x_BTD, *mixer.parameters()]
    weights_BTD, state = kit.inputs(130, seed=5, dtype=torch.float32), mixer.init_state(2, 130)
    want_BTD, _ = mixer(x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        y_BTD, _ = mixer(x_BTD)
        pieces = [kit.chunks(mixer, x_BTD[:, :128], state, [65, 63])]
        pieces.append(kit.steps(mixer, x_BTD[:, 128:], state, start=128))
    assert kit.error(y_BTD.float(), want_BTD) < 3e-2
    assert kit.error(torch.cat(pieces, 1).float(), want_BTD) < 3e-2
    gradients = (torch.autograd.grad((y * weights_BTD).sum(), leaves) for y in (y_BTD, want_BTD))
    for got, want in zip(*gradients, strict=True):
        # A rate for each of one or two heads is a sum over all tokens that nearly cancels.
        if want.numel() > 2:
            assert (got - want).norm() < 5e-2 * want.norm()


@every_case
@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_a_state_may_have_another_precision_than_its_mixer(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    mixer, x_BTD = kit.make(case, dtype=dtypes[0]), kit.inputs(47, dtype=dtypes[0])
    with torch.no_grad():
        full_BTD, _ = mixer(x_BTD)
    state = mixer.init_state(kit.BATCH, 47, dtypes[1])
    y_BTD = [kit.chunks(mixer, x_BTD[:, :43], state, [1, 42])]
    y_BTD.append(kit.steps(mixer, x_BTD[:, 43:], state, start=43))
    assert kit.error(torch.cat(y_BTD, 1), full_BTD) < 1e-4


@every_case
def test_poles_and_time_steps_stay_float32_in_a_cast(case: Case) -> None:
    mixer = kit.make(case, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in mixer.named_parameters()}
    mixer.bfloat16()
    for name, parameter in mixer.named_parameters():
        if name.startswith(("log_", "a_log", "dt_bias", "frequency")):
            assert torch.equal(parameter, before[name]), name


@every_case
def test_strong_inputs_stay_finite_and_exact(case: Case) -> None:
    mixer = kit.make(case)
    x_BTD = 30 * kit.inputs(40)
    with torch.no_grad():
        full_BTD, _ = mixer(x_BTD)
    stepped = kit.steps(mixer, x_BTD, init_state(mixer, 40))
    assert kit.error(stepped, full_BTD) < EXACT


@every_case
def test_stays_stable_after_large_parameter_changes(case: Case) -> None:
    torch.manual_seed(3)
    mixer = kit.make(case)
    kit.perturb(mixer, 2.0)
    state = init_state(mixer, 4_000)
    x_BTD = kit.inputs(1_000)
    largest = [float(mixer(x_BTD, state)[0].abs().max()) for _ in range(4)]
    assert largest[3] < 10 * largest[0] + 10, "output grows with time"


@every_case
def test_parameters_and_state_are_counted_exactly(case: Case) -> None:
    name, config = case
    cls = registry.get("mixers", name)
    for width in (64, 192):
        settings = cls.Config(**config)
        for consumer in (False, True) if cls.shareable else (False,):
            module = settings.build(width, consumer=consumer)
            counted = settings.num_params(width, consumer=consumer)
            assert sum(p.numel() for p in module.parameters()) == counted
        module = settings.build(width)
        for context in (1, 100, 1_000):
            for dtype in (torch.bfloat16, torch.float32):
                nbytes = settings.state_bytes(width, context, dtype)
                assert module.init_state(1, context, dtype).nbytes == nbytes
                assert module.init_state(3, context, dtype).nbytes == 3 * nbytes


@every_case
def test_declared_flops_lie_between_matmuls_and_all_work(case: Case) -> None:
    name, config = case
    settings = registry.get("mixers", name).Config(**config)
    width = 256
    mixer = settings.build(width).eval()
    state = mixer.init_state(1, 128)
    mixer(torch.randn(1, 100, width), state)
    with kit.WorkCounter() as work:
        mixer.step(torch.randn(1, width), state, positions_B=torch.tensor([100]))
    declared = settings.decode_flops(width, 100)
    assert work.matmul_flops * 0.98 <= declared <= 1.02 * (work.matmul_flops + work.elementwise)
    with kit.WorkCounter() as work:
        mixer(torch.randn(1, 16, width), state)
    declared = settings.prefill_flops(width, 16, 101)
    assert work.matmul_flops * 0.3 <= declared <= 1.02 * (work.matmul_flops + work.elementwise)
    with kit.WorkCounter() as work:
        mixer(torch.randn(1, 128, width))
    # Half: kernels count the masked half of causal attention, the declaration does not.
    declared = settings.prefill_flops(width, 128, 0)
    assert work.matmul_flops * 0.3 <= declared <= 1.02 * (work.matmul_flops + work.elementwise)


class Call(torch.nn.Module):
    """A mixer with the tensors of its state as inputs and outputs, as engines hold them."""

    def __init__(self, mixer: SequenceMixer, state: State) -> None:
        super().__init__()
        self.mixer, self.names, self.room = mixer, list(state.tensors), state.max_context

    def forward(
        self, x: torch.Tensor, start_B: torch.Tensor, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """One token (B, D), or a chunk (B, T, D)."""
        named = zip(self.names, tensors, strict=True)
        held = State(self.room, **{name: tensor.clone() for name, tensor in named})
        held.static = True
        if x.dim() == 2:
            y, _ = self.mixer.step(x, held, positions_B=start_B)
        else:
            y, _ = self.mixer(x, held, positions_BT=start_B[:, None] + torch.arange(x.shape[1]))
        return (y, *held.tensors.values())


def exported(
    case: Case, num_tokens: int | None
) -> tuple[torch.export.ExportedProgram, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The program of a chunk of tokens (None: of a step); what it and eager give from elsewhere."""
    mixer = kit.make(case, dtype=torch.float32)
    state = init_state(mixer, 16, batch=1, dtype=torch.float32)
    mixer(kit.inputs(5, dtype=torch.float32, batch=1), state)
    call = Call(mixer, state)

    def arguments(start: int, seed: int) -> tuple[torch.Tensor, ...]:
        x = kit.inputs(num_tokens or 1, seed=seed, dtype=torch.float32, batch=1)
        x = x if num_tokens else x[:, 0]
        return (x, torch.tensor([start]), *[t.clone() for t in state.tensors.values()])

    program = torch.export.export(call, arguments(start=5, seed=9))
    elsewhere = arguments(start=7, seed=10)
    with torch.no_grad():
        pairs = zip(program.module()(*elsewhere), call(*elsewhere), strict=True)
    return program, list(pairs)


@every_case
def test_shapes_are_inferred_without_data(case: Case) -> None:
    mixer = kit.make(case, dtype=torch.float32).to("meta")
    x_BTD, state = kit.inputs(70, dtype=torch.float32).to("meta"), mixer.init_state(kit.BATCH, 71)
    y_BTD, _ = mixer(x_BTD, state)
    y_BD, _ = mixer.step(
        x_BTD[:, 0], state, positions_B=torch.full((kit.BATCH,), 70, device="meta")
    )
    assert (y_BTD.shape, y_BD.shape) == (x_BTD.shape, x_BTD[:, 0].shape)


@every_case
def test_step_exports_without_complex_numbers_or_fft(case: Case) -> None:
    program, pairs = exported(case, None)
    for node in program.graph.nodes:
        assert "fft" not in str(node.target)
        value = node.meta.get("val")
        assert not (isinstance(value, torch.Tensor) and value.is_complex()), node
    assert all(kit.error(got, want) < 1e-5 for got, want in pairs)


@every_case
def test_a_chunk_of_prefill_exports(case: Case) -> None:
    _, pairs = exported(case, 6)
    assert all(kit.error(got, want) < 1e-5 for got, want in pairs)


@pytest.mark.parametrize("name", registry.names("mixers"))
def test_default_config_builds_at_every_multiple_of_64(name: str) -> None:
    for width in range(64, 705, 64):
        registry.get("mixers", name).Config().sizes(width)


@pytest.mark.parametrize("name", registry.names("mixers"))
def test_declared_parameter_rules_name_real_parameters(name: str) -> None:
    cls = registry.get("mixers", name)
    real = {n for n, _ in cls.Config().build(64).named_parameters()}
    assert cls.no_decay <= real
    assert set(cls.lr_scale) <= real


@pytest.mark.slow
@pytest.mark.parametrize("case", kit.cases() + kit.gene_cases(), ids=kit.case_id)
@pytest.mark.parametrize("time", [1, 2, 63, 64, 65, 127, 257, 1_000, 4_097])
def test_any_length_in_any_chunks(case: Case, time: int) -> None:
    mixer = kit.make(case)
    x_BTD = kit.inputs(time)
    with torch.no_grad():
        full_BTD, _ = mixer(x_BTD)
    generator = torch.Generator().manual_seed(time)
    sizes: list[int] = []
    while sum(sizes) < time:
        size = int(torch.randint(1, max(2, time // 2), (1,), generator=generator))
        sizes.append(min(size, time - sum(sizes)))
    assert kit.error(kit.chunks(mixer, x_BTD, init_state(mixer, time), sizes), full_BTD) < EXACT
