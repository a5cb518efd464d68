"""Renders the report: `figures` and `answers` as one HTML file that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.messages import text_of
from posttrain.evaluation.statistics import in_words
from posttrain.report import answers, figures, forecasts, plots, reasoning
from posttrain.report.answers import Scored, Survey, changes, shortened
from posttrain.report.lineage import final_round, lineage
from posttrain.report.reading import Round, RunView
from posttrain.rewards.combine import RIGHT, combine
from posttrain.stages.registry import learned_from

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

EACH_KIND = 3  # prompts shown of each kind of `answers.KINDS`
EXTREMES = 5  # best and worst answers
# Characters that would be invisible, or turn the line around, are shown as their own pictures.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}


def html(view: RunView) -> str:
    """The page. What could not be read is listed in `view.missing` and at the top of the page."""
    from markupsafe import Markup

    surveys = _surveys(view)
    scored = _scored(view)
    charts = {
        "Accuracy": [*figures.accuracy(view.rounds), *figures.forecast(view.rounds, forecasts.of_run(view) or [])],
        "Benchmarks": figures.benchmarks(view.rounds),
        "Reward": figures.rewards(view.rounds),
        "Step reward model": reasoning.steps(view.rounds),
        "Search and correction": reasoning.found(view.rounds),
        "On-policy training": figures.online(view.rounds),
        "Win rates": figures.win_rates(view.rounds),
        "Length and diversity": figures.form(surveys),
        "Data": figures.data(view.rounds),
        "Reward distributions": figures.distributions({n: one.values for n, one in scored.items()}),
        "Time": figures.times(view.rounds),
    }
    last = max(scored, default=0)
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            style=style(),
            draw=lambda chart: Markup(plots.draw(chart)),
            view=view,
            charts={title: drawn for title, drawn in charts.items() if drawn},
            final=final_round(view.rounds),
            summary=[summary(one) for one in view.rounds],
            warnings=[(one.number, said) for one in view.rounds for said in one.metrics("watch").get("warnings", [])],
            flow=flow(view.rounds),
            stages=stage_seconds(view.rounds),
            compared=compared(view, surveys),
            extremes=[
                ("best", last, [_extreme(row) for row in scored[last].best]),
                ("worst", last, [_extreme(row) for row in scored[last].worst]),
            ]
            if scored
            else [],
            lineage=lineage(view.rounds),
            names={
                key: f"round {one.number}, {role.replace('_', ' ')}"
                for one in view.rounds
                for role, key in one.keys.items()
            },
            versions=_versions(view.rounds),
        )
    )


def environment() -> Environment:
    """What the pages are rendered by. Text of models is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("posttrain.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"plain": plain, "figure": in_words}
    return made


def style() -> Markup:
    """The style sheet of the pages."""
    from markupsafe import Markup

    return Markup(resources.files("posttrain.report").joinpath("report.css").read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """Text of a model with its control characters made visible. Escaping is the template's."""
    return text.translate(_VISIBLE)


def summary(of: Round) -> dict[str, Any]:
    """A row of the table of rounds."""
    heldout, dev = of.metrics("heldout").get("heldout", {}), of.metrics("evaluate").get("dev", {})
    of_k = [key for key in heldout if figures.PASS.fullmatch(key) and key != "pass@1"]
    filters, promote = of.metrics("filters"), of.metrics("promote")
    return {
        "round": of.number,
        "promoted": of.promoted,
        "done": list(of.manifests),
        "greedy": heldout.get("greedy"),
        "sampled": heldout.get("pass@1"),
        "best_of": heldout[max(of_k, key=lambda key: int(key[5:]))] if of_k else None,
        "dev": dev.get("pass@1"),
        "against": promote if promote.get("ci95") else None,
        "model": of.metrics("reward_model").get("pair_accuracy"),
        "pairs": " + ".join(map(str, learned_from({role: of.metrics(role) for role in of.manifests}).values())) or None,
        "samples": (of.metrics("answers_samples") or of.metrics("samples")).get("completions"),
        "kept": filters.get("kept"),
        "length": heldout.get("mean_length"),
        "unfinished": heldout.get("unfinished"),
        "seconds": sum(one.get("seconds", 0.0) for one in of.manifests.values()),
    }


def flow(rounds: Sequence[Round]) -> dict[str, Any]:
    """The filters' table: by filter what each round's samples were before and after it, and by reason what went."""
    filtered = [one for one in rounds if one.metrics("filters")]
    counts = [
        {one["filter"]: (one["in"], one["out"]) for one in each.metrics("filters").get("filters", [])}
        for each in filtered
    ]
    dropped = [each.metrics("filters")["dropped"] for each in filtered]
    return {
        "rounds": [each.number for each in filtered],
        "filters": {name: [one.get(name) for one in counts] for name in figures.filter_names(filtered)},
        "reasons": {
            reason: [one.get(reason, 0) for one in dropped]
            for reason in dict.fromkeys(reason for one in dropped for reason in one)
        },
    }


def stage_seconds(rounds: Sequence[Round]) -> dict[str, list[float | None]]:
    """By role, the seconds in each round; None where it was not done."""
    roles = dict.fromkeys(role for one in rounds for role in one.manifests)
    return {role: [one.manifests.get(role, {}).get("seconds") for one in rounds] for role in roles}


def _surveys(view: RunView) -> dict[int, Survey]:
    found = {}
    for one in view.rounds:
        weights = one.functions()
        survey = view.table(one, "heldout", "heldout.parquet", lambda path, of=weights: answers.survey(path, of))
        if survey is not None:
            found[one.number] = survey
    return found


def _scored(view: RunView) -> dict[int, Scored]:
    found = {
        one.number: view.table(one, "scores", "scored.parquet", lambda path: answers.scored(path, EXTREMES))
        for one in view.rounds
    }
    return {number: one for number, one in found.items() if one is not None}


def compared(view: RunView, surveys: Mapping[int, Survey]) -> list[dict[str, Any]]:
    """By kind: how many prompts, and of a few what every round answered, equal answers of rounds in a row together."""
    numbers = sorted(surveys)
    by_kind = answers.kinds([surveys[number].right for number in numbers])
    chosen = {kind: prompts[:EACH_KIND] for kind, prompts in by_kind.items()}
    wanted = [prompt for prompts in chosen.values() for prompt in prompts]

    def read(path: Path) -> dict[str, dict[str, Any]]:
        return answers.greedy(path, wanted)

    rows, weights = {}, {}
    for one in view.rounds:
        if one.number in surveys and wanted:
            rows[one.number] = view.table(one, "heldout", "heldout.parquet", read) or {}
            weights[one.number] = one.functions()
    shown = []
    for kind, prompts in chosen.items():
        of_kind = [_compared({n: rows[n][prompt] for n in numbers if prompt in rows[n]}, weights) for prompt in prompts]
        if of_kind:
            shown.append({"kind": answers.KINDS[kind], "count": len(by_kind[kind]), "prompts": of_kind})
    return shown


def _compared(rows: Mapping[int, Mapping[str, Any]], weights: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """One prompt, and its answers: `rounds` that gave the same one, its pieces, its verdict."""
    given: list[dict[str, Any]] = []
    before: str | None = None
    for number, row in rows.items():
        said = text_of(row["completion"])
        if said == before:
            given[-1]["rounds"].append(number)
            continue
        text, left_out = shortened(said)
        pieces = [("same", text)] if before is None else changes(shortened(before)[0], text)
        verdict = combine(json.loads(row["rewards"]), weights[number])
        given.append(
            {
                "rounds": [number],
                "pieces": pieces,
                "left_out": left_out,
                "right": None if verdict is None else verdict >= RIGHT,
            }
        )
        before = said
    return {"prompt": next(iter(rows.values()))["prompt"] if rows else [], "answers": given}


def _extreme(row: Mapping[str, Any]) -> dict[str, Any]:
    text, left_out = shortened(text_of(row["completion"]))
    return {
        "prompt": row["prompt"],
        "text": text,
        "left_out": left_out,
        "score": row["score"],
        "rewards": {name: value for name, value in row["rewards"].items() if value is not None},
    }


def _versions(rounds: Sequence[Round]) -> list[str]:
    """Which versions of libraries made the artifacts; several where the run went on with newer ones."""
    found: dict[str, dict[str, None]] = {}
    for one in rounds:
        for manifest in one.manifests.values():
            for name, version in manifest.get("versions", {}).items():
                found.setdefault(name, {})[version] = None
    return [f"{name} {', '.join(versions)}" for name, versions in found.items()]
