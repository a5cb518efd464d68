"""The loop of Llama 3 (section 4.1), flat: one line a stage.

    preferences → reward model → samples → scores → filters → SFT → pairs → DPO → KTO → evaluate → promote

Round 0 is the starting model's evaluation. What each stage is given is put together in `Steps`; each runs as soon as
what it reads is there, and the loop itself waits only at the gate. Held-out prompts are answered in the background, and
the watch, where the recipe has one, looks at those answers: nothing that is chosen depends on either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain.execution.artifact import Artifact, Stages
from posttrain.pipeline.scored import Evaluated
from posttrain.pipeline.stage_inputs import Steps, Tables
from posttrain.recipe.recipe import Recipe


@dataclass(frozen=True)
class State:
    """What one round hands to the next."""

    policy: Artifact  # the last promoted policy: what samples
    previous: Artifact  # the one promoted before it
    evaluation: Evaluated  # the last promoted policy's
    base: Evaluated  # the starting model's
    promoted: tuple[Artifact, ...] = ()  # all policies promoted so far
    without_gain: int = 0  # rounds since the last that was better than the policy promoted before it
    preferences: tuple[Artifact, ...] = ()  # of all rounds so far
    kept: tuple[Artifact, ...] = ()  # by the filters, in all rounds so far
    reward_model: Artifact | None = None  # the last round's
    collapsed: bool = False  # the last round's answers, and the recipe says to end then


def play(recipe: Recipe, runner: Stages, n: int) -> Artifact:
    """Run rounds until `n` are there, or the recipe says to end: `stop_after` without gain, `collapse.stop`.

    No finished stage is done again. Returns the last promoted policy.
    """
    steps = Steps(recipe, runner)
    try:
        runner.begin_round(0)
        prompts = steps.prompts()
        steps.trial()
        evaluation = steps.evaluate_base(prompts)
        runner.end_round(promoted=True, policy=steps.base)
        state = State(steps.base, steps.base, evaluation, evaluation)
        for number in range(1, n + 1):
            state = play_round(steps, number, prompts, state)
            if (recipe.stop_after and state.without_gain >= recipe.stop_after) or state.collapsed:
                break
        runner.end()
    finally:
        runner.stop()
    return state.policy


def play_round(steps: Steps, number: int, prompts: Artifact, state: State) -> State:
    """One round: from the last promoted policy to a candidate, and the gate."""
    steps.begin(number)
    recipe = steps.recipe
    fresh = steps.prompts_of_round()
    preferences, reward_model, pairs = state.preferences, None, None
    if recipe.preferences and steps.reads_pairs("preferences"):
        preferences = (*preferences, steps.preferences(fresh, state.policy, state.previous))
    if recipe.reward_model:
        reward_model = steps.reward_model(preferences, state.reward_model)
    samples = steps.samples(fresh, state.policy, steps.difficulty(fresh, state.policy))
    scored = steps.scores(samples, reward_model, steps.annotations(fresh, samples))
    classifier = steps.quality_classifier(state.kept, state.policy)
    kept = (*state.kept, steps.filters(scored, prompts, state.kept, classifier, state.policy))
    diversity = steps.diversity(kept) if recipe.collapse else None
    policy = state.policy
    if recipe.sft:
        policy = steps.sft(kept, policy, reward_model)
    if recipe.pairs and steps.reads_pairs("pairs"):
        pairs = steps.pairs(fresh, policy, reward_model)
    tables = Tables(scored, pairs, preferences)
    if recipe.dpo:
        reference = steps.reference(state.policy, state.promoted)
        policy = steps.preference_optimisation("dpo", policy, tables, reward_model, reference)
    if recipe.kto:
        policy = steps.preference_optimisation("kto", policy, tables, reward_model)
    policy = steps.across_rounds(policy, state.promoted, reward_model)
    evaluation = steps.evaluate(prompts, policy, reward_model)
    promoted, better = steps.promote(evaluation, state.evaluation, reward_model)
    if recipe.watch:
        steps.watch(evaluation, state.evaluation, state.base, preferences, reward_model)
    if diversity:
        state = replace(state, collapsed=steps.collapsed(diversity))
    gain = 0 if better else state.without_gain + 1
    state = replace(state, preferences=preferences, kept=kept, reward_model=reward_model, without_gain=gain)
    if promoted:
        promoted_so_far = (*state.promoted, policy)
        state = replace(state, policy=policy, previous=state.policy, promoted=promoted_so_far, evaluation=evaluation)
    steps.end(promoted, state.policy)
    return state
