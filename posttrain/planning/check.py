"""Checks everything of a recipe that can be checked without training, and plans its rounds."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain import models, rewards
from posttrain.config import Model
from posttrain.config.training import TRAINED
from posttrain.data.selection import matching
from posttrain.errors import EmptyStageError, PosttrainError
from posttrain.execution import resources
from posttrain.execution.artifact import Artifact
from posttrain.execution.launcher import Forked, Launcher
from posttrain.execution.progress import Silent
from posttrain.execution.resources import Need, training_disk, training_memory
from posttrain.execution.runner import Runner
from posttrain.models import ModelSummary, inspect_model, structure
from posttrain.pipeline.stage_inputs import StageInputs
from posttrain.planning import cheaper_runs, fitting, known_answers, miniature, probe, small_round
from posttrain.planning.at_scale import Cluster, memory_notes, plan_at_scale
from posttrain.planning.costs import Cost
from posttrain.planning.dry_run import dry_run
from posttrain.planning.estimate import Machine, plan
from posttrain.planning.fitting import Training
from posttrain.recipe.load import load
from posttrain.recipe.recipe import Recipe
from posttrain.rewards import pairwise
from posttrain.stages.amounts import Asked, Sets, Shares, amounts
from posttrain.storage.store import Store
from posttrain.system import SMALL_MODEL, bytes_in_words, cores, gpu, gpu_memory

_GPU_RATE = 2e14  # operations a second


@dataclass
class Checked:
    """The checks that were run (name, whether it passed, what was found or is wrong), and the plan."""

    recipe: Recipe
    found: list[tuple[str, bool, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plan: dict[str, Any] | None = None
    forecast: list[dict[str, Any]] | None = None  # of each round's held-out pass@1, where the recipe names runs for it
    error: PosttrainError | None = None  # the first

    def run(self, name: str, check: Callable[[], tuple[str, Any]]) -> Any:
        """Runs `check`, which returns one sentence for the report and a value. Returns the value, None on an error."""
        try:
            said, value = check()
        except PosttrainError as error:
            self.fail(name, error)
            return None
        self.found.append((name, True, said))
        return value

    def fail(self, name: str, error: PosttrainError) -> None:
        self.error = self.error or error
        self.found.append((name, False, str(error)))


def check(
    name: str,
    overrides: Sequence[str],
    n: int,
    with_probe: bool,
    launcher: Launcher | None = None,
    elsewhere: tuple[Cluster, float | None] | None = None,
) -> Checked:
    """Checks the recipe `name` with these overrides and plans `n` rounds. `launcher`: runs stages and measures them.
    `elsewhere`: plans them for those machines, and for a model of so many parameters; nothing is measured here then.

    Raises:
        RecipeError: the recipe itself cannot be read. All other errors are in the result.
    """
    recipe = load(name, overrides)
    checked = Checked(recipe)
    with tempfile.TemporaryDirectory(prefix="posttrain-check-", ignore_cleanup_errors=True) as folder:
        run, runs = Store(Path(folder) / "run"), launcher or _warmed()
        with run.session(), contextlib.ExitStack() as at_end:
            at_end.callback(runs.stop)
            model = checked.run("model", lambda: _model(recipe.model))
            checked.run("engine", lambda: (_engine(recipe), None))
            checked.run("rewards", lambda: (golden_cases(recipe), None))
            used = ", ".join(str(getattr(one, "use", "")) for one in recipe.filters)
            checked.run("filters", lambda: (used or "none", None))
            found = checked.run("prompts", lambda: _prompts(recipe, model, runs, run)) if model else None
            if not found:
                return checked
            stages, prompts, sets = found
            cheaper = _forecast(checked, stages, model.here and not elsewhere)
            if recipe.evaluate.benchmarks or recipe.evaluate.label_variants:
                asked = checked.run("benchmarks", lambda: _benchmarks(checked, stages, run))
                if asked is None:
                    return checked
                sets = replace(sets, asked=asked)
            made = run.manifest(prompts.key)
            if made["metrics"].get("unused_weights"):
                checked.notes.append(structure.unused(made["metrics"]["unused_weights"]))
            if elsewhere:
                cluster, parameters = elsewhere
                checked.plan = _elsewhere(checked, model, n, sets, made["metrics"], cluster, parameters)
                return checked
            shape = resources.Shape.of(model.path, model.parameters)
            wanted = fitting.trainings(recipe, made["metrics"]["longest_prompt"])
            if shape and wanted and not checked.run("memory", lambda: _memory(checked, wanted, shape)):
                return checked
            trains = any(getattr(recipe, name) for name in TRAINED)
            if trains and not checked.run("training", lambda: _training(checked, stages, prompts)):
                return checked
            costs, shares, memory = dict[str, Cost](), Shares(), 0
            impossible = _no_probe(model) if with_probe else None
            if impossible:
                checked.notes.append(f"no probe: {impossible}")
            elif with_probe:
                size = miniature.size(model.parameters, recipe.samples.max_new_tokens, _rate(recipe))
                small = load(name, [*overrides, *miniature.overrides(recipe, size)])
                few = max(4, size.completions // (1 + recipe.evaluate.k))
                known_answers.write_few(prompts.path, run.root, few)
                measured = small_round.run(small, model.parameters, prompts, runs, run)
                if isinstance(measured.ended, EmptyStageError):
                    said = "the probe ended early, on few prompts and with the starting model"
                    checked.notes.append(f"{said}: {measured.ended}")
                elif measured.ended:
                    checked.fail("probe", measured.ended)
                costs, shares, memory = _with_peaks(measured.costs, wanted, shape), measured.shares, measured.memory
                checked.notes += _not_in_the_plan(recipe)
            checked.plan = _plan(recipe, model, n, sets, shares, costs, memory, made["seconds"])
            if cheaper:
                checked.forecast = cheaper_runs.of_plan(cheaper, checked.plan, recipe.evaluate.k)
    return checked


def _warmed() -> Launcher:
    launcher = Forked(probe.measure)
    launcher.warm()
    return launcher


def _rate(recipe: Recipe) -> float:
    """Operations a second of this machine, in the recipe's type or the faster one: of one core, or about what a small
    GPU has."""
    from posttrain.engines import precision

    if gpu():
        return _GPU_RATE
    rates = precision.rates()
    return 1e9 * rates.get(recipe.engine.dtype, max(rates["float32"], rates["bfloat16"]))


def _no_probe(model: ModelSummary) -> str | None:
    """Why the model cannot be probed on this machine; None if it can."""
    if not model.here:
        return "the weights are not here yet; the first round fetches them"
    return None


def golden_cases(recipe: Recipe) -> str:
    """Runs every reward file on its golden cases. Raises RewardError that lists up to three wrong results."""
    for judge in recipe.watch.judges or [] if recipe.watch else []:
        if not judge.is_model:
            pairwise.load(judge.entry)
    loaded = {f"{entry.use} {entry.function}": rewards.load(entry) for entry in recipe.reward_files()}
    results = [result for reward in loaded.values() if (result := reward.golden_cases())]
    return ", ".join(results) or "only the reward model"


def _model(model: Model) -> tuple[str, ModelSummary]:
    found = models.inspect_model(model)
    where = found.path if found.here else "on the Hub, its weights not fetched yet"
    return f"{model.path}, {bytes_in_words(found.size)} of weights, {where}", found


def _forecast(checked: Checked, stages: StageInputs, can: bool) -> cheaper_runs.Cheaper | None:
    """What a forecast is made from, where the recipe names runs for it. `can`: this machine's plan is made, for the
    recipe's own model."""
    section = checked.recipe.evaluate.forecast
    if section is None or not section.runs:
        return None
    if not can:
        checked.notes.append("no forecast: it is made for this machine's plan alone, once the model's weights are here")
        return None

    def read() -> tuple[str, cheaper_runs.Cheaper]:
        measure = cheaper_runs.measure_of(checked.recipe, stages.external)
        found = cheaper_runs.read(section.runs, stages.base.key, measure)
        rounds = sum(len(points) - 1 for points in (*found.own, *found.others))
        of_others = f", {len(found.others)} of other models" if found.others else ""
        return f"from {rounds} rounds of {', '.join(section.runs)}{of_others}", found

    return checked.run("forecast", read)


def _engine(recipe: Recipe) -> str:
    """The engine in words; a server given by `url` must pass its health check."""
    server = recipe.engine.server
    if server is None:
        return recipe.engine.use
    if server.url is None:
        return f"{server.kind}, started by each stage: {' '.join(server.start or [])}"
    from posttrain.engines.server import check_server  # here, since it imports torch

    check_server(server.url)
    return f"{server.kind} at {server.url}"


def _prompts(
    recipe: Recipe, model: ModelSummary, launcher: Launcher, run: Store
) -> tuple[str, tuple[StageInputs, Artifact, Sets]]:
    """Runs the prompts stage: files, columns, templates, lengths, and a trial call of each reward."""
    import pyarrow.parquet as pq

    runner = Runner(run, launcher, Silent(), 1, recipe)
    runner.begin_round(0)
    started = time.monotonic()
    stages = StageInputs(recipe if model.here else _stood_in(recipe), runner)
    stages.base = Artifact(stages.base.key, model.path)
    artifact = stages.prompts()
    metrics = runner.metrics(artifact)
    counts = {name: metrics[name]["prompts"] for name in ("train", "dev", "heldout")}
    where = counts["train"]
    if recipe.preferences and recipe.preferences.where:
        where = len(matching(pq.read_table(artifact.path / "train.parquet").to_pylist(), recipe.preferences.where))
    sets = Sets(**counts, where=where, given=metrics.get("given", {}), length=metrics["mean_prompt"])
    said = "; ".join(f"{name} {metrics[name].pop('prompts'):,}{_dropped(metrics[name])}" for name in counts)
    return f"{said} ({time.monotonic() - started:.1f} s)", (stages, artifact, sets)


def _benchmarks(checked: Checked, stages: StageInputs, run: Store) -> tuple[str, dict[str, Asked]]:
    """Reads the questions of benchmarks and label variants. Returns what they ask for, by the role of their stage."""
    checks = stages.reported.checks(stages.base)
    checked.notes += stages.reported.warnings(checks.values())
    asked = {role: _asked(run.manifest(one.key), probe.seconds(run.root, one.key)) for role, one in checks.items()}
    names = {role: role.removeprefix("benchmark_").replace("label_variants", "label variants") for role in asked}
    return "; ".join(f"{names[role]}: {_said(one)}" for role, one in asked.items()), asked


def _asked(made: Mapping[str, Any], seconds: float | None) -> Asked:
    """From the manifest of a check, and its seconds as measured."""
    questions, asked = made["metrics"]["questions"], made["metrics"]["asked"]
    count = sum(questions.values()) if isinstance(questions, dict) else questions
    return Asked(count, asked["texts"], asked["read"], dict(asked["answers"]), seconds or made["seconds"])


def _said(asked: Asked) -> str:
    said = [f"{count:,} answers of up to {most:,} tokens" for most, count in asked.answers.items()]
    return ", ".join([*said, *([f"{asked.texts:,} log-likelihoods, {asked.read:,} tokens"] if asked.texts else [])])


def _memory(checked: Checked, wanted: Sequence[Training], shape: resources.Shape) -> tuple[str, bool]:
    """Checks the memory of each training, by an estimate."""
    import psutil

    free = gpu_memory() if gpu() else psutil.virtual_memory().available
    if free is None:
        return "the GPU's driver does not say how much is free", True
    said, notes = fitting.check(wanted, shape, free)
    checked.notes += notes
    return f"{said}, of {bytes_in_words(free)} that are free", True


def _training(checked: Checked, stages: StageInputs, prompts: Artifact) -> tuple[str, bool]:
    """Runs the trial stage: one optimizer step of each training, on few and short rows."""
    started = time.monotonic()
    stages.settle(prompts)
    checked.notes += stages.trial()
    return f"one step of each in small ({time.monotonic() - started:.1f} s)", True


def _dropped(counts: dict[str, int]) -> str:
    listed = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)
    return f" ({listed})" if listed else ""


def _stood_in(recipe: Recipe) -> Recipe:
    """The recipe with a shipped model, for where only the shape of the loop counts."""
    return recipe.model_copy(update={"model": Model(path="tiny-base")})


def _with_peaks(costs: dict[str, Cost], wanted: Sequence[Training], shape: resources.Shape | None) -> dict[str, Cost]:
    """The costs with the memory that a training's longest rows take: the probe's are few, and as long as answers are on
    average."""
    peaks = {one.name: one.peak(shape) for one in wanted} if shape else {}
    return {name: replace(one, memory=max(one.memory, peaks.get(name, 0.0))) for name, one in costs.items()}


def _not_in_the_plan(recipe: Recipe) -> list[str]:
    """A note on the time of what is only reported."""
    asked = recipe.evaluate
    if recipe.engine.server and any(getattr(asked, name) for name in miniature.REPORTED):
        return [
            f"{', '.join(miniature.REPORTED).replace('_', ' ')} are not in the plan: the built-in engine computes "
            "them, and what was measured is the server"
        ]
    said = "the time of looking for benchmarks' questions in what was learned from is not in the plan"
    return [said] if asked.benchmarks else []


def _workers(recipe: Recipe) -> int:
    """Processes of a stage that samples or scores."""
    return 1 if gpu() or recipe.engine.server else recipe.compute.workers or cores()


def _plan(
    recipe: Recipe,
    model: ModelSummary,
    n: int,
    sets: Sets,
    shares: Shares,
    costs: dict[str, Cost],
    memory: int,
    prompts_seconds: float,
) -> dict[str, Any]:
    many = cores()
    machine = Machine(
        cores=1 if gpu() else many,
        workers=_workers(recipe),
        at_once=recipe.compute.stages_at_once,
        threads=1 if gpu() or model.parameters <= SMALL_MODEL else many,
        memory=memory,
    )
    if recipe.engine.server and costs:  # which say nothing of the built-in engine
        recipe = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=miniature.REPORTED)})
    planned = dry_run(recipe if model.here else _stood_in(recipe), n)
    made = plan(planned, sets, shares, costs, machine, _saved(recipe, model), prompts_seconds)
    return {**made, "machine": {"cores": many, "gpu": gpu(), "workers": machine.workers, "at_once": machine.at_once}}


def _elsewhere(
    checked: Checked,
    model: ModelSummary,
    n: int,
    sets: Sets,
    prompts: Mapping[str, Any],
    cluster: Cluster,
    parameters: float | None,
) -> dict[str, Any]:
    """The plan for other machines. Rows are the most there can be, answers as long as they may be."""
    recipe, size = checked.recipe, parameters or model.parameters
    cluster = replace(cluster, processes=recipe.compute.processes)
    trainings = fitting.trainings(recipe, round(prompts["mean_prompt"]))
    keep = [vars(one)["keep"] for one in recipe.filters if vars(one)["use"] == "best-of-k"]
    shares = Shares(kept=min([1.0, *(most / recipe.samples.k for most in keep)]))
    planned = dry_run(recipe if model.here else _stood_in(recipe), n)
    lengths = (prompts["mean_prompt"], float(recipe.samples.max_new_tokens))
    todo = amounts(planned, sets, shares)
    checked.notes += memory_notes(size, trainings, cluster)
    made = plan_at_scale(planned, todo, {one.name: one for one in trainings}, lengths, size, cluster)
    return {**made, "parameters": size, "cluster": asdict(cluster)}


def _saved(recipe: Recipe, model: ModelSummary) -> int:
    """Bytes of a trained model, in the type in which models are saved."""
    return round(model.parameters * {"float32": 4, "bfloat16": 2}[recipe.model.dtype])


def check_run(recipe: Recipe, n: int, run: Store) -> None:
    """Checks that disk and memory suffice for the rounds still to be run: their models, and one training at a time;
    with a cluster, the disk alone.

    Raises:
        ResourceError: disk or memory is too small.
    """
    there = len(run.read_run().get("rounds", []))
    found = inspect_model(recipe.model)
    shape = recipe.model_copy(update={"model": Model(path="tiny-base")})  # small to hash; the stages are the same
    made = [stage for stage in dry_run(shape, n) if stage.spec.makes_model and stage.number >= there]
    if not made:
        return
    size, model = _saved(recipe, found), recipe.model.in_key()
    extra = training_disk(found.parameters, 0, model)
    memory = 0.0 if recipe.compute.cluster else training_memory(found.parameters, model)
    need = Need(len(made) * size + extra, memory)
    resources.check(
        need, run.root, f"the models of these rounds ({len(made)} of {bytes_in_words(size)}, and checkpoints)"
    )
