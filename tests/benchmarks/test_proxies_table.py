"""The reliability table: what it says of scores whose reliability is known."""

import json

import numpy as np
import pytest

import jobs
import proxies_table


def records(num_stacks=24, num_seeds=2):
    """Scores of three kinds: the stack's own, noise alone, and half of each."""
    rng = np.random.default_rng(0)
    found = []
    for stack in range(num_stacks):
        own = rng.normal()
        for seed in range(num_seeds):
            for share in (1.0, 0.1):
                values = {
                    "bits_per_byte": 2 - 0.1 * own + 0.01 * rng.normal(),
                    "skill": 0.5 + 0.2 * own + 0.001 * rng.normal(),
                    "half": 0.5 + 0.2 * own + 0.2 * rng.normal(),
                    "noise": 0.5 + 0.2 * rng.normal(),
                }
                scores = {
                    name: [value, 0.01, (8 - value) / 8 if name == "bits_per_byte" else value, name]
                    for name, value in values.items()
                }
                found.append(
                    {"plan": "reliability", "stack": f"s{stack:02}", "seed": seed, "share": share}
                    | {"diverged": False, "scores": scores, "million": 1.0, "device": "none"}
                    | {"params": stack, "state_bytes": 1, "decode_flops": int(1e6 + 1e5 * own)}
                )
    return found


def reliability(name):
    return proxies_table.reliability(
        proxies_table.matrix(records(), proxies_table.normalized_of(name), 1.0)
    )


def test_reliability_is_the_share_of_variance_between_stacks():
    assert reliability("skill").share > 0.99
    assert 0.2 < reliability("half").share < 0.8
    assert reliability("noise").share < 0.35
    assert reliability("skill").p < proxies_table.SIGNAL_P < reliability("noise").p


def test_the_interval_holds_the_share():
    for name in ("skill", "half"):
        found = reliability(name)
        assert found.low <= found.share <= found.high


def test_ranks_share_ties_as_spearman_has_it():
    assert proxies_table.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    x = np.arange(5.0)
    assert proxies_table.rank_correlation(x, x**3) == pytest.approx(1.0)
    assert proxies_table.rank_correlation(x, -x) == pytest.approx(-1.0)


def test_scores_that_rank_alike_are_merged():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=24), rng.normal(size=24)
    means = {"a": one, "b": 2 * one, "c": other, "d": -one}
    assert proxies_table.merged(means) == [["a", "b", "d"], ["c"]]


def test_a_diverged_training_takes_its_stack_out():
    found = records(num_stacks=5)
    found[0]["diverged"] = True
    values_SR = proxies_table.matrix(found, proxies_table.value_of("skill"), 1.0)
    assert values_SR.shape == (4, 2)


@pytest.mark.ci
def test_the_tables_are_printed(tmp_path, capsys):
    file = tmp_path / "records.jsonl"
    lines = [json.dumps(each) for each in records()]
    ratios = [
        {"plan": "ratios", "stack": stack, "seed": seed, "share": 1.0, "diverged": False}
        | {"scores": {"bits_per_byte": [1 + gap + 0.001 * seed, 0.0, 0.8, "text"]}}
        for stack, gap in (("1:0", 0.0), ("0:1", 0.1))
        for seed in range(3)
    ]
    file.write_text("\n".join([*lines, *map(json.dumps, ratios), '{"cut']))
    proxies_table.main([str(file)])
    said = capsys.readouterr().out
    assert "line 103 is no JSON and left out" in said
    assert "24 stacks, 2 seeds" in said
    assert "Of 4 scores" in said
    assert "| one seed and the other | " in said
    assert "| 1:0 - 0:1 | -0.1000 (0.0008) | 2 |" in said


def test_of_one_seed_the_spread_is_told_from_sampling(capsys):
    one = [each for each in records(num_stacks=200, num_seeds=1) if each["share"] == 1]
    for each in one:
        each["scores"]["noise"][1] = 0.2
    skill_S, noise_S = (
        np.array([each["scores"][name][0] for each in one]) for name in ("skill", "noise")
    )
    assert proxies_table.beyond_sampling(skill_S, np.full(200, 0.01)) > 0.99
    assert proxies_table.beyond_sampling(noise_S, np.full(200, 0.2)) < 0.25
    assert proxies_table.beyond_sampling(np.ones(4), np.ones(4)) == 0.0
    proxies_table.print_reliability(one)
    said = capsys.readouterr().out
    assert "200 stacks, one seed" in said
    assert "| decode_flops | 0.99 " in said


@pytest.mark.parametrize(("difference", "seeds"), [(0.01, 16), (0.02, 4), (1.0, 2)])
def test_seeds_that_a_difference_needs(difference, seeds):
    assert proxies_table.needed_seeds(difference, 0.01) == seeds


def double(key):
    if key == "bad":
        raise ValueError("no such training")
    return {"value": 2 * int(key)}


def test_trainings_are_shared_out_and_done_once(tmp_path, capfd):
    file = tmp_path / "records.jsonl"
    file.write_text(json.dumps({"key": "1", "value": "kept"}) + "\n")
    found = jobs.run(["1", "2", "3"], double, file, workers=1, seconds=60)
    assert {each["key"]: each["value"] for each in found} == {"1": "kept", "2": 4, "3": 6}
    again = jobs.run(["1", "2", "3"], double, file, workers=1, seconds=60)
    assert again == found
    assert "2: " in capfd.readouterr().out


def test_no_training_begins_after_the_time(tmp_path):
    assert jobs.run(["1"], double, tmp_path / "none.jsonl", workers=1, seconds=-1) == []


def test_a_training_that_fails_leaves_the_others_theirs(tmp_path, capfd):
    found = jobs.run(["bad", "4"], double, tmp_path / "some.jsonl", workers=1, seconds=60)
    assert found == [{"key": "4", "value": 8}]
    assert "bad failed" in capfd.readouterr().out
