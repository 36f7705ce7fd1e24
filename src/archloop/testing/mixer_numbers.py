"""Gradients, precision and stability of a mixer."""

import pytest
import torch

from archloop.blocks import checks
from archloop.testing import modules as kit
from archloop.testing.modules import EXACT, Case


class MixerNumbers:
    """Gradients, precision and stability of a mixer."""

    def test_gradients_match_finite_differences(self, case: Case) -> None:
        mixer = kit.make(case).train()
        x_BTD = kit.inputs(9).requires_grad_()
        weights_BTD = kit.inputs(9, seed=5)
        leaves = [x_BTD, *mixer.parameters()]

        def loss() -> torch.Tensor:
            y_BTD: torch.Tensor = mixer(x_BTD)[0]
            return (y_BTD * weights_BTD).sum()

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

    def test_low_precision_stays_near_float64(self, case: Case) -> None:
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

    def test_autocast_is_as_near_to_float32_as_a_cast(self, case: Case) -> None:
        """What is kept in float32 in a cast is kept so there too, in both directions."""
        mixer = kit.make(case, dtype=torch.float32)
        x_BTD = kit.inputs(130, dtype=torch.float32).requires_grad_()
        leaves = [x_BTD, *mixer.parameters()]
        weights_BTD, state = kit.inputs(130, seed=5, dtype=torch.float32), mixer.init_state(2, 130)
        want_BTD, _ = mixer(x_BTD)
        with torch.autocast("cpu", torch.bfloat16):
            y_BTD, _ = mixer(x_BTD)
            pieces = [kit.chunks(mixer, x_BTD[:, :128], state, [65, 63])]
            pieces.append(checks.steps(mixer, x_BTD[:, 128:], state, start=128))
        assert kit.error(y_BTD.float(), want_BTD) < 3e-2
        assert kit.error(torch.cat(pieces, 1).float(), want_BTD) < 3e-2
        gradients = (
            torch.autograd.grad((y * weights_BTD).sum(), leaves) for y in (y_BTD, want_BTD)
        )
        for got, want in zip(*gradients, strict=True):
            # A rate for each of one or two heads is a sum over all tokens that nearly cancels.
            if want.numel() > 2:
                assert (got - want).norm() < 5e-2 * want.norm()

    @pytest.mark.parametrize("of_mixer", [torch.float64, torch.float32], ids=str)
    def test_a_state_may_have_another_precision_than_its_mixer(
        self, case: Case, of_mixer: torch.dtype
    ) -> None:
        of_state = torch.float32 if of_mixer == torch.float64 else torch.float64
        mixer, x_BTD = kit.make(case, dtype=of_mixer), kit.inputs(47, dtype=of_mixer)
        with torch.no_grad():
            full_BTD, _ = mixer(x_BTD)
        state = mixer.init_state(kit.BATCH, 47, of_state)
        y_BTD = [kit.chunks(mixer, x_BTD[:, :43], state, [1, 42])]
        y_BTD.append(checks.steps(mixer, x_BTD[:, 43:], state, start=43))
        assert kit.error(torch.cat(y_BTD, 1), full_BTD) < 1e-4

    def test_poles_and_time_steps_stay_float32_in_a_cast(self, case: Case) -> None:
        mixer = kit.make(case, dtype=torch.float32)
        before = {name: p.detach().clone() for name, p in mixer.named_parameters()}
        mixer.bfloat16()
        for name, parameter in mixer.named_parameters():
            if name.startswith(("log_", "a_log", "dt_bias", "frequency")):
                assert torch.equal(parameter, before[name]), name

    def test_strong_inputs_stay_finite_and_exact(self, case: Case) -> None:
        mixer = kit.make(case)
        x_BTD = 30 * kit.inputs(40)
        with torch.no_grad():
            full_BTD, _ = mixer(x_BTD)
        stepped = checks.steps(mixer, x_BTD, kit.init_state(mixer, 40))
        assert kit.error(stepped, full_BTD) < EXACT

    def test_stays_stable_after_large_parameter_changes(self, case: Case) -> None:
        torch.manual_seed(3)
        mixer = kit.make(case)
        checks.move_parameters(mixer, 2.0)
        state = kit.init_state(mixer, 4_000)
        x_BTD = kit.inputs(1_000)
        largest = [float(mixer(x_BTD, state)[0].abs().max()) for _ in range(4)]
        assert largest[3] < 10 * largest[0] + 10, "output grows with time"
