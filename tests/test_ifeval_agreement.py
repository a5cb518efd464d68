"""benchmarks/ifeval_agreement.py: our verdicts beside those of lm-eval's checkers."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import ifeval_agreement as agreement  # noqa: E402 - the folder is on the path only now

PROMPTS = {
    1: {"instruction_id_list": ["punctuation:no_comma", "keywords:existence"], "kwargs": [{}, {"keywords": ["sea"]}]},
    2: {
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"num_sentences": 1, "relation": "at least"}],
    },
}
ANSWERS = [
    {"key": 1, "completion": "The sea is cold."},
    {"key": 1, "completion": "The river, cold."},
    {"key": 2, "completion": "The sea."},
]


def always(kind: str, parameters: Any, text: str) -> str:
    """Stands in for lm-eval: all is followed, but sentences cannot be counted."""
    return agreement.NO_DATA if kind.endswith("sentences") else agreement.FOLLOWED


def test_agreement_is_counted_by_kind_and_each_disagreement_is_shown():
    verdicts = agreement.compare(PROMPTS, ANSWERS, agreement.our_checker(), always)
    text = agreement.report(verdicts, {"keywords:existence": "there so, here so"})
    assert "| `punctuation:no_comma` | 2 | 1 | 0 | 1 |" in text
    assert "| `keywords:existence` | 2 | 1 | 0 | 1 |" in text
    assert "| `length_constraints:number_sentences` | 0 | needs NLTK's data |  |  |" in text
    assert "keywords:existence: there so, here so\n- 1 " in text
    assert text.count("not followed by ours, followed by theirs\n  'The river, cold.'") == 2


def test_an_answer_to_no_prompt_is_an_error():
    with pytest.raises(KeyError):
        agreement.compare(PROMPTS, [{"key": 3, "completion": "The sea."}], agreement.our_checker(), always)


def test_the_page_names_kinds_of_ifeval():
    reward = runpy.run_path(str(ROOT / "reward" / "instructions.py"))
    named = set(agreement.page_differences())
    assert len(named) > 15 and named <= {kind for kind in reward["KINDS"] if kind.split(":")[0] in reward["IFEVAL"]}


def test_on_golden_cases_it_disagrees_only_where_the_page_says_so():
    pytest.importorskip("lm_eval.tasks.ifeval.instructions_registry")
    of_ifeval = runpy.run_path(str(ROOT / "reward" / "instructions.py"))["IFEVAL"]
    prompts, answers = {}, []
    for key, line in enumerate((ROOT / "reward" / "instructions.cases.jsonl").read_text("utf-8").splitlines()):
        case = json.loads(line)
        kinds = case["columns"]["instruction_id_list"] or []
        if len(kinds) == 1 and kinds[0].split(":")[0] in of_ifeval:
            prompts[key] = case["columns"]
            answers.append({"key": key, "completion": case["completion"]})
    verdicts = agreement.compare(prompts, answers, agreement.our_checker(), agreement.their_checker())
    differ = {each.kind for each in verdicts if each.ours != each.theirs != agreement.NO_DATA}
    assert len(verdicts) > 100 and differ <= set(agreement.page_differences())
