"""The plan's arithmetic against numbers computed by hand. Nothing is measured here; see test_check.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.loop_runs import ROUND

from posttrain import shipped
from posttrain.planning import miniature
from posttrain.planning.costs import Cost, Measured, cost, cost_of, row_share, work
from posttrain.planning.dry_run import dry_run
from posttrain.planning.estimate import Machine, plan, processes
from posttrain.planning.simulate import Task, simulate
from posttrain.recipe.load import load
from posttrain.stages.amounts import Amounts, Asked, PlannedStage, Sets, Shares, amounts, training_steps

SETS = Sets(train=7000, dev=900, heldout=1700, where=1000)
SHARES = Shares(preferences=0.5, kept=0.1, pairs=0.25, length=20.0)


def planned(n: int, *overrides: str, shares: Shares = SHARES) -> dict[str, Amounts]:
    return amounts(dry_run(load("quickstart", overrides), n), SETS, shares)


def test_a_rehearsal_goes_through_the_loop_and_knows_what_waits_for_what() -> None:
    stages = {planned.key: planned for planned in dry_run(load("quickstart"), 2)}
    assert [key for key in stages if key.startswith("1/")] == [f"1/{name}" for name in ROUND]
    waited = {"0/prompts", "0/hardware", "0/trial"}  # for these the loop itself waited
    assert stages["1/scores"].waits == {"1/answers_samples", "1/reward_model"} | waited
    assert stages["1/answers_samples"].waits == waited
    assert "1/promote" in stages["2/answers_samples"].waits  # the loop itself waits at the gate
    assert stages["1/answers_heldout"].spec.background and not stages["1/answers_dev"].spec.background
    assert stages["1/heldout"].spec.background and not stages["1/evaluate"].spec.background


def test_what_a_round_of_the_quickstart_does() -> None:
    done = planned(1)
    # 640 prompts, 4 answers of each of two policies; a pair for every second prompt
    assert done["1/answers_preferences"] == Amounts(640, 2560, 51_200, 2560, made=2560)
    assert done["1/answers_preferences_previous"] == done["1/answers_preferences"]
    assert done["1/preferences"] == Amounts(640, rows=5120, made=320.0)
    # 15 % of the pairs measure the reward model; its steps are set
    assert (done["1/reward_model"].rows, done["1/reward_model"].steps) == (272, 40)
    assert done["1/answers_samples"] == Amounts(900, 7200, 144_000, 7200, made=7200)
    assert done["1/scores"].rows == 7200
    assert done["1/filters"].made == 720.0
    # 720 rows in batches of 32: 23 steps an epoch, two epochs
    assert (done["1/sft"].rows, done["1/sft"].steps) == (720, 46)
    assert done["1/answers_pairs"] == Amounts(2400, 9600, 192_000, 9600, made=9600)
    assert done["1/pairs"] == Amounts(2400, rows=9600, made=600.0)
    assert done["1/dpo"] == Amounts(rows=600, steps=19, passes=600)
    assert done["1/answers_dev"].completions == done["0/answers_dev"].completions == done["1/evaluate"].rows == 900 * 9
    # three further temperatures, 4 answers of each
    assert done["0/answers_heldout"].completions == 1700 * (9 + 12)


def test_without_a_probe_the_plan_says_the_most_there_can_be() -> None:
    done = planned(1, shares=Shares())
    assert done["1/answers_samples"].tokens == 7200 * 48
    assert done["1/dpo"].rows == 2400
    assert done["1/filters"].made == 7200


def test_what_earlier_rounds_left_counts_where_a_stage_learns_from_it() -> None:
    done = planned(3, "reward_model.preferences=all", "reward_model.max_steps=null", "sft.mix.earlier.share=0.5")
    assert done["3/reward_model"].rows == 3 * 272
    assert done["3/reward_model"].steps == 3 * 26  # three epochs, TRL's default, of ceil(816 / 32)
    assert done["3/sft"].rows == 720 + 0.5 * 2 * 720


def test_variants_watch_difficulty_and_other_sources_of_pairs_are_planned() -> None:
    done = planned(
        1,
        "dpo.variants=[{}, {seed: 1}]",
        "watch={share: 0.25}",
        "samples.difficulty={pass_rate: [0.5], pool: 3, k: 2}",
        "dpo.pairs_from=[samples, preferences]",
    )
    assert done["1/answers_difficulty"].completions == 2700 * 2
    assert done["1/dpo_variant_1"].rows == 900 + 192  # a pair a prompt; 60 % of 320 pairs train
    assert done["1/dpo_variant_2"] == done["1/dpo_variant_1"]
    assert done["1/dpo"].rows == 900 * 3 * 8  # the mean and both alone, eight answers each
    assert done["1/watch_model"].rows == 80
    # 1700 prompts with 9 answers; the last policy and the base are both round 0, with further temperatures
    assert done["1/watch"].rows == 15_300 + 2 * (15_300 + 20_400)


BENCHMARK = PlannedStage("b", 1, "benchmark", "benchmark_mine", {"engine": {"shard_tokens": 1500}}, {}, frozenset())
DEV = {"answers": {"max_new_tokens": 50, "k": 1}, "set": "dev", "greedy": 0, "further": []}
ANSWERS = PlannedStage("a", 1, "answers", "answers_dev", DEV, {}, frozenset())
ASKED = replace(SETS, asked={"benchmark_mine": Asked(30, texts=80, read=1000, answers={10: 20, 200: 5}, seconds=3.0)})


def asked(shares: Shares) -> Amounts:
    return amounts([ANSWERS, BENCHMARK], ASKED, shares)["b"]


def test_a_benchmark_is_as_many_answers_of_the_mean_length_as_its_tokens_make() -> None:
    done = asked(SHARES)
    # 20 answers of at most 10 tokens, and 5 of the mean 20; if all were as long as they may be, 1200
    assert (done.prompts, done.completions, done.tokens, done.rows) == (30, 25, 300, 80)
    assert (done.read, done.longest, done.seconds) == (1000, 2200, 3.0)
    assert done.as_answers == 1300 / 20
    unknown = asked(Shares())
    assert (unknown.tokens, unknown.as_answers) == (1200, 2200 / 50)
    assert amounts([replace(BENCHMARK, role="benchmark_other")], ASKED, SHARES)["b"] == Amounts()


def test_a_benchmark_costs_what_its_tokens_do_where_they_are_new_ones() -> None:
    costs = {"answers": Cost(0.0, loading=1.0, unit=0.1, memory=50.0, disk=0.0, disk_unit=2.0, batch=0.5)}
    machine = Machine(cores=2, workers=4, at_once=1, threads=1, memory=30)
    made = plan([BENCHMARK], ASKED, SHARES, costs, machine, model_bytes=900)
    (one,) = made["rounds"][0]["stages"]
    # 65 answers in as many processes as there are, two batches of 2200 tokens, and the questions
    assert made["core_seconds"] == pytest.approx(6.5 + 4 * 1.0 + 2 * 0.5 + 3.0)
    assert (one["seconds"], one["read"], one["disk"]) == (pytest.approx(14.5 / 4), 1000, 50)
    assert plan([BENCHMARK], ASKED, SHARES, {"sft": costs["answers"]}, machine, 900)["not_measured"] == ["benchmark"]


def test_texts_alone_cost_no_batch_of_answers() -> None:
    costs = {"answers": Cost(0.0, loading=0.0, unit=0.1, memory=50.0, disk=0.0, disk_unit=2.0, batch=0.5)}
    sets = replace(SETS, asked={"benchmark_mine": Asked(30, texts=80, read=1000, answers={}, seconds=0.0)})
    machine = Machine(cores=2, workers=4, at_once=1, threads=1, memory=30)
    assert plan([BENCHMARK], sets, SHARES, costs, machine, 900)["core_seconds"] == pytest.approx(5.0)


def test_memorisation_reads_a_prompt_and_an_answer_for_each_row() -> None:
    stages = dry_run(load("quickstart", ["evaluate.memorisation={n: 16}"]), 1)
    done = amounts(stages, replace(SETS, length=30.0), SHARES)["1/memorisation"]
    # 720 rows were kept; of the held-out answers 1000 are taken
    assert (done.rows, done.read, done.as_answers) == (1720, 1720 * (30 + 20), 1720 * 50 / 20)


def test_for_a_forecast_every_policy_reads_the_answers_of_all() -> None:
    stages = dry_run(load("quickstart", ["evaluate.forecast={rounds: 2, prompts: 10}"]), 2)
    done = amounts(stages, replace(SETS, length=30.0), SHARES)
    # Three policies, each with 8 sampled answers to 10 prompts: each reads all 240, and the prompts.
    assert done["2/forecast"].rows == 3 * 240
    assert done["2/forecast"].read == 3 * (10 * 30 + 240 * 20)


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        (100, {}, 4),  # 3 batches and one for the rest
        (100, {"batch": 96}, 2),
        (100, {"num_train_epochs": 2.5}, 10),
        (100, {"max_steps": 7}, 7),
        (0, {}, 1),
    ],
)
def test_steps_of_a_training(rows: int, changes: dict[str, float], expected: int) -> None:
    section = {"batch": 32, "num_train_epochs": 1.0}
    assert training_steps({**section, **changes}, rows) == expected


class TestTimeline:
    def test_what_does_not_wait_shares_the_cores(self) -> None:
        # Both get a core; the longer one, of one process, does not get faster when it is alone.
        found = simulate([Task("a", 4.0), Task("b", 6.0)], cores=2, at_once=2)
        assert found.ends == {"a": 4.0, "b": 6.0}

    def test_a_wide_task_takes_what_others_leave(self) -> None:
        # 2 cores for 3 processes, evenly: a 4/3 cores, b 2/3. b is done after 3 s, then a has both: 6 - 4 = 2 left.
        found = simulate([Task("a", 6.0, width=2), Task("b", 2.0)], cores=2, at_once=2)
        assert found.ends == pytest.approx({"b": 3.0, "a": 4.0})

    def test_what_waits_starts_when_all_that_it_waits_for_is_done(self) -> None:
        tasks = [Task("a", 2.0), Task("b", 3.0), Task("c", 1.0, waits=frozenset({"a", "b"}))]
        assert simulate(tasks, cores=1, at_once=1).ends == {"a": 2.0, "b": 5.0, "c": 6.0}
        assert simulate(tasks, cores=2, at_once=3).ends == {"a": 2.0, "b": 3.0, "c": 4.0}

    def test_no_more_run_at_once_than_allowed_and_memory_is_theirs_together(self) -> None:
        tasks = [Task(name, 1.0, memory=10.0) for name in "abc"]
        assert simulate(tasks, cores=8, at_once=2).ends == {"a": 1.0, "b": 1.0, "c": 2.0}
        assert simulate(tasks, cores=8, at_once=2).memory == 20.0

    def test_what_is_aside_gives_way(self) -> None:
        found = simulate([Task("background", 10.0, background=True), Task("b", 10.0)], cores=1, at_once=2)
        assert found.ends["b"] == pytest.approx(10.0, rel=0.03)
        assert found.ends["background"] == pytest.approx(20.0)

    def test_work_of_nothing_takes_no_time_and_a_wait_for_nothing_is_an_error(self) -> None:
        assert simulate([Task("a", 0.0), Task("b", 0.0, waits=frozenset({"a"}))], 1, 1).seconds == 0.0
        with pytest.raises(ValueError, match="never ends"):
            simulate([Task("a", 1.0, waits=frozenset({"b"}))], 1, 1)


def measured(stage: str, seconds: float, loading: float, units: float, unit: float | None = None) -> Measured:
    return Measured(stage, seconds, loading, units, unit, 0.0, memory=100, disk=500, metrics={})


def stage(name: str, config: dict[str, object] | None = None, **inputs: str) -> PlannedStage:
    return PlannedStage("key", 1, name, name, config or {}, inputs, frozenset())


def test_what_one_more_unit_costs() -> None:
    sampling = cost(measured("answers", seconds=3.0, loading=1.0, units=100))
    assert sampling == Cost(fixed=0.0, loading=1.0, unit=0.02, memory=100, disk=0.0, disk_unit=5.0)
    # two processes load each; 1000 completions of 0.02 s
    assert sampling.seconds(1000, processes=2) == pytest.approx(22.0)
    training = cost(measured("sft", seconds=3.0, loading=0.0, units=4, unit=0.5))  # 2 s for 4 rows, 1 s otherwise
    assert training.seconds(100) == pytest.approx(1.0 + 50.0)
    assert training.disk == 500


def test_two_steps_tell_how_much_of_a_step_is_its_rows() -> None:
    # A step takes 0.05 s and 0.01 s a row: of 10 rows two thirds are the rows'.
    assert row_share(10, {128: 0.05 + 1.28, 16: 0.05 + 0.16}) == pytest.approx(2 / 3)
    assert row_share(10, {16: 1.0, 128: 0.9}) == 0.0
    assert row_share(10, {16: 0.0, 128: 0.0}) == 1.0


def test_few_completions_cost_their_batch() -> None:
    found = Cost(fixed=0.0, loading=1.0, unit=0.1, memory=0, disk=0.0, disk_unit=0.0, batch=5.0)
    assert found.seconds(10, processes=2, batches=3) == pytest.approx(2.0 + 1.0 + 15.0)


def test_a_training_s_work_is_the_rows_that_it_reads_and_a_reference_s_pass_is_a_third_of_that() -> None:
    whole = stage("dpo", {"dpo": {"batch": 32, "num_train_epochs": 2.0}})
    assert work(whole, Amounts(rows=600, steps=38, passes=600)) == 1200 + 200
    limited = stage("dpo", {"dpo": {"batch": 32, "max_steps": 20, "num_train_epochs": 2.0}})
    assert work(limited, Amounts(rows=600, steps=20)) == 20 * 32
    assert work(limited, Amounts(rows=5, steps=20)) == 20 * 5  # a step has no more than there are
    assert work(stage("answers"), Amounts(prompts=9, completions=72)) == 72
    assert work(stage("scores"), Amounts(rows=72)) == 72


def test_what_was_not_measured_costs_what_its_like_does() -> None:
    costs = {"evaluate": cost(measured("evaluate", 1.0, 0.0, 1.0)), "scores": cost(measured("scores", 9.0, 0.0, 1.0))}
    assert cost_of(stage("heldout"), costs) == cost_of(stage("choose"), costs) == costs["evaluate"]
    assert cost_of(stage("evaluate", reward_model="key"), costs) == costs["scores"]
    assert cost_of(stage("sft"), costs) is None


def test_a_whole_plan() -> None:
    overrides = ["preferences=null", "reward_model=null", "pairs=null", "dpo=null"]
    overrides += ["reward=[{use: word-problems.py}]", "compute.stages_at_once=1"]
    planned = dry_run(load("quickstart", overrides), 2)
    costs = {name: Cost(0.0, 0.0, 0.001, 50.0, 0.0, 2.0) for name in ("answers", "evaluate", "scores", "filters")}
    costs["sft"] = Cost(1.0, 0.0, 0.1 / 32, 70.0, 1000.0, 0.0)
    machine = Machine(cores=2, workers=2, at_once=1, threads=1, memory=30)
    made = plan(planned, SETS, SHARES, costs, machine, model_bytes=900, prompts_seconds=0.5)
    first = {stage["stage"]: stage for stage in made["rounds"][1]["stages"]}
    assert first["answers_samples"]["seconds"] == pytest.approx(3.6)  # 7200 ms of work, two processes
    assert first["sft"]["seconds"] == pytest.approx(1.0 + 2 * 720 / 32 * 0.1)
    assert (first["sft"]["disk"], first["scores"]["disk"]) == (1000, 14_400)
    assert made["steps"] == 2 * 46
    # samples 3.6, scores 3.6, filters 7.2 by one process, SFT 5.6, dev answers 4.05 and their scores 4.05
    assert made["rounds"][1]["seconds"] >= 3.6 + 3.6 + 7.2 + 5.6 + 4.05 + 4.05
    assert made["memory"] == 30 + 2 * 50
    assert made["not_measured"] == []
    again = plan(planned, SETS, Shares(), {}, machine, 900)
    assert again["seconds"] is again["memory"] is again["not_measured"] is None
    assert again["completions"] > 0


@pytest.mark.parametrize(("prompts", "wanted"), [(20, 1), (30, 2), (900, 3)])
def test_sampling_spreads_over_as_many_processes_as_it_has_shards(prompts: int, wanted: int) -> None:
    planned = PlannedStage(
        "key",
        1,
        "answers",
        "answers_samples",
        {"engine": {"shard_tokens": 10_000}, "answers": {"max_new_tokens": 48}},
        {},
        frozenset(),
    )
    machine = Machine(cores=4, workers=3, at_once=1, threads=1, memory=30)
    assert processes(planned, Amounts(prompts=prompts, completions=9 * prompts), machine) == wanted


@pytest.mark.parametrize(
    ("read", "shard_tokens", "policies", "wanted"),
    [(900, 10**6, 1, 1), (6000, 10**6, 1, 3), (10**5, 10**6, 1, 8), (10**5, 5000, 1, 20), (12_000, 10**6, 2, 3)],
)
def test_reading_spreads_over_as_many_processes_as_a_policy_has_shards(
    read: int, shard_tokens: int, policies: int, wanted: int
) -> None:
    inputs, config = {f"policy_{number}": "" for number in range(policies)}, {"engine": {"shard_tokens": shard_tokens}}
    planned = PlannedStage("", 1, "forecast", "forecast", config, inputs, frozenset())
    machine = Machine(cores=4, workers=20, at_once=1, threads=1, memory=30)
    assert processes(planned, Amounts(rows=9, read=read, longest=read), machine) == wanted


def test_a_miniature_is_the_same_recipe_and_small(tmp_path: Path) -> None:
    recipe = load("quickstart", ["dpo.variants=[{}, {seed: 1}]", "watch={}"])
    small = load("quickstart", miniature.overrides(recipe, miniature.Size(1024, 500)))
    assert small.samples.prompts == 128 and small.preferences is not None and small.preferences.prompts == 128
    assert small.sft is not None and small.sft.trl["max_steps"] == miniature.STEPS
    assert small.sft.trl["per_device_train_batch_size"] == 32
    assert small.watch is None and small.dpo is not None and small.dpo.variants == []
    few = load("quickstart", miniature.overrides(recipe, miniature.Size(32, 3)))
    assert few.samples.prompts == 4
    assert few.sft is not None and few.sft.trl["max_steps"] == miniature.FEW_STEPS
    assert few.sft.trl["per_device_train_batch_size"] * few.sft.trl["gradient_accumulation_steps"] == 3


@pytest.mark.parametrize("name", shipped.names("recipes"))
def test_a_miniature_of_every_recipe_is_a_recipe(name: str) -> None:
    small = miniature.overrides(load(name, files=False), miniature.Size(64, 2))
    assert load(name, small, files=False).promote == "always"


def test_a_step_of_a_large_model_has_a_row_that_of_kto_two_and_on_policy_a_group() -> None:
    more = ["kto={}", "online={per_device_train_batch_size: 6, gradient_accumulation_steps: 4}"]
    small = load("quickstart", [*more, *miniature.overrides(load("quickstart", more), miniature.Size(64, 1))])
    assert small.dpo and small.kto and small.sft and small.online
    sections = (small.sft, small.dpo, small.kto, small.online)
    assert [section.divided()[0]["batch"] for section in sections] == [1, 1, 2, 8]  # groups are of 8


def test_a_large_model_is_probed_with_fewer_completions_and_rows() -> None:
    assert miniature.size(0.9e6, 48, rate=2e11) == miniature.Size(1024, 1543)  # 4 * 2e11 / (6 * 0.9e6 * 2 * 48)
    # 6e14 / (2 * 8e9 * 320), 4e14 / (6 * 8e9 * 2 * 320)
    assert miniature.size(8e9, 320, rate=1e14) == miniature.Size(117, 13)
    assert miniature.size(8e9, 320, rate=2e11) == miniature.Size(32, 1)
