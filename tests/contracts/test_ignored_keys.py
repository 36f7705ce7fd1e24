"""A key of a configuration is read, refused, or changes nothing in transformers either."""

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from archloop import registry
from archloop.checkpoints import families
from archloop.errors import UserError

transformers = pytest.importorskip("transformers")

LENGTH = 24
NOT_OURS = frozenset(
    {
        "model_type",
        "architectures",
        "dtype",
        "transformers_version",
        "use_cache",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
    }
)
"""Who wrote the file, in which dtype, and in what form transformers' calls answer."""


KNOWN = {("nemotron_h", "time_step_min"), ("zamba2", "time_step_min")}
"""Where transformers is wrong: it lifts time steps in a pass over several tokens, not in a step."""


def others(value: Any) -> list[Any]:
    """Other values of the same kind, as a hand that edits a file might write them."""
    if value is None:
        return [1]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value]
    if isinstance(value, float):
        return [2 * value + 0.25]
    if isinstance(value, list):
        return [value[::-1]] if value[::-1] != value else []
    return []


def build(config: Mapping[str, Any]) -> Any:
    settings = {key: value for key, value in config.items() if key != "model_type"}
    built = transformers.AutoConfig.for_model(config["model_type"], **settings)
    return transformers.AutoModelForCausalLM.from_config(built).eval()


def logits(model: Any) -> torch.Tensor:
    ids_BT = torch.arange(LENGTH)[None] % 71
    with torch.no_grad():
        found: torch.Tensor = model(ids_BT).logits
    return found


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *((name, 0) for name in registry.shipped("layouts")),
        # Those of the family that have experts, whose keys the first passes over.
        ("granite_hybrid", 2),
        ("nemotron_h", 2),
    ],
)
def test_what_is_passed_over_changes_nothing(name: str, number: int) -> None:
    layout = families.layout(name)
    example = dict(layout.examples[number])
    spec = layout.read(example)
    torch.manual_seed(0)
    model = build(example)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    state, wanted = model.state_dict(), logits(model)
    assert torch.isfinite(wanted).all()
    passed_over = 0
    for key, value in model.config.to_dict().items():
        asked = key not in NOT_OURS and (name, key) not in KNOWN
        for other in others(value) if asked else []:
            changed = {**example, key: other}
            try:
                if layout.read(changed) != spec:
                    continue
            except UserError:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    again = build(changed)
                except Exception:  # transformers refuses the value, in one of many ways
                    continue
            passed_over += 1
            # Shapes that changed would be an ignored key that changes results too.
            again.load_state_dict(state)
            # How sums are cut into chunks orders them anew, so bits may move.
            close = torch.allclose(
                logits(again), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max())
            )
            assert close, f"{key}={other!r} is passed over, and changes what transformers computes"
    assert passed_over
