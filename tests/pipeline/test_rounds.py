"""The loop with fake stages, in seconds: what runs, what is found done, what runs again and why."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.loop_runs import AGAIN, EVALUATED, FIGURES, METRICS, ROUND, FakeLauncher, go

from posttrain.errors import DamagedError, EmptyStageError, InputError, LockedError, StageError
from posttrain.execution import reruns
from posttrain.planning.dry_run import dry_run
from posttrain.recipe.load import load
from posttrain.report.reading import open_run
from posttrain.report.status import status, table
from posttrain.stages.registry import STAGES, StageSpec
from posttrain.storage.files import read_json
from posttrain.storage.store import Store

PREFERENCES = ("answers_preferences", "answers_preferences_previous", "preferences")


def test_each_round_goes_through_all_stages_in_order(tmp_path: Path) -> None:
    ran, said = go(tmp_path / "run", 2)
    assert ran == ["prompts", *EVALUATED, *ROUND, *ROUND]
    assert said == []


def test_what_a_run_waits_for_is_known_to_its_dry_run() -> None:
    """Every key that the loop reads of a stage's figures: a run is walked through before it begins."""
    assert dry_run(load("quickstart", ["collapse={stop: true}", "stop_after=1"]), 2)


def test_a_finished_run_does_no_stage_again_and_more_rounds_are_added(tmp_path: Path) -> None:
    go(tmp_path / "run", 2)
    before = (tmp_path / "run" / "run.json").read_bytes()
    assert go(tmp_path / "run", 2) == ([], [])
    assert go(tmp_path / "run", 1) == ([], [])
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert go(tmp_path / "run", 3) == (ROUND, [])


def test_a_run_of_another_version_says_so_once_with_what_starts_anew_and_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    gone = StageSpec("heldout", 3, "data")
    with monkeypatch.context() as before:  # a stage of an earlier version, and one that is made no more
        before.setitem(STAGES, "scores", replace(STAGES["scores"], version=1))
        before.setitem(STAGES, "heldout", gone)
        go(root, 1)
    made = {path: path.read_bytes() for path in root.glob("artifacts/*/*")}
    stages = Store(root).read_run()["rounds"][1]["stages"]
    monkeypatch.delitem(STAGES, "prompts")
    assert len(reruns.older(Store(root), Store(root).read_run()["rounds"])) == 1 + len(EVALUATED) + len(ROUND)
    monkeypatch.undo()
    ran, said = go(root, 1, "dpo.learning_rate=3e-4")
    after = ["scores", "filters", "sft", "answers_pairs", "pairs", "dpo", *EVALUATED, "promote"]
    assert ran == ["heldout", *after]
    (told,) = said
    assert told.startswith("this run is of an older layout")
    assert f"start anew: heldout of round 0; {', '.join(after)} of round 1. Nothing is deleted" in told
    assert {path: path.read_bytes() for path in made} == made
    assert Store(root).read_run()["rounds"][1]["stages"].keys() == stages.keys()
    assert go(root, 1, "dpo.learning_rate=3e-4") == ([], [])


def test_a_changed_key_runs_its_stage_and_what_follows_after_saying_why(tmp_path: Path) -> None:
    go(tmp_path / "run", 2)
    ran, said = go(tmp_path / "run", 2, "dpo.learning_rate=3e-4")
    assert ran == ["dpo", *EVALUATED, "promote", *AGAIN]
    assert len(said) == 2  # one for the dpo of each round
    assert said[0].startswith("dpo of round 1 runs again: dpo.learning_rate 0.0001 → 0.0003; then what follows")
    assert "evaluate of round 1" in said[0]
    assert "answers_samples of round 2" in said[0]


def test_going_back_to_the_old_value_runs_nothing(tmp_path: Path) -> None:
    go(tmp_path / "run", 2)
    go(tmp_path / "run", 2, "dpo.learning_rate=3e-4")
    assert go(tmp_path / "run", 2) == ([], [])


def test_where_a_server_is_changes_no_key_and_its_kind_does(tmp_path: Path) -> None:
    def served(kind: str, port: int) -> tuple[str, str]:
        return "engine.use=server", f"engine.server={{kind: {kind}, url: 'http://127.0.0.1:{port}'}}"

    go(tmp_path / "run", 1, *served("vllm", 1))
    assert go(tmp_path / "run", 1, *served("vllm", 2)) == ([], [])
    ran, said = go(tmp_path / "run", 1, *served("sglang", 2))
    assert "answers_samples" in ran
    assert any('engine.server "vllm" → "sglang"' in reason for reason in said)


def test_without_a_server_the_key_knows_of_none(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    engines = [
        manifest["config"]["engine"]
        for path in (tmp_path / "run" / "artifacts").glob("*/artifact.json")
        if "engine" in (manifest := read_json(path))["config"]
    ]
    assert engines
    assert all(set(engine) == {"use", "dtype", "shard_tokens"} for engine in engines)


def test_what_only_says_how_to_run_changes_no_key(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    overrides = ["compute.workers=1", "dpo.per_device_train_batch_size=16", "dpo.gradient_accumulation_steps=2"]
    assert go(tmp_path / "run", 1, *overrides) == ([], [])


def test_another_seed_runs_everything_but_reading_the_prompts(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    ran, _ = go(tmp_path / "run", 1, "seed=1")
    assert ran == [*EVALUATED, *ROUND]


def test_a_policy_that_is_not_promoted_is_not_sampled_from(tmp_path: Path) -> None:
    go(tmp_path / "run", 2, launcher=FakeLauncher(promoted=False))
    rounds = json.loads((tmp_path / "run" / "run.json").read_text())["rounds"]
    sampled = read_json(tmp_path / "run" / "artifacts" / rounds[2]["stages"]["answers_samples"] / "artifact.json")
    assert sampled["input_keys"]["policy"].startswith("base-")
    assert rounds[2]["promoted"] is False


def test_each_round_samples_from_the_promoted_policy_and_learns_from_all_preferences(tmp_path: Path) -> None:
    go(tmp_path / "run", 3, "reward_model.preferences=all")
    run = Store(tmp_path / "run")
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    assert run.manifest(stages[2]["answers_samples"])["input_keys"]["policy"] == stages[1]["dpo"]
    assert run.manifest(stages[3]["answers_preferences_previous"])["input_keys"]["policy"] == stages[1]["dpo"]
    learned = run.manifest(stages[3]["reward_model"])["input_keys"]
    assert [learned[f"preferences_{n}"] for n in (1, 2, 3)] == [stages[n]["preferences"] for n in (1, 2, 3)]
    assert learned["model"] == stages[2]["reward_model"]


def _preferences_read(run: Store, stage: str) -> list[list[str]]:
    """What each round's stage reads of preference tables, as the rounds these are of."""
    rounds = run.read_run()["rounds"]
    made = {entry["stages"]["preferences"]: str(entry["round"]) for entry in rounds[1:]}
    read = [run.manifest(entry["stages"][stage])["input_keys"] for entry in rounds[1:]]
    return [[made[key] for role, key in keys.items() if role.startswith("preferences_")] for keys in read]


@pytest.mark.parametrize("stage", ["reward_model", "dpo"])
def test_which_rounds_preferences_a_stage_learns_from_is_a_key(stage: str, tmp_path: Path) -> None:
    """The paper: the reward model from all, DPO from the latest; so by default, and both can be had for both."""
    recipe = "dpo.pairs_from=preferences"
    default = {"reward_model": [["1"], ["1", "2"]], "dpo": [["1"], ["2"]]}
    go(tmp_path / "default", 2, recipe, "reward_model.preferences=all")
    assert _preferences_read(Store(tmp_path / "default"), stage) == default[stage]
    go(tmp_path / "other", 2, recipe, "reward_model.preferences=latest", "dpo.preferences=all")
    other = {"reward_model": default["dpo"], "dpo": default["reward_model"]}
    assert _preferences_read(Store(tmp_path / "other"), stage) == other[stage]


def test_a_reward_model_starts_from_the_base_unless_told_otherwise(tmp_path: Path) -> None:
    go(tmp_path / "run", 2, "reward_model.start=base")
    run = Store(tmp_path / "run")
    for entry in run.read_run()["rounds"][1:]:
        assert run.manifest(entry["stages"]["reward_model"])["input_keys"]["model"].startswith("base-")


def test_sft_learns_from_earlier_rounds_where_the_mix_says_so(tmp_path: Path) -> None:
    go(tmp_path / "fresh", 3)
    go(tmp_path / "mix", 3, "sft.mix.earlier.share=0.5")
    found = {}
    for name in ("fresh", "mix"):
        run = Store(tmp_path / name)
        stages = [entry["stages"] for entry in run.read_run()["rounds"]]
        found[name] = run.manifest(stages[3]["sft"])["input_keys"], [entry.get("filters") for entry in stages]
    assert "earlier_001" not in found["fresh"][0]
    inputs, filters = found["mix"]
    assert [inputs["earlier_001"], inputs["earlier_002"], inputs["kept"]] == filters[1:]


def test_filters_look_at_earlier_rounds_where_a_filter_says_so_and_no_other_runs_key_changes(tmp_path: Path) -> None:
    def filtered(name: str, chain: str) -> tuple[list[dict[str, str]], list[str]]:
        go(tmp_path / name, 2, f"filters={chain}")
        run = Store(tmp_path / name)
        made = [entry["stages"]["filters"] for entry in run.read_run()["rounds"][1:]]
        return [run.manifest(key)["input_keys"] for key in made], made

    inputs, made = filtered("across", "[{use: near-duplicates, across_rounds: true}]")
    earlier = [{role: key for role, key in read.items() if role.startswith("earlier_")} for read in inputs]
    assert earlier == [{}, {"earlier_001": made[0]}]

    inputs, made = filtered("within", "[{use: exact-duplicates}]")
    assert all(set(read) == {"scored", "prompts"} for read in inputs)
    assert Store(tmp_path / "within").manifest(made[0])["config"]["filters"] == [{"use": "exact-duplicates"}]


def test_further_evaluation_sets_are_in_the_key_only_where_there_are_any(tmp_path: Path) -> None:
    def read(name: str, *overrides: str) -> tuple[dict[str, str], dict[str, Any]]:
        go(tmp_path / name, 0, *overrides)
        manifest = Store(tmp_path / name).manifest(Store(tmp_path / name).read_run()["rounds"][0]["stages"]["prompts"])
        return manifest["outside"], manifest["config"]

    outside, config = read("without")
    assert set(outside) == {"train", "dev", "heldout"} and "decontaminate" not in config
    (tmp_path / "test.jsonl").write_text('{"question": "how many?"}\n')
    further = f"prompts.against=[{{path: {tmp_path}/test.jsonl, columns: {{prompt: question}}}}]"
    outside, config = read("with", further, "prompts.decontaminate={n: 5}")
    assert len(outside["against_1"]) == 64 and config["decontaminate"] == {"n": 5, "max_share": 0.5}
    with pytest.raises(InputError, match="no such file"):
        load("quickstart", ["prompts.against=[{path: ./nowhere.jsonl}]"])


def test_the_collapse_watch_warns_and_ends_a_run_only_where_it_is_told_to(tmp_path: Path) -> None:
    ran, _ = go(tmp_path / "off", 1)
    assert "diversity" not in ran
    for stop, rounds in ((False, 3), (True, 2)):  # the base's round is one
        root = tmp_path / str(stop)
        ran, _ = go(root, 2, f"collapse={{stop: {str(stop).lower()}}}")
        shown = status(open_run(root))
        assert len(shown["rounds"]) == rounds and ran.count("diversity") == rounds - 1
        assert "warning: round 1: the answers are all alike" in table(shown)
        assert shown["rounds"][1]["diversity"]["warnings"] == ["the answers are all alike"]
    entry = Store(tmp_path / "False").read_run()["rounds"]
    inputs = Store(tmp_path / "False").manifest(entry[2]["stages"]["diversity"])["input_keys"]
    assert inputs == {"kept": entry[2]["stages"]["filters"], "first": entry[1]["stages"]["filters"]}


def test_real_data_reaches_sft_and_no_key_of_a_run_without_it(tmp_path: Path) -> None:
    def sft(name: str, *overrides: str) -> dict[str, Any]:
        go(tmp_path / name, 1, *overrides)
        run = Store(tmp_path / name)
        return run.manifest(run.read_run()["rounds"][1]["stages"]["sft"])

    without = sft("without")
    assert set(without["input_keys"]) == {"model", "kept"} and set(without["config"]["sft"]["mix"]) == {
        "fresh",
        "earlier",
    }
    (tmp_path / "real.jsonl").write_text('{"prompt": "how many?", "completion": "two"}\n')
    real = sft("real", f"prompts.real.path={tmp_path}/real.jsonl", "sft.mix.real.share=0.2")
    assert "real" in real["input_keys"] and real["config"]["sft"]["mix"]["real"] == {"share": 0.2}
    with pytest.raises(InputError, match="there is no real data to mix in"):
        load("quickstart", ["sft.mix.real.share=0.2"])


def test_what_filters_read_from_outside_is_in_the_key(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("old goat")
    both = f"filters=[{{use: residue}}, {{use: unsafe-words, file: {tmp_path}/words.txt}}]"
    made = []
    for name, override in (("neither", "filters=[{use: format}]"), ("both", both)):
        go(tmp_path / name, 1, override)
        run = Store(tmp_path / name)
        made.append(run.manifest(run.read_run()["rounds"][1]["stages"]["filters"]))
    assert "special_tokens" not in made[0]["config"] and "<|end|>" in made[1]["config"]["special_tokens"]
    assert not made[0]["outside"]
    ((name, content),) = made[1]["outside"].items()
    assert name == "filters.1.words" and len(content) == 64


def test_annealing_begins_in_the_round_that_is_said(tmp_path: Path) -> None:
    go(tmp_path / "run", 2, "sft.anneal.steps=0.3", "sft.anneal.from_round=2")
    run = Store(tmp_path / "run")
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    assert run.manifest(stages[1]["sft"])["config"]["sft"]["anneal"] is None
    assert run.manifest(stages[2]["sft"])["config"]["sft"]["anneal"]["steps"] == 0.3


def stages_of(root: Path) -> list[dict[str, dict]]:
    """The manifest of each stage by name, for round 0, 1, …"""
    run = Store(root)
    return [{name: run.manifest(key) for name, key in entry["stages"].items()} for entry in run.read_run()["rounds"]]


def prompt_files(folder: Path, *names: str) -> str:
    """An override that makes these the training sets by round."""
    for name in set(names):
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt": name, "answer": "1"}) + "\n")
    return "prompts.train=[" + ", ".join(f"{{path: {folder / name}.jsonl}}" for name in names) + "]"


def test_each_round_takes_from_its_own_file_and_the_last_goes_on(tmp_path: Path) -> None:
    """Fails when only the first file is read, or when a file that comes again begins anew."""
    root = tmp_path / "run"
    ran, _ = go(root, 5, prompt_files(tmp_path, "one", "two", "one", "three"))
    base, *rounds = stages_of(root)
    assert ran.count("prompts") == 3
    read = [one["answers_samples"]["input_keys"]["prompts"] for one in rounds]
    second, fourth = rounds[1]["prompts"]["key"], rounds[3]["prompts"]["key"]
    assert read == [base["prompts"]["key"], second, base["prompts"]["key"], fourth, fourth]
    count = load("quickstart").samples.prompts
    assert [one["answers_samples"]["config"]["take"]["start"] for one in rounds] == [0, 0, count, 0, count]
    assert {one["answers_dev"]["input_keys"]["prompts"] for one in (base, *rounds)} == {base["prompts"]["key"]}


def test_a_file_for_a_later_round_runs_nothing_again(tmp_path: Path) -> None:
    go(tmp_path / "run", 2, prompt_files(tmp_path, "one", "two"))
    assert go(tmp_path / "run", 2, prompt_files(tmp_path, "one", "two", "three")) == ([], [])


def test_a_run_ends_early_after_so_many_rounds_without_improvement(tmp_path: Path) -> None:
    go(tmp_path / "run", 5, "stop_after=2", launcher=FakeLauncher(promoted=False))
    assert len(Store(tmp_path / "run").read_run()["rounds"]) == 3  # the base and two rounds
    go(tmp_path / "gains", 3, "stop_after=1")
    assert len(Store(tmp_path / "gains").read_run()["rounds"]) == 4
    # A policy that is promoted without being better is no gain: else `promote: always` would never end.
    for rule in ("always", "not-worse"):
        overrides = ("stop_after=2", f"promote={rule}")
        go(tmp_path / rule, 5, *overrides, launcher=FakeLauncher(promoted=True, better=False))
        assert len(Store(tmp_path / rule).read_run()["rounds"]) == 3


def test_dpos_reference_is_what_its_key_says(tmp_path: Path) -> None:
    found = {}
    for name in ("start", "initial", "previous", "averaged", "data/tiny-base"):
        root = tmp_path / name.replace("/", "-")
        go(root, 3, f"dpo.reference={name}")
        run = Store(root)
        stages = [entry["stages"] for entry in run.read_run()["rounds"]]
        found[name] = run.manifest(stages[3]["dpo"])["input_keys"].get("reference"), stages
    assert found["start"][0] is None
    assert found["initial"][0].startswith("base-")
    reference, stages = found["previous"]
    assert reference == stages[2]["dpo"]
    reference, stages = found["averaged"]
    assert reference == stages[3]["average"]
    averaged = Store(tmp_path / "averaged").manifest(reference)["input_keys"]
    assert list(averaged.values()) == [stages[1]["dpo"], stages[2]["dpo"]]
    assert found["data/tiny-base"][0].startswith("reference-")


@pytest.mark.parametrize(
    ("left_out", "stages"),
    [
        ("dpo=null", [stage for stage in ROUND if stage not in ("answers_pairs", "pairs", "dpo")]),
        ("sft=null", [stage for stage in ROUND if stage != "sft"]),
        ("reward_model=null", [stage for stage in ROUND if stage not in (*PREFERENCES, "reward_model")]),
    ],
)
def test_a_stage_is_left_out_by_null(tmp_path: Path, left_out: str, stages: list[str]) -> None:
    ran, _ = go(tmp_path / "run", 1, left_out)
    assert ran == ["prompts", *EVALUATED, *stages]


def test_a_stage_that_fails_leaves_what_is_whole_and_the_same_command_goes_on(tmp_path: Path) -> None:
    def fails(stage: str) -> None:
        if stage == "sft":
            raise EmptyStageError("no rows")

    with pytest.raises(StageError):
        go(tmp_path / "run", 1, launcher=FakeLauncher(fails=fails))
    ran, _ = go(tmp_path / "run", 1)
    assert ran == ["sft", "answers_pairs", "pairs", "dpo", *EVALUATED, "promote"]


def test_wrong_input_leaves_no_trace(tmp_path: Path) -> None:
    def fails(stage: str) -> None:
        raise InputError("a prompt is too long")

    with pytest.raises(InputError):
        go(tmp_path / "run", 1, launcher=FakeLauncher(fails=fails))
    assert not (tmp_path / "run").exists()
    go(tmp_path / "run", 1)
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.name != "lock")
    with pytest.raises(InputError):
        go(tmp_path / "run", 1, "samples.max_new_tokens=50", launcher=FakeLauncher(fails=fails))
    after = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*") if path.name != "lock")
    assert [path for path, _ in before] == [path for path, _ in after]
    assert [entry for entry in before if entry[0].is_file()] == [entry for entry in after if entry[0].is_file()]


def test_two_runs_on_one_folder_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    run = Store(tmp_path / "run")
    with run.session(), pytest.raises(LockedError, match="process"):
        go(tmp_path / "run", 1)


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert go(tmp_path / "elsewhere", 1) == ([], [])
    link = tmp_path / "elsewhere" / "round-1" / "sft"
    assert link.is_symlink()
    assert (link / "payload").is_file()
    assert (tmp_path / "elsewhere" / "policy" / "payload").is_file()


def test_status_has_the_figures_of_every_round(tmp_path: Path) -> None:
    go(tmp_path / "run", 2)
    figures = status(open_run(tmp_path / "run"))
    assert figures["recipe"] == "quickstart"
    assert [shown["round"] for shown in figures["rounds"]] == [0, 1, 2]
    last = figures["rounds"][2]
    assert last["evaluate"]["heldout"]["pass@8"] == FIGURES
    assert last["samples"] == {"prompts": 10, "completions": 80, "kept": 7, "dropped": {"format: empty": 73}}
    assert last["reward_model"] == {"pair_accuracy": FIGURES, "pairs": 5}
    assert set(last["seconds"]) == set(ROUND)
    assert len(table(figures).splitlines()) == 4


def test_status_of_no_run_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="posttrain round"):
        open_run(tmp_path)


def links(root: Path) -> dict[str, str]:
    found = [*root.glob("round-*/*"), root / "policy"]
    return {str(link.relative_to(root)): str(link.readlink()) for link in found if link.is_symlink()}


def test_input_refused_in_a_later_stage_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    def fails(stage: str) -> None:
        if stage == "dpo":
            raise InputError("a reward raised")

    root = tmp_path / "run"
    go(root, 2)
    before = [(root / name).read_bytes() for name in ("run.json", "recipe.yaml")], links(root)
    with pytest.raises(InputError):
        go(root, 2, "sft.learning_rate=1e-3", launcher=FakeLauncher(fails=fails))
    assert ([(root / name).read_bytes() for name in ("run.json", "recipe.yaml")], links(root)) == before


def test_input_refused_in_a_later_round_keeps_what_a_new_run_has_done(tmp_path: Path) -> None:
    root, rounds = tmp_path / "run", []

    def fails(stage: str) -> None:
        rounds.append(stage)
        if rounds.count("scores") == 2:
            raise InputError("a reward raised")

    with pytest.raises(InputError):
        go(root, 2, launcher=FakeLauncher(fails=fails))
    shown = status(open_run(root))["rounds"]
    assert [one["promoted"] for one in shown[:2]] == [True, True] and shown[1]["samples"]["kept"] == 7
    assert (root / "round-1" / "dpo").is_symlink()


def test_links_say_what_run_json_says(tmp_path: Path) -> None:
    root = tmp_path / "run"
    go(root, 3)
    whole = links(root)
    go(root, 1)
    assert links(root) == whole
    go(root, 1, "dpo=null", launcher=FakeLauncher(promoted=False))
    assert "round-1/dpo" not in links(root)
    assert not (root / "round-2").exists()
    assert (root / "policy" / "config.json").exists()  # nothing was promoted: the base


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("reward_model=null", "reward_model is left out"),
        ("sft=null", "model"),
        ("reward.1.weight=0.3", "rewards.1.weight 0.2 → 0.3"),
    ],
)
def test_every_change_says_why(tmp_path: Path, override: str, says: str) -> None:
    go(tmp_path / "run", 1)
    ran, said = go(tmp_path / "run", 1, override)
    assert ran
    assert any(says in line for line in said), said


def test_a_rewards_weight_runs_only_what_it_decides(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    ran, _ = go(tmp_path / "run", 1, "reward.1.weight=0.3")
    assert ran == ["scores", "filters", "sft", "answers_pairs", "pairs", "dpo", *EVALUATED, "promote"]


def test_an_artifact_with_a_file_gone_is_not_taken_for_whole(tmp_path: Path) -> None:
    root = tmp_path / "run"
    go(root, 1)
    (root / "round-1" / "sft" / "payload").unlink()
    with pytest.raises(DamagedError, match="payload"):
        go(root, 1)


@pytest.mark.parametrize("name", ["reward_model", "sft", "dpo"])
def test_variants_are_trained_each_and_one_model_goes_on(name: str, tmp_path: Path) -> None:
    """Without variants there is no choice to be made, as the tests above show."""
    ran, _ = go(tmp_path / "run", 1, f"{name}.variants=[{{}}, {{learning_rate: 3.0e-3}}, {{seed: 1}}]")
    assert [ran.count(name), ran.count("choose")] == [3, 1]
    run = Store(tmp_path / "run")
    stages = run.read_run()["rounds"][1]["stages"]
    made = [stages[f"{name}_variant_{number}"] for number in (1, 2, 3)]
    assert len(set(made)) == 3
    configs = [run.manifest(key)["config"] for key in made]
    assert configs[1][name]["learning_rate"] == 3.0e-3 and configs[1]["seed"] == configs[0]["seed"]
    assert configs[2][name] == configs[0][name] and configs[2]["seed"] != configs[0]["seed"]
    chosen = run.manifest(stages[name])
    assert chosen["stage"] == "choose" and chosen["config"]["choose"] == {"alone": 3}
    assert [chosen["input_keys"][f"model_{number}"] for number in (1, 2, 3)] == made
    reader = {"reward_model": ("scores", "reward_model"), "sft": ("dpo", "model"), "dpo": ("answers_dev", "policy")}[
        name
    ]
    assert run.manifest(stages[reader[0]])["input_keys"][reader[1]] == stages[name]
    link = tmp_path / "run" / "round-1" / name.replace("_", "-")
    assert link.resolve().name == stages[name]


def test_samples_are_steered_by_the_rounds_system_message(tmp_path: Path) -> None:
    go(tmp_path / "run", 4, "samples.system=[null, Answer in one line., Answer kindly.]")
    run = Store(tmp_path / "run")
    rounds = run.read_run()["rounds"]
    steered = [run.manifest(entry["stages"]["answers_samples"])["config"]["system"] for entry in rounds[1:]]
    assert steered == [None, "Answer in one line.", "Answer kindly.", "Answer kindly."]
    fits = run.manifest(rounds[0]["stages"]["prompts"])["config"]["systems"]
    assert fits == ["Answer in one line.", "Answer kindly."]


def test_samples_alone_are_drawn_with_hints(tmp_path: Path) -> None:
    go(tmp_path / "run", 1, "samples.hint=answer")
    run = Store(tmp_path / "run")
    stages = run.read_run()["rounds"][1]["stages"]
    hints = {
        name: run.manifest(key)["config"].get("hint") for name, key in stages.items() if name.startswith("answers")
    }
    assert {name: hint for name, hint in hints.items() if hint} == {"answers_samples": "answer"}
    assert len(hints) > 1


def test_prompts_grow_harder_by_the_last_policys_pass_rate(tmp_path: Path) -> None:
    changes = ("samples.prompts=100", "samples.difficulty={pool: 3.0, pass_rate: [0.75, 0.25]}")
    ran, _ = go(tmp_path / "run", 3, *changes)
    assert ran.count("difficulty") == 3
    run = Store(tmp_path / "run")
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    probes = [run.manifest(stages[number]["difficulty"]) for number in (1, 2, 3)]
    assert [probe["config"]["wanted"] for probe in probes] == [0.75, 0.25, 0.25]
    assert [probe["config"]["take"]["start"] for probe in probes] == [0, 300, 600]  # no prompt is tried twice
    assert run.manifest(stages[3]["answers_difficulty"])["input_keys"]["policy"] == stages[2]["dpo"]
    assert run.manifest(stages[3]["answers_samples"])["input_keys"]["difficulty"] == stages[3]["difficulty"]


def test_a_variant_has_its_own_data(tmp_path: Path) -> None:
    go(tmp_path / "run", 2, "sft.variants=[{}, {mix: {earlier: {share: 0.5}}}]")
    run = Store(tmp_path / "run")
    stages = run.read_run()["rounds"][2]["stages"]
    roles = [set(run.manifest(stages[f"sft_variant_{number}"])["input_keys"]) for number in (1, 2)]
    assert roles == [{"model", "kept"}, {"model", "kept", "earlier_001"}]


def test_what_a_variant_changes_in_a_mapping_leaves_the_rest_of_it(tmp_path: Path) -> None:
    go(tmp_path / "run", 1, "sft.mix={fresh: {repeats: 2}}", "sft.variants=[{}, {mix: {fresh: {share: 0.5}}}]")
    run = Store(tmp_path / "run")
    stages = run.read_run()["rounds"][1]["stages"]
    mixes = [run.manifest(stages[f"sft_variant_{number}"])["config"]["sft"]["mix"]["fresh"] for number in (1, 2)]
    assert mixes == [{"share": 1.0, "repeats": 2}, {"share": 0.5, "repeats": 2}]


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_an_adapter_that_is_kept_is_told_what_it_belongs_on(adapters: str, tmp_path: Path) -> None:
    told: dict[str, list[Any]] = {"sft": [], "dpo": []}

    class Listening(FakeLauncher):
        def run(self, folder: Path) -> None:
            stage = read_json(folder / "stage.json")
            if stage["stage"] in told:
                told[stage["stage"]].append((stage["runtime"].get("start"), stage["input_keys"]["model"]))
            super().run(folder)

    go(tmp_path / "run", 1, f"model.lora.adapters={adapters}", launcher=Listening())
    ((sft, base),), ((dpo, trained),) = told["sft"], told["dpo"]
    assert (base[:5], trained[:4]) == ("base-", "sft-")
    # Of an artifact its folder is the name: it would be that of another run of the stage after an early cut-off.
    assert trained != base
    assert [sft, dpo] == ([{"base_model_name_or_path": base}, None] if adapters == "keep" else [None, None])


def test_an_average_over_more_rounds_than_there_were_takes_all_that_were_promoted(tmp_path: Path) -> None:
    go(tmp_path / "run", 4, "average_rounds=5")
    run = Store(tmp_path / "run")
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    counts = [
        sum(role.startswith("model_") for role in run.manifest(stages[number]["across_rounds"])["input_keys"])
        for number in (2, 3, 4)
    ]
    assert counts == [2, 3, 4]


def test_a_rounds_policy_is_averaged_with_the_last_promoted_ones(tmp_path: Path) -> None:
    go(tmp_path / "run", 4, "average_rounds=3")
    run = Store(tmp_path / "run")
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    assert "across_rounds" not in stages[1]  # there is no other policy yet
    averaged = [run.manifest(stages[number]["across_rounds"])["input_keys"] for number in (2, 3, 4)]
    policies = [[key for role, key in sorted(keys.items()) if role.startswith("model_")] for keys in averaged]
    second, third = stages[2]["across_rounds"], stages[3]["across_rounds"]
    assert policies[0] == [stages[2]["dpo"], stages[1]["dpo"]]
    assert policies[1] == [stages[3]["dpo"], stages[1]["dpo"], second]
    assert policies[2] == [stages[4]["dpo"], second, third]
    assert run.manifest(stages[4]["answers_dev"])["input_keys"]["policy"] == stages[4]["across_rounds"]


WATCH = ("watch.share=0.2",)


def test_a_watched_round_has_a_second_reward_model_and_compares_held_out_answers(tmp_path: Path) -> None:
    """Without `watch` no such stage is there, as ROUND shows."""
    ran, _ = go(tmp_path / "run", 3, *WATCH, launcher=FakeLauncher(promoted=True))
    assert ran[1 + len(EVALUATED) :] == [*ROUND, "reward_model", "watch"] * 3
    run = Store(tmp_path / "run")
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    watch = run.manifest(stages[3]["watch"])["input_keys"]
    assert watch == {
        "policy": stages[3]["heldout"],
        "previous": stages[2]["heldout"],
        "base": stages[0]["heldout"],
        "watch_model": stages[3]["watch_model"],
        "reward_model": stages[3]["reward_model"],
        "preferences": stages[3]["preferences"],
    }
    second = run.manifest(stages[3]["watch_model"])
    assert second["config"]["split"] == "watch"
    assert second["input_keys"]["model"].startswith("base-")
    assert [second["input_keys"][f"preferences_{n}"] for n in (1, 2, 3)] == [
        stages[n]["preferences"] for n in (1, 2, 3)
    ]


def test_a_round_is_compared_with_the_policy_promoted_last_before_it(tmp_path: Path) -> None:
    go(tmp_path / "run", 2, *WATCH, launcher=FakeLauncher(promoted=False))
    run = Store(tmp_path / "run")
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    for number in (1, 2):
        keys = run.manifest(stages[number]["watch"])["input_keys"]
        assert (keys["previous"], keys["base"]) == (stages[0]["heldout"], stages[0]["heldout"])


def test_nothing_that_chooses_reads_what_the_watch_makes(tmp_path: Path) -> None:
    """Neither directly nor through another stage: what is watched by must not be what is optimised."""
    overrides = ("average_rounds=2", "dpo.variants=[{}, {seed: 1}]", "reward_model.variants=[{}, {seed: 1}]")
    go(tmp_path / "run", 3, *WATCH, *overrides)
    run = Store(tmp_path / "run")
    rounds = run.read_run()["rounds"]
    background = {entry["stages"][role] for entry in rounds[1:] for role in ("watch_model", "watch")}
    read = {
        role: set(run.manifest(key)["input_keys"].values())
        for entry in rounds
        for role, key in entry["stages"].items()
        if role != "watch"
    }
    assert len(background) == 6
    assert not any(background & keys for keys in read.values())  # so that no chain of stages leads there either
    answers = {entry["stages"]["heldout"] for entry in rounds}
    assert not any(answers & keys for keys in read.values())


def test_the_watch_has_pairs_of_its_own_and_without_it_the_key_knows_of_none(tmp_path: Path) -> None:
    configs = {}
    for name, overrides in (("plain", ()), ("watched", WATCH)):
        go(tmp_path / name, 1, *overrides)
        run = Store(tmp_path / name)
        configs[name] = run.manifest(run.read_run()["rounds"][1]["stages"]["preferences"])["config"]
    assert "watch" not in configs["plain"]
    assert configs["watched"] == {**configs["plain"], "watch": 0.2}


def test_the_watch_alone_runs_again_when_its_judges_change(tmp_path: Path) -> None:
    go(tmp_path / "run", 2, *WATCH)
    judges = "watch.judges=[{use: notes.py}]"
    assert go(tmp_path / "run", 2, *WATCH, judges)[0] == ["watch", "watch"]
    assert go(tmp_path / "run", 2, *WATCH)[0] == []


def test_without_a_reward_model_the_second_one_still_has_preferences(tmp_path: Path) -> None:
    ran, _ = go(tmp_path / "run", 1, *WATCH, "reward_model=null")
    assert ran[1 + len(EVALUATED) :] == [
        *(stage for stage in ROUND if stage != "reward_model"),
        "reward_model",
        "watch",
    ]


def test_status_shows_the_watch_and_its_warnings(tmp_path: Path) -> None:
    go(tmp_path / "run", 1, *WATCH)
    figures = status(open_run(tmp_path / "run"))
    base, last = figures["rounds"]
    assert "watch" not in base
    assert last["watch"] == {**METRICS["watch"], "reward_model": {"pair_accuracy": FIGURES, "pairs": 5}}
    shown = table(figures).splitlines()
    assert "warning: round 1: the proxy reward rose" in shown
    assert sum(line.split()[1:2] in (["previous"], ["base"]) for line in shown) == 2
    assert max(map(len, shown[:-1])) <= 120


def test_given_pairs_are_in_the_key_and_alone_they_need_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("one")
    overrides = ["preferences.prompts=0", f"preferences.given.path={path}"]
    go(tmp_path / "run", 1, *overrides)
    stage = stages_of(tmp_path / "run")[1]["preferences"]
    assert set(stage["input_keys"]) == {"prompts", "model"}
    path.write_text("two")
    ran, said = go(tmp_path / "run", 1, *overrides)
    assert ran[0] == "preferences"
    assert said[0].startswith("preferences of round 1 runs again: the content of given changed")


def test_without_given_pairs_the_key_knows_of_none(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    stage = stages_of(tmp_path / "run")[1]["preferences"]
    assert "given" not in stage["config"]["preferences"] and "given" not in stage["outside"]
    assert set(stage["input_keys"]) == {"prompts", "policy", "previous"}
