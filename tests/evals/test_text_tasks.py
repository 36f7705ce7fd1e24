"""What the tasks in text ask, checked by working the answers out again."""

import json
import math
import re
from itertools import combinations
from typing import get_args

import pytest

from archloop.errors import UserError
from archloop.evals import suites
from archloop.evals.tasks import agreement, multi_hop, needle
from archloop.evals.tasks.facts import _FACTS, facts
from archloop.evals.text_tasks import Question
from archloop.testing.answering import Answering


def questions(plugin, num=40, **settings):
    return suites.make(plugin, settings).questions("test", 3, num)


class TestMultiHop:
    @pytest.mark.parametrize("hops", [1, 2, 4])
    def test_kin(self, hops):
        for context, choices, right in questions("multi_hop", variant="kin", num_hops=hops):
            mothers = dict(re.findall(r"The mother of (\w+) is (\w+)\.", context))
            name = re.search(r"(\w+) is$", context)[1]
            for _ in range(hops):
                name = mothers[name]
            assert choices[right] == f" {name}."
            assert len(set(choices)) == 4
            # That a mother is not told does not give the answer away: two of the four have none.
            told = {choice.strip(" .") for choice in choices}
            ends = told - mothers.keys()
            assert len(ends) == 2
            # Nor does a daughter among the choices: both of these have theirs there.
            assert {mothers[name] for name in told - ends} == ends

    def test_boxes(self):
        for context, choices, right in questions("multi_hop", variant="boxes", num_hops=3):
            held = dict(re.findall(r"Box (\d) holds the (\w+)\.", context))
            for one, other in re.findall(r"Boxes (\d) and (\d) swap", context):
                held[one], held[other] = held[other], held[one]
            asked = re.search(r"Box (\d) now", context)[1]
            assert choices[right] == f" {held[asked]}."

    def test_assign(self):
        for context, choices, right in questions("multi_hop", variant="assign", num_hops=2):
            values = {}
            for name, value in re.findall(r"(\w) = (\w+);", context):
                # A variable is never read before it was written.
                values[name] = value if value.isdigit() else values[value]
            asked = re.search(r"(\w) =$", context)[1]
            assert choices[right] == f" {values[asked]}."

    def test_order(self):
        for context, choices, right in questions("multi_hop", variant="order"):
            pairs = re.findall(r"(\w+) is taller than (\w+)", context)
            (tallest,) = {one for one, _ in pairs} - {other for _, other in pairs}
            assert choices[right] == f" {tallest}."

    def test_coin(self):
        for context, choices, right in questions("multi_hop", variant="coin"):
            side = ("heads", "tails")[context.count("turns it over") % 2]
            assert choices[right] == f" {side}."

    def test_brackets(self):
        closes = {"(": ")", "[": "]", "{": "}", "<": ">"}
        for context, choices, right in questions("multi_hop", variant="brackets"):
            waiting = []
            for sign in context.split(":")[1].split():
                if sign in closes:
                    waiting.append(closes[sign])
                else:
                    assert waiting.pop() == sign
            assert choices[right] == f" {waiting[-1]}"

    @pytest.mark.parametrize("variant", get_args(multi_hop.Variant))
    @pytest.mark.parametrize("hops", range(1, 7))
    def test_every_number_of_hops_is_drawn_or_refused(self, variant, hops):
        settings = {"variant": variant, "num_hops": hops}
        if settings == {"variant": "assign", "num_hops": 6}:
            with pytest.raises(UserError, match="num_hops=6: variant assign has letters enough"):
                questions("multi_hop", **settings)
        else:
            assert len(questions("multi_hop", 10, **settings)) == 10


class TestAgreement:
    def test_sentences_of_languages_are_drawn_apart(self):
        plural = {
            language: tuple(q.right for q in questions("agreement", 64, language=language))
            for language in get_args(agreement.Language)
        }
        assert len(set(plural.values())) == 7
        for one, other in combinations(plural.values(), 2):
            assert 12 < sum(a == b for a, b in zip(one, other, strict=True)) < 52

    @pytest.mark.parametrize("language, only_plural", [("fr", "ensemble"), ("it", "insieme")])
    def test_endings_fit_one_as_well_as_many(self, language, only_plural):
        for _, choices, _ in questions("agreement", 200, language=language):
            assert not any(only_plural in choice for choice in choices)


class TestArithmetic:
    @pytest.mark.parametrize("variant", ["difference", "product", "remainder", "chain"])
    def test_results(self, variant):
        for prompt, answers, _ in questions("arithmetic", variant=variant, num_solved=1):
            line = prompt.splitlines()[-1].removesuffix(" =")
            left, operator, right, *rest = line.split()
            numbers = int(left), int(right)
            found = {
                "-": numbers[0] - numbers[1],
                "*": numbers[0] * numbers[1],
                "mod": numbers[0] % numbers[1],
                "+": sum(numbers) - int(rest[1] if rest else 0),
            }[operator]
            assert answers == (str(found),)

    def test_sequence_and_comparison(self):
        for prompt, answers, _ in questions("arithmetic", variant="sequence", num_solved=0):
            terms = [int(term) for term in prompt.removesuffix(",").split(", ")]
            assert answers == (str(2 * terms[-1] - terms[-2]),)
        for prompt, answers, _ in questions("arithmetic", variant="comparison", num_solved=0):
            assert int(answers[0]) == max(map(int, re.findall(r"\d+", prompt)))

    def test_chance_is_what_guessing_one_of_the_two_numbers_scores(self):
        asked = questions("arithmetic", 1000, variant="comparison", num_digits=4, num_solved=0)
        first = [re.search(r"\d+", question.prompt)[0] in question.answers for question in asked]
        chance = suites.make("arithmetic", {"variant": "comparison"}).chance
        assert sum(first) / len(first) == pytest.approx(chance, abs=0.05)
        assert suites.make("arithmetic", {"variant": "product"}).chance == 0.0

    @pytest.mark.parametrize("digits", [1, 2, 4])
    def test_of_remainders_chance_is_what_writing_the_commonest_scores(self, digits):
        settings = {"variant": "remainder", "num_digits": digits, "num_solved": 0}
        task = suites.make("arithmetic", settings)
        assert task.guesses("7 mod 3 =") == ("1",)
        # Of one digit few questions are for testing, so those for training are asked.
        asked = task.questions("train", 3, 4000)
        ones = sum("1" in question.answers for question in asked) / len(asked)
        assert ones == pytest.approx(task.chance, abs=0.04)
        assert task.chance > 0.18


class TestNeedles:
    @pytest.mark.parametrize(
        "variant, num", [("single", 1), ("multi_key", 1), ("multi_value", 4), ("multi_query", 2)]
    )
    def test_numbers_are_those_of_the_asked_words(self, variant, num):
        for prompt, _, wanted in questions("needle", 10, variant=variant, num_chars=1000):
            text, asked = prompt.split("\nEvery number of the ")
            words = asked.removesuffix(":").split(" and of the ")
            said = re.findall(r"A number of the (\w+) is (\d+)\.", text)
            assert sorted(wanted) == sorted(number for word, number in said if word in words)
            assert len(wanted) == num
            assert 900 < len(text) < 1250

    @pytest.mark.parametrize("variant", ["common_words", "frequent_words"])
    def test_words_are_the_most_frequent(self, variant):
        for prompt, _, wanted in questions("needle", 10, variant=variant):
            words = prompt.split("\n")[0].split()
            order = sorted(set(words), key=words.count, reverse=True)
            assert set(order[:3]) == set(wanted)
            assert words.count(order[2]) > words.count(order[3])

    @pytest.mark.parametrize(
        "variant, needle",
        [
            ("single_prose", r"A number of (the \w+) is (\d{4})\."),
            ("single_code", r"A number of (the \w+) is ([0-9a-f]{24})\."),
            ("all_keys", r"A number of (the \w+ \w+ of the \w+) is (\d{4})\."),
            ("all_codes", r"A number of ([0-9a-f]{24}) is ([0-9a-f]{24})\."),
        ],
    )
    def test_what_is_asked_for_is_said_once(self, variant, needle):
        for prompt, answers, wanted in questions("needle", 10, variant=variant, num_chars=1500):
            text, asked = prompt.split("\nEvery number of ")
            said = re.findall(needle, text)
            assert len(said) == len({key for key, _ in said})
            assert (len(said) > 20) == (variant.startswith("all"))
            assert dict(said)[asked.removesuffix(":")] == wanted[0] == answers[0]
            assert 1400 < len(text) < 1700

    def test_variables_take_a_value_from_each_other(self):
        for prompt, _, wanted in questions("needle", 10, variant="tracking", num_chars=1500):
            values = {}
            for name, source in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", prompt):
                # What is read was said before.
                values[name] = values[source] if source.isalpha() else source
            asked = re.search(r"Every variable that is (\d+):$", prompt)[1]
            assert [name for name, value in values.items() if value == asked] == list(wanted)
            assert len(wanted) == 5

    def test_a_question_has_one_answer(self):
        for prompt, _, wanted in questions("needle", 10, variant="question", num_chars=3000):
            text, asked = prompt.split("\nWhere to? ")
            (told,) = re.findall(rf"{asked} (\w+)\.", text)
            assert (told,) == wanted

    @pytest.mark.parametrize("per_token", [1, 4])
    def test_lengths_in_tokens_are_those_of_the_asked_model(self, per_token):
        class Pieces:
            def encode(self, text):
                return [0] * -(-len(text) // per_token)

            def decode(self, ids):
                return ""

        class Measuring(Answering):
            codec = Pieces()

            def reply(self, request):
                lengths.append(len(request.ids) + request.max_new_tokens)
                return ""

        for variant in get_args(needle.Variant):
            lengths = []
            task = suites.make("needle", {"variant": variant, "num_tokens": 2048})
            task.run(Measuring(), limit=8)
            assert 0.9 * 2000 < max(lengths) <= 2048, variant

    def test_credit_is_the_share_that_was_written(self):
        task = suites.make("needle", {"variant": "multi_value"})
        asked = Question("", (), ("1100", "2200", "3300", "4400"))
        assert task.credit("2200, 4400 and 5500", asked) == 0.5
        assert task.credit("2200, 2200, 2200, 2200", asked) == 0.25
        assert task.credit("nothing", asked) == 0.0
        assert task.credit("1. 1100\n2. 2200\n3. 3300\n4. 4400.", asked) == 1.0

    @pytest.mark.parametrize("variant", ["common_words", "frequent_words"])
    def test_who_goes_on_with_a_list_earns_nothing(self, variant):
        task = suites.make("needle", {"variant": variant})
        for asked in task.questions("test", 3, 10):
            words = asked.prompt.split("\n")[0].split()
            assert task.credit(" ".join(words[:80]), asked) == 0.0
            assert task.credit(f" {asked.answers[0]}", asked) == 1.0
            first, second, third = asked.data
            assert task.credit(f" {third}, {second} and {first}.", asked) == 1.0
            others = [word for word in words if word not in asked.data]
            assert task.credit(", ".join([*others[:2], *asked.data]), asked) == pytest.approx(1 / 3)

    @pytest.mark.parametrize(
        "variant, right, wrong",
        [
            ("multi_key", "It is 1234.", "5678, 1234"),
            ("all_codes", "0" * 24, f"{'f' * 24} {'0' * 24}"),
            ("question", "the garden. Anna took", "the hall. Anna took the key to the garden"),
        ],
    )
    def test_the_first_answer_counts(self, variant, right, wrong):
        task = suites.make("needle", {"variant": variant})
        wanted = {"multi_key": "1234", "all_codes": "0" * 24, "question": "garden"}[variant]
        asked = Question("", (wanted,), (wanted,))
        assert task.credit(right, asked) == 1.0
        assert task.credit(wrong, asked) == 0.0


@pytest.mark.parametrize(
    "variant, reply, data, holds",
    [
        ("num_words", "one two three", 3, True),
        ("num_words", "one two", 3, False),
        ("upper_case", "ALL OF IT 3", None, True),
        ("upper_case", "Not all", None, False),
        ("upper_case", "33", None, False),
        ("starts_with", "In the hall it is", "In the hall", True),
        ("starts_with", "In the hall", "In the hall", False),
        ("contains", "a b c", ("a", "c"), True),
        ("contains", "a b", ("a", "c"), False),
        ("json", '{"a": "b"}', (("a", "b"),), True),
        ("json", '{"a": "b", "c": 1}', (("a", "b"),), False),
        ("json", "[" * 100_000, (("a", "b"),), False),
        ("json", "__import__('os')", (("a", "b"),), False),
        ("repeat", "same.", "same.", True),
        ("repeat", "same", "same.", False),
        ("bullets", "- a\n- b", ("a", "b"), True),
        ("bullets", "- a", ("a", "b"), False),
    ],
)
def test_instructions_are_verified(variant, reply, data, holds):
    task = suites.make("instruction", {"variant": variant})
    assert task.credit(f" {reply}", Question("", (), data)) == float(holds)


def test_chance_of_so_many_words_is_what_replies_of_one_length_score():
    task = suites.make("instruction", {"variant": "num_words"})
    asked = task.questions("test", 3, 2000)
    for length, reply in zip(range(3, 12), task.guesses("any"), strict=True):
        assert reply.split() == ["word"] * length
        share = sum(task.credit(reply, question) for question in asked) / len(asked)
        assert share == pytest.approx(task.chance, abs=0.03)
    other = suites.make("instruction", {"variant": "repeat"})
    assert (other.chance, other.guesses("any")) == (0.0, ())


class TestCalls:
    @pytest.mark.parametrize("variant", ["single", "choose", "optional", "nested", "several"])
    def test_calls_fit_their_schema(self, variant):
        for prompt, answers, _ in questions("function_call", variant=variant, num_solved=0):
            described = {
                each["name"]: each["parameters"]
                for each in map(json.loads, prompt.split("\nRequest:")[0].splitlines())
            }
            calls = json.loads(answers[0])
            for call in calls if isinstance(calls, list) else [calls]:
                schema = described[call["name"]]
                assert set(schema["required"]) <= set(call["arguments"])
                assert set(call["arguments"]) <= set(schema["properties"])

    def test_one_or_none_fits(self):
        task = suites.make("function_call", {"variant": "none", "num_solved": 0})
        asked = task.questions("test", 3, 1000)
        for prompt, answers, _ in asked:
            verb, thing = re.search(r"Request: (\w+) \d+ (\w+?)s in", prompt).groups()
            described, _ = prompt.split("\nRequest:")
            names = [json.loads(line)["name"] for line in described.splitlines()]
            assert len(names) == 2
            call = json.loads(answers[0])
            assert (call is None) == (f"{verb}_{thing}" not in names)
            assert call is None or call["name"] == f"{verb}_{thing}"
        constant = sum(task.credit("null", question) for question in asked) / len(asked)
        assert constant == pytest.approx(task.chance, abs=0.05)

    def test_layout_of_the_reply_does_not_matter_and_nothing_is_run(self):
        task = suites.make("function_call", {})
        asked = Question("", ('{"name": "f", "arguments": {"a": 1}}',))
        assert task.credit(' {"arguments":{"a":1},"name":"f"} ', asked) == 1.0
        assert task.credit('{"name": "f", "arguments": {"a": 1.0}}', asked) == 1.0
        assert task.credit('{"name": "f", "arguments": {"a": true}}', asked) == 0.0
        flag = Question("", ('{"name": "f", "arguments": {"a": [false]}}',))
        assert task.credit('{"name": "f", "arguments": {"a": [false]}}', flag) == 1.0
        assert task.credit('{"name": "f", "arguments": {"a": [0]}}', flag) == 0.0
        assert task.credit('{"name": "f", "arguments": {"a": [false, 1]}}', flag) == 0.0
        assert task.credit('{"name": "f", "arguments": {"a": "1"}}', asked) == 0.0
        assert task.credit("f(a=1)", asked) == 0.0


def test_facts_have_one_answer_each_and_enough_choices():
    for variant in _FACTS:
        pairs = facts(variant)
        assert len({word for word, _ in pairs}) == len(pairs)
        assert len({value for _, value in pairs}) >= 4


@pytest.mark.parametrize("variant", _FACTS)
def test_answers_of_training_are_no_worse_than_others(variant):
    """Continents of training were Africa and America alone, and those of the test the other two."""
    task = suites.make("facts", {"variant": variant})
    asked = {split: task.questions(split, 3, 600) for split in ("train", "test")}
    right = {s: {q.choices[q.right] for q in found} for s, found in asked.items()}
    for split, found in asked.items():
        assert {choice for question in found for choice in question.choices} == right[split]
    assert not {q.context for q in asked["train"]} & {q.context for q in asked["test"]}
    if variant in ("continent", "group"):
        assert right["train"] == right["test"]
        assert len(right["test"]) == 4
    else:
        assert not right["train"] & right["test"]


def test_a_fact_that_is_asked_ten_times_tells_as_much_as_once():
    """Who answers "Europe" always is right of 4 facts in 14, however often each is asked."""

    class Constant(Answering):
        def nats(self, request):
            return 0.0 if bytes(request.continuation) == b" Europe." else -1.0

    score = suites.make("facts", {"variant": "continent"}).run(Constant(), limit=500)
    assert score.value == pytest.approx(4 / 14, abs=0.1)
    assert score.standard_error == pytest.approx(math.sqrt(4 / 14 * 10 / 14 / 13), rel=0.25)


@pytest.mark.parametrize("ask", ["find", "reverse", "last"])
def test_key_values_are_what_the_text_says(ask):
    for context, choices, right in questions("key_value", ask=ask):
        said = re.findall(r"The (\w+) is in the (\w+)\.", context)
        places = dict(said)
        if ask == "reverse":
            asked = re.search(r"In the (\w+) is the$", context)[1]
            expected = {place: thing for thing, place in said}[asked]
        else:
            expected = places[re.search(r"the (\w+) is in the$", context)[1]]
        assert choices[right] == f" {expected}."


def test_the_suite_has_six_scores_in_each_of_seven_categories():
    suite = suites.load("full")
    counts = {}
    for evaluation in suite.values():
        counts[evaluation.category] = counts.get(evaluation.category, 0) + 1
    seven = {
        *("knowledge", "reasoning", "instructions", "languages", "tools", "mathematics"),
        "long context",
    }
    assert all(counts[category] >= 6 for category in seven)
