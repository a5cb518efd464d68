"""The loop of Llama 3 (section 4.1), flat: one line a stage.

    preferences → reward model → samples → scores → step reward model → search → correction → filters → SFT
    → on-policy training → pairs → DPO → KTO → evaluate → promote

Round 0 evaluates the starting model. `StageInputs` puts together each stage's config, inputs and seed; a stage runs as
soon as its inputs are there, and the loop itself waits only at the gate. Held-out prompts are answered, benchmarks
evaluated, and answers watched where the recipe says so, in the background: no choice depends on any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain.execution.artifact import Artifact, Stages
from posttrain.pipeline.filtering import Preferred
from posttrain.pipeline.scored import Evaluated
from posttrain.pipeline.stage_inputs import StageInputs, Tables
from posttrain.recipe.recipe import Recipe


@dataclass(frozen=True)
class State:
    """The state that one round passes to the next."""

    policy: Artifact  # the last promoted policy: what samples
    previous: Artifact  # the one promoted before it
    evaluation: Evaluated  # the last promoted policy's
    base: Evaluated  # the starting model's
    promoted: tuple[Artifact, ...] = ()  # all policies promoted so far
    rounds_without_improvement: int = 0  # since the last policy that was better than the one promoted before it
    preferences: tuple[Artifact, ...] = ()  # of all rounds so far
    kept: tuple[Artifact, ...] = ()  # by the filters, in all rounds so far
    reward_model: Artifact | None = None  # the last round's
    preferred: Preferred | None = None  # what the last round's DPO made, promoted or not
    step_reward: Artifact | None = None  # the last round's
    seen: Artifact | None = None  # of the benchmarks, in what was learned from so far
    measured: tuple[tuple[Artifact, Artifact], ...] = ()  # each round's policy, with its held-out answers
    collapsed: bool = False  # the last round's answers, and the recipe says to end then


def play(recipe: Recipe, runner: Stages, n: int) -> Artifact:
    """Runs rounds until `n` are finished, or until the recipe stops the loop: `stop_after` rounds without improvement,
    or `collapse.stop`.

    Finished stages are not run again. Returns the last promoted policy.
    """
    stages = StageInputs(recipe, runner)
    try:
        runner.begin_round(0)
        prompts = stages.prompts()
        stages.settle(prompts)
        stages.trial()
        stages.reported.check(stages.base)
        evaluation = stages.scoring.evaluate_base(prompts, stages.base)
        stages.reported.benchmarks(stages.base)
        stages.reported.label_variants(stages.base)
        runner.end_round(promoted=True, policy=stages.base)
        first = ((stages.base, evaluation.heldout),)
        state = State(stages.base, stages.base, evaluation, evaluation, measured=first)
        for number in range(1, n + 1):
            state = play_round(stages, number, prompts, state)
            if (recipe.stop_after and state.rounds_without_improvement >= recipe.stop_after) or state.collapsed:
                break
        runner.end()
    finally:
        runner.stop()
    return state.policy


def play_round(stages: StageInputs, number: int, prompts: Artifact, state: State) -> State:
    """One round: from the last promoted policy to a candidate, and the gate."""
    stages.begin(number)
    recipe = stages.recipe
    fresh = stages.prompts_of_round()
    preferences, reward_model, pairs = state.preferences, None, None
    if recipe.preferences and stages.reads_pairs("preferences"):
        preferences = (*preferences, stages.preferences(fresh, state.policy, state.previous))
    if recipe.reward_model:
        reward_model = stages.reward_model(preferences, state.reward_model)
    samples = stages.samples(fresh, state.policy, stages.difficulty(fresh, state.policy))
    annotations = stages.filtering.annotations(fresh, samples)
    steps = stages.filtering.step_scores(samples, state.preferred, state.step_reward)
    scored = stages.scores(samples, reward_model, annotations, steps)
    candidates, searched, corrected, step_reward = scored, None, None, None
    if recipe.step_reward:
        step_reward = stages.step_reward(scored, state.policy, state.step_reward)
    if recipe.search:
        candidates = searched = stages.search(scored, state.policy, reward_model, state.preferred, step_reward)
    if recipe.correction:
        candidates = corrected = stages.correction(candidates, state.policy, reward_model)
    classifier = stages.filtering.classifier(number, state.kept, state.policy)
    kept = (*state.kept, stages.filtering.filters(number, candidates, prompts, state.kept, classifier, state.policy))
    diversity = stages.filtering.diversity(kept) if recipe.collapse else None
    policy, rollouts, preferred = state.policy, None, None
    if recipe.sft:
        policy = stages.sft(kept, policy, reward_model)
    if recipe.online:
        policy = rollouts = stages.online(policy, scored, reward_model)
    if recipe.pairs and stages.reads_pairs("pairs"):
        pairs = stages.pairs(fresh, policy, reward_model)
    tables = Tables(scored, pairs, preferences, rollouts, searched, corrected)
    if recipe.dpo:
        reference = stages.reference(state.policy, state.promoted)
        start = policy
        policy = stages.preference_optimisation("dpo", start, tables, reward_model, reference)
        preferred = Preferred(policy, reference or start)
    if recipe.kto:
        policy = stages.preference_optimisation("kto", policy, tables, reward_model)
    policy = stages.across_rounds(policy, state.promoted, reward_model)
    evaluation = stages.scoring.evaluate(prompts, policy, reward_model)
    benchmarks = stages.reported.benchmarks(policy)
    seen = stages.reported.contamination(benchmarks, stages.learned_from(kept[-1], tables), state.seen)
    stages.reported.memorisation(policy, kept[-1], state.evaluation.heldout)
    stages.reported.label_variants(policy)
    measured = (*state.measured, (policy, evaluation.heldout))
    stages.reported.forecast(measured)
    promoted, better = stages.promote(evaluation, state.evaluation, reward_model)
    if recipe.watch:
        stages.watch(evaluation, state.evaluation, state.base, preferences, reward_model)
    if diversity:
        state = replace(state, collapsed=stages.filtering.collapsed(diversity))
    state = replace(
        state,
        preferences=preferences,
        kept=kept,
        reward_model=reward_model,
        seen=seen,
        preferred=preferred,
        step_reward=step_reward,
        measured=measured,
        rounds_without_improvement=0 if better else state.rounds_without_improvement + 1,
    )
    if promoted:
        promoted_so_far = (*state.promoted, policy)
        state = replace(state, policy=policy, previous=state.policy, promoted=promoted_so_far, evaluation=evaluation)
    stages.runner.end_round(promoted, state.policy)
    return state
