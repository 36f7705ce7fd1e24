"""What a mixer declares of itself is true, and its forms export."""

import torch

from archloop import registry
from archloop.blocks.base import SequenceMixer, State
from archloop.testing import modules as kit
from archloop.testing.modules import Case
from archloop.testing.work import WorkCounter


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
    state = kit.init_state(mixer, 16, batch=1, dtype=torch.float32)
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


class MixerCosts:
    """What a mixer declares of itself is true, and its forms export."""

    def test_parameters_and_state_are_counted_exactly(self, case: Case) -> None:
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

    def test_flops_stand_under_the_names_of_the_matrices_that_cause_them(self, case: Case) -> None:
        name, config = case
        settings = registry.get("mixers", name).Config(**config)
        width, num_tokens = 256, 16
        params = settings.param_terms(width)
        steps = settings.step_flop_terms(width, 100)
        for terms, tokens in (
            (settings.flop_terms(width, num_tokens, 100), num_tokens),
            (steps, 1),
        ):
            matrices = terms.keys() & params.keys()
            assert matrices
            for matrix in matrices:
                # A bias counts as a parameter and costs one addition.
                assert terms[matrix] >= 0.9 * 2 * tokens * params[matrix], matrix
        assert settings.decode_flops(width, 100) == sum(steps.values())

    def test_declared_flops_lie_between_matmuls_and_all_work(self, case: Case) -> None:
        name, config = case
        settings = registry.get("mixers", name).Config(**config)
        width = 256
        mixer = settings.build(width).eval()
        state = mixer.init_state(1, 128)
        mixer(torch.randn(1, 100, width), state)
        with WorkCounter() as work:
            mixer.step(torch.randn(1, width), state, positions_B=torch.tensor([100]))
        declared = settings.decode_flops(width, 100)
        assert work.matmul_flops * 0.98 <= declared <= 1.02 * (work.matmul_flops + work.elementwise)
        with WorkCounter() as work:
            mixer(torch.randn(1, 16, width), state)
        declared = settings.prefill_flops(width, 16, 101)
        assert work.matmul_flops * 0.3 <= declared <= 1.02 * (work.matmul_flops + work.elementwise)
        with WorkCounter() as work:
            mixer(torch.randn(1, 128, width))
        # Half: kernels count the masked half of causal attention, the declaration does not.
        declared = settings.prefill_flops(width, 128, 0)
        assert work.matmul_flops * 0.3 <= declared <= 1.02 * (work.matmul_flops + work.elementwise)

    def test_shapes_are_inferred_without_data(self, case: Case) -> None:
        mixer = kit.make(case, dtype=torch.float32).to("meta")
        x_BTD = kit.inputs(70, dtype=torch.float32).to("meta")
        state = mixer.init_state(kit.BATCH, 71)
        y_BTD, _ = mixer(x_BTD, state)
        y_BD, _ = mixer.step(
            x_BTD[:, 0], state, positions_B=torch.full((kit.BATCH,), 70, device="meta")
        )
        assert (y_BTD.shape, y_BD.shape) == (x_BTD.shape, x_BTD[:, 0].shape)

    def test_step_exports_without_complex_numbers_or_fft(self, case: Case) -> None:
        program, pairs = exported(case, None)
        for node in program.graph.nodes:
            assert "fft" not in str(node.target)
            value = node.meta.get("val")
            assert not (isinstance(value, torch.Tensor) and value.is_complex()), node
        assert all(kit.error(got, want) < 1e-5 for got, want in pairs)

    def test_a_chunk_of_prefill_exports(self, case: Case) -> None:
        _, pairs = exported(case, 6)
        assert all(kit.error(got, want) < 1e-5 for got, want in pairs)

    def test_default_config_builds_at_every_multiple_of_64(self, name: str) -> None:
        for width in range(64, 705, 64):
            registry.get("mixers", name).Config().sizes(width)

    def test_declared_parameter_rules_name_real_parameters(self, name: str) -> None:
        cls = registry.get("mixers", name)
        real = {n for n, _ in cls.Config().build(64).named_parameters()}
        assert cls.no_decay <= real
        assert set(cls.lr_scale) <= real
