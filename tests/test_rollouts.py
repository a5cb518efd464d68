"""One shard, sampled: what stands in its rows."""

from dataclasses import replace
from pathlib import Path

from posttrain.config import Engine
from posttrain.data.messages import Message, hinted, under
from posttrain.data.tables import GREEDY, SAMPLED
from posttrain.engines.protocol import SamplingParams
from posttrain.rollouts import Sampling, plan, rollout

BASE = Path(__file__).parent.parent / "data" / "tiny-base"
ASKED: list[Message] = [
    {"role": "user", "content": "Sam has 14 pencils. Sam gives 8 to Dan. How many pencils does Sam have left?"}
]


def answers(messages: list[Message], system: str | None = None) -> list[dict]:
    sampling = Sampling(str(BASE), SamplingParams(1.0, 12), k=8, seed=0, dtype="float32", system=system)
    prompt = {"id": "one", "prompt": messages, "columns": "{}"}
    return sampled([prompt], sampling)


def sampled(prompts: list[dict], sampling: Sampling) -> list[dict]:
    (shard,) = plan(prompts, sampling, 1 << 20)
    return rollout(shard).to_pylist()


def test_a_steered_prompt_is_answered_as_with_the_message_and_kept_without_it() -> None:
    """Fails where the message is not shown to the policy, or is left in what will be trained on."""
    steered, whole, plain = answers(ASKED, "Be brief."), answers(under("Be brief.", ASKED)), answers(ASKED)
    assert [row["tokens"] for row in steered] == [row["tokens"] for row in whole]
    assert [row["tokens"] for row in steered] != [row["tokens"] for row in plain]
    assert all(row["prompt"] == ASKED for row in steered)


def test_a_hinted_prompt_is_answered_as_with_the_hint_below_it_and_kept_without_it() -> None:
    """A row without a hint, in the same shard, is answered as it stands."""
    sampling = Sampling(str(BASE), SamplingParams(1.0, 12), k=8, seed=0, dtype="float32")
    columns = {"one": '{"hint": "Say 6."}', "two": '{"hint": null}', "three": "{}"}
    prompts = [{"id": name, "prompt": ASKED, "columns": each} for name, each in columns.items()]
    whole = [row | {"prompt": hinted("Say 6.", ASKED) if row["id"] == "one" else ASKED} for row in prompts]
    rows, asked = sampled(prompts, replace(sampling, hint="hint")), sampled(whole, sampling)
    tokens = {(row["prompt_id"], row["sample_index"]): row["tokens"] for row in asked}
    assert {(row["prompt_id"], row["sample_index"]): row["tokens"] for row in rows} == tokens
    assert [row["tokens"] for row in rows] != [row["tokens"] for row in sampled(prompts, sampling)]
    assert all(row["prompt"] == ASKED for row in rows)
    assert hinted("Say 6.", ASKED)[-1]["content"] == f"{ASKED[-1]['content']}\n\nSay 6."


def test_the_greedy_answer_is_made_before_the_samples_and_named() -> None:
    sampling = Sampling(str(BASE), SamplingParams(1.0, 12), k=2, seed=0, tag=SAMPLED, dtype="float32", greedy=True)
    prompts = [{"id": name, "prompt": ASKED, "columns": "{}"} for name in ("one", "two")]
    rows = sampled(prompts, sampling)
    named = [(row["prompt_id"], row["tag"], row["sample_index"]) for row in rows]
    assert named == [(name, *each) for name in ("one", "two") for each in ((GREEDY, 0), (SAMPLED, 0), (SAMPLED, 1))]
    drawn = sampled(prompts, replace(sampling, greedy=False))
    assert [row["tokens"] for row in rows if row["tag"] == SAMPLED] == [row["tokens"] for row in drawn]
    cold = replace(sampling, params=SamplingParams(0.0, 12), greedy=False)
    assert rows[0]["tokens"] == rows[3]["tokens"] == sampled(prompts, cold)[0]["tokens"]


def test_a_prompts_own_system_message_stays() -> None:
    own = under("Be kind.", ASKED)
    assert under("Be brief.", own) == own
    assert [row["tokens"] for row in answers(own, "Be brief.")] == [row["tokens"] for row in answers(own)]


def test_a_hundred_prompts_are_four_shards_and_each_holds_at_most_what_it_may() -> None:
    """100 prompts, 8 answers of 128 tokens: at the default's 32,768 tokens all cores of a small machine have work."""
    sampling = Sampling(str(BASE), SamplingParams(1.0, 128), k=8, seed=0)
    prompts = [{"id": str(at), "prompt": ASKED, "columns": "{}"} for at in range(100)]
    shards = plan(prompts, sampling, Engine().shard_tokens)
    assert [len(shard.prompts) for shard in shards] == [25] * 4
    assert [row["id"] for shard in shards for row in shard.prompts] == sorted(row["id"] for row in prompts)
    assert plan(prompts[::-1], sampling, Engine().shard_tokens) == shards
    assert len(plan(prompts, sampling, 1)) == 100
