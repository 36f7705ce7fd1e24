"""The uniform prior draws the genomes that it drew before a genome could say more.

Genes that a recipe leaves closed draw nothing from the generator, so the first specs of a study
with the strategy `random_uniform` are what they were: digests of ship and proxy specs, computed
before parallel mixers, single-branch blocks and multipliers came, fields at their defaults aside.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from archloop.space.config import SpaceConfig
from archloop.space.opening import open_space
from archloop.space.prior import uniform
from archloop.space.space import Space
from archloop.space.specs import to_spec
from archloop.space.variation import sample
from archloop.stack.spec import StackSpec
from space.spaces import NAMED, named

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
NEW: dict[str, Any] = {
    "combine": "sum",
    "input_multiplier": 1.0,
    "multiplier": 1.0,
    "side": False,
    "norms_from": None,
}
BEFORE = {
    "quickstart": """
        b9ade8263cc725a2 788c7ecfe70c64a9 5c6f46f26e24a974 8fb4a596382b8941
        722949e4748872a2 04395f0e87e0b393 4f90ca5189c2fd88 aef77a0e56769cac
        adb2fcecc98de0ae c19f8aa98269f617 e3b09bb662e53879 66e1f94beab7752f
    """,
    "rich": """
        f11851f87110cfff db12cc5f60a9f5c1 00a228b6b789f914 fc1ef3984fb0b96f
        8f4244440cd2d1c8 0fbc823d95fedf3e 1a6269d1dc24e7cd 634a6938eaac4826
        ead8f4266643f247 ca909a275f30ed30 4faaeda9a2d60d7d 7ea9ce640484cc94
    """,
    "periodic": """
        baf306cf4b05e1f1 ed23d0de315a51a2 7b930e2e13155c90 2ce90f13ec548a9e
        ad5ad2a856c5e23b 2d9c113ec66af69f 0d0389ca88a002dd 13ade23f5e183dc4
        dd2ce07663b286c0 f82f0e99cd6826b1 d92f3db4135886c9 9c05c49e72143408
    """,
    "small": """
        b15e19b2edf12158 1f5f1cad4003fad4 7e7082f54175b0a2 b15e19b2edf12158
        db67617217df1025 a0e2fd1c43a702f9 1f5f1cad4003fad4 1f5f1cad4003fad4
        0f076dd094f4b5c3 a0e2fd1c43a702f9 2f626f977e97631f 1f5f1cad4003fad4
    """,
}


def old_text(spec: StackSpec) -> str:
    """A spec as it was written before, which it must be able to be."""
    plain: dict[str, Any] = spec.model_dump(mode="json")
    assert plain.pop("norm_offset") is False
    for block in plain["blocks"]:
        for part in (block, block["channel_mixer"], *block["mixers"]):
            for field, default in NEW.items():
                assert part.pop(field, default) == default
        assert block["channel_mixer"].pop("weights_from") is None
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def quickstart() -> Space:
    """The space of the quickstart, with the two settings that it had when digests were taken."""
    plain: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())["space"]
    plain["mixers"]["swa"]["window"] = 32
    del plain["budget"]["trained"]
    return open_space(SpaceConfig.model_validate(plain))


@pytest.mark.parametrize("name", ["quickstart", *NAMED])
def test_closed_genes_draw_nothing(name: str) -> None:
    space = quickstart() if name == "quickstart" else named(name)
    for number, expected in enumerate(BEFORE[name].split()):
        genome = sample(space, np.random.default_rng([5, number]), uniform)
        texts = [old_text(to_spec(space, genome, scale, 300)) for scale in ("ship", "proxy")]
        assert hashlib.sha256("".join(texts).encode()).hexdigest()[:16] == expected
