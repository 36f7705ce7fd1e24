"""The size of a look: set by the noise that earlier trials showed, one for all of a trial's."""

from archloop.search.study import Study
from search.stand_in import StandIn, no_time, recipe


class Sized(StandIn):
    """Notes how many processes it was asked for; the stand-in's have a noise of 8% each."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int | None]] = []

    def profile(self, spec, reference, look, directory, processes=None):
        self.asked.append((look, processes))
        return super().profile(spec, reference, look, directory)


def run(tmp_path, **changes):
    evaluator = Sized()
    recipe_ = recipe(num_trials=6, **changes)
    Study(recipe_, tmp_path, evaluator=evaluator, clock=no_time).run()
    return evaluator.asked


def test_without_a_resolution_every_look_has_the_recipes_size(tmp_path):
    assert {processes for _, processes in run(tmp_path)} == {None}


def test_looks_shrink_as_the_noise_becomes_known(tmp_path):
    (first, of_reference), *trials = run(tmp_path, resolve=0.2, profile={"processes": 99})
    # The reference run comes before any noise is known.
    assert (first, of_reference) == (1, None)
    sizes = [processes for look, processes in trials if look == 1]
    assert all(2 <= size <= 99 for size in sizes)
    # One degree of freedom asks for far more than several do.
    assert sizes[0] >= 4 * sizes[-1]


def test_no_look_is_larger_than_the_recipe_says_and_later_ones_are_as_large(tmp_path):
    asked = run(tmp_path, resolve=0.001, profile={"processes": 7}, looks=3)
    assert {processes for look, processes in asked[1:] if look == 1} == {7}
    # The stand-in's first look has two processes whatever it is asked for.
    assert {processes for look, processes in asked if look > 1} == {2}
