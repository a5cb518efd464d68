"""The prompts stage: what is wrong with prompts, model or rewards is told before anything is sampled."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.tiny_models import tokenizer

from posttrain.config.kto import Kto
from posttrain.errors import DataError, InputError, ModelError, RewardError
from posttrain.job import Job
from posttrain.stages import prompts

BASE = Path(__file__).parents[2] / "data" / "tiny-base"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(name: str, count: int = 3) -> list[dict[str, Any]]:
    return [{"prompt": f"{name} {index}?", "answer": str(index)} for index in range(count)]


def run(
    folder: Path,
    model: Path = BASE,
    rewards: list[str] | None = None,
    systems: tuple[str, ...] = (),
    hint: str | None = None,
    later: list[dict[str, Any]] | None = None,
    given_pairs: list[dict[str, Any]] | None = None,
    decontaminate: dict[str, Any] | None = None,
    reference: Path | None = None,
    given: dict[str, Any] | None = None,
    **sets: list[dict[str, Any]],
) -> dict:
    all_sets = {"train": rows("train"), "dev": rows("dev"), "heldout": rows("heldout"), **sets}
    paths = {name: {"path": str(write(folder / f"{name}.jsonl", one))} for name, one in all_sets.items()}
    (folder / "out").mkdir(exist_ok=True)
    prompt_sets: dict[str, Any] = {name: one for name, one in paths.items() if name != "further"}
    if "further" in paths:
        prompt_sets["against"] = [paths["further"]]
    if "real" in paths:
        prompt_sets["real"]["columns"] = {"completion": "answer"}
    settings: dict[str, Any] = {
        "prompts": {**prompt_sets, "decontaminate": decontaminate},
        "rewards": [{"use": use} for use in rewards or ["word-problems.py"]],
    }
    if later:
        settings["later"] = [{"path": str(write(folder / "later.jsonl", later))}]
    if given:
        settings["given"] = given
    if reference:
        settings["reference"] = str(reference)
    if given_pairs:
        path = str(write(folder / "given.jsonl", given_pairs))
        settings["given"] = {"preferences": {"as": "preferences", "sets": [{"path": path}]}}
    config = {"max_new_tokens": 48, "systems": list(systems), **({"hint": hint} if hint else {})}
    job = Job(config, {"model": model}, folder / "out", folder / "scratch", 0, settings)
    return prompts.run(job)


def test_the_three_sets_become_tables(tmp_path: Path) -> None:
    assert run(tmp_path)["train"]["prompts"] == 3
    table = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert table[0]["prompt"] == [{"role": "user", "content": "train 0?"}]
    assert json.loads(table[0]["columns"]) == {"answer": "0"}


def test_a_training_prompt_that_is_evaluated_on_is_left_out_and_counted(tmp_path: Path) -> None:
    metrics = run(tmp_path, train=[*rows("train"), *rows("dev"), *rows("heldout", 1)])
    assert metrics["train"] == {"prompts": 3, "too_long": 0, "in_an_evaluation_set": 4}


HELD_OUT = "Mia has 7 red apples and 5 green ones; she gives 3 away at noon. How many are left in the end?"


@pytest.mark.parametrize(
    "same",
    [
        HELD_OUT,
        HELD_OUT.upper(),
        HELD_OUT.replace(" ", "  ") + "\n",
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HELD_OUT}],
    ],
)
def test_what_is_held_out_never_reaches_training_whatever_the_filters_are(tmp_path: Path, same: Any) -> None:
    """Preferences, samples and pairs all start from train.parquet, and no filter has a say in it."""
    planted = [*rows("train"), {"prompt": same, "answer": "9"}]
    metrics = run(tmp_path, train=planted, heldout=[{"prompt": HELD_OUT, "answer": "9"}])
    assert metrics["train"] == {"prompts": 3, "too_long": 0, "in_an_evaluation_set": 1}
    table = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [row["prompt"][0]["content"] for row in table] == ["train 0?", "train 1?", "train 2?"]


def test_much_of_an_evaluation_prompt_is_left_out_where_the_recipe_says_so(tmp_path: Path) -> None:
    near = [{"prompt": f"Work it out: {HELD_OUT} Say why.", "answer": "9"}, *rows("train")]
    heldout = [{"prompt": HELD_OUT, "answer": "9"}]
    for name in ("off", "on"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "off", train=near, heldout=heldout)["train"]["prompts"] == 4
    metrics = run(tmp_path / "on", train=near, heldout=heldout, decontaminate={"n": 8, "max_share": 0.5})
    assert metrics["train"]["overlaps_an_evaluation_set"] == 1 and metrics["train"]["prompts"] == 3


def test_further_evaluation_sets_are_kept_out_too_and_go_to_the_filters(tmp_path: Path) -> None:
    metrics = run(tmp_path, train=[*rows("train"), *rows("test", 2)], further=[{"prompt": "TEST 1?"}])
    assert metrics["train"]["in_an_evaluation_set"] == 1 and "against" not in metrics
    assert pq.read_table(tmp_path / "out" / "against.parquet").num_rows == 1


def test_real_data_is_read_with_its_answers_and_without_what_is_evaluated_on(tmp_path: Path) -> None:
    metrics = run(tmp_path, real=[*rows("real"), *rows("HELDOUT", 1)])
    assert metrics["real"] == {"rows": 3, "in_an_evaluation_set": 1}
    table = pq.read_table(tmp_path / "out" / "real.parquet").to_pylist()
    assert table[2]["completion"] == [{"role": "assistant", "content": "2"}]


def test_real_data_without_an_answer_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"real\.jsonl:2: there is no answer"):
        run(tmp_path, real=[{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": " "}])


def test_a_further_evaluation_set_that_is_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"further\.jsonl: no rows"):
        run(tmp_path, further=[])


def test_a_column_that_only_heldout_lacks_is_told_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"needs the column 'answer'.*heldout\.jsonl has none"):
        run(tmp_path, heldout=[{"prompt": "a?"}])


def test_a_prompt_that_is_too_long_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dev\.jsonl:2: the prompt has.*\[data-prompt-too-long\]"):
        run(tmp_path, dev=[{"prompt": "a", "answer": "1"}, {"prompt": "x1 " * 600, "answer": "1"}])


def test_sets_of_which_nothing_is_left_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: no prompt is left.*\[data-no-prompt-left\]"):
        run(tmp_path, train=rows("HELDOUT", 1))
    with pytest.raises(DataError, match=r"real\.jsonl: no row is left.*\[data-real-evaluated-on\]"):
        run(tmp_path, real=rows("HELDOUT", 1))


def test_a_reward_that_raises_is_told_before_anything_is_sampled(tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("def f(prompts, completions, **columns):\n    return [1.0]\n", encoding="utf-8")
    with pytest.raises(RewardError, match=r"mine\.py:1: f\(\) returned 1 scores for"):
        run(tmp_path, rewards=[str(reward)])


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in BASE.iterdir():
        if path.name != "chat_template.jinja":
            (model / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        run(tmp_path, model=model)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError):
        run(tmp_path, model=tmp_path / "model")


def test_what_is_wrong_with_a_later_rounds_file_is_told_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"later\.jsonl:2: the prompt is empty"):
        run(tmp_path, later=[*rows("later", 1), {"prompt": " ", "answer": "1"}])


def test_what_is_wrong_with_given_pairs_is_told_before_the_first_round(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"given\.jsonl:1: there is no 'rejected'"):
        run(tmp_path, given_pairs=[{"prompt": "a", "chosen": "b"}])
    counted = run(tmp_path, given_pairs=[{"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert counted["given"] == {"preferences": [1]}


def test_what_is_wrong_with_given_single_answers_is_told_before_the_first_round(tmp_path: Path) -> None:
    path = write(tmp_path / "thumbs.jsonl", [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a"}])
    given = {"kto": {"as": Kto.given_as, "sets": [{"path": str(path)}]}}
    with pytest.raises(DataError, match=r"thumbs\.jsonl:2: there is no 'label'"):
        run(tmp_path, given=given)


def test_a_reference_of_another_tokenizer_is_told_before_anything_is_sampled(tmp_path: Path) -> None:
    for path in BASE.iterdir():
        if not path.name.startswith("tokenizer"):
            (tmp_path / "other").mkdir(exist_ok=True)
            (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="dpo: the reference has another tokenizer"):
        run(tmp_path, reference=tmp_path / "other")
    assert run(tmp_path, reference=BASE)["train"]["prompts"] == 3
    shutil.copytree(BASE, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()  # a reference is asked of token ids alone
    assert run(tmp_path, reference=tmp_path / "plain")["train"]["prompts"] == 3


def test_a_training_prompt_must_leave_room_for_the_messages_that_steer_its_samples(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1: the prompt has"):
        run(tmp_path, systems=("x1 " * 300,))


def test_a_training_prompt_must_leave_room_for_its_hint(tmp_path: Path) -> None:
    hinted = [row | {"hint": "x1 " * 300 if at == 1 else None} for at, row in enumerate(rows("train"))]
    assert run(tmp_path, train=hinted)["train"]["prompts"] == 3
    with pytest.raises(DataError, match=r"train\.jsonl:2: the prompt has"):
        run(tmp_path, train=hinted, hint="hint")


@pytest.mark.parametrize(
    ("column", "message"), [("hints", "no training prompt has"), ("number", r"train\.jsonl:2: .*is no text: 7")]
)
def test_hints_are_texts_of_a_column_that_is_there(tmp_path: Path, column: str, message: str) -> None:
    train = [row | {"number": 7 if at == 1 else None} for at, row in enumerate(rows("train"))]
    with pytest.raises(DataError, match=message) as caught:
        run(tmp_path, train=train, hint=column)
    assert caught.value.rule == "data-hint"
