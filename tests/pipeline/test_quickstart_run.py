"""The quickstart for real, reduced: TRL's trainers, the shipped model, processes of their own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.command import command, posttrain
from support.stages_page import PAGE, SECTIONS, columns_on_page

from posttrain.storage import store
from posttrain.storage.files import file_hash, read_json

ANNOTATIONS = ("topic", "tags", "intentions", "difficulty")  # columns that the quickstart does not ask for


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    done = posttrain(folder, 2)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def policy(run: Path) -> Path:
    return (run / "policy").resolve()


def test_two_rounds_leave_whole_artifacts_links_and_figures(run: Path) -> None:
    artifacts = list((run / "artifacts").iterdir())
    assert len(artifacts) == 6 + 2 * 16
    assert [name for artifact in artifacts for name in store.damaged_files(artifact)] == []
    assert list((run / "work").iterdir()) == []
    shown = subprocess.run(
        [sys.executable, "-m", "posttrain", "status", str(run), "--json"], capture_output=True, text=True, check=True
    )
    figures = json.loads(shown.stdout)
    assert [entry["round"] for entry in figures["rounds"]] == [0, 1, 2]
    base, last = figures["rounds"][0]["evaluate"]["heldout"], figures["rounds"][2]
    assert base["pass@1_best_temperature"]["value"] >= base["pass@1"]["value"]
    assert set(last["reward_model"]["pair_accuracy"]) == {"value", "ci95", "n"}
    samples = last["samples"]
    assert samples["completions"] == 4 * samples["prompts"] == samples["kept"] + sum(samples["dropped"].values())


def test_a_finished_run_does_nothing_again(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    done = posttrain(run, 2)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_policy_loads_with_transformers_and_answers_through_its_template(run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = json.loads((Path(__file__).parents[2] / "data/word-problems.heldout.jsonl").open().readline())["prompt"]
    tokenizer = AutoTokenizer.from_pretrained(policy(run))
    model: Any = AutoModelForCausalLM.from_pretrained(policy(run))
    messages = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=60, do_sample=False)
    answer = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip()
    assert not list(policy(run).glob("*.bin"))


def test_every_table_is_read_by_datasets_as_trl_wants_it(run: Path) -> None:
    from datasets import Dataset
    from trl.data_utils import is_conversational

    for name, columns in (
        ("filtered/kept.parquet", {"prompt", "completion"}),
        ("pairs/pairs.parquet", {"prompt", "chosen", "rejected"}),
        ("preferences/pairs.parquet", {"prompt", "chosen", "rejected"}),
    ):
        table = Dataset.from_parquet(str(run / "round-2" / name))
        assert columns <= set(table.column_names)
        assert is_conversational(table[0])


def test_the_page_of_stages_says_what_a_run_writes_and_reports(run: Path) -> None:
    import pyarrow.parquet as pq

    general = PAGE.partition("\n## ")[0]
    for artifact in (run / "artifacts").iterdir():
        made = read_json(artifact / "artifact.json")
        name = made["stage"]
        for table in artifact.glob("*.parquet"):
            columns = pq.read_schema(table).names
            said = columns_on_page()[f"{name}/{table.name}"]
            optional = ("pass_rate", *ANNOTATIONS, "step_scores")
            assert [each for each in said if each not in optional or each in columns] == columns
        for figure in made["metrics"]:
            assert f"`{figure}`" in SECTIONS[name] or f"`{figure}`" in general, f"{name}: {figure}"


def test_dev_and_heldout_prompts_never_reach_training(run: Path) -> None:
    import pyarrow.parquet as pq

    prompts = next((run / "artifacts").glob("prompts-*"))
    kept_out = {
        row["id"]
        for name in ("dev", "heldout")
        for row in pq.read_table(prompts / f"{name}.parquet", columns=["id"]).to_pylist()
    }
    for name in ("filtered/kept", "pairs/pairs", "preferences/pairs"):
        for number in (1, 2):
            path = run / f"round-{number}" / f"{name}.parquet"
            trained = pq.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist()
            assert not kept_out.intersection(trained)


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_ends_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    for seconds in (8, 12, 16, 20):
        process = subprocess.Popen(command(killed, 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = posttrain(killed, 2)
    assert done.returncode == 0, done.stderr
    weights = [file_hash(policy(folder) / "model.safetensors") for folder in (run, killed)]
    assert weights[0] == weights[1]
    assert policy(run).name == policy(killed).name


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["dpo.learning_rat=1e-4"], "did you mean 'learning_rate'"),
        (["prompts.dev.path=./nowhere.jsonl"], "nowhere.jsonl"),
        (["samples.k=0"], "samples.k"),
        (["model.path=./no-model"], "no-model"),
        (["prompts.train.columns={prompt: question}"], "question"),
        (["samples.max_new_tokens=500"], "too_long"),
    ],
)
def test_wrong_input_stops_with_one_message_and_leaves_the_run_as_it_was(
    run: Path, overrides: list[str], says: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    done = posttrain(run, 2, *overrides)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    assert after == before


def test_a_reward_that_raises_stops_before_any_training(run: Path, tmp_path: Path) -> None:
    reward = tmp_path / "mine.py"
    reward.write_text("def f(prompts, completions, **columns):\n    raise ValueError('no such luck')\n")
    done = posttrain(tmp_path / "run", 1, f"reward.0.use={reward}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{reward}:2" in done.stderr
    assert "no such luck" in done.stderr
    assert "sft" not in done.stdout


def test_a_round_without_a_kept_sample_names_the_filter_and_can_go_on(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = posttrain(folder, 1, "filters.1.min_tokens=47")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "length" in done.stderr
    assert "Traceback" not in done.stderr
    assert posttrain(folder, 1).returncode == 0


@pytest.mark.slow
def test_two_rounds_with_lora_variants_and_averages(tmp_path: Path) -> None:
    """Policies and reward models of adapters alone, of two seeds each, averaged in the round and across rounds."""
    folder = tmp_path / "run"
    two = [f"{name}.variants=[{{}}, {{seed: 1}}]" for name in ("reward_model", "sft", "dpo")]
    done = posttrain(folder, 2, "model.lora.r=4", "model.lora.adapters=keep", "average_rounds=2", *two)
    assert done.returncode == 0, done.stderr + done.stdout
    stages = read_json(folder / "run.json")["rounds"][2]["stages"]
    for name in ("reward_model", "sft", "dpo", "across_rounds"):
        chosen = read_json(folder / "artifacts" / stages[name] / "artifact.json")
        assert chosen["stage"] == "choose" and chosen["metrics"]["averaged"] == 2
        assert chosen["metrics"]["chosen"] in chosen["metrics"]["dev"]
    adapter = folder / "round-2" / "dpo-variant-2" / "adapter" / "adapter_config.json"
    assert read_json(adapter)["base_model_name_or_path"] == stages["sft"]
    assert policy(folder).name in (stages["across_rounds"], stages["dpo"])
    assert str(tmp_path) not in adapter.read_text()
