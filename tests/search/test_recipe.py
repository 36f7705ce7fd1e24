"""Whatever is wrong with a recipe is one line that names file, key and remedy."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from archloop import registry
from archloop.errors import UserError
from archloop.runtimes.torch_eager import TorchEager
from archloop.search import plan
from archloop.search.recipe import plain_yaml
from archloop.search.recipe.plain_yaml import MAX_BYTES
from archloop.search.recipe.recipe import RecipeError, load
from search.stand_in import recipe, settings


def refusal(tmp_path: Path, text: str) -> str:
    """The one line with which a recipe is refused."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        plan.resolve(load(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path.parent))
    assert "bad.yaml" in message
    return message.split("bad.yaml", 1)[1]


def changed(path: str, value: Any) -> str:
    """The test recipe with one key set, by its dotted path."""
    data = settings()
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return yaml.safe_dump(data)


VALUES = [
    ("num_trails", 3, r": num_trails: unknown key; did you mean 'num_trials'\?"),
    ("proxy.trainin", {}, r": proxy.trainin: unknown key; did you mean 'training'\?"),
    ("targets.here.context", [1], r": targets.here.context: unknown key; did you mean 'contexts"),
    ("profile.runtime", "torch_eager", r": profile.runtime: unknown key; known: "),
    ("num_trials", "many", r": num_trials: 'many' must be a whole number"),
    ("num_trials", 0, r": num_trials: 0 must be greater than or equal to 1"),
    ("seed", -1, r": seed: -1 must be"),
    ("space.ship.d_model", "wide", r": space.ship.d_model: 'wide' must be a whole number"),
    ("space.mixers.sort_conv", {}, r": space.mixers: unknown .*'sort_conv'.*'short_conv'"),
    ("space.mixers.gqa.head_dims", 32, r": space.mixers.gqa.head_dims: .*'head_dim'"),
    ("space.mixers.short_conv.kernel", [3, 0], r": space.mixers.short_conv.kernel=0 is not"),
    (
        "space.budget",
        {"num_params": 10**9, "free": "swiglu.expansion"},
        r": space.budget.num_params=1,000,000,000: no spec meets it .*; change the number",
    ),
    ("proxy.corpus", {"source": "files", "paths": ["no.txt"]}, r": proxy.corpus.paths: .*no.txt"),
    ("proxy.corpus", {"source": "files", "paths": ["../../etc/passwd"]}, r": .*leads outside"),
    ("proxy.tasks", {"in_context_recal": {}}, r": proxy: .*did you mean 'in_context_recall'"),
    ("proxy.rungs", [20, 10], r": proxy: .*must be rising"),
    ("name", "../escape", r": name: '../escape': a name is a folder's name"),
    ("name", "/tmp/absolute", r": name: '/tmp/absolute': a name is a folder's name"),
    ("name", ".hidden", r": name: '.hidden': a name is a folder's name"),
    ("name", "a/b", r": name: 'a/b': a name is a folder's name"),
    ("name", "", r": name: '': a name is a folder's name"),
    ("reference", "lfm2-350", r": reference: unknown preset 'lfm2-350'; did you mean 'lfm2-350m'"),
    ("reference", {}, r": reference: give one of preset, layout and spec"),
    ("reference.layout", ["gqa"], r": reference: 1 blocks; the space allows \[4\]"),
    ("reference.layout", [], r": reference: no blocks; the space allows \[4\]"),
    ("proxy", {5: 1}, r": proxy.*: the key 5 is not text; correct it, or put it in quotes"),
    ("initial", [["gqa", "gla", "gqa", "gqa"]], r": initial\[0\]: .*'gla' is not in space.mixers"),
    ("strategy.name", "nsga3", r": strategy.name='nsga3': unknown; did you mean 'nsga2'"),
    ("strategy.settings.populatoin", 4, r": strategy.settings.populatoin: unknown key; did you"),
    ("targets.here.runtime", "torch_eeger", r": targets.here.runtime='torch_eeger': unknown; did"),
    ("targets.here.device", "phone", r": targets.here.device='phone': unknown; known: .*host"),
    ("targets.here.device", {"name": "host", "gup": 1}, r": targets.here.device host has no set"),
    ("targets.here.device", {"gpu": -1}, r": targets.here.device host.gpu=-1: must be greater"),
    ("targets.here.quant", "int3", r": targets.here.quant: torch_eager has no 'int3'; known: "),
    ("targets", {}, r": targets: {} has too few entries; give at least 1"),
    ("targets", {"a/b": {}}, r": targets: 'a/b' cannot name a target; a name is a folder's name"),
    ("targets.here.optional", True, r": targets: every target is optional; leave optional out"),
    (
        "budgets",
        [{"metric": "ttft_ms", "limit": 1, "target": "there"}],
        r": budgets\[0\].target='th",
    ),
    ("budgets", [{"metric": "decode_p50", "limit": 1}], r": budgets\[0\].metric: 'decode_p50' mu"),
    ("budgets", [{"metric": "ttft_ms", "limit": 1, "context": 7}], r": budgets\[0\].context=7: gi"),
    ("tuning", {"learning_rates": [1e-3, 1e-2], "num_steps": 5}, r": tuning.learning_rates: .* 3"),
    ("plugins", "../elsewhere", r": plugins='../elsewhere' leads outside the recipe's folder"),
    ("plugins", "nowhere", r": plugins folder .*nowhere does not exist"),
    ("plugins", "a\0b", r": plugins='a.*b' cannot be followed"),
    ("seed", 10**40, r": seed exceeds 9223372036854775807; give a smaller one"),
    ("space.num_blocks", 10**9, r": space.num_blocks: 1000000000 must be less than or equal to 1"),
    ("profile.time_limit_s", 1e300, r": profile.time_limit_s: 1e\+300 must be less than or equal"),
    ("profile.full_prefill_tokens", 1, r": profile.full_prefill_tokens: 1 must be greater than"),
    ("proxy.corpus", "my.txt", r": proxy.corpus: 'my.txt' must be a mapping of keys: field, held"),
    ("num_trials", 1e300, r": num_trials: 1e\+300 is too large; give a smaller whole number"),
    ("proxy.training.batch_size", 10**6, r": proxy.training: .*lower either"),
    ("proxy.training.betas", [0.9, 1], r": proxy.training.betas\[1\]: 1 must be less than 1"),
    ("proxy.tasks", {"memorization": {"num_eval": 10**9}}, r": proxy: .*num_eval.*allowed: 1 to"),
    ("proxy.tasks", {"memorization": {"batch_size": 10**7}}, r": proxy: .*batch_size.*allowed: 1"),
    ("targets.here.threads", 10**12, r": targets.here.threads: 1000000000000 must be less than or"),
    ("proxy.device", "cuda:99", r": proxy.device: device 'cuda:99' is not here; this machine has"),
    ("storage", "nonsense", r": storage: 'nonsense': no database URL, such as postgresql://"),
    ("num_trials", True, r": num_trials: true and false are no numbers; give a number"),
    (
        "targets.here.contexts",
        [64, True],
        r": targets.here.contexts\[1\]: true and false are no",
    ),
    ("initial", [["gqa", 1]], r": initial\[0\]\[1\]: 1 must be text"),
    ("initial", [{}], r": initial\[0\]: {} must be text or a list"),
    ("space.mixers.gqa.head_dim", {}, r": space.mixers.gqa.head_dim.ship: missing; add it"),
    ("space.mixers", [], r": space.mixers: {} has too few entries; give at least 1"),
    ("space.interleaving.period", [2], r": space.interleaving.period\[1\]: missing; add it"),
    ("space.interleaving.period", [2, 3, 4], r": space.interleaving.period: .*; give at most 2"),
    ("profile.timed_steps", 10**15, r": profile.timed_steps: 1000000000000000 must be less than"),
    ("proxy.device", "gpu", r": proxy.device: device 'gpu' is not here; this machine has cpu:0"),
    ("promote_share", 1.5, r": promote_share: 1.5 must be less than or equal to 1"),
]


@pytest.mark.parametrize(
    ("path", "value", "expected"), VALUES, ids=[f"{v[0]}-{i}" for i, v in enumerate(VALUES)]
)
def test_wrong_value(tmp_path, path, value, expected):
    assert re.match(expected, refusal(tmp_path, changed(path, value)))


def test_a_layout_off_the_budget_says_what_to_change(tmp_path):
    data = settings()
    data["space"]["channel_mixers"]["swiglu"]["expansion"] = [2.0, 2.1]
    # What three convolutions and one attention come to, and no stack with two attentions.
    budget = {"num_params": 699_968, "free": "swiglu.expansion", "tolerance": 1e-4}
    message = refusal(
        tmp_path, yaml.safe_dump(data | {"space": data["space"] | {"budget": budget}})
    )
    assert message.startswith(": reference: short_conv-gqa-short_conv-gqa comes to ")
    assert message.endswith("; take another layout, or widen space.budget.tolerance")


def test_missing_key(tmp_path):
    data = settings()
    del data["space"]
    assert refusal(tmp_path, yaml.safe_dump(data)) == ": space: missing; add it"


YAML = {
    "tag": ("a: !!python/object/apply:os.system ['true']\n", r":1: the tag .* is not allowed"),
    "own-tag": ("a: !thing 1\n", r":1: the tag '!thing' is not allowed; remove it"),
    "anchor": ("a: &x [1, 2]\nb: *x\n", r":1: anchors and aliases are not allowed \('x'\)"),
    "bomb": (
        "a: &a [x, x]\n"
        + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
        ),
        r":1: anchors and aliases are not allowed",
    ),
    "merge": ("a:\n  <<: {b: 1}\n", r":2: merge keys .* are not allowed"),
    "twice": ("name: a\nseed: 1\nname: b\n", r":3: key 'name' is given twice; remove one"),
    "twice-deep": ("a:\n  b: {c: 1, c: 2}\n", r":2: key 'c' is given twice; remove one"),
    "deep": ("a: " + "[" * 500 + "]" * 500, r":1: nested deeper than 20 levels"),
    "large": ("a: " + "x" * MAX_BYTES, r": larger than 262144 bytes"),
    "two-documents": ("a: 1\n---\nb: 1\n", r":2: a second document; keep one in a file"),
    "syntax": ("a: [1, 2\nb: 3\n", r":\d: not valid YAML: .*; check the indentation"),
    "tab": ("a:\n\tb: 1\n", r":2: not valid YAML"),
    "control": ("a: \x01\n", r": not valid YAML: .*; correct the file"),
    "nan": ("a: .nan\n", r": a is nan; give a finite number"),
    "empty": ("", r": empty; a recipe needs"),
    "list": ("- 1\n", r": a recipe is a mapping of keys"),
    "complex-key": ("? [1]\n: 2\n", r": not valid YAML: line 1: a key must be a plain word"),
}


@pytest.mark.parametrize("case", YAML)
def test_not_plain_yaml(tmp_path, case):
    text, expected = YAML[case]
    assert re.match(expected, refusal(tmp_path, text))


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        ("2e0", 2.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        ("0123", 123),
        ("0x1F", 31),
        ("true", True),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("1e", "1e"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'1e-3'", "1e-3"),
    ],
)
def test_words_and_numbers_are_those_of_yaml_1_2(text, value):
    found = plain_yaml.parse(f"a: {text}\n", "x.yaml")["a"]
    assert found == value
    assert type(found) is type(value)


def test_unreadable_file(tmp_path):
    with pytest.raises(RecipeError, match=r"none.yaml: does not exist; give the path"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is not a regular file"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        load(tmp_path / "latin.yaml")


def test_digest_is_of_settings(tmp_path):
    text = yaml.safe_dump(settings())
    for name, content in {"a": text, "b": "# a comment\n" + text}.items():
        (tmp_path / f"{name}.yaml").write_text(content)
    first, second = load(tmp_path / "a.yaml"), load(tmp_path / "b.yaml")
    assert first.digest == second.digest == recipe().digest
    assert recipe(seed=17).digest != first.digest
    assert recipe(executor={"workers": 2}).digest == first.digest


def test_digest_is_of_plugins_too(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings(plugins="own")))
    (tmp_path / "own").mkdir()
    before = load(tmp_path / "a.yaml").digest
    (tmp_path / "own" / "x.py").write_text("X = 1\n")
    assert load(tmp_path / "a.yaml").digest != before


def test_plugins_of_every_kind_that_a_recipe_names(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_folders", {})
    for kind, module, base in (
        ("tasks", "evals.tasks.memorization", "Memorization"),
        ("mixers", "blocks.mixers.short_conv", "ShortConv"),
        ("strategies", "search.strategies.random", "RandomSearch"),
    ):
        (tmp_path / "own" / kind).mkdir(parents=True)
        source = f"from archloop.{module} import {base}\n\n\nclass Mine({base}):\n    pass\n"
        (tmp_path / "own" / kind / "mine.py").write_text(source)
    data = settings(plugins="own", strategy={"name": "mine"})
    data["proxy"]["tasks"] = {"mine": {}}
    data["space"]["mixers"]["mine"] = {}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(data))
    resolved = plan.resolve(load(tmp_path / "a.yaml"))
    assert "mine" in resolved.space.mixers
    assert resolved.strategy.name == "mine"


def test_shipped_recipes_resolve(tmp_path, monkeypatch):
    """On a machine that has what they are for: engines, a card, and a corpus that was fetched."""
    for name in registry.names("runtimes"):
        runtime = registry.get("runtimes", name)
        monkeypatch.setattr(runtime, "missing_to_export", lambda self: None)
        monkeypatch.setattr(runtime, "missing_to_run", lambda self: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    corpus = tmp_path / "corpora" / "english"
    corpus.mkdir(parents=True)
    (corpus / "a.txt").write_text("some text\n")
    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    assert {path.stem for path in recipes} >= {"quickstart", "h100"}
    for path in recipes:
        shutil.copy(path, tmp_path)
        resolved = plan.resolve(load(tmp_path / path.name))
        assert resolved.recipe.name == path.stem


def test_a_runtime_that_this_machine_cannot_run_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(TorchEager, "missing_to_run", lambda self: "needs a chip; buy one")
    message = refusal(tmp_path, yaml.safe_dump(settings()))
    assert message == ": targets.here.runtime: torch_eager: needs a chip; buy one"


def test_a_bug_is_not_blamed_on_the_recipe(tmp_path, monkeypatch):
    def wrong(*_: object) -> None:
        raise ValueError("operands could not be broadcast together")

    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings()))
    monkeypatch.setattr("archloop.stack.cost.check", wrong)
    with pytest.raises(ValueError, match="broadcast") as caught:
        plan.resolve(load(tmp_path / "a.yaml"))
    assert not isinstance(caught.value, UserError)


def test_plugins_in_a_circle_of_links(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path, changed("plugins", "loop")).startswith(": plugins")
