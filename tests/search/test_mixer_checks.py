"""A mixer whose trained form is not its decoded form never gets into a search."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from archloop import registry
from archloop.search import plan
from archloop.search.recipe.recipe import RecipeError, load
from search.stand_in import settings

PEEKING = """
from typing import Annotated
import torch
from archloop.blocks.base import Gene, Held, MixerConfig, SequenceMixer
from archloop.blocks.linear import Linear

class Peek(SequenceMixer):
    packs = True
    class Config(MixerConfig):
        kernel: Annotated[int, Gene((3, 5))] = 3
        def sizes(self, d_model): return {"kernel": self.kernel}
        def param_terms(self, d_model, *, consumer=False):
            return {"a": d_model**2, "b": d_model**2}
        def state_layout(self, d_model, context): return {"n": Held("recurrent", (d_model,))}
        def flop_terms(self, d_model, num_tokens, context, *, consumer=False):
            return {name: num_tokens * 2 * d_model**2 for name in ("a", "b")}
    def __init__(self, config, d_model, block_index, num_blocks, consumer):
        super().__init__(config, d_model)
        self.a = Linear(d_model, d_model); self.b = Linear(d_model, d_model)
    def mix(self, x_BTD, state, span):
        z = self.a(x_BTD)
        if {peeks}: z = torch.cat([z[:, 1:], z[:, -1:]], 1)
        return self.b(z)
    def mix_step(self, x_BD, state, positions_B):
        return self.b(self.a(x_BD))
"""


def resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, peeks: str) -> Any:
    """A recipe with such a plug-in, resolved; classes are kept, so each test has its own name."""
    monkeypatch.setattr(registry, "_folders", {})
    (tmp_path / "plugins" / "mixers").mkdir(parents=True)
    (tmp_path / "plugins" / "mixers" / f"{name}.py").write_text(PEEKING.replace("{peeks}", peeks))
    data = settings(plugins="plugins")
    data["space"]["mixers"][name] = {"kernel": [3, 5]}
    data["initial"] = [[name, "short_conv", name, "gqa"]]
    (tmp_path / "peek.yaml").write_text(yaml.safe_dump(data))
    return plan.resolve(load(tmp_path / "peek.yaml"))


@pytest.mark.parametrize(
    ("name", "peeks"),
    [
        ("peeks_without_state", "state is None"),
        ("peeks_in_training", "self.training"),
        ("peeks_with_one_gene", "state is None and self.config.kernel == 5"),
    ],
)
def test_a_peeking_plugin_is_refused_by_name_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, peeks: str
) -> None:
    with pytest.raises(RecipeError) as error:
        resolve(tmp_path, monkeypatch, name, peeks)
    assert f"mixer {name} (kernel=" in str(error.value)
    assert "later tokens" in str(error.value)
    assert "\n" not in str(error.value)


def test_one_that_does_not_peek_is_welcome_and_moves_no_random_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.random.get_rng_state()
    resolve(tmp_path, monkeypatch, "honest", "False")
    assert torch.equal(torch.random.get_rng_state(), before)
