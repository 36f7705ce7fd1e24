"""Who belongs to the front: known answers, and simulated studies whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

import fronts
from archloop.ranking import membership, variance
from archloop.ranking.estimate import Estimate
from archloop.ranking.front import nondominated
from archloop.ranking.membership import standing, surely_dominated
from archloop.ranking.posterior import Draws
from archloop.ranking.record import Objective
from archloop.ranking.table import Table, table

QUALITY = Objective(name="quality", direction="maximize")
LATENCY = Objective(name="latency", direction="minimize")


def rows(*values: tuple[float, float], se: float = 0.0) -> Table:
    stacks = [
        {"quality": Estimate(mean=q, se=se), "latency": Estimate(mean=lat, se=se)}
        for q, lat in values
    ]
    return table(stacks, [QUALITY, LATENCY])


def test_exact_values_have_the_front_that_the_values_have() -> None:
    exact = rows((0.5, 1.0), (0.6, 1.1), (0.4, 1.2), (0.7, 0.9))
    found = standing(exact, (0.0, 2.0), reference=0)
    assert [m.status for m in found.members] == ["dominated", "dominated", "dominated", "front"]
    assert [m.probability for m in found.members] == [0, 0, 0, 1]
    assert found.members[0].dominated_by == 3
    assert found.volume.mean == pytest.approx(0.7 * 1.1)
    assert found.volume.low == found.volume.high == pytest.approx(found.volume.mean)


def test_equal_exact_values_dominate_nothing() -> None:
    found = standing(rows((0.5, 1.0), (0.5, 1.0)), (0.0, 2.0), reference=0)
    assert [m.status for m in found.members] == ["front", "tied"]


def test_the_objectives_may_be_any() -> None:
    names = ("text", "recall", "energy", "latency", "memory")
    objectives = [Objective(name=n, direction="minimize") for n in names]
    better = {n: Estimate(mean=0.5 if n == "energy" else 1.0, se=0.01, df=5) for n in names}
    stacks = [{n: Estimate(mean=1.0) for n in names}, better]
    found = standing(table(stacks, objectives), (2.0,) * 5, reference=0)
    assert found.members[1].better_in == (2,)
    with pytest.raises(KeyError):
        table([{"text": Estimate(mean=1.0)}], objectives)


def test_without_a_reference_nothing_is_called_on_the_front() -> None:
    found = standing(rows((0.5, 1.0), (0.6, 0.9), se=0.001), (0.0, 2.0), reference=None)
    assert [m.status for m in found.members] == ["dominated", "tied"]
    assert standing(rows(), (0.0, 2.0), reference=None).volume.mean == 0


def test_the_simultaneous_width_is_students_for_one_and_wider_for_many() -> None:
    def column(count: int, df: float) -> Table:
        stacks = [{"latency": Estimate(mean=1.0)}]
        stacks += [{"latency": Estimate(mean=1.0, se=0.1, df=df)} for _ in range(count)]
        return table(stacks, [LATENCY])

    (one,) = membership.critical(column(1, 5), 0, num_draws=40_000)
    assert one == pytest.approx(2.571, rel=0.03)  # Student's t, 5 degrees of freedom
    (many,) = membership.critical(column(20, 1e6), 0, num_draws=40_000)
    sidak = 3.016  # normal quantile at 1 - (1 - .95 ** (1 / 20)) / 2
    assert many == pytest.approx(sidak, rel=0.02)


def test_a_pool_is_wrong_for_all_at_once() -> None:
    """Twenty estimates of one pool exceed a width less often than twenty of their own noise."""
    shape = (20, 1)
    own = Table(np.zeros(shape), np.ones(shape), np.full(shape, 4.0), np.zeros(shape, np.bool_))
    own.se_NM[0] = 0
    pooled = own._replace(shared_NM=np.ones(shape, np.bool_))
    scales = pooled.scales(np.random.default_rng(0), 50)
    assert (scales == scales[:, :1]).all()
    assert membership.critical(pooled, 0)[0] < 0.9 * membership.critical(own, 0)[0]


@pytest.mark.parametrize("quality_df", [0.5, 3.0, math.inf])
def test_an_objective_known_badly_does_not_widen_the_others(quality_df: float) -> None:
    """Quality from a few trainings says nothing of latencies that were read hundreds of times."""
    shape = (20, 2)
    df_NM = np.full(shape, (quality_df, math.inf))
    both = Table(np.zeros(shape), np.ones(shape), df_NM, np.zeros(shape, np.bool_))
    both.se_NM[0] = 0
    alone = both._replace(
        **{name: getattr(both, name)[:, 1:] for name in ("mean_NM", "se_NM", "df_NM", "shared_NM")}
    )
    widths_M = membership.critical(both, 0, num_draws=40_000)
    (width,) = membership.critical(alone, 0, num_draws=40_000)
    assert width < widths_M[1] < 1.1 * width
    # And all intervals hold at once in 95% of the cases, whatever the objective.
    errors_KNM = np.abs(both.errors(np.random.default_rng(1), 40_000)[:, 1:])
    assert (errors_KNM <= widths_M).all((1, 2)).mean() == pytest.approx(0.95, abs=0.005)


def test_true_values_lie_where_the_posterior_says() -> None:
    """Intervals of shrunk values hold the truth; values themselves are closer to it."""
    rng = np.random.default_rng(3)
    held, raw, shrunk = [], [], []
    for seed in range(60):
        truth_NM = fronts.minimised(fronts.stacks(rng, 12, fronts.SPREAD))
        noise = fronts.NOISES["measured seeds, busy machine"]
        seen = fronts.observed(rng, fronts.minimised(truth_NM), noise)
        draws_KNM = Draws(seen, seed, 400).values_KNM[:, 1:]
        low_NM, high_NM = np.quantile(draws_KNM, (0.025, 0.975), axis=0)
        truth_NM = truth_NM[1:]
        held.append((low_NM <= truth_NM) & (truth_NM <= high_NM))
        raw.append((seen.mean_NM[1:] - truth_NM) ** 2)
        shrunk.append((draws_KNM.mean(0) - truth_NM) ** 2)
    assert 0.92 <= np.mean(held) <= 0.98
    assert (np.mean(shrunk, (0, 1)) < np.mean(raw, (0, 1))).all()


@pytest.mark.parametrize("name", ["quiet machine, quiet seeds", "measured seeds, busy machine"])
@pytest.mark.parametrize(
    "count, studies", [pytest.param(8, 400, marks=pytest.mark.ci), (30, 40), (100, 20)]
)
def test_equal_stacks_give_no_front(name: str, count: int, studies: int) -> None:
    found = fronts.equal(count, fronts.NOISES[name], studies, seed=count)
    assert found["either"] <= 0.05
    # What this replaces: the front of the estimates is an archive of noise.
    assert found["naive_front"] > 3
    # Of one stack's volume: what is stated lies nearer to it than what the estimates enclose.
    assert 1 <= found["volume"] < found["volume_of_points"]


def test_where_stacks_differ_statements_are_right_and_volumes_covered() -> None:
    noise = fronts.NOISES["measured seeds, quiet machine"]
    found = fronts.differing(12, noise, studies=80, seed=5, seeds=3)
    assert found["said_on_front"] > 1
    assert found["of_them_right"] >= 0.85
    assert found["of_them_wrong"] <= 0.05
    assert found["mean_probability"] == pytest.approx(found["true_share"], abs=0.06)
    assert found["volume_covered"] >= 0.85


def test_reliability_is_the_share_of_true_variance() -> None:
    rng = np.random.default_rng(0)
    truth_NM, shape = rng.standard_normal((200, 1)), (200, 1)
    for se in (0.25, 1.0):
        seen = Table(
            truth_NM + se * rng.standard_normal(shape),
            np.full(shape, se),
            np.full(shape, math.inf),
            np.zeros(shape, np.bool_),
        )
        found = Draws(seen, 0, 400).reliability_M[0]
        assert found == pytest.approx(1 / (1 + se**2), abs=0.07)


def test_more_stacks_make_noise_of_few_degrees_of_freedom_no_less_reliable() -> None:
    rng = np.random.default_rng(0)
    found = []
    for count in (10, 40, 160):
        shape = (count, 1)
        se_NM, own_NM = np.full(shape, 0.1), np.zeros(shape, np.bool_)
        truth_NM = rng.standard_normal(shape)
        seen = Table(truth_NM, se_NM, np.full(shape, 0.7), own_NM)
        found.append(Draws(seen, 0, 400).reliability_M[0])
    assert max(found) - min(found) < 0.1


@pytest.mark.parametrize(("noise", "apart"), [(0.1, 2.0), (0.5, 0.0), (0.5, 1.0)])
def test_reliability_is_about_what_a_repetition_keeps(noise: float, apart: float) -> None:
    """Stacks whose noise differs by a factor e^apart, known from seven of them trained twice."""
    rng, count = np.random.default_rng(0), 38
    promised, kept = [], []
    for seed in range(60):
        sd_N = noise * np.exp(apart * rng.standard_normal(count))
        truth_N = rng.standard_normal(count)
        first_N, again_N = (truth_N + sd_N * rng.standard_normal(count) for _ in range(2))
        seen_twice = noise * np.exp(apart * rng.standard_normal(7))
        pairs = [variance.of_values(sd * rng.standard_normal(2)) for sd in seen_twice]
        own = variance.pooled(pairs).of_stack()
        shape = (count, 1)
        se_NM, df_NM = np.full(shape, own.value**0.5), np.full(shape, own.df)
        table_ = Table(first_N[:, None], se_NM, df_NM, np.full(shape, own.shared))
        promised.append(Draws(table_, seed, 200).reliability_M[0])
        kept.append(stats.spearmanr(first_N, again_N)[0])
    assert np.mean(promised) == pytest.approx(np.mean(kept), abs=0.12)


def test_the_draws_are_the_seeds_alone() -> None:
    seen = rows((0.5, 1.0), (0.6, 0.9), (0.4, 0.8), se=0.05)
    first, second = (standing(seen, (0.0, 2.0), reference=0, seed=4) for _ in range(2))
    assert first == second


def test_the_front_of_exact_values_in_any_order() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((30, 2))
    found = standing(rows(*map(tuple, values)), (0.0, 2.0), reference=None)
    truth = nondominated(values * (-1, 1))
    assert [m.status == "tied" for m in found.members] == truth.tolist()


def test_exact_values_are_surely_dominated_where_they_are_dominated() -> None:
    exact = rows((0.5, 1.0), (0.6, 1.1), (0.4, 1.2), (0.7, 0.9), (0.7, 0.9))
    assert surely_dominated(exact).tolist() == [True, True, True, False, False]
    # Noise as large as the differences leaves all of it open.
    assert not surely_dominated(rows((0.5, 1.0), (0.6, 0.9), se=0.1)).any()


def test_nothing_that_may_be_claimed_is_surely_dominated() -> None:
    rng = np.random.default_rng(3)
    noise = fronts.NOISES["measured seeds, quiet machine"]
    claimed = lost = 0
    for _ in range(40):
        estimates = fronts.observed(rng, fronts.stacks(rng, 12, fronts.SPREAD), noise)
        found = standing(estimates, fronts.WORST, reference=0, num_draws=200)
        gone_N = surely_dominated(estimates)
        lost += gone_N.sum()
        for member, gone in zip(found.members[1:], gone_N[1:], strict=True):
            claimed += member.status == "front"
            assert not (gone and member.status == "front")
    assert claimed > 20
    assert lost > 20
