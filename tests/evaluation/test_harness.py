"""Benchmarks by lm-evaluation-harness: the figures of its own `hf` model, and what is refused before anything runs."""

from __future__ import annotations

import json
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.benchmarks import GENERATED, MULTIPLE_CHOICE, PERPLEXITY, model, questions, task
from support.interrupted import says
from support.tiny_models import tokenizer

from posttrain.config.benchmark import Benchmark
from posttrain.errors import InputError, StageError
from posttrain.evaluation import harness
from posttrain.evaluation.benchmark_files import identity
from posttrain.evaluation.likelihood_shards import tokens_read
from posttrain.inference.models import evaluate_benchmarks
from posttrain.job import Job
from posttrain.loop import play
from posttrain.planning.dry_run import DryRunner
from posttrain.recipe.load import load
from posttrain.stages import benchmark as stage
from posttrain.stages import contamination

pytest.importorskip("lm_eval", reason="needs posttrain[eval]")

OWN_EXAMPLE = '{question: "How many own ones?", choices: ["1", "2"], label: 0}'
ENGINE = {"use": "shared-prefix", "dtype": "float32", "shard_tokens": 200}


def job(folder: Path, policy: Path, benchmark: Benchmark, workers: int = 1) -> Job:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    config = {"benchmark": benchmark.model_dump(mode="json"), "engine": ENGINE}
    return Job(config, {"policy": policy}, folder / "out", folder / "scratch", 0, workers=workers)


def by_their_own(policy: Path, file: Path, **options: Any) -> dict[str, Any]:
    """lm-evaluation-harness's results with its `hf` model, in float32."""
    from lm_eval import evaluator
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    load_model: Any = huggingface.HFLM  # its signature is hidden by a decorator
    their = load_model(pretrained=str(policy), dtype="float32", device="cpu", batch_size=4)
    tasks: Any = TaskManager(include_defaults=False).load(str(file))
    found = evaluator.evaluate(their, tasks, bootstrap_iters=1000, **options)
    assert found
    return dict(found)


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "samples.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("body", [MULTIPLE_CHOICE, GENERATED, PERPLEXITY], ids=["choices", "answers", "texts"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_figures_are_those_of_the_harness_s_own_model(tmp_path: Path, kind: str, body: str) -> None:
    policy, file = model(tmp_path / "model", kind, sliding_window=256), task(tmp_path / "tasks", "apples", body)
    found = stage.run(job(tmp_path, policy, Benchmark(task=str(file), chat=False)))
    theirs = by_their_own(policy, file)
    for name, figure in found["figures"]["apples"].items():
        assert figure["value"] == pytest.approx(theirs["results"]["apples"][f"{name},none"], rel=1e-4), name
        if name.startswith("acc") or name == "exact_match":
            assert figure["stderr"] == pytest.approx(theirs["results"]["apples"][f"{name}_stderr,none"])
            low, high = figure["ci95"]
            assert (high - low) / 2 == pytest.approx(1.96 * figure["stderr"]) and figure["n"] == 12
    for ours, their in zip(samples(tmp_path), theirs["samples"]["apples"], strict=True):
        assert ours["arguments"] == json.loads(json.dumps(their["arguments"], default=str))
        for one, other in zip(ours["resps"], their["resps"], strict=True):
            if body == MULTIPLE_CHOICE:
                assert one[0][0] == pytest.approx(other[0][0], abs=1e-4) and one[0][1] == other[0][1]
            elif body == GENERATED:
                assert one == other


IFEVAL = [
    {"key": 1, "prompt": "Say yes.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"key": 2, "prompt": "Say no.", "instruction_id_list": ["startend:quotation"], "kwargs": [{}]},
    {
        "key": 3,
        "prompt": "Say much.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "less than", "num_words": 400}],
    },
]


def test_the_page_s_ifeval_is_scored_by_our_registry_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (
        (Path(__file__).parents[2] / "docs" / "evaluation.md")
        .read_text("utf-8")
        .partition("### IFEval by our checks")[2]
    )
    for name, kind in (("ifeval-checked.yaml", "text"), ("ifeval_checked.py", "python")):
        (tmp_path / name).write_text(page.partition(f"```{kind}\n")[2].partition("```")[0].replace("512", "64"))
    (tmp_path / "input_data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in IFEVAL))
    monkeypatch.chdir(tmp_path)  # lm-evaluation-harness looks for the data there
    policy, file = model(tmp_path / "model"), tmp_path / "ifeval-checked.yaml"
    found = stage.run(job(tmp_path, policy, Benchmark(task=str(file), file="input_data.jsonl", chat=False)))
    theirs = by_their_own(policy, file)
    ours = [one["resps"] for one in samples(tmp_path)]
    assert ours == [one["resps"] for one in theirs["samples"]["ifeval-checked"]]
    figure = found["figures"]["ifeval-checked"]["prompt_level_strict"]
    assert figure["value"] == theirs["results"]["ifeval-checked"]["prompt_level_strict,none"] == pytest.approx(2 / 3)


def test_a_question_is_put_by_the_chat_template_where_the_answer_is_generated(tmp_path: Path) -> None:
    policy, file = model(tmp_path / "model"), task(tmp_path / "tasks", "apples", GENERATED)
    found = stage.run(job(tmp_path, policy, Benchmark(task=str(file))))
    assert found["chat"]
    theirs = by_their_own(policy, file, apply_chat_template=True, fewshot_as_multiturn=True)
    assert [row["resps"] for row in samples(tmp_path)] == [row["resps"] for row in theirs["samples"]["apples"]]
    assert samples(tmp_path)[0]["arguments"][0][0].startswith("<|user|>")
    choices = task(tmp_path / "tasks", "choices", MULTIPLE_CHOICE)
    assert not stage.run(job(tmp_path / "other", policy, Benchmark(task=str(choices))))["chat"]


def test_shards_that_are_there_are_not_made_again_and_workers_change_nothing(tmp_path: Path) -> None:
    policy, file = model(tmp_path / "model"), task(tmp_path / "tasks", "apples", MULTIPLE_CHOICE)
    one = stage.run(job(tmp_path / "one", policy, Benchmark(task=str(file)), workers=2))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("shard-*.parquet")}
    assert len(made) > 2
    lost = sorted(made)[0]
    lost.unlink()
    assert stage.run(job(tmp_path / "one", policy, Benchmark(task=str(file)))) == one
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("shard-*.parquet")}
    assert {path: again[path] for path in made if path != lost} == {p: t for p, t in made.items() if p != lost}
    assert again[lost] != made[lost]


def test_questions_can_be_given_as_a_file_and_be_limited(tmp_path: Path) -> None:
    policy, file = model(tmp_path / "model"), task(tmp_path / "tasks", "apples", MULTIPLE_CHOICE)
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in questions(40)[12:]), "utf-8")
    found = stage.check(job(tmp_path, policy, Benchmark(task=str(file), file=str(own), limit=20)))
    assert found["questions"] == {"apples": 20}
    assert found["fallback"] == ["apples has 20 questions: its intervals are wide"]
    shown = stage.check(job(tmp_path, policy, Benchmark(task=str(file), file=str(own), fewshot=2)))
    assert shown["asked"]["read"] > found["asked"]["read"]  # examples of the one split that it has
    stage.run(job(tmp_path / "shown", policy, Benchmark(task=str(file), file=str(own), fewshot=2)))
    for row in samples(tmp_path / "shown"):
        context = row["arguments"][0][0]
        assert context.count("Question:") == 3 and context.count(row["doc"]["question"]) == 1  # never its own example
    brings = f"{MULTIPLE_CHOICE}num_fewshot: 1\nfewshot_config: {{sampler: first_n, samples: [{OWN_EXAMPLE}]}}\n"
    brought = task(tmp_path / "tasks", "brought", brings)
    stage.run(job(tmp_path / "brought", policy, Benchmark(task=str(brought), file=str(own))))
    assert all("How many own ones?" in row["arguments"][0][0] for row in samples(tmp_path / "brought"))
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(InputError, match=r"has no question in it.*\[benchmark-unreadable\]"):
        stage.check(job(tmp_path, policy, Benchmark(task=str(file), file=str(tmp_path / "none.jsonl"))))
    with pytest.raises(InputError, match=r"files of other kinds than \.json.*\[benchmark-file\]"):
        stage.check(job(tmp_path, policy, Benchmark(task=str(file), file=str(tmp_path / "own.txt"))))


def test_what_a_benchmark_asks_for_is_counted_as_it_is_computed(tmp_path: Path) -> None:
    assert tokens_read([((1, 2, 3), (4,)), ((1, 2), (7,)), ((1, 2, 3), (5, 6))]) == 3 + 1 + 2 + 2 + 1
    policy, folder = model(tmp_path / "model"), tmp_path / "tasks"

    def asked(body: str) -> dict[str, Any]:
        return stage.check(
            job(tmp_path / "job", policy, Benchmark(task=str(task(folder, "apples", body)), chat=False))
        )["asked"]

    encode, rows = tokenizer().encode, questions()
    contexts = sum(len(encode(f"Question: {row['question']}\nAnswer:")) for row in rows)
    choices = sum(len(encode(f" {choice}", add_special_tokens=False)) for row in rows for choice in row["choices"])
    assert asked(MULTIPLE_CHOICE) == {"texts": 48, "read": contexts + choices, "answers": []}
    prompts = sum(len(encode(row["question"])) for row in rows)
    assert asked(GENERATED) == {"texts": 0, "read": prompts, "answers": [(24, 12)]}


def test_what_is_wrong_shows_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    policy, tasks = model(tmp_path / "model"), tmp_path / "tasks"

    def refused(name: str, body: str, rule: str, rows: list[dict[str, Any]] | None = None, **settings: Any) -> None:
        file = task(tasks, name, body, rows)
        with pytest.raises(InputError) as told:
            stage.check(job(tmp_path / "job", policy, Benchmark(task=str(file), **settings)))
        assert told.value.rule == rule and told.value.hint

    long = [{**row, "question": 40 * row["question"]} for row in questions(2)]
    refused("long", MULTIPLE_CHOICE, "benchmark-does-not-fit", long)
    refused("code", f"{GENERATED}\nunsafe_code: true\n", "benchmark-runs-code")
    refused("unlabelled", MULTIPLE_CHOICE, "benchmark-no-labels", [{**row, "label": None} for row in questions(2)])
    for wrong in (-1, 7, None, "no choice"):
        later = [row if at == 0 else {**row, "label": wrong} for at, row in enumerate(questions(2))]
        refused("labelled", MULTIPLE_CHOICE, "benchmark-no-labels", later)
    refused("misnamed", MULTIPLE_CHOICE.replace("label", "gold"), "benchmark-no-labels", questions(2))
    tasks.mkdir(exist_ok=True)
    (tasks / "own.py").write_text("def none(questions):\n    return questions.select([])\n", "utf-8")
    refused("empty", f"{MULTIPLE_CHOICE}\nprocess_docs: !function own.none\n", "benchmark-unreadable")
    refused("images", f"{GENERATED}\ndoc_to_image: [question]\n", "benchmark-kind")
    refused("no-split", MULTIPLE_CHOICE.replace("doc_to_target: label", "test_split: none"), "benchmark-unreadable")
    online = tasks / "online.yaml"
    online.write_text(f"task: online\ndataset_path: nobody/nothing\ntest_split: test\n{MULTIPLE_CHOICE}", "utf-8")
    for name, rule in (
        (str(online), "benchmark-network"),
        ("arc_eazy", "benchmark-unknown"),
        ("mmlu", "benchmark-group"),
    ):
        with pytest.raises(InputError) as told:
            settings = {"fewshot": 0} if name == "mmlu" else {}
            stage.check(job(tmp_path / "job", policy, Benchmark.model_validate({"task": name, **settings})))
        assert told.value.rule == rule
        if name == "arc_eazy":
            assert "did you mean 'arc_easy'" in str(told.value)


def test_a_task_by_its_own_name_runs_offline_with_a_file_of_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = tmp_path / "gsm8k.jsonl"
    own.write_text(
        "".join(f'{{"question": "What is 1 + {n}?", "answer": "#### {1 + n}"}}\n' for n in range(3)), "utf-8"
    )
    policy = model(tmp_path / "model", max_position_embeddings=512)
    found = stage.run(job(tmp_path, policy, Benchmark(task="gsm8k", file=str(own), fewshot=0, limit=2)))
    assert found["figures"]["gsm8k"]["exact_match, flexible-extract"]["n"] == 2
    assert samples(tmp_path)[0]["target"] == "#### 1"


def test_what_a_task_needs_beside_its_file_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    policy, tasks = model(tmp_path / "model"), tmp_path / "tasks"

    def refused(name: str, python: str, key: str) -> InputError:
        file = task(tasks, name, f"{GENERATED}\n{key}: !function {name}_own.own\n")
        (tasks / f"{name}_own.py").write_text(python, "utf-8")
        with pytest.raises(InputError, match=r"\[benchmark-needs\]") as told:
            stage.check(job(tmp_path / "job", policy, Benchmark(task=str(file))))
        return told.value

    assert "needs the package no_such_package" in str(
        refused("imports", "import no_such_package.of_it", "process_docs")
    )
    said = "'*****  Resource not found. >>> nltk.download(\\'punkt_tab\\')'"
    scored = f"def own(doc, results):\n    if results[0]:\n        raise LookupError({said})\n    return {{}}\n"
    assert refused("scores", scored, "process_results").hint == "python -m nltk.downloader punkt_tab"
    missing = harness.lacks(Benchmark(task="ifeval"), ModuleNotFoundError("", name="langdetect"))
    assert missing and str(missing.hint).startswith("pip install 'lm_eval[ifeval]'; or take ifeval-checked")
    assert harness.lacks(Benchmark(task="gsm8k"), KeyError("answer")) is None


def test_the_key_is_of_all_files_that_decide_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = task(tmp_path, "apples", "include: more.yaml\n")
    (tmp_path / "more.yaml").write_text(f"{MULTIPLE_CHOICE}\nprocess_results: !function own.score\n", "utf-8")
    (tmp_path / "own.py").write_text("def score(doc, results): ...\n", "utf-8")
    benchmark = Benchmark(task=str(file))
    seen = [identity(benchmark)]
    for name in ("apples.yaml", "apples.jsonl", "more.yaml", "own.py"):
        path = tmp_path / name
        path.write_text(path.read_text("utf-8") + "\n", "utf-8")
        seen.append(identity(benchmark))
    assert len({*seen}) == 5
    assert identity(benchmark) == seen[-1]
    with pytest.raises(InputError, match=r"\[benchmark-no-file\]"):
        identity(Benchmark(task="gsm8k", file=str(tmp_path / "gone.jsonl")))

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    with pytest.raises(InputError, match=r"(?s)not installed.*posttrain\[eval\].*|\[benchmark-extra\]"):
        identity(benchmark)


def test_the_key_knows_which_split_a_file_is_and_files_in_lists_and_patterns(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text('{"n": 1}\n', "utf-8")
    other.write_text('{"n": 2}\n', "utf-8")
    given: list[Any] = [str(one), {"test": str(one)}, {"test": str(one), "train": str(other)}]
    given += [{"test": str(other), "train": str(one)}, {"test": str(one), "train": str(one)}]
    seen = {identity(Benchmark(task="gsm8k", file=each)) for each in given}
    assert len(seen) == len(given)
    for number, files in enumerate((f"[{one}, {other}]", f"'{tmp_path}/*.jsonl'")):
        file = tmp_path / f"task-{number}.yaml"
        file.write_text(f"task: t\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {files}}}}}\n", "utf-8")
        before = identity(Benchmark(task=str(file)))
        other.write_text(other.read_text("utf-8") + "\n", "utf-8")
        assert identity(Benchmark(task=str(file))) != before


def test_what_was_learned_from_is_looked_for_in_the_questions(tmp_path: Path) -> None:
    policy, file = model(tmp_path / "model"), task(tmp_path / "tasks", "apples", MULTIPLE_CHOICE, questions(24))
    first = job(tmp_path / "apples", policy, Benchmark(task=str(file)))
    stage.run(first)
    asked = [f"Question: {row['question']} Answer: {' '.join(row['choices'])}" for row in questions(24)]

    def seen_in(number: int, texts: list[str], **earlier: Path) -> dict[str, Any]:
        table, out = tmp_path / f"kept-{number}", tmp_path / f"seen-{number}"
        rows = [{"prompt": says("user", "Say it."), "completion": says("assistant", text)} for text in texts]
        for folder in (table, out):
            folder.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), table / "kept.parquet")
        return contamination.run(Job({}, {"benchmark_apples": first.out, "kept": table, **earlier}, out, out, 0))

    found = seen_in(1, [*asked[:12], "nothing of it"])
    alone = found["tasks"]["apples"]
    assert found["rows"] == 13 and alone["contaminated"] == 0.5 and alone["share"] > 0.5
    assert alone["gain"]["n"] == 24 and alone["gain"]["ci95"][0] < 0 < alone["gain"]["ci95"][1]
    assert seen_in(2, asked[12:])["tasks"]["apples"]["share"] < 1
    assert seen_in(3, asked[12:], earlier=tmp_path / "seen-1")["tasks"]["apples"]["share"] == 1


def test_no_stage_reads_a_benchmark_or_waits_for_it(tmp_path: Path) -> None:
    file = task(tmp_path, "apples", MULTIPLE_CHOICE)
    recipe = load("quickstart", [f"evaluate.benchmarks=[{file}]"])
    runner = DryRunner()
    play(recipe, runner, 2)
    of_rounds = [planned for planned in runner.stages if planned.stage == "benchmark"]
    assert [(planned.number, planned.role) for planned in of_rounds] == [(n, "benchmark_apples") for n in range(3)]
    keys = {planned.key for planned in of_rounds}
    keys |= {planned.key for planned in runner.stages if planned.stage == "contamination"}
    for planned in runner.stages:
        if planned.stage != "contamination":
            assert not keys & {*planned.waits, *planned.inputs.values()}, planned.role
    without = DryRunner()
    play(load("quickstart"), without, 2)
    other = [planned.role for planned in runner.stages if not planned.role.startswith(("benchmark", "contamination"))]
    assert other == [planned.role for planned in without.stages]


def test_the_log_of_an_evaluation_that_failed_is_kept(tmp_path: Path) -> None:
    file = task(tmp_path / "tasks", "apples", f"{GENERATED}process_results: !function own.scored\n")
    (file.parent / "own.py").write_text("def scored(doc, results):\n    raise ValueError('no score')\n", "utf-8")
    with pytest.raises(StageError, match="no score") as said:
        evaluate_benchmarks("tiny-base", load("quickstart", [f"evaluate.benchmarks=[{file}]"]))
    log = re.search(r"log: (\S+log\.txt)", str(said.value))
    assert log and "no score" in Path(log[1]).read_text("utf-8")
    shutil.rmtree(next(one for one in Path(log[1]).parents if one.name.startswith("posttrain-eval-")))
