"""The contract of channel mixers: they act on tokens alone and are counted exactly."""

from typing import ClassVar

import pytest
import torch

from archloop import registry
from archloop.testing import modules as kit
from archloop.testing.contract import Contract
from archloop.testing.modules import Case, case_id, cases
from archloop.testing.work import WorkCounter


class ChannelMixerContract(Contract):
    """Tests of channel mixers, each with its default config and every value of closed choices."""

    kind: ClassVar[str] = "channel_mixers"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each test once for each config of each plug-in."""
        super().pytest_generate_tests(metafunc)
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", cases(self.kind, self.plugins()), ids=case_id)

    def test_each_token_is_on_its_own(self, case: Case) -> None:
        mixer = kit.make(case, kind="channel_mixers")
        x_BTD = kit.inputs(24, batch=3)
        with torch.no_grad():
            whole = mixer(x_BTD)
            one_by_one = torch.stack([mixer(x_BTD[:, t]) for t in range(24)], 1)
            alone = mixer(x_BTD[1, 5:6])
        assert whole.shape == x_BTD.shape
        assert kit.error(one_by_one, whole) < 1e-9
        assert kit.error(alone, whole[1, 5:6]) < 1e-9
        assert mixer(x_BTD[:, :0]).shape == x_BTD[:, :0].shape

    @pytest.mark.parametrize("width", [64, 192])
    def test_parameters_are_counted_exactly(self, case: Case, width: int) -> None:
        name, config = case
        settings = registry.get("channel_mixers", name).Config(**config)
        module = settings.build(width)
        assert sum(p.numel() for p in module.parameters()) == settings.num_params(width)
        assert settings.num_active_params(width) <= settings.num_params(width)

    def test_declared_flops_lie_between_matmuls_and_all_work(self, case: Case) -> None:
        name, config = case
        settings = registry.get("channel_mixers", name).Config(**config)
        mixer = settings.build(256).eval()
        with WorkCounter() as work, torch.no_grad():
            mixer(torch.randn(8, 256))
        declared = settings.prefill_flops(256, 8, 0)
        assert 0.98 * work.matmul_flops <= declared <= 1.02 * (work.matmul_flops + work.elementwise)

    @pytest.mark.parametrize("num_tokens", [1, 3, 40])
    def test_exported_form_agrees_and_copies_no_weights_for_each_token(
        self, case: Case, num_tokens: int
    ) -> None:
        mixer = kit.make(case, kind="channel_mixers")
        x_XD = kit.inputs(num_tokens)[0]
        program = torch.export.export(mixer, (x_XD,))
        assert kit.error(program.module()(x_XD), mixer(x_XD)) < 1e-9
        values = [node.meta.get("val") for node in program.graph.nodes]
        largest = max(value.numel() for value in values if isinstance(value, torch.Tensor))
        assert largest <= max(parameter.numel() for parameter in mixer.parameters())
