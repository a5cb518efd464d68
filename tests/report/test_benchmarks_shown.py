"""What benchmarks found is shown by status, report and the model card."""

from __future__ import annotations

from typing import Any

from posttrain.hub.metadata import eval_results
from posttrain.hub.run_summary import RunSummary
from posttrain.report import figures
from posttrain.report.charts import Lines
from posttrain.report.reading import Round
from posttrain.report.status import round_figures, table


def _round(number: int, value: float) -> Round:
    figure = {"value": value, "stderr": 0.02, "ci95": [value - 0.0392, value + 0.0392], "n": 600}
    gain = {"value": 0.1, "ci95": [-0.1, 0.3], "n": 600}
    seen = {"share": number / 10, "threshold": 0.4, "contaminated": 0.2, "gain": gain, "clean": value}
    metrics: dict[str, dict[str, Any]] = {
        "benchmark_apples": {"figures": {"apples": {"acc": figure}}, "chat": False},
        **({"contamination": {"rows": 9, "tasks": {"apples": seen}}} if number else {}),
    }
    stage = {"benchmark_apples": "benchmark", "contamination": "contamination"}
    manifests = {role: {"stage": stage[role], "metrics": one, "seconds": 1.0} for role, one in metrics.items()}
    return Round(number, True, None, dict.fromkeys(manifests, "key"), manifests)


ROUNDS = [_round(0, 0.25), _round(1, 0.5)]


def test_status_has_a_line_for_each_metric_and_for_what_was_seen() -> None:
    shown = [round_figures(one) for one in ROUNDS]
    assert shown[1]["benchmarks"]["apples"]["apples"]["acc"]["stderr"] == 0.02
    assert shown[1]["contamination"]["apples"]["threshold"] == 0.4 and "contamination" not in shown[0]
    lines = table({"rounds": shown, "pushed": []}).splitlines()
    assert lines[-3].split() == ["benchmark", "round", "0", "round", "1"]
    assert lines[-2].split() == ["apples,", "acc", "0.250", "±", "0.020", "0.500", "±", "0.020"]
    assert lines[-1].split() == ["apples,", "share", "seen", "-", "0.100"]


def test_status_has_a_line_of_what_is_known_by_heart() -> None:
    def measured(value: float | None) -> dict[str, Any]:
        metrics = {"verbatim": {"value": value, "ci95": None, "n": 9}}
        return {"memorisation": {"stage": "memorisation", "metrics": metrics, "seconds": 1.0}}

    rounds = [Round(number, True, None, {}, made) for number, made in enumerate(({}, measured(0.21), measured(None)))]
    last = table({"rounds": [round_figures(one) for one in rounds], "pushed": []}).splitlines()[-1]
    assert last.startswith("by heart, of rows trained on more than of others")
    assert last.split()[-2:] == ["0.210", "-"]


def test_the_report_has_a_chart_for_each_task_and_two_of_contamination() -> None:
    charts = {chart.id: chart for chart in figures.benchmarks(ROUNDS)}
    assert list(charts) == ["benchmark-apples", "contamination", "contamination-gain"]
    assert isinstance(charts["benchmark-apples"], Lines)
    assert [point.value for curve in charts["benchmark-apples"].series for point in curve.points] == [0.25, 0.5]
    assert not figures.benchmarks([Round(0, True, None, {}, {})])


def test_the_card_s_index_has_them() -> None:
    last = round_figures(ROUNDS[1])
    (one,) = eval_results(RunSummary(1, {}, [last], [], None, {}, {}))
    assert (one.dataset_name, one.metric_type, one.metric_value) == ("apples", "acc", 0.5)
    assert one.metric_args == {"ci95": [0.4608, 0.5392], "stderr": 0.02, "n": 600}
