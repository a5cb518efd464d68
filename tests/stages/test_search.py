"""The search stage: what it finds is right, stands beside its prompt's samples, and is the same after a kill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.content import REWARD
from support.content import load as content
from support.interrupted import Killed, says
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import shipped
from posttrain.config import RewardEntry
from posttrain.data.chat_template import render_prompt
from posttrain.data.tables import SCORED_ANSWERS, SEARCHED, STEP_SCORES
from posttrain.errors import RecipeError
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.search import searching
from posttrain.search.drawn import Drawn
from posttrain.search.step_scorer import ByDPO
from posttrain.search.tree import Tree
from posttrain.stages import search
from posttrain.storage import store
from posttrain.storage.files import file_hash

BASE = shipped.locate("data", "step-base")
REWARDS = [{"use": "step-problems.py", "function": "correct", "weight": 1.0, "for": "scores"}]
SCHEMA = SCORED_ANSWERS.append(pa.field("score", pa.float64())).append(STEP_SCORES.field("step_scores"))
PROMPTS, K = 12, 2


def problems(steps: int) -> list[dict[str, str]]:
    rows = map(json.loads, shipped.locate("data", "step-problems.train.jsonl").read_text("utf-8").splitlines())
    return [row for row in rows if len(row["steps"].split()) == steps][:PROMPTS]


def samples(folder: Path, values: Sequence[float | None] = (0.0,) * PROMPTS) -> Path:
    """Wrong answers to problems of three steps; `values`: what they are given."""
    rows = [
        {
            "prompt_id": f"{at:02}",
            "sample_index": index,
            "tag": "",
            "prompt": says("user", row["prompt"]),
            "completion": says("assistant", "Answer: -1"),
            "tokens": [1],
            "n_tokens": 1,
            "finish": "stop",
            "logprob": None,
            "columns": json.dumps({"answer": row["answer"], "steps": row["steps"]}),
            "rewards": json.dumps({RewardEntry.model_validate(REWARDS[0]).name: values[at]}),
            "score": values[at],
            "step_scores": None,
        }
        for at, row in enumerate(problems(3))
        for index in range(K)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "scored.parquet")
    manifest = {"metrics": {"logits": {"mean": 0.0, "deviation": 1.0}}}
    (folder / store.MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return folder


def run(folder: Path, table: Path, progress: Any = None, **more: Any) -> dict[str, Any]:
    inputs = {name: more.pop(name) for name in ("step_policy", "step_reference") if name in more}
    steps = {"beta": 0.3, "temperature": 1.0} if inputs else {}
    section = {"max_new_tokens": 64, "tokens": 1500, **more}
    engine = {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 6000}
    config = {"search": section, "rewards": REWARDS, "step_ends": ["\n"], "engine": engine, **steps}
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    job = Job(config, {"samples": table, "policy": BASE, **inputs}, folder / "out", folder / "scratch", 7)
    return search.run(job if progress is None else Job(**{**vars(job), "progress": progress}))


def written(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out" / "scored.parquet").to_pylist()


@pytest.mark.parametrize("method", ["mcts", "beam"])
def test_what_is_found_is_right_and_stands_below_the_samples_of_its_prompt(tmp_path: Path, method: str) -> None:
    table = samples(tmp_path / "samples")
    found = run(tmp_path, table, method=method)
    rows = written(tmp_path)
    new = [row for row in rows if row["tag"] == SEARCHED]
    assert [row for row in rows if row["tag"] != SEARCHED] == pq.read_table(table / "scored.parquet").to_pylist()
    assert len(new) == found["prompts"]["solved"] >= PROMPTS // 2
    assert PROMPTS // 3 <= found["pairs"] <= len(new)  # where the first answer is right there is no wrong one
    assert found["rows"] == len(rows) and found["prompts"]["asked"] == PROMPTS
    correct, tokenizer = content(REWARD / "step-problems.py").correct, AutoTokenizer.from_pretrained(BASE)
    for at, row in enumerate(rows):
        if row["tag"] != SEARCHED:
            continue
        assert (row["prompt_id"], row["sample_index"], row["score"]) == (rows[at - 1]["prompt_id"], K, 1.0)
        assert correct([row["prompt"]], [row["completion"]], [json.loads(row["columns"])["answer"]]) == [1.0]
        assert tokenizer.decode(row["tokens"], skip_special_tokens=True) == row["completion"][0]["content"]
        assert len(row["tokens"]) == row["n_tokens"] <= 64
    solved = {row["prompt_id"]: row["completion"] for row in new}
    for pair in pq.read_table(tmp_path / "out" / "pairs.parquet").to_pylist():
        assert pair["chosen"] == solved[pair["prompt_id"]] and pair["margin"] == 1.0
        assert pair["rejected"][0]["content"] != pair["chosen"][0]["content"]


def test_steps_are_scored_by_dpo_and_its_reference(tmp_path: Path) -> None:
    policy, model = tmp_path / "policy", AutoModelForCausalLM.from_pretrained(BASE)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(policy)
    tokenizer: Any = AutoTokenizer.from_pretrained(BASE)
    tokenizer.save_pretrained(policy)
    prompt = [*render_prompt(tokenizer, says("user", problems(3)[0]["prompt"]))]
    steps = [tokenizer.encode(text, add_special_tokens=False) for text in ("3 + 4 = 7\n", "3 * 4 = 12\n")]
    (scores, none) = ByDPO(str(policy), str(BASE), "float32", 0.3, 2.0)([prompt, prompt], [steps, []])
    for step, score in zip(steps, scores, strict=True):
        sums = []
        for folder in (policy, BASE):
            plain = AutoModelForCausalLM.from_pretrained(folder)
            with torch.inference_mode():
                logits = plain(torch.tensor([[*prompt, *step]])).logits[0].div(2.0).log_softmax(-1)
            sums.append(sum(float(logits[len(prompt) + at - 1, one]) for at, one in enumerate(step)))
        assert score == pytest.approx(0.3 * (sums[0] - sums[1]), abs=1e-4)
    assert none == []
    found = run(tmp_path, samples(tmp_path / "samples"), step_policy=policy, step_reference=BASE)
    assert found["prompts"]["solved"] >= PROMPTS // 2
    assert all(row["step_scores"] is None for row in written(tmp_path))  # those of the samples are not this model's


def test_an_answer_of_no_token_costs_one_and_is_no_step() -> None:
    """So that a policy that ends at once does not search for ever."""
    tree = Tree(2, 1.0, 10)
    assert tree.asks() == [()]
    tree.take((), [Drawn((), (), True, 0.0), Drawn((), (), True, 0.5)])
    assert (tree.root.visits, tree.root.total, tree.root.children) == (2, 0.5, {})
    assert tree.asks() == [()]


def test_only_prompts_without_a_right_sample_are_searched_for(tmp_path: Path) -> None:
    values = [1.0, None, 0.2] + [0.0] * (PROMPTS - 3)
    found = run(tmp_path, samples(tmp_path / "samples", values), prompts=4)
    kinds = {name: found["prompts"][name] for name in ("asked", "right", "unchecked", "left_out", "too_long")}
    assert kinds == {"asked": 4, "right": 1, "unchecked": 1, "left_out": PROMPTS - 6, "too_long": 0}


@pytest.mark.parametrize(("value", "said"), [(None, True), (1.0, False)])
def test_without_prompts_to_search_for_the_samples_pass_as_they_are(
    tmp_path: Path, value: float | None, said: bool
) -> None:
    table = samples(tmp_path / "samples", [value] * PROMPTS)
    found = run(tmp_path, table)
    assert written(tmp_path) == pq.read_table(table / "scored.parquet").to_pylist()
    assert found["prompts"]["solved"] == found["tokens"] == 0
    assert ("fallback" in found) is said


def test_a_search_ends_at_its_budget(tmp_path: Path) -> None:
    table = samples(tmp_path / "samples")
    found = run(tmp_path, table, tokens=50, width=2)
    assert found["prompts"]["solved"] < PROMPTS
    assert found["tokens"] < PROMPTS * (50 + 2 * 64)  # the last simulation may pass it


def test_after_a_kill_it_goes_on_and_gives_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = samples(tmp_path / "samples")
    run(tmp_path / "whole", table)
    made, real = [], searching.search

    def counted(shard: searching.Shard) -> pa.Table:
        made.append(shard)
        return real(shard)

    monkeypatch.setattr(search, "search", counted)

    def dies(done: int, total: int, unit: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", table, progress=dies)
    assert len(made) == 1
    run(tmp_path / "killed", table)
    assert 1 < len(made) == len({shard.asked[0].place for shard in made})  # none was made twice
    for file in ("scored.parquet", "pairs.parquet"):
        assert file_hash(tmp_path / "killed" / "out" / file) == file_hash(tmp_path / "whole" / "out" / file)


def test_its_share_of_sft_is_the_mix_s() -> None:
    runner = DryRunner()
    play(load("quickstart", ["search={}", "sft.mix.searched.share=0.5", "dpo.pairs_from=[pairs, search]"]), runner, 2)
    by_name = {(one.number, one.role or one.stage): one for one in runner.stages}
    assert by_name[2, "search"].inputs["samples"] == "2/scores"
    assert by_name[2, "filters"].inputs["scored"] == "2/search"
    assert by_name[2, "dpo"].inputs["search"] == "2/search"
    assert by_name[2, "sft"].config["sft"]["mix"]["searched"] == {"share": 0.5, "repeats": 1}
    assert "step_policy" not in by_name[2, "search"].inputs
    runner = DryRunner()
    play(load("quickstart", ["search={}", "step_scores={}"]), runner, 2)
    made = [one for one in runner.stages if one.stage == "search"]
    assert "step_policy" not in made[0].inputs
    assert (made[1].inputs["step_policy"], made[1].inputs["step_reference"]) == ("1/dpo", "1/sft")


def test_without_a_function_that_checks_there_is_nothing_to_search_by() -> None:
    with pytest.raises(RecipeError, match="does not say which answers are right") as said:
        load("quickstart", ["search={}", "reward=[{use: reward-model}, {use: readers.py, for: preferences}]"])
    assert said.value.rule == "recipe-no-reward"
