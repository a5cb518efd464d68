"""The status of a run: figures as JSON, and a table. Reads run.json and manifests, prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.evaluation.statistics import clear, in_words
from posttrain.report import forecasts
from posttrain.report.reading import Round, RunView
from posttrain.stages.registry import REFERENCED, learned_from, spec
from posttrain.storage import pushed
from posttrain.storage.store import Store


def status(run: RunView) -> dict[str, Any]:
    """The run's figures, the same that `posttrain status RUN --json` prints."""
    return {
        "run": str(run.root),
        "recipe": run.recipe,
        "policy": next((one.policy for one in reversed(run.rounds) if one.policy is not None), None),
        "rounds": [round_figures(one) for one in run.rounds],
        "pushed": pushed.read(Store(run.root)),
        **({} if (found := forecasts.of_run(run)) is None else {"forecast": found}),
    }


def round_figures(of: Round) -> dict[str, Any]:
    """One round's part of `status`."""
    metrics = {role: of.metrics(role) for role in of.manifests}
    shown: dict[str, Any] = {"round": of.number, "promoted": of.promoted}
    shown["evaluate"] = {**metrics.get("evaluate", {}), **metrics.get("heldout", {})} or None
    if of.benchmarks():
        shown["benchmarks"] = of.benchmarks()
    if "label_variants" in metrics:
        shown["label_variants"] = metrics["label_variants"]
    if "memorisation" in metrics:
        shown["memorisation"] = metrics["memorisation"]
    if "contamination" in metrics:
        shown["contamination"] = metrics["contamination"]["tasks"]
    if "reward_model" in metrics:
        shown["reward_model"] = {name: metrics["reward_model"][name] for name in ("pair_accuracy", "pairs")}
    if "filters" in metrics:
        shown["samples"] = {
            **{name: _sampled(metrics).get(name) for name in ("prompts", "completions")},
            **{name: metrics["filters"][name] for name in ("kept", "dropped")},
        }
    for name in ("search", "correction"):
        if name in metrics:
            shown[name] = {figure: metrics[name][figure] for figure in ("prompts", "pairs", "tokens")}
    if "step_reward" in metrics:
        names = ("answers", "step_accuracy", "error", "right", "f1")
        shown["step_reward"] = {name: metrics["step_reward"].get(name) for name in names}
    if "quality_classifier" in metrics:
        shown["quality_classifier"] = metrics["quality_classifier"]
    if "watch" in metrics:
        model = {name: metrics["watch_model"][name] for name in ("pair_accuracy", "pairs")}
        shown["watch"] = {**metrics["watch"], "reward_model": model}
    if "diversity" in metrics:
        shown["diversity"] = metrics["diversity"]
    made = {name: metrics[name]["pairs"] for name in ("preferences", "pairs") if name in metrics}
    shown["pairs"] = {**made, **learned_from(metrics)}
    shown["seconds"] = {name: manifest["seconds"] for name, manifest in of.manifests.items()}
    shown["background_seconds"] = {
        name: manifest["seconds"] for name, manifest in of.manifests.items() if spec(manifest["stage"], name).background
    }
    return shown


def _sampled(metrics: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the candidates; in runs of an older layout they were a stage of their own."""
    return metrics.get("answers_samples") or metrics.get("samples", {})


HEADER = (
    f"{'round':<7}{'held-out greedy':>20}{'pass@1':>8}{'pass@k':>8}{'dev pass@1':>12}{'reward':>8}"
    f"{'RM acc':>8}{'pairs':>7}{'kept/sampled':>16}{'length':>8}{'stages, s':>11}"
)


def line(shown: Mapping[str, Any]) -> str:
    """One round as a row under `HEADER`."""
    evaluate = shown.get("evaluate") or {}
    heldout, dev = evaluate.get("heldout", {}), evaluate.get("dev", {})
    of_k = [name for name in heldout if name.startswith("pass@") and name[5:].isdigit() and name != "pass@1"]
    best_of = max(of_k, key=lambda name: int(name[5:]), default="")
    samples, model = shown.get("samples"), shown.get("reward_model")
    mark = {True: " ✓", False: " ✗", None: " …"}[shown["promoted"]] if shown["round"] else ""
    seconds = sum(shown["seconds"].values()) - sum(shown["background_seconds"].values())
    greedy = in_words(heldout.get("greedy"), none="-").replace(", ", ",")
    tuned = "+".join(str(shown["pairs"][name]) for name in REFERENCED if name in shown["pairs"]) or "-"
    flow = f"{samples['kept']}/{samples['completions']}" if samples else "-"
    return (
        f"{str(shown['round']) + mark:<7}{greedy:>20}{_value(heldout.get('pass@1')):>8}"
        f"{_value(heldout.get(best_of)):>8}{_value(dev.get('pass@1')):>12}{_value(heldout.get('reward'), 2):>8}"
        f"{_value(model and model['pair_accuracy']):>8}{tuned:>7}{flow:>16}"
        f"{heldout.get('mean_length', 0):>8.1f}{seconds:>11.0f}"
    )


WATCH_HEADER = (
    f"{'watch':<7}{'against':<10}{'proxy reward':>18}{'held-out reward':>18}{'length':>18}{'accuracy':>18}"
    f"{'wins':>8}{'at one length':>15}"
)


def watch_lines(shown: Mapping[str, Any]) -> list[str]:
    """A watched round as rows under `WATCH_HEADER`: figures, their change, wins by the first judge; and its warnings.

    A star: all of the change's 95 % interval is on one side of 0.
    """
    watch = shown.get("watch")
    if not watch:
        return []
    lines = []
    for other in ("previous", "base"):
        cells = "".join(
            f"{_changed(watch['figures']['policy'][name], watch['changes'][other][name]):>18}"
            for name in ("proxy_reward", "heldout_reward", "length", "accuracy")
        )
        first = next(iter(watch["win_rates"][other].values()))
        wins = f"{_value(first['raw']):>8}{_value(first['length_controlled']):>15}"
        lines.append(f"{shown['round']:<7}{other:<10}{cells}{wins}")
    return [*lines, *(f"warning: round {shown['round']}: {warning}" for warning in watch["warnings"])]


def benchmark_lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each metric of each task, with its value and standard error in every round."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for shown in rounds:
        for tasks in shown.get("benchmarks", {}).values():
            for task, metrics in tasks.items():
                for metric, figure in metrics.items():
                    found.setdefault(f"{task}, {metric}", {})[shown["round"]] = figure
        for task, seen in shown.get("contamination", {}).items():
            found.setdefault(f"{task}, share seen", {})[shown["round"]] = {"value": seen["share"], "stderr": None}
        if "memorisation" in shown:  # None where no answer is long enough
            more = shown["memorisation"]["verbatim"]["value"]
            row = found.setdefault("by heart, of rows trained on more than of others", {})
            row[shown["round"]] = {"value": more, "stderr": None}
        for family, of in shown.get("label_variants", {}).get("families", {}).items():
            for name, value in (("mean", of["mean"]), ("worst", of["worst"]["value"])):
                row = found.setdefault(f"label variants, {family}, {name}", {})
                row[shown["round"]] = {"value": value, "stderr": None}
    if not found:
        return []
    numbers = sorted({number for of in found.values() for number in of})
    width = max(map(len, found)) + 2
    head = f"{'benchmark':<{width}}" + "".join(f"{f'round {number}':>16}" for number in numbers)
    return [
        "",
        head,
        *(
            f"{name:<{width}}" + "".join(f"{_with_error(of.get(number)):>16}" for number in numbers)
            for name, of in found.items()
        ),
    ]


def _with_error(figure: Mapping[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    error = figure["stderr"]
    return f"{figure['value']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def after_round(of: Round) -> str:
    """A finished round, with its watch and collapse warnings, under the table's header."""
    return table({"rounds": [round_figures(of)], "pushed": []})


def table(figures: Mapping[str, Any]) -> str:
    """All rounds, a line each; below, those that were watched, and what was pushed."""
    watched = [line for shown in figures["rounds"] for line in watch_lines(shown)]
    rounds = [line(shown) for shown in figures["rounds"]]
    fallen = [
        f"warning: round {shown['round']}: {text}"
        for shown in figures["rounds"]
        for text in shown.get("diversity", {}).get("warnings", ())
    ]
    pushed = [f"pushed: round {one['round']}, {one['kind']} {one['repo']} at {one['tag']}" for one in figures["pushed"]]
    return "\n".join(
        [
            HEADER,
            *rounds,
            *fallen,
            *(["", WATCH_HEADER, *watched] if watched else []),
            *benchmark_lines(figures["rounds"]),
            *([forecasts.in_words(figures["forecast"])] if "forecast" in figures else []),
            *pushed,
        ]
    )


def _value(figure: Mapping[str, Any] | None, digits: int = 3) -> str:
    return "-" if not figure or figure["value"] is None else f"{figure['value']:.{digits}f}"


def _changed(figure: Mapping[str, Any], change: Mapping[str, Any]) -> str:
    if figure["value"] is None or change["value"] is None:
        return "-"
    return f"{figure['value']:.3g} ({change['value']:+.2g}{'*' if clear(change) else ''})"
