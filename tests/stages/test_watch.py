"""The watch for real, on tiny models and made-up answers: pairs of its own, figures side by side, warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.tiny_models import EOS, PAD, causal_lm, reward_model, tokenizer

from posttrain.config import RewardModel
from posttrain.data.pairs import split
from posttrain.data.tables import GREEDY, PAIRS, SAMPLED, SCORED_ANSWERS
from posttrain.errors import EmptyStageError, PosttrainError, RewardError, StageError
from posttrain.evaluation.compare import warnings
from posttrain.job import Job
from posttrain.stages import reward_model as reward_model_stage
from posttrain.stages import watch

SECOND = "held-out-reward-model"
LETTERS = "ABCDEFGH"


def saved(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = reward_model("llama", hidden_size=32 + 8 * seed, intermediate_size=32)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def says(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def answered(folder: Path, answers: Mapping[str, Sequence[str]], further: bool = False) -> Path:
    """A held-out artifact: of each prompt, the first answer is the greedy one, all others are sampled."""
    settings = [(GREEDY, slice(0, 1)), (SAMPLED, slice(1, None)), *([("T=0.5", slice(0, 1))] if further else [])]
    rows = [
        {
            "prompt_id": prompt,
            "sample_index": index,
            "tag": tag,
            "prompt": says("user", f"{prompt}?"),
            "completion": says("assistant", text),
            "tokens": [5] * len(text),
            "n_tokens": len(text),
            "finish": "stop",
            "logprob": 0.0,
            "columns": json.dumps({"answer": prompt}),
            "rewards": json.dumps({"check": float(text[:1] == prompt), "reward-model": 99.0}),
        }
        for prompt, texts in answers.items()
        for tag, part in settings
        for index, text in enumerate(texts[part])
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED_ANSWERS), folder / "heldout.parquet")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"watch_model": saved(root / "second", 1), "reward_model": saved(root / "proxy", 2)}


def job(
    root: Path, inputs: Mapping[str, Path], judges: Sequence[Mapping[str, Any]], files: Mapping[str, str] | None = None
) -> Job:
    """`files`: where the reward files lie that are named here without a folder."""
    for name in ("out", "scratch"):
        (root / name).mkdir()
    check = {"use": "check.py", "function": None, "weight": 1.0, "for": None}
    config = {"judges": judges, "rewards": [check]}
    runtime = {"judges": [{"use": (files or {}).get(judge["use"], judge["use"])} for judge in judges]}
    return Job(config, inputs, root / "out", root / "scratch", seed=0, runtime=runtime)


DEFAULT = [{"use": SECOND, "function": None}, {"use": "check.py", "function": None}]


@pytest.fixture
def check(tmp_path: Path) -> dict[str, str]:
    """What the answers were judged by. Its verdicts are in the tables, so it must not be asked again."""
    (tmp_path / "check.py").write_text(
        "def f(prompts, completions, **columns):\n    raise RuntimeError('asked again')\n"
    )
    return {"check.py": str(tmp_path / "check.py")}


def alone(folder: Path, prompt: str, text: str) -> float:
    """transformers' own score of one answer."""
    from transformers import AutoModelForSequenceClassification

    ids = tokenizer().apply_chat_template([*says("user", f"{prompt}?"), *says("assistant", text)], tokenize=True)
    ids = ids["input_ids"] if isinstance(ids, Mapping) else ids
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits.item()


POLICY = {one: [f"{one} it is", f"{one} indeed", "No."] for one in LETTERS}
PREVIOUS = {one: [f"{one} it is", "Well", f"{one}!"] for one in LETTERS}
BASE = {one: ["I do not know", "Well", "Hm"] for one in LETTERS}


def test_figures_are_those_of_one_reward_model_on_all_answers(
    tmp_path: Path, models: dict[str, Path], check: dict[str, str]
) -> None:
    """Not those of the tables, where each round's own reward model scored (here: 99)."""
    policies = {"policy": POLICY, "previous": PREVIOUS, "base": BASE}
    inputs = {name: answered(tmp_path / name, texts, name == "base") for name, texts in policies.items()}
    found = watch.run(job(tmp_path, {**inputs, **models}, DEFAULT, check))
    for side, texts in policies.items():
        figures = found["figures"][side]
        sampled = [(one, text) for one in LETTERS for text in texts[one][1:]]
        for name, model in (("heldout_reward", "watch_model"), ("proxy_reward", "reward_model")):
            scores = [alone(models[model], prompt, text) for prompt, text in sampled]
            assert figures[name]["value"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
        assert figures["length"]["value"] == sum(len(text) for _, text in sampled) / len(sampled)
        assert figures["accuracy"]["value"] == sum(text[0] == prompt for prompt, text in sampled) / len(sampled)
        assert figures["accuracy"]["n"] == len(LETTERS)
    means = found["figures"]
    for other in ("previous", "base"):
        for name, change in found["changes"][other].items():
            assert change["value"] == pytest.approx(means["policy"][name]["value"] - means[other][name]["value"])
    against = found["win_rates"]["base"]
    wins = [
        alone(models["watch_model"], one, POLICY[one][0]) > alone(models["watch_model"], one, BASE[one][0])
        for one in LETTERS
    ]
    assert against[SECOND]["raw"]["value"] == pytest.approx(sum(wins) / len(wins))
    assert against["check"]["raw"]["value"] == 1.0
    assert found["win_rates"]["previous"][SECOND] == {  # the same greedy answers
        "raw": {"value": 0.5, "ci95": [0.5, 0.5], "n": 8},
        "length_controlled": {"value": 0.5, "ci95": [0.5, 0.5], "n": 8},
        "ties": 1.0,
    }
    assert pq.read_table(tmp_path / "out" / "compared.parquet").num_rows == 2 * len(LETTERS)


def test_in_the_first_round_the_previous_policy_is_the_base(
    tmp_path: Path, models: dict[str, Path], check: dict[str, str]
) -> None:
    base, policy = answered(tmp_path / "base", BASE), answered(tmp_path / "policy", POLICY)
    found = watch.run(job(tmp_path, {"policy": policy, "previous": base, "base": base, **models}, DEFAULT, check))
    for name in ("figures", "changes", "win_rates"):
        assert found[name]["base"] == found[name]["previous"]


def test_judges_of_the_users_own(tmp_path: Path, models: dict[str, Path]) -> None:
    """One scores answers one by one, one compares them, one looks at the side alone."""
    bodies = {
        "longest.py": "def f(prompts, completions, **_):\n    return [len(c[-1]['content']) for c in completions]\n",
        "shorter.py": "def judge(prompts, first, second, answer):\n"
        "    return [float(len(a[-1]['content']) < len(b[-1]['content'])) for a, b in zip(first, second)]\n",
        "side.py": "def judge(prompts, first, second, **_):\n    return [1.0] * len(prompts)\n",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(body)
    judges = [{"use": name, "function": None} for name in bodies]
    inputs = {name: answered(tmp_path / name, texts) for name, texts in (("policy", POLICY), ("base", BASE))}
    files = {name: str(tmp_path / name) for name in bodies}
    found = watch.run(job(tmp_path, {**inputs, "previous": inputs["base"], **models}, judges, files))["win_rates"][
        "base"
    ]
    assert {name: wins["raw"]["value"] for name, wins in found.items()} == {"longest": 0.0, "shorter": 1.0, "side": 0.5}
    assert found["side"]["length_controlled"]["value"] == 0.5
    assert found["side"]["ties"] == 1.0


JUDGES = {
    "longer.py": "def judge(prompts, first, second, **_):\n"
    "    words = [[len(one[-1]['content'].split()) for one in side] for side in (first, second)]\n"
    "    return [0.9 if one > other else 0.1 if one < other else 0.5 for one, other in zip(*words)]\n",
    "count.py": "def f(prompts, completions, **_):\n    return [len(c[-1]['content'].split()) for c in completions]\n",
    "column.py": "def f(prompts, completions, answer):\n    assert all(answer)\n    return [1.0] * len(prompts)\n",
}


def labelled(folder: Path, chosen: Sequence[str], rejected: Sequence[str], split: str = "heldout") -> Path:
    """Pairs of these answers. The first has no column, as pairs given by people may have none."""
    rows = [
        {
            "prompt_id": f"{number}",
            "prompt": says("user", f"{number}?"),
            "chosen": says("assistant", one),
            "rejected": says("assistant", other),
            "split": split,
            "columns": json.dumps({"answer": "42"} if number else {}),
        }
        for number, (one, other) in enumerate(zip(chosen, rejected, strict=True))
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "pairs.parquet")
    return folder


def judged(root: Path, models: Mapping[str, Path], preferences: Path | None, bodies: Mapping[str, str]) -> Job:
    """A job whose judges are these files, beside the second reward model."""
    root.mkdir()
    for name, body in bodies.items():
        (root / name).write_text(body)
    inputs = {name: answered(root / name, texts) for name, texts in (("policy", POLICY), ("base", BASE))}
    inputs |= {"previous": inputs["base"], **models, **({"preferences": preferences} if preferences else {})}
    judges = [{"use": name, "function": None} for name in (SECOND, *bodies)]
    return job(root, inputs, judges, {name: str(root / name) for name in bodies})


def test_judges_are_compared_with_the_labels_of_held_out_pairs(tmp_path: Path, models: dict[str, Path]) -> None:
    """One who compares gives 0.9 to the answer with more words, which is the chosen one in 6 of 10 pairs. One who gives
    scores has no probability, and one who needs a column is not asked about the pair without it."""
    more, fewer = "one two three", "one two"
    preferences = labelled(tmp_path / "preferences", [more] * 6 + [fewer] * 4, [fewer] * 6 + [more] * 4)
    found = watch.run(judged(tmp_path / "watch", models, preferences, JUDGES))["judges"]
    assert set(found) == {"longer", "count", "column"}
    assert found["longer"]["pair_accuracy"]["value"] == pytest.approx(0.6)
    assert found["longer"]["ece"]["value"] == pytest.approx(0.3)
    assert found["longer"]["bins"] == [{"confidence": pytest.approx(0.9), "accuracy": pytest.approx(0.6), "n": 10}]
    assert found["count"] == {"pair_accuracy": found["longer"]["pair_accuracy"]}
    assert found["column"]["pair_accuracy"] == {"value": 0.5, "ci95": [0.5, 0.5], "n": 9}


def test_judged_pairs_are_not_asked_about_again(tmp_path: Path, models: dict[str, Path]) -> None:
    preferences = labelled(tmp_path / "preferences", [f"{number} a" for number in range(300)], ["b"] * 300)
    again = judged(tmp_path / "watch", models, preferences, {"longer.py": JUDGES["longer.py"]})
    once = watch.run(again)
    assert len(list((again.scratch / "judged").iterdir())) == 5
    (tmp_path / "watch" / "longer.py").write_text("def judge(prompts, first, second):\n    raise ValueError\n")
    assert watch.run(again) == once


def test_a_judge_who_fails_at_a_labelled_pair_is_named(tmp_path: Path, models: dict[str, Path]) -> None:
    preferences = labelled(tmp_path / "preferences", ["a"], ["b"])
    body = "def judge(prompts, first, second, **_):\n    return [2.0] * len(prompts)\n"
    with pytest.raises(RewardError, match=r"watch: judge mine: .* returned 2\.0, which is no probability"):
        watch.run(judged(tmp_path / "watch", models, preferences, {"mine.py": body}))


@pytest.mark.parametrize("split", ["train", None])
def test_without_held_out_pairs_the_judges_have_no_figures(
    tmp_path: Path, models: dict[str, Path], split: str | None
) -> None:
    preferences = labelled(tmp_path / "preferences", ["a"], ["b"], split) if split else None
    found = watch.run(judged(tmp_path / "watch", models, preferences, JUDGES))["judges"]
    nothing = {"value": None, "ci95": None, "n": 0}
    assert found["longer"] == {"pair_accuracy": nothing, "ece": nothing, "bins": []}
    assert found["count"] == {"pair_accuracy": nothing}


def test_equal_answers_are_a_tie_and_nobody_is_asked(tmp_path: Path, models: dict[str, Path]) -> None:
    """Also by a judge that says something else each time, and by one that would raise."""
    bodies = {"moody.py": "    return [random.random() for _ in prompts]\n", "raises.py": "    raise ValueError\n"}
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"import random\n\n\ndef judge(prompts, first, second, **_):\n{body}")
    judges = [{"use": SECOND, "function": None}, *({"use": name, "function": None} for name in bodies)]
    base, policy = answered(tmp_path / "base", POLICY), answered(tmp_path / "policy", POLICY)
    inputs = {"policy": policy, "previous": base, "base": base, **models}
    files = {name: str(tmp_path / name) for name in bodies}
    for wins in watch.run(job(tmp_path, inputs, judges, files))["win_rates"]["base"].values():
        assert wins["raw"] == wins["length_controlled"] == {"value": 0.5, "ci95": [0.5, 0.5], "n": len(LETTERS)}


def test_without_a_proxy_there_is_no_figure_and_no_warning(
    tmp_path: Path, models: dict[str, Path], check: dict[str, str]
) -> None:
    base, policy = answered(tmp_path / "base", BASE), answered(tmp_path / "policy", POLICY)
    inputs = {"policy": policy, "previous": base, "base": base, "watch_model": models["watch_model"]}
    for folder in (base, policy):  # a recipe without a reward model: no such score in the tables either
        table = pq.read_table(folder / "heldout.parquet")
        rows = [{**row, "rewards": json.dumps({"check": 1.0})} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCORED_ANSWERS), folder / "heldout.parquet")
    found = watch.run(job(tmp_path, inputs, DEFAULT[:1], check))
    assert found["figures"]["policy"]["proxy_reward"] == found["changes"]["base"]["proxy_reward"]
    assert found["figures"]["policy"]["proxy_reward"]["value"] is None
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("body", "says_"),
    [
        ("def f(prompts, completions, **_):\n    return [float('nan')] * len(prompts)\n", "returned nan"),
        ("def judge(prompts, first, second, **_):\n    return [float('inf')] * len(prompts)\n", "returned inf"),
    ],
)
def test_a_judge_without_a_number_is_named_with_the_stage(
    tmp_path: Path, models: dict[str, Path], body: str, says_: str
) -> None:
    (tmp_path / "mine.py").write_text(body)
    base, policy = answered(tmp_path / "base", BASE), answered(tmp_path / "policy", POLICY)
    inputs = {"policy": policy, "previous": base, "base": base, **models}
    judges = [{"use": "mine.py", "function": None}]
    with pytest.raises(RewardError, match=f"watch: judge mine: .* {says_}") as caught:
        watch.run(job(tmp_path, inputs, judges, {"mine.py": str(tmp_path / "mine.py")}))
    assert caught.value.exit_code == 2


def test_a_reward_model_without_a_number_is_named_with_the_stage(
    tmp_path: Path, models: dict[str, Path], check: dict[str, str]
) -> None:
    broken = reward_model("llama")
    with torch.no_grad():
        broken.score.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "broken")
    tokenizer().save_pretrained(tmp_path / "broken")
    base, policy = answered(tmp_path / "base", BASE), answered(tmp_path / "policy", POLICY)
    inputs = {"policy": policy, "previous": base, "base": base, **models, "watch_model": tmp_path / "broken"}
    with pytest.raises(PosttrainError, match=f"watch: judge {SECOND}: the reward model gave nan"):
        watch.run(job(tmp_path, inputs, DEFAULT, check))
    assert not list((tmp_path / "out").iterdir())


def test_other_prompts_cannot_be_compared(tmp_path: Path, models: dict[str, Path], check: dict[str, str]) -> None:
    policy = answered(tmp_path / "policy", {"A": POLICY["A"], "B": POLICY["B"]})
    base = answered(tmp_path / "base", {"A": BASE["A"]})
    with pytest.raises(StageError, match="did not answer the same held-out prompts"):
        watch.run(job(tmp_path, {"policy": policy, "previous": base, "base": base, **models}, DEFAULT, check))


def change(value: float, half: float = 0.01) -> dict[str, Any]:
    return {"value": value, "ci95": [value - half, value + half], "n": 100}


@pytest.mark.parametrize(
    ("proxy", "heldout", "accuracy", "named"),
    [
        (change(0.5), change(-0.2), change(0.1), ["the held-out reward fell by 0.200 [0.190, 0.210]"]),
        (change(0.5), change(0.2), change(-0.1), ["the accuracy fell by 0.100 [0.090, 0.110]"]),
        (change(0.5), change(-0.2), change(-0.1), ["the held-out reward fell", "and the accuracy fell"]),
        (change(0.5), change(-0.2, 0.3), change(0.0), []),  # not sure that it fell
        (change(0.5, 0.6), change(-0.2), change(-0.1), []),  # not sure that the proxy rose
        (change(-0.5), change(-0.2), change(-0.1), []),  # worse, but nobody was misled
    ],
)
def test_a_warning_when_the_proxy_rises_and_the_others_fall(
    proxy: Any, heldout: Any, accuracy: Any, named: list[str]
) -> None:
    changes = {"proxy_reward": proxy, "heldout_reward": heldout, "length": change(3.0), "accuracy": accuracy}
    said = warnings({"previous": changes})
    assert len(said) == bool(named)
    for part in [*named, "against the last promoted policy, the proxy reward rose by 0.500"] if named else []:
        assert part in said[0]


def test_no_prompt_is_in_two_parts_and_the_held_out_part_is_what_it_was() -> None:
    ids = [f"prompt-{number}" for number in range(4000)]
    with_watch = {one: split(one, 0.15, 0.3) for one in ids}
    without = {one: split(one, 0.15) for one in ids}
    shares = {name: list(with_watch.values()).count(name) / len(ids) for name in ("heldout", "watch", "train")}
    assert shares == {
        name: pytest.approx(share, abs=0.03) for name, share in zip(shares, (0.15, 0.3, 0.55), strict=True)
    }
    assert set(without.values()) == {"heldout", "train"}
    assert all((with_watch[one] == "heldout") == (without[one] == "heldout") for one in ids)
    assert with_watch == {one: split(one, 0.15, 0.3) for one in ids}  # the same in every round


def pairs(folder: Path, splits: Sequence[str]) -> Path:
    """Pairs whose chosen answer is long in the training part and short in the watch's."""
    long, short = says("assistant", "A long and friendly answer."), says("assistant", "No.")
    rows = [
        {
            "prompt_id": f"{number}",
            "prompt": says("user", f"{number}?"),
            "chosen": short if part == "watch" else long,
            "rejected": long if part == "watch" else short,
            "split": part,
            "level": "better",
            "columns": "{}",
        }
        for number, part in enumerate(splits)
    ]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIRS), folder / "pairs.parquet")
    return folder


def trained(root: Path, tables: Sequence[Path], **config: Any) -> dict[str, Any]:
    section = RewardModel.model_validate({"max_steps": 30, "learning_rate": 3e-3, "per_device_train_batch_size": 8})
    base = root.parent / "base"
    if not base.exists():
        causal_lm("llama", eos_token_id=EOS, pad_token_id=PAD).save_pretrained(base)
        tokenizer().save_pretrained(base)
    for name in ("out", "scratch"):
        (root / name).mkdir(parents=True)
    inputs = {"model": base, **{f"preferences_{number}": table for number, table in enumerate(tables, 1)}}
    whole = {"reward_model": section.model_dump(mode="json"), "model": {"dtype": "float32", "lora": None}, **config}
    return reward_model_stage.run(Job(whole, inputs, root / "out", root / "scratch", seed=0))


def test_each_reward_model_learns_from_its_own_pairs_of_all_rounds(tmp_path: Path) -> None:
    """The parts contradict each other here: a model that saw the other's pairs would not be sure of its own."""
    parts = ["train"] * 9 + ["watch"] * 5 + ["heldout"] * 4
    tables = [pairs(tmp_path / "one", parts), pairs(tmp_path / "two", parts)]
    first = trained(tmp_path / "first", tables)
    second = trained(tmp_path / "second", tables, split="watch")
    assert (first["pairs"], second["pairs"]) == (18, 10)
    assert (first["pair_accuracy"]["value"], second["pair_accuracy"]["value"]) == (1.0, 0.0)
    assert first["pair_accuracy"]["n"] == second["pair_accuracy"]["n"] == 4


def test_no_pair_for_the_second_reward_model_is_told_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(EmptyStageError, match=r"watch\.reward_model: no pair is left of 0"):
        trained(tmp_path / "second", [pairs(tmp_path / "one", ["train"] * 3)], split="watch")


@pytest.mark.slow
def test_a_watched_run_by_the_command(tmp_path: Path) -> None:
    """Two reduced rounds of the quickstart, with a judge of pairs beside the default ones."""
    import subprocess
    import sys

    from support.command import posttrain

    (tmp_path / "shorter.py").write_text(
        "def judge(prompts, first, second, **_):\n"
        "    return [float(len(a[-1]['content']) < len(b[-1]['content'])) for a, b in zip(first, second)]\n"
    )
    judges = f"[{{use: {SECOND}}}, {{use: word-problems.py}}, {{use: {tmp_path}/shorter.py}}]"
    done = posttrain(tmp_path / "run", 2, "watch.share=0.3", f"watch.judges={judges}", "watch.reward_model.max_steps=8")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "at one length" in done.stdout
    command = [sys.executable, "-m", "posttrain", "status", str(tmp_path / "run"), "--json"]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for shown in figures["rounds"][1:]:
        found = shown["watch"]
        assert set(found) == {"figures", "changes", "win_rates", "warnings", "judges", "reward_model"}
        nothing = {"value": None, "ci95": None, "n": 0}  # preferences are of prompts without an answer
        assert found["judges"]["word-problems"] == {"pair_accuracy": nothing}
        assert set(found["judges"]["shorter"]) == {"pair_accuracy", "ece", "bins"}
        table = pq.read_table(tmp_path / "run" / f"round-{shown['round']}" / "preferences" / "pairs.parquet")
        labelled = table["split"].to_pylist().count("heldout")
        assert found["judges"]["shorter"]["pair_accuracy"]["n"] == found["judges"]["shorter"]["ece"]["n"] == labelled
        for wins in found["win_rates"].values():
            assert set(wins) == {SECOND, "word-problems", "shorter"}
            assert all(0 <= one[kind]["value"] <= 1 for one in wins.values() for kind in ("raw", "length_controlled"))
        assert found["reward_model"]["pairs"] > 0
    splits = pq.read_table(tmp_path / "run" / "round-1" / "preferences" / "pairs.parquet")["split"].to_pylist()
    assert set(splits) == {"train", "heldout", "watch"}
