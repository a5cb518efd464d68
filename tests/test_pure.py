"""Pairing, weighing, figures and the prompt schedule, against numbers worked out by hand."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from posttrain.config.section import of_round
from posttrain.data.pairs import across_policies, best_and_worst, level
from posttrain.data.selection import matching, nearest, take
from posttrain.errors import DataError
from posttrain.evaluation import statistics
from posttrain.rewards import combine
from posttrain.seeds import derive_seed
from posttrain.stages.promote import decide
from posttrain.system import bytes_in_words

LEVELS = {"significantly_better": 0.75, "better": 0.5, "slightly_better": 0.25}


def row(score: float | None, text: str | None = None) -> dict:
    return {
        "score": score,
        "finish": "stop",
        "completion": [{"role": "assistant", "content": text or f"answer {score}"}],
    }


def test_margins_become_four_levels() -> None:
    margins = [1.0, 0.75, 0.74, 0.5, 0.3, 0.1]
    assert [level(margin, LEVELS) for margin in margins] == [
        "significantly_better",
        "significantly_better",
        "better",
        "better",
        "slightly_better",
        "marginally_better",
    ]


def test_best_and_worst_of_k() -> None:
    rows = [row(0.2), row(None), row(0.9), row(0.5)]
    assert best_and_worst(rows, 0.5) == (rows[2], rows[0])
    assert best_and_worst(rows, 0.8) is None
    assert best_and_worst([row(1.0, "same"), row(0.0, " same ")], 0.1) is None
    assert best_and_worst([row(1.0), row(None)], 0.1) is None


def test_an_answer_that_was_cut_off_is_chosen_only_where_none_ended() -> None:
    rows = [{**row(0.9), "finish": "length"}, row(0.6), {**row(0.1), "finish": "length"}]
    assert best_and_worst(rows, 0.5) == (rows[1], rows[2])
    assert best_and_worst([rows[0], row(0.1)], 0.1) is None
    assert best_and_worst([rows[0], rows[2]], 0.1) == (rows[0], rows[2])
    assert across_policies([rows[0]], [row(0.5, "b")]) is None
    assert across_policies([rows[0]], [rows[2]]) == (rows[0], rows[2])


def test_a_pair_has_one_answer_of_each_policy() -> None:
    first, second = [row(0.6, "a"), row(0.9, "b")], [row(0.0, "c"), row(1.0, "d")]
    assert across_policies(first, second) == (first[1], second[0])
    assert across_policies(second, first) == (first[1], second[0])
    assert across_policies([row(0.5, "a")], [row(0.5, "b")]) is None


def test_a_score_is_the_weighted_mean_of_the_rewards_that_are_not_none() -> None:
    weights = {"verifier": 1.0, combine.REWARD_MODEL: 0.2}
    assert combine.combine({"verifier": 1.0, combine.REWARD_MODEL: 3.0}, weights, 3.0, 2.0) == pytest.approx(1.1 / 1.2)
    assert combine.combine({"verifier": None, combine.REWARD_MODEL: 3.0}, weights, 3.0, 2.0) == 0.5
    assert combine.combine({"verifier": None}, weights) is None


def test_a_reward_model_enters_as_the_sigmoid_of_its_standardised_logit() -> None:
    mean, deviation = combine.spread([1.0, 3.0])
    assert (mean, deviation) == (2.0, 1.0)
    assert combine.squash(3.0, mean, deviation) == pytest.approx(1 / (1 + math.exp(-1)))


def test_the_interval_of_a_proportion_is_the_papers() -> None:
    figure = statistics.proportion([1.0] * 60 + [0.0] * 40)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert figure == {"value": 0.6, "ci95": [pytest.approx(0.6 - half), pytest.approx(0.6 + half)], "n": 100}
    assert statistics.proportion([])["value"] is None


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_outcomes_that_are_all_alike_are_not_certain(outcome: float) -> None:
    figure = statistics.proportion([outcome] * 100)
    exact = binomtest(int(100 * outcome), 100).proportion_ci(0.95, method="exact")
    assert figure["ci95"] == pytest.approx([exact.low, exact.high])


def test_the_interval_of_a_mean_uses_the_deviation_over_prompts() -> None:
    figure = statistics.mean([0.0, 0.5, 1.0])
    assert figure["value"] == 0.5
    assert figure["ci95"][1] - 0.5 == pytest.approx(1.96 * 0.5 / math.sqrt(3))


def test_a_paired_difference_sees_what_separate_intervals_do_not() -> None:
    old = [i / 100 for i in range(100)]
    new = [x + 0.01 + 0.001 * (i % 3) for i, x in enumerate(old)]
    figure = statistics.paired_difference(new, old)
    assert figure["value"] == pytest.approx(0.01 + 0.001 * 99 / 100)
    assert 0 < figure["ci95"][0] < figure["value"] < figure["ci95"][1] < 0.012


def test_the_gate_reads_the_interval() -> None:
    gain, draw, loss = ({"ci95": interval} for interval in ([0.01, 0.03], [-0.01, 0.02], [-0.03, -0.01]))
    assert [decide("better", each) for each in (gain, draw, loss)] == [True, False, False]
    assert [decide("not-worse", each) for each in (gain, draw, loss)] == [True, True, False]
    assert [decide("always", each) for each in (gain, draw, loss)] == [True, True, True]


PROMPTS = [{"id": f"prompt-{i}"} for i in range(10)]


@given(seed=st.integers(0, 2**31), count=st.integers(1, 9), rounds=st.integers(1, 6))
def test_no_prompt_comes_twice_before_all_are_used_up(seed: int, count: int, rounds: int) -> None:
    taken = [each["id"] for r in range(rounds) for each in take(PROMPTS, seed, r * count, count)]
    whole = len(taken) // 10 * 10
    if count * rounds <= 10:
        assert len(set(taken)) == len(taken)
    one = take(PROMPTS, seed, 0, count)
    assert len({each["id"] for each in one}) == count
    assert whole <= len(taken)


@given(seed=st.integers(0, 2**31), start=st.integers(0, 100), count=st.integers(1, 10))
def test_a_slice_holds_no_prompt_twice(seed: int, start: int, count: int) -> None:
    taken = [each["id"] for each in take(PROMPTS, seed, start, count)]
    assert len(set(taken)) == len(taken) == count


def test_a_list_by_round_goes_on_with_its_last_entry() -> None:
    assert [of_round("abc", number) for number in (0, 1, 2, 3, 4, 9)] == ["a", "a", "b", "c", "c", "c"]


def test_seeds_differ_by_every_part() -> None:
    assert (
        len({derive_seed(0, "sft", 1), derive_seed(0, "sft", 2), derive_seed(0, "dpo", 1), derive_seed(1, "sft", 1)})
        == 4
    )


def test_prompts_are_chosen_by_the_values_in_their_columns() -> None:
    values = {"a": {"answer": "6"}, "b": {"answer": None}, "c": {"answer": None, "kind": "note"}, "d": {}}
    prompts = [{"id": name, "columns": json.dumps(columns)} for name, columns in values.items()]
    assert [row["id"] for row in matching(prompts, {"answer": None})] == ["b", "c", "d"]
    assert [row["id"] for row in matching(prompts, {"answer": None, "kind": "note"})] == ["c"]
    assert matching(prompts, {}) == prompts


@pytest.mark.parametrize(
    ("where", "said"), [({"anwser": None}, "did you mean 'answer'"), ({"answer": "7"}, '{"answer": "7"}')]
)
def test_a_column_that_no_prompt_has_or_a_value_that_none_has_is_an_error(where: dict, said: str) -> None:
    with pytest.raises(DataError, match=r"preferences\.where") as raised:
        matching([{"id": "a", "columns": '{"answer": "6"}'}], where)
    assert said in str(raised.value)


def test_prompts_nearest_to_the_wanted_pass_rate_are_taken_and_unjudged_ones_in_their_share() -> None:
    """Fails where prompts come as they are: the first three are not those taken."""
    rates = [("a", 1.0), ("b", None), ("c", 0.25), ("d", 0.75), ("e", 0.0), ("f", None), ("g", 0.5), ("h", 0.25)]
    # Two of eight are unjudged, so one of four; of the judged, by distance from 0.25: c 0, h 0, e 0.25, g 0.25, ...
    assert nearest(rates, 0.25, 4) == ["b", "c", "h", "e"]
    assert nearest(rates, 0.75, 4) == ["b", "d", "a", "g"]
    assert len(nearest(rates, 0.5, 8)) == 8


def test_sizes_are_told_in_powers_of_1000() -> None:
    sizes = [0, 999, 1000, 3_640_000, 357.4e6, 1.44e9, 2.5e12, 3e15]
    said = ["0 B", "999 B", "1.0 KB", "3.6 MB", "357.4 MB", "1.4 GB", "2.5 TB", "3000.0 TB"]
    assert [bytes_in_words(size) for size in sizes] == said
