"""Models outside a run: evaluation on a recipe's prompts, sampling into a file, chat."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from posttrain.config import Engine, Model, PromptSet, by_round
from posttrain.data import load as loaders
from posttrain.data.messages import Message, Prompt
from posttrain.errors import InputError, StageError
from posttrain.execution.artifact import Artifact
from posttrain.execution.launcher import Forked
from posttrain.execution.progress import Silent, Watcher
from posttrain.execution.runner import Runner
from posttrain.job import Job
from posttrain.models.folder import resolve
from posttrain.models.inspection import inspect
from posttrain.pipeline.reported import Reported
from posttrain.pipeline.stage_inputs import StageInputs
from posttrain.recipe.recipe import Recipe
from posttrain.report.reading import open_run
from posttrain.seeds import derive_seed
from posttrain.storage.store import Store
from posttrain.system import device

WRITTEN = ("prompt_id", "sample_index", "prompt", "completion", "n_tokens", "finish", "columns")


def evaluate(
    model: str | Path, recipe: Recipe, on: Literal["dev", "heldout"] = "heldout", watcher: Watcher | None = None
) -> dict[str, Any]:
    """Evaluates a model on a set of a recipe's prompts by its rewards, with the stage that a run uses.

    `model`: a run's folder (its promoted policy), a model's folder, a shipped name, or a Hub id. By name: `greedy`,
    `pass@1` and so on, each with value, 95 % interval `ci95` and number of prompts `n`.

    Raises:
        InputError: recipe, model, prompts or rewards are not right.
        StageError: the evaluation failed.
    """
    with _scored(model, recipe, on, watcher) as (runner, answers):
        return runner.metrics(answers)[on]


def scored_answers(model: str | Path, recipe: Recipe, target: Path, watcher: Watcher | None = None) -> None:
    """Writes a model's answers to a recipe's held-out prompts, with what its rewards say (SCORED_ANSWERS). Arguments
    and errors as for `evaluate`."""
    with _scored(model, recipe, "heldout", watcher) as (runner, answers):
        runner.metrics(answers)
        shutil.copyfile(answers.path / "heldout.parquet", target)


@contextlib.contextmanager
def _scored(
    model: str | Path, recipe: Recipe, on: Literal["dev", "heldout"], watcher: Watcher | None
) -> Iterator[tuple[Runner, Artifact]]:
    recipe = _of_model(recipe, model)
    with _runner(recipe, watcher) as runner:
        stages = StageInputs(recipe, runner)
        prompts = stages.prompts()
        stages.settle(prompts)
        yield runner, stages.scoring.scored_answers(on, prompts, stages.base)


def evaluate_benchmarks(model: str | Path, recipe: Recipe, watcher: Watcher | None = None) -> dict[str, Any]:
    """Evaluates a model on the benchmarks of a recipe, with the stage that a run uses. `model`: as in `evaluate`.

    By benchmark, task and metric: value, standard error `stderr`, 95 % interval `ci95`, number of questions `n`.

    Raises:
        InputError: a benchmark cannot be read, or does not fit the model's context.
    """
    recipe = _of_model(recipe, model)
    with _runner(recipe, watcher) as runner:
        reported, policy = Reported(recipe, runner), Artifact("model", Path(recipe.model.path))
        reported.check_benchmarks(policy)
        made = reported.benchmarks(policy)
        return {name: runner.metrics(one)["figures"] for name, one in made.items()}


def _of_model(recipe: Recipe, model: str | Path) -> Recipe:
    given = {"path": str(find(str(model)).absolute()), "revision": None, "chat_template": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=given)})


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="posttrain-eval-"))
    try:
        yield folder
    except StageError:
        raise  # it names a log in the folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _runner(recipe: Recipe, watcher: Watcher | None) -> Iterator[Runner]:
    """Runs stages in a folder that is gone afterwards, unless a stage failed: its log is there."""
    workers = recipe.compute.workers or os.cpu_count() or 1
    with _folder() as folder:
        run = Store(Path(folder) / "run")
        with run.session():
            runner = Runner(run, Forked(), watcher or Silent(), workers, recipe)
            try:
                runner.begin_round(0)
                yield runner
            finally:
                runner.stop()


def sample(
    model: str, prompts: Sequence[Prompt], sampling: dict[str, Any], engine: Engine, out: Path, workers: int
) -> int:
    """Samples K answers to each prompt into a Parquet or JSONL file, shard by shard; returns their number.

    `sampling`: k, temperature, top_p, max_new_tokens, seed.

    Raises:
        InputError: the file has another ending or no folder, or a prompt leaves no room for an answer.
    """
    import torch

    from posttrain.engines.protocol import SamplingParams
    from posttrain.rollouts import Sampling, plan, run_rollouts
    from posttrain.rollouts import engine as settings

    if out.suffix not in (".parquet", ".jsonl"):
        raise InputError("name a .parquet or a .jsonl file", file=str(out), rule="command-output")
    if not out.absolute().parent.is_dir():
        raise InputError("there is no such folder", file=str(out.parent), rule="command-output")
    torch.set_num_threads(1)  # sampling uses processes
    path = find(model)
    inspect(path, [prompt.messages for prompt in prompts[:8]], trained=False)
    rows = [
        {"id": prompt.id, "prompt": list(prompt.messages), "columns": json.dumps(dict(prompt.columns))}
        for prompt in prompts
    ]
    with tempfile.TemporaryDirectory(prefix=".posttrain-sample-", dir=out.absolute().parent) as folder:
        server = {"server": engine.server.model_dump(mode="json")} if engine.server else {}
        job = Job({"engine": engine.model_dump(mode="json")}, {}, Path(folder), Path(folder), 0, server, workers)
        params = SamplingParams(sampling["temperature"], sampling["max_new_tokens"], sampling["top_p"])
        seed = derive_seed(sampling["seed"], "sample")
        shards = plan(rows, Sampling(str(path), params, sampling["k"], seed, **settings(job)), engine.shard_tokens)
        table = Path(folder) / "answers.parquet"
        try:
            count = run_rollouts(shards, job, table)
        except ValueError as error:  # what an engine says of a prompt that does not fit
            raise InputError(
                str(error), hint="take the prompt out, or lower --max-new-tokens", rule="command-prompt-too-long"
            ) from error
        _write(table, out)
    return count


def prompts_of(recipe: Recipe, on: str) -> list[Prompt]:
    """The prompts of a recipe's set `on`: train (those of all rounds), dev or heldout."""
    sets = by_round(getattr(recipe.prompts, on))
    return [
        prompt for each in sets for prompt in loaders.read_prompts(each, recipe.prompts.system, where=f"prompts.{on}")
    ]


def prompts_in(file: Path) -> list[Prompt]:
    """The prompts of a JSONL, Parquet or CSV file with a column `prompt`."""
    return loaders.read_prompts(PromptSet(path=str(file.absolute())), where="--prompts")


def _write(table: Path, out: Path) -> None:
    """The table's useful columns, a batch in memory at a time; the file appears when it is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from posttrain.data.tables import ANSWERS

    schema, part = pa.schema([ANSWERS.field(name) for name in WRITTEN]), out.with_name(f".{out.name}.part")
    batches = pq.ParquetFile(table).iter_batches(4096, columns=list(WRITTEN))
    if out.suffix == ".parquet":
        with pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch.select(list(WRITTEN)))
    else:
        with part.open("w", encoding="utf-8") as file:
            for batch in batches:
                for row in batch.to_pylist():
                    row["columns"] = json.loads(row["columns"])
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.rename(out)


class Conversation:
    """A chat with a model through its chat template."""

    def __init__(self, model: str, system: str | None, temperature: float, max_new_tokens: int, seed: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = find(model)
        inspect(path, [], trained=False)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.device = device()
        loaded: Any = AutoModelForCausalLM.from_pretrained(path)
        self.model = loaded.to(self.device).eval()
        self.system, self.temperature, self.max_new_tokens = system, temperature, max_new_tokens
        torch.manual_seed(seed)
        self.messages: list[Message] = []
        self.reset()

    def reset(self) -> None:
        """Starts a new conversation."""
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def reply(self, text: str, say: Callable[[str], None]) -> None:
        """Calls `say` with each piece of the answer to `text`; both are part of the conversation from then on.

        Raises:
            InputError: the conversation no longer fits the model's context, or the model's logits are not finite; the
                conversation is unchanged.
        """
        import torch
        from transformers import LogitsProcessorList, TextStreamer

        from posttrain.data.chat_template import render_prompt
        from posttrain.engines.protocol import context_length

        messages = [*self.messages, {"role": "user", "content": text}]
        ids = render_prompt(self.tokenizer, messages)
        context = context_length(self.model.config)
        if len(ids) >= context:
            raise InputError(
                f"the conversation has {len(ids)} tokens, the model's context {context}",
                hint="/reset starts a new one",
                rule="command-talk-too-long",
            )
        how = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        given = torch.tensor([ids], device=self.device)
        pieces: list[str] = []

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                pieces.append(text)
                say(text)

        self.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            streamer=Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
            max_new_tokens=min(self.max_new_tokens, context - len(ids)),
            pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList([self._checked]),
            **how,
        )
        self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _checked(self, ids: Any, scores: Any) -> Any:
        from posttrain.engines.load import check_logits

        check_logits(scores, self.model, self.model.dtype)
        return scores


def find(name: str) -> Path:
    """The folder of a model that a command is given: a run's promoted policy, a folder, a shipped name, or a Hub id.

    Raises:
        InputError: it is none of these, or a run that has no policy yet.
    """
    folder = Path(name)
    if (folder / "run.json").is_file():
        policy = open_run(folder).policy
        if policy is None:
            raise InputError(
                "the run has no policy yet",
                file=name,
                hint="wait for its first round, or name a model",
                rule="model-no-policy-yet",
            )
        name = str(policy)
    elif folder.is_dir():
        name = f"./{name}" if "/" not in name else name
    return resolve(Model(path=name)).path
