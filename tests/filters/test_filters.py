from __future__ import annotations

import pickle

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.filter_rows import SCORED, batches, row

from posttrain import filters
from posttrain.errors import DataError, RecipeError
from posttrain.filters import FILTERS, Filter, FilterContext, Run
from posttrain.storage.pieces import Pieces

CLEAN = [
    "Mia has 7 apples. She buys 5 more, so she has 7 + 5 = 12. The answer is 12.",
    "Dear Tom,\nthank you for the blue kite. I fly it every Sunday.\nYours, Mia",
    "12",
    "2 + 2 = 4, 4 + 4 = 8, 8 + 8 = 16, 16 + 16 = 32",
    "Ask the user: what does he want? A human: that is a user of tools.",  # roles, but not as speakers
    "if a < b and b > c: print('<tag>') # <<16-3-4=9>>",
    "- one\n- two\n- three\n- four\n\n- five",
    "very, very, very good",
]


def filter_rows(rows: list[dict], *entries: dict, size: int = 3, evaluation: list[str] | None = None, seed: int = 0):
    """Kept rows, dropped rows, and the run with its counts."""
    context = FilterContext(["what is evaluated on"] if evaluation is None else evaluation, seed)
    run = filters.run(batches(rows, size), filters.parse(entries), context)
    kept, dropped = [], []
    for part in run:
        kept += part.kept.to_pylist()
        dropped += part.dropped.to_pylist()
    check_counts(run, len(rows), len(kept), len(dropped))
    return kept, dropped, run


def check_counts(run: Run, rows: int, kept: int, dropped: int) -> None:
    assert rows == run.rows_in == kept + dropped and kept == run.rows_kept
    flow = [rows]
    for count in run.counts:
        assert count.rows_in == flow[-1] and count.reasons.total() == count.rows_in - count.rows_out
        flow.append(count.rows_out)
    assert flow[-1] == kept


def reasons(dropped: list[dict]) -> list[str]:
    return [each["reason"] for each in dropped]


def test_clean_answers_pass_every_filter_of_form():
    rows = [row(answer, prompt=f"{i}") for i, answer in enumerate(CLEAN)]
    kept, dropped, _ = filter_rows(rows, {"use": "format"}, {"use": "length"}, {"use": "repetition"})
    assert dropped == [] and kept == rows


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty answer"),
        (" \n\t", "empty answer"),
        ("caf\ufffd", "broken characters"),
        ("12<|eot_id|>", "control token"),
        ("12</s>", "control token"),
        ("[INST] and? [/INST]", "control token"),
        ("<｜end▁of▁sentence｜>", "control token"),
        ("### Response: 12", "control token"),
        ("12\nUser: and now?", "role confusion"),
        ("**Assistant**: 12", "role confusion"),
        ("assistant\n\n12", "role confusion"),
        ("12\nuser\nand now?", "role confusion"),
    ],
)
def test_format_drops_planted_faults_and_lets_allowed_ones_pass(answer: str, reason: str):
    _, dropped, _ = filter_rows([row(answer)], {"use": "format"})
    assert reasons(dropped) == [reason] and dropped[0]["filter"] == "format"
    kept, _, _ = filter_rows([row(answer)], {"use": "format", "allow": [reason]})
    assert len(kept) == 1


def test_format_unfinished_says_the_length():
    _, dropped, _ = filter_rows([row("one two three", finish="length", n_tokens=64)], {"use": "format"})
    assert (dropped[0]["reason"], dropped[0]["figure"]) == ("unfinished", 64)


def test_format_takes_further_tokens_and_roles():
    rows = [row("a <tool> b", prompt="a"), row("Teacher: c", prompt="b")]
    assert not filter_rows(rows, {"use": "format"})[1]
    _, dropped, _ = filter_rows(rows, {"use": "format", "tokens": ["<tool>"], "roles": ["teacher"]})
    assert reasons(dropped) == ["control token", "role confusion"]


def test_length_in_tokens_and_in_words():
    rows = [row("a", n_tokens=n, prompt=str(n)) for n in (0, 3, 9)]
    kept, dropped, _ = filter_rows(rows, {"use": "length", "min_tokens": 1, "max_tokens": 8})
    assert [each["n_tokens"] for each in kept] == [3]
    assert [(each["reason"], each["figure"]) for each in dropped] == [("too short", 0), ("too long", 9)]
    plain = pa.RecordBatch.from_pylist([{"prompt": "p", "completion": "one two three"}])
    (part,) = filters.run([plain], filters.parse([{"use": "length", "max_tokens": 2}]), FilterContext())
    assert part.dropped.column("figure").to_pylist() == [3]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("so then we add one and " * 4, "repeated n-grams"),
        ("The answer is " + "7" * 400, "repeated n-grams"),
        ("Yes.\nI do.\n" * 8, "repeated n-grams"),
        (
            "\n".join(["first of all lines", "ok", "a second line", "ok", "ok", "ok", "third one here"]),
            "repeated lines",
        ),
    ],
)
def test_repetition_finds_loops(answer: str, reason: str):
    _, dropped, _ = filter_rows([row(answer)], {"use": "repetition"})
    assert reasons(dropped) == [reason] and 0.4 < dropped[0]["figure"] <= 1


def test_exact_duplicates_keep_the_first_across_batches_and_compare_the_prompt():
    rows = [row("a  b", "p"), row("c", "p"), row("a b\n", "p"), row("a b", "q"), row("c", "q"), row("a b", "q")]
    for size in (1, 2, 6):
        kept, dropped, _ = filter_rows(rows, {"use": "exact-duplicates"}, size=size)
        assert kept == [rows[i] for i in (0, 1, 3, 4)]
        assert [each["figure"] for each in dropped] == [2, 2]


def test_a_parsed_list_runs_again_from_a_clean_state():
    chain = filters.parse([{"use": "exact-duplicates"}])
    for _ in range(2):
        run = filters.run(batches([row("a"), row("a")]), chain, FilterContext())
        list(run)
        assert run.rows_kept == 1


QUESTION = "A train leaves the old town at nine and travels 60 miles an hour for 3 hours before it stops at the lake"


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (QUESTION, "evaluation prompt"),
        (QUESTION.upper() + "?!", "evaluation prompt"),
        ("What is 3 - 4?", "evaluation prompt"),
        (QUESTION.replace("old town", "new city"), "8-gram overlap"),
        (f"Solve this with care, step by step, and show your work. {QUESTION} Now: when?", "8-gram overlap"),
        (" ".join(QUESTION.split()[:15]), "8-gram overlap"),
        (" ".join(QUESTION.split()[:9]), None),
        ("What is 3 + 4?", None),
        ("A train leaves the station and stops at the lake after 3 hours. How far is it?", None),
    ],
)
def test_overlap_with_evaluation_prompts(prompt: str, reason: str | None):
    rows = [row("a", prompt, sample_index=i) for i in range(4)]
    _, dropped, _ = filter_rows(rows, {"use": "overlap"}, evaluation=[QUESTION, "what is 3 - 4", "", "something else"])
    assert set(reasons(dropped)) == ({reason} if reason else set())
    assert len(dropped) == (4 if reason else 0)
    assert all(0.5 < each["figure"] <= 1 for each in dropped)


def test_overlap_figure_is_the_share_of_the_evaluation_prompt():
    evaluation = " ".join(f"w{i}" for i in range(10)).replace("w", "x ")  # 20 tokens
    prompt = " ".join(evaluation.split()[:12])
    _, dropped, _ = filter_rows([row("a", prompt)], {"use": "overlap"}, evaluation=[evaluation])
    assert dropped[0]["figure"] == pytest.approx(12 / 20)
    assert not filter_rows([row("a", prompt)], {"use": "overlap", "max_share": 0.6}, evaluation=[evaluation])[1]


def test_overlap_without_evaluation_prompts_is_refused():
    with pytest.raises(RecipeError, match="no evaluation prompts"):
        filter_rows([row("a")], {"use": "overlap"}, evaluation=[])


def scored(prompt: str, *scores: float | None) -> list[dict]:
    return [row(f"{i}", prompt, sample_index=i, score=score) for i, score in enumerate(scores)]


def test_best_of_k_across_batches():
    rows = scored("a", 0.1, 0.9, 0.9, None) + scored("b", 0.2) + scored("c", None, float("nan")) + scored("d", 0.7, 0.6)
    for size in (1, 2, 3, 5, 100):
        kept, dropped, run = filter_rows(rows, {"use": "best-of-k", "threshold": 0.5}, size=size)
        assert [(each["prompt_id"], each["sample_index"]) for each in kept] == [("a", 1), ("d", 0)]
        assert run.counts[0].reasons == {"below the threshold": 2, "no score": 3, "not the best": 2}
        assert [each["figure"] for each in dropped] == [0.1, 2, None, 0.2, None, None, 2]


def test_best_of_k_sees_only_what_earlier_filters_kept():
    rows = scored("a", 0.9, 0.8, 0.7)
    rows[0]["finish"] = "length"
    kept, dropped, _ = filter_rows(rows, {"use": "format"}, {"use": "best-of-k", "keep": 1})
    assert [each["sample_index"] for each in kept] == [1]
    assert [each["filter"] for each in dropped] == ["format", "best-of-k"]  # in the order of the input


def test_the_random_arm_draws_evenly_among_the_same_candidates():
    rows = [each for i in range(600) for each in scored(f"p{i}", 0.1, 0.6, 0.9, 0.7)]
    entry = {"use": "best-of-k", "threshold": 0.5, "choose": "random"}
    kept, _, _ = filter_rows(rows, entry, size=100)
    again, _, _ = filter_rows(rows, entry, size=7)
    other, _, _ = filter_rows(rows, entry, size=100, seed=1)
    assert kept == again and kept != other
    picks = [each["sample_index"] for each in kept]
    assert len(picks) == 600 and all(150 < picks.count(i) < 250 for i in (1, 2, 3))


def test_rows_of_one_prompt_must_stand_together():
    rows = scored("a", 0.1) + scored("b", 0.1) + scored("a", 0.2)
    for size in (1, 2, 3):
        with pytest.raises(DataError, match="are not adjacent"):
            filter_rows(rows, {"use": "best-of-k"}, size=size)


def test_a_missing_or_unfit_column_is_named():
    plain = pa.RecordBatch.from_pylist([{"prompt": "p", "completion": "c", "score": "high"}])
    chain = filters.parse([{"use": "best-of-k"}])
    with pytest.raises(DataError, match="'score' holds string, not numbers"):
        list(filters.run([plain], chain, FilterContext()))
    with pytest.raises(DataError, match=r"'score', which the rows lack"):
        list(filters.run([plain.select(["prompt", "completion"])], chain, FilterContext()))
    with pytest.raises(DataError, match="already"):
        list(filters.run([plain.rename_columns(["prompt", "completion", "reason"])], [], FilterContext()))
    with pytest.raises(DataError, match="must be text or chat messages"):
        list(
            filters.run(
                [pa.RecordBatch.from_pylist([{"completion": 3}])], filters.parse([{"use": "format"}]), FilterContext()
            )
        )


def test_schemas_are_the_inputs_own():
    (part,) = filters.run(batches([row("a"), row("")]), filters.parse([{"use": "format"}]), FilterContext())
    assert part.kept.schema == SCORED and part.dropped.schema == filters.dropped_schema(SCORED)
    assert part.dropped.schema.names[-3:] == ["filter", "reason", "figure"]


@pytest.mark.parametrize(
    ("entry", "message", "rule"),
    [
        ({"use": "lenght"}, "filters[0]: unknown filter 'lenght', did you mean 'length'?", "recipe-unknown-name"),
        ({}, "filters[0]: no `use`", "recipe-unknown-name"),
        (
            {"use": "length", "max_token": 3},
            "filters[0]: length: unknown key 'max_token', did you mean 'max_tokens'?",
            "recipe-unknown-key",
        ),
        ({"use": "exact-duplicates", "n": 3}, "filters[0]: exact-duplicates: unknown key 'n'", "recipe-unknown-key"),
        ({"use": "length", "max_tokens": "3"}, "filters[0]: length: 'max_tokens' must be an integer", "recipe-type"),
        (
            {"use": "length", "min_tokens": 3, "max_tokens": 2},
            "max_tokens (2) is below min_tokens (3)",
            "recipe-values-clash",
        ),
        (
            {"use": "format", "allow": ["empty"]},
            "filters[0]: format: 'allow.0' must be 'empty answer'",
            "recipe-choice",
        ),
        ({"use": "best-of-k", "keep": 0}, "filters[0]: best-of-k: 'keep' must be greater than", "recipe-range"),
    ],
)
def test_parse_names_what_is_wrong(entry: dict, message: str, rule: str):
    with pytest.raises(RecipeError) as caught:
        filters.parse([entry])
    assert message in str(caught.value) and caught.value.rule == rule


NEEDED: dict[str, dict] = {  # keys that have no default
    "judge": {"rubric": "guard.md", "judge": {"url": "http://a/v1", "model": "b"}},
    "classifier": {"model": "./a", "label": "toxic"},
}


@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_is_documented_picklable_and_known_by_its_name(name: str):
    each = FILTERS[name].model_validate(NEEDED.get(name, {}))
    assert each.use == name and pickle.loads(pickle.dumps(each)) == each
    assert "Figure" in (type(each).__doc__ or "")
    assert all(info.description for key, info in type(each).model_fields.items() if key != "use")


ANSWERS = st.sampled_from(["", "a", "a b", "a  b", "12</s>", "User: a", "la " * 20, "é\ufffd", "one two three"])
GROUPS = st.lists(
    st.tuples(ANSWERS, st.sampled_from(["stop", "length"]), st.one_of(st.none(), st.floats(0, 1))),
    min_size=1,
    max_size=5,
)
# But for those that need keys, or a column that rows here do not have.
PLAIN = [kind() for name, kind in FILTERS.items() if name not in (*NEEDED, "steps")]
CHAINS = st.lists(st.sampled_from(PLAIN), max_size=6)


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(GROUPS, max_size=6), chain=CHAINS, size=st.integers(1, 12))
def test_nothing_is_lost_nothing_is_changed(groups: list, chain: list[Filter], size: int):
    rows = [
        row(answer, f"prompt {g}", sample_index=i, finish=finish, score=score)
        for g, group in enumerate(groups)
        for i, (answer, finish, score) in enumerate(group)
    ]
    run = filters.run(list(batches(rows, size)), chain, FilterContext(["prompt 1"]))
    kept, dropped = [], []
    for part in run:
        kept += part.kept.to_pylist()
        dropped += [{key: each[key] for key in SCORED.names} for each in part.dropped.to_pylist()]
    check_counts(run, len(rows), len(kept), len(dropped))
    assert sorted(map(repr, kept + dropped)) == sorted(map(repr, rows))
    position = {(each["prompt_id"], each["sample_index"]): i for i, each in enumerate(rows)}
    for part in (kept, dropped):
        order = [position[each["prompt_id"], each["sample_index"]] for each in part]
        assert order == sorted(order)


def test_a_pass_that_was_killed_asks_only_about_what_it_had_not_judged(tmp_path) -> None:
    rows = [row(f"{n % 4} and more", f"prompt {n // 2}", score=n / 12, sample_index=n % 2) for n in range(12)]
    rows[7] = row("", "prompt 3", sample_index=1)
    entries = [{"use": "length", "min_tokens": 2}, {"use": "exact-duplicates"}, {"use": "length", "max_tokens": 9}]
    parsed, context = filters.parse([*entries, {"use": "best-of-k"}]), FilterContext(["other"], 0)
    whole = filters.run(batches(rows), parsed, context)
    expected = [part for pair in whole for part in pair]

    asked: list[int] = []

    class Counting(Filter):
        """The first filter, which says of every batch that it was asked about it."""

        def start(self, context: FilterContext):
            judge = parsed[0].start(context)

            def counting(some):
                asked.append(len(some))
                return judge(some)

            return counting

    counted, memory = [Counting(use="length"), *parsed[1:]], Pieces(tmp_path)
    passage = iter(filters.run(batches(rows), counted, context, memory))
    for _ in range(2):
        next(passage)
    before = len(asked)
    again = filters.run(batches(rows), counted, context, memory)
    assert [part for pair in again for part in pair] == expected
    assert len(asked) == len(expected) // 2 and before == 2
    assert [count.reasons for count in again.counts] == [count.reasons for count in whole.counts]
    assert [(count.rows_in, count.rows_out) for count in again.counts] == [
        (count.rows_in, count.rows_out) for count in whole.counts
    ]
