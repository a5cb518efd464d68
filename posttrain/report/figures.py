"""The charts of a run, from the metrics of its stages. Pure.

Figures on held-out prompts select nothing; the gate compares those on dev.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from posttrain.report.answers import Survey
from posttrain.report.charts import Bars, Chart, Reliability, Ridges, Series, Spreads, lines, series
from posttrain.report.forecasts import inside_of
from posttrain.report.reading import Round
from posttrain.stages.registry import REFERENCED, STAGES, Group, learned_from, spec

BINS = 40
PASS = re.compile(r"pass@\d+")
INTERVALS = "Bands are 95 % intervals over prompts."
OTHERS = {"base": "the base", "previous": "the last promoted policy"}


def accuracy(rounds: Sequence[Round]) -> list[Chart]:
    """Greedy, pass@1 and pass@K, on both sets; further `measure` rewards."""
    charts: list[Chart] = []
    for stage, name, said in (("heldout", "heldout", "held-out"), ("evaluate", "dev", "dev")):
        found = {one.number: one.metrics(stage).get(name, {}) for one in rounds}
        of_k = {key for figures in found.values() for key in figures if PASS.fullmatch(key)}
        curves = _curves(found, {key: key for key in ("greedy", *sorted(of_k, key=_k))})
        sharpest = found.get(0, {}).get("pass@1_best_temperature")
        if sharpest:
            curves.append(
                series("base, pass@1 at its best temperature", dict.fromkeys(found, sharpest["value"]), reference=True)
            )
        use = (
            "The gate compares policies on these prompts." if name == "dev" else "Nothing was chosen by these prompts."
        )
        caption = (
            f"Share of {said} prompts answered rightly: greedy, by one sample (pass@1), by any of K samples. "
            f"{use} {INTERVALS}"
        )
        charts += lines(f"accuracy-{name}", f"Accuracy, {said} prompts", caption, "share right", curves)
    return charts + _measured(rounds)


def _measured(rounds: Sequence[Round]) -> list[Chart]:
    found = {one.number: one.metrics("heldout").get("heldout", {}).get("measure", {}) for one in rounds}
    settings = {"greedy": "greedy", "sampled": "one sample", "reward_model_pick": "the reward model's pick of K"}
    caption = (
        "Reported only: nothing is chosen by this reward, and no model is trained on it. Held-out prompts. " + INTERVALS
    )
    charts: list[Chart] = []
    for name in sorted({name for figures in found.values() for name in figures}):
        curves = _curves({n: figures.get(name, {}) for n, figures in found.items()}, settings)
        charts += lines(f"measure-{_slug(name)}", f"Measured: {name}", caption, "mean", curves)
    return charts


def forecast(rounds: Sequence[Round], expected: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Held-out pass@1 against what the first rounds said of the later ones. `expected`: see `forecasts.of_run`."""
    if not expected:
        return []
    first = expected[0]["round"]
    inside, came = inside_of(expected)
    scored = f" {inside} of the {came} that came since lie inside." if came else ""
    caption = (
        f"Made from rounds 0 to {first - 1}, by the likelihood of right answers and the number sampled to learn from. "
        f"The band is a 95 % interval.{scored} Nothing is chosen by it."
    )
    heldout = {one.number: one.metrics("heldout").get("heldout", {}).get("pass@1") for one in rounds}
    curves = [
        series("pass@1", {number: figure["value"] for number, figure in heldout.items() if figure}),
        series("forecast", {one["round"]: dict(one) for one in expected}),
    ]
    return [*lines("forecast", "Forecast", caption, "share right", curves)]


def benchmarks(rounds: Sequence[Round]) -> list[Chart]:
    """A chart for each task, with its metrics."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for one in rounds:
        for tasks in one.benchmarks().values():
            for task, metrics in tasks.items():
                found.setdefault(task, {})[one.number] = metrics
    charts: list[Chart] = []
    for task, by_round in found.items():
        names = {metric: metric for metrics in by_round.values() for metric in metrics}
        caption = "By lm-evaluation-harness. Nothing is chosen by it. Bands are 95 % intervals from standard errors."
        charts += lines(f"benchmark-{_slug(task)}", f"Benchmark: {task}", caption, "value", _curves(by_round, names))
    return charts + _contamination(rounds) + _memorised(rounds) + _label_variants(rounds)


def _label_variants(rounds: Sequence[Round]) -> list[Chart]:
    """The base against the last round that has them."""
    found = {one.number: one.metrics("label_variants").get("variants", []) for one in rounds}
    numbers = [number for number, variants in found.items() if variants]
    if not numbers:
        return []
    ends = sorted({numbers[0], numbers[-1]})
    shown = {f"round {number}" if number else "the base": found[number] for number in ends}
    families = dict.fromkeys(one["family"] for variants in shown.values() for one in variants)
    values = {
        policy: {
            family: [one["accuracy"]["value"] for one in variants if one["family"] == family] for family in families
        }
        for policy, variants in shown.items()
    }
    caption = (
        "The same multiple-choice questions put in several ways, a mark for each: other labels, examples whose right "
        "answers stand at other labels, other orders of the answers, other words around. A tall mark is the mean. A "
        "policy that knows the answers has marks close together."
    )
    return [Spreads("label-variants", "Label variants", caption, "accuracy", tuple(families), values)]


def _memorised(rounds: Sequence[Round]) -> list[Chart]:
    found = {one.number: one.metrics("memorisation") for one in rounds}
    said = {"trained": "rows trained on", "others": "rows not trained on"}
    charts: list[Chart] = []
    for name, title, unit in (
        ("verbatim", "By heart", "share continued word for word"),
        ("probability", "Probability of what comes next", "mean probability of a token"),
    ):
        by_rows = {n: {key: one[key][name] for key in said if key in one} for n, one in found.items()}
        caption = f"N-grams of answers, of rows that SFT had and of held-out answers of the same sampler. {INTERVALS}"
        charts += lines(f"memorised-{name}", title, caption, unit, _curves(by_rows, said))
    return charts


def _contamination(rounds: Sequence[Round]) -> list[Chart]:
    found = {one.number: one.metrics("contamination").get("tasks", {}) for one in rounds}
    tasks = {task: task for of_round in found.values() for task in of_round}
    share = {n: {task: seen["share"] for task, seen in of_round.items()} for n, of_round in found.items()}
    gains = {n: {task: seen["gain"] for task, seen in of_round.items()} for n, of_round in found.items()}
    seen = "Share of a benchmark's words that stand in 8-grams of what was learned from up to a round."
    gained = (
        "Mean score of the questions that count as contaminated, minus that of the others. Bands are 95 % intervals "
        "that hold for whichever threshold was chosen."
    )
    return [
        *lines("contamination", "Contamination", seen, "share of words", _curves(share, tasks)),
        *lines("contamination-gain", "What it may have added", gained, "score", _curves(gains, tasks), 0.0),
    ]


def rewards(rounds: Sequence[Round]) -> list[Chart]:
    """Rewards of the policy by reward models, and the models' accuracy."""
    heldout = {one.number: one.metrics("heldout").get("heldout", {}).get("reward") for one in rounds}
    charts: list[Chart] = [
        *lines(
            "reward",
            "Reward by the round's reward model",
            "Mean logit of the sampled answers to held-out prompts. Each round has a reward model of its own, and "
            f"their logits share no scale: only the watch compares policies by one model. {INTERVALS}",
            "logit",
            [series("training reward model", heldout)],
        )
    ]
    for other, said in OTHERS.items():
        changes = {one.number: one.metrics("watch").get("changes", {}).get(other, {}) for one in rounds}
        names = {"proxy_reward": "training reward model", "heldout_reward": "held-out reward model"}
        caption = (
            f"How much more the round's answers to held-out prompts get than those of {said}, by the round's reward "
            "model and by a second one that nothing is chosen by. The first up and the second down: the policy pleases "
            f"its reward model. Paired; {INTERVALS[0].lower()}{INTERVALS[1:]}"
        )
        charts += lines(
            f"watch-{other}", f"Reward against {said}", caption, "change in logit", _curves(changes, names), 0.0
        )
    return charts + _on_pairs(rounds)


def _on_pairs(rounds: Sequence[Round]) -> list[Chart]:
    """How reward models and judges do on labelled pairs, and the bins of the last round that has any."""
    found = {one.number: _measured_on_pairs(one) for one in rounds}
    names = list(dict.fromkeys(name for of_round in found.values() for name in of_round))
    accuracy, errors = (
        [series(name, {n: of_round.get(name, {}).get(key) for n, of_round in found.items()}) for name in names]
        for key in ("pair_accuracy", "ece")
    )
    caption = (
        "Share of held-out pairs of the current policy that a reward model, or a judge of the watch, ranks as "
        f"labelled. A judge's ties are one half; one that labelled the pairs agrees with itself. {INTERVALS}"
    )
    charts: list[Chart] = [*lines("pair-accuracy", "Accuracy on labelled pairs", caption, "share right", accuracy, 0.5)]
    caption = (
        "Expected calibration error on the same pairs: how far apart are, on average, how sure a reward model or a "
        f"judge is of the better answer and how often it is right. Judges that give scores have none. {INTERVALS}"
    )
    charts += lines("calibration", "Calibration", caption, "error", errors, 0.0)
    for number, of_round in sorted(found.items(), reverse=True):
        bins = {name: metrics["bins"] for name, metrics in of_round.items() if metrics.get("bins")}
        if bins:
            caption = (
                "Held-out pairs by how sure a reward model, σ(|r₁ − r₂|), or a judge is of the better answer; large "
                "marks stand for many pairs. Below the broken line it is too sure. Marks of few pairs are far off by "
                "chance alone."
            )
            title = f"Reliability in round {number}"
            return [*charts, Reliability("reliability", title, caption, "share right", bins)]
    return charts


def _measured_on_pairs(of: Round) -> dict[str, Mapping[str, Any]]:
    """By name, the metrics of the reward models and judges that were measured on labelled pairs."""
    models = {"training reward model": "reward_model", "held-out reward model": "watch_model"}
    found = {name: of.metrics(role) for name, role in models.items()}
    return {**found, **of.metrics("watch").get("judges", {})}


def online(rounds: Sequence[Round]) -> list[Chart]:
    """On-policy training, step by step, a curve for each round."""
    found = {one.number: metrics for one in rounds if (metrics := one.metrics("online")).get("curve")}
    spent = ", ".join(f"{one['kl']:.3g} in round {number}" for number, one in found.items() if one["kl"] is not None)
    moved = f" By its end the policy had moved by (KL, nats a completion): {spent}." if spent else ""
    charts: list[Chart] = []
    for name, title, caption, unit in (
        ("score", "Score in on-policy training", f"Mean over a step's completions.{moved}", "mean score"),
        ("length", "Length in on-policy training", "Mean tokens of a step's completions.", "tokens"),
        ("entropy", "Entropy in on-policy training", "Mean of −log p of the sampled tokens.", "nats a token"),
        ("equal", "Groups without a difference", "Whose completions all score the same: no gradient.", "share"),
    ):
        curves = [
            series(f"round {number}", dict(enumerate(metrics["curve"][name], 1))) for number, metrics in found.items()
        ]
        charts += lines(f"online-{name}", title, caption, unit, curves, over="step")
    return charts


def win_rates(rounds: Sequence[Round]) -> list[Chart]:
    """By judge, raw and at one length."""
    charts: list[Chart] = []
    for other, said in OTHERS.items():
        found = {one.number: one.metrics("watch").get("win_rates", {}).get(other, {}) for one in rounds}
        curves = []
        for judge in dict.fromkeys(judge for wins in found.values() for judge in wins):
            names = {"raw": judge, "length_controlled": f"{judge}, at one length"}
            curves += _curves({n: wins.get(judge, {}) for n, wins in found.items()}, names)
        caption = (
            f"How often a judge prefers the round's greedy answer to that of {said}; ties are one half. At one length: "
            f"corrected for a taste for longer answers. {INTERVALS}"
        )
        charts += lines(f"wins-{other}", f"Win rate against {said}", caption, "share won", curves, 0.5)
    return charts


def form(surveys: Mapping[int, Survey]) -> list[Chart]:
    """Length and diversity of the sampled answers to held-out prompts, by round."""
    length = series("tokens", {n: one.length for n, one in surveys.items()})
    distinct = series("share different", {n: one.distinct for n, one in surveys.items()})
    return [
        *lines("length", "Length", f"Mean tokens of the sampled answers. {INTERVALS}", "tokens", [length]),
        *lines(
            "diversity",
            "Diversity",
            "Of the K answers sampled to a held-out prompt, the share that differ from one another: 1 is K different "
            f"ones, 1/K is always the same. {INTERVALS}",
            "share different",
            [distinct],
        ),
    ]


def data(rounds: Sequence[Round]) -> list[Chart]:
    """Pairs by stage, and what the filters kept and dropped."""
    said = {"preferences": "preferences", "pairs": "pairs of the SFT policy"}
    curves = [
        series(name, {one.number: one.metrics(stage).get("pairs") for one in rounds}) for stage, name in said.items()
    ]
    learned = {one.number: learned_from({role: one.metrics(role) for role in one.manifests}) for one in rounds}
    curves += [
        series(f"learned by {STAGES[name].label}", {number: found.get(name) for number, found in learned.items()})
        for name in REFERENCED
    ]
    caption = "Preference pairs made, and what was learned from. Ties and what does not fit are left out."
    charts: list[Chart] = [*lines("pairs", "Pairs", caption, "pairs", curves, 0.0)]
    filtered = [one for one in rounds if "rows" in one.metrics("filters")]
    if filtered:
        parts = {"kept": [one.metrics("filters")["kept"] for one in filtered]}
        for name in filter_names(filtered):
            lost = [_lost(one, name) for one in filtered]
            if any(lost):
                parts[f"dropped by {name}"] = lost
        caption = (
            "What became of the samples. Each filter sees what those before it left; SFT learns from what is kept."
        )
        numbers = tuple(one.number for one in filtered)
        charts.append(Bars("flow", "Kept and dropped", caption, "samples", numbers, parts))
    return charts


def _curves(found: Mapping[int, Mapping[str, Any]], names: Mapping[str, str]) -> list[Series]:
    """A curve for each key of `names`, under its name there, of what was found by round."""
    return [series(name, {n: figures.get(key) for n, figures in found.items()}) for key, name in names.items()]


def filter_names(rounds: Sequence[Round]) -> list[str]:
    """The filters of all rounds, in their order."""
    return list(dict.fromkeys(one["filter"] for each in rounds for one in each.metrics("filters").get("filters", [])))


def _lost(of: Round, name: str) -> int:
    return sum(one["in"] - one["out"] for one in of.metrics("filters")["filters"] if one["filter"] == name)


def distributions(values: Mapping[int, Mapping[str, array[float]]]) -> list[Chart]:
    """Histograms of each reward over the samples, by round, all on one scale."""
    import numpy as np

    charts: list[Chart] = []
    for name in list(dict.fromkeys(name for one in values.values() for name in one)):
        of = {number: np.frombuffer(one[name]) for number, one in sorted(values.items()) if len(one.get(name, ()))}
        edges = np.linspace(min(one.min() for one in of.values()), max(one.max() for one in of.values()), BINS + 1)
        if edges[0] == edges[-1]:
            edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, BINS + 1)
        counts = [np.histogram(one, edges)[0].tolist() for one in of.values()]
        caption = (
            "The reward models of different rounds share no scale."
            if name == "reward-model"
            else "What the filters choose by: the weighted mean of the rewards."
            if name == "score"
            else "Samples that it does not score are left out."
        )
        charts.append(
            Ridges(
                f"rewards-{_slug(name)}",
                f"Samples by {name}",
                f"How many of a round's samples got which value; a line marks the mean. {caption}",
                name,
                tuple(of),
                edges.tolist(),
                counts,
                [float(one.mean()) for one in of.values()],
            )
        )
    return charts


def times(rounds: Sequence[Round]) -> list[Chart]:
    """Seconds by kind of work. Stages overlap where the recipe lets them, so their sum can exceed the time waited."""
    spent = {one.number: _by_group(one.manifests) for one in rounds}
    parts = {group: [of.get(group, 0.0) for of in spent.values()] for group in get_args(Group)}
    parts = {group: seconds for group, seconds in parts.items() if any(seconds)}
    caption = (
        "Seconds that each round's stages took. Stages that ran side by side are counted in full, and those that "
        "nothing waits for (held-out answers, the watch) give way to others."
    )
    return [Bars("times", "By kind of work", caption, "seconds", tuple(spent), parts)] if parts else []


def _by_group(manifests: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """Seconds of the stages by group of work."""
    spent = Counter[str]()
    for role, manifest in manifests.items():
        spent[spec(manifest["stage"], role).group] += manifest.get("seconds", 0.0)
    return spent


def _k(name: str) -> int:
    """Of `pass@K`."""
    return int(name.removeprefix("pass@"))


def _slug(name: str) -> str:
    """A part of an element's id: another one for another name."""
    return re.sub(r"[^A-Za-z0-9.-]", lambda found: f"_{ord(found[0]):x}_", name)
