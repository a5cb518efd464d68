"""The report of made-up runs: what it shows, that it loads nothing, and what it says of what is not there."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.report_runs import GREEDY, HOSTILE, SCORED, Made, begun, full_round, heldout, sample, scored

from posttrain import cli
from posttrain.data.tables import SCORED_ANSWERS
from posttrain.report import answers, page
from posttrain.report.lineage import lineage
from posttrain.report.reading import open_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    run = begun(tmp_path_factory.mktemp("report") / "run")
    first = full_round(run, 1, "base-0", promoted=True)
    full_round(run, 2, first, promoted=False)
    return run


@pytest.fixture(scope="module")
def html(made: Made) -> str:
    return page.html(open_run(made.store.root))


class Outline(HTMLParser):
    """Every element with its attributes, and the page's text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " " if tag in ("td", "th") else ""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def words(html: str) -> str:
    """The page's text with single spaces, without the drawings."""
    return " ".join(Outline(re.sub(r"<svg.*?</svg>|<style.*?</style>", " ", html, flags=re.DOTALL)).text.split())


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `posttrain report`."""
    before, sys.argv = sys.argv, ["posttrain", "report", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        sys.argv = before
    out, err = capsys.readouterr()
    return code, out, err


def test_every_part_that_the_run_has_is_shown(html: str) -> None:
    ids = {attributes.get("id") for _, attributes in Outline(html).elements}
    plots = (
        "accuracy-heldout accuracy-dev measure-notes reward watch-base watch-previous pair-accuracy calibration "
        "reliability wins-base wins-previous length diversity pairs flow rewards-check rewards-reward-model "
        "rewards-score times"
    )
    assert {f"plot-{name}" for name in plots.split()} == {one for one in ids if one and one.startswith("plot-")}
    assert {"rounds", "side-by-side", "best-and-worst", "lineage", "recipe"} <= ids


def test_figures_are_those_of_the_artifacts(html: str) -> None:
    said = words(html)
    # The run's policy is that of round 1: round 2 was not promoted.
    assert "50.0 % → 60.0 % of 40 held-out prompts" in said and "policy is that of round 1" in said
    row = "1 yes 0.600 [0.550, 0.650] 0.400 [0.350, 0.450] 0.900 [0.850, 0.950] 0.400 [0.350, 0.450]"
    assert f"{row} 0.062 [0.031, 0.094] 0.750 [0.700, 0.800] 7 4 / 6 20.5 1.00 %" in said
    assert "format 10 → 9 10 → 9" in said and "best-of-k: not the best 5 5" in said
    alts = {attributes["aria-label"] for _, attributes in Outline(html).elements if attributes.get("role") == "img"}
    assert any("greedy 0.5 in round 0, 0.7 in round 2" in (alt or "") for alt in alts)
    assert any("0.62 sure, 0.50 right, 0.88 sure, 0.75 right" in (alt or "") for alt in alts)
    assert any("judge<b>$ 0.625 in round 1" in (alt or "") for alt in alts)


def test_judges_stand_beside_the_reward_models(html: str) -> None:
    """One who gives scores has an accuracy alone."""
    drawn = [attributes["aria-label"] or "" for _, attributes in Outline(html).elements if "aria-label" in attributes]
    accuracy = (
        "model 0.75 in round 1, 0.75 in round 2; judge<b>$ 0.75 in round 1, 0.75 in round 2; check 0.875 in round 1"
    )
    assert len([alt for alt in drawn if accuracy in alt]) == 1
    calibration = "model 0.125 in round 1, 0.125 in round 2; judge<b>$ 0.125 in round 1, 0.125 in round 2."
    assert len([alt for alt in drawn if calibration in alt]) == 1
    reliability = "0.88 sure, 0.75 right; judge<b>$: 0.62 sure, 0.50 right, 0.88 sure, 0.75 right."
    assert len([alt for alt in drawn if reliability in alt]) == 1


def test_the_page_loads_nothing_and_runs_nothing(html: str) -> None:
    assert not re.search(r'(src|href|action|data)="(?!#)', html)
    assert "url(" not in re.sub(r"url\(#", "", html) and "@import" not in html
    elements = Outline(html).elements
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & {tag for tag, _ in elements}
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


def test_what_models_and_recipes_say_is_text(html: str) -> None:
    assert "<script" not in html and "<b>" not in html and "<i>" not in html
    said = words(html)
    assert said.count(HOSTILE) >= 3  # answer, warning, recipe
    assert f"What is {HOSTILE}?" in said and "judge<b>$" in Outline(html).text
    assert "\x00" not in html and "\x1b" not in html
    # Control characters are seen; what turns text around ends with its own element.
    assert "turned\u202c ␀␛[31m" in said and "ไทย עברית" in said


def test_the_same_prompts_stand_side_by_side_with_what_changed(html: str) -> None:
    assert "2 + 3 = <del>4</del><ins>5</ins>" in html and "rounds 1 to 2" in html
    assert "a <del>b</del><ins>x</ins> c" in html
    assert "base to round 2" in html  # one answer throughout
    for kind in ("wrong by the base, right", "right by the base, wrong", "but not throughout", "right in every round"):
        assert kind.capitalize()[1:] in words(html)


def test_charts_take_the_colours_of_the_page_and_no_id_comes_twice(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) == 19 and not [one for one in drawings if re.search(r"#[0-9a-fA-F]{6}", one)]
    ids = [attributes["id"] for _, attributes in Outline(html).elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    pointed_at = set(re.findall(r'(?:url\(|href=")#([^")]+)', html))
    assert pointed_at <= set(ids)


def test_the_same_run_gives_the_same_bytes(made: Made, html: str) -> None:
    assert page.html(open_run(made.store.root)) == html


def test_lineage_goes_back_to_the_base_and_leaves_out_what_had_no_part(made: Made) -> None:
    found = lineage(open_run(made.store.root).rounds)
    assert found and [key.partition("-")[0] for key in found.models] == ["dpo", "sft", "base"]
    roles = [(one.round, one.role) for one in found.ancestors]
    stages = ["preferences", "reward_model", "answers_samples", "scores", "filters", "sft", "dpo"]
    assert roles == [(1, stage) for stage in stages]


def test_best_and_worst_are_of_different_prompts_and_lengths_are_means_over_prompts(tmp_path: Path) -> None:
    rows = [
        sample(f"p{prompt}", f"{prompt}.{index}", "", index, score=score)
        for prompt, scores in enumerate([(0.1, 0.9), (0.9, 0.8), (None, 0.5), (0.2, 0.2)])
        for index, score in enumerate(scores)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), tmp_path / "scored.parquet")
    found = answers.scored(tmp_path / "scored.parquet", shown=2)
    assert [answers.text_of(row["completion"]) for row in found.best] == ["0.1", "1.0"]
    assert [answers.text_of(row["completion"]) for row in found.worst] == ["0.0", "3.0"]
    assert list(found.values["score"]) == [0.1, 0.9, 0.9, 0.8, 0.5, 0.2, 0.2]
    pq.write_table(pa.Table.from_pylist(heldout(0), schema=SCORED_ANSWERS), tmp_path / "heldout.parquet")
    survey = answers.survey(tmp_path / "heldout.parquet", {"check": 1.0})
    assert survey.length["value"] == 2.5 and survey.distinct["value"] == 0.5
    assert survey.right == {"gained": False, "lost": True, "between": True, "same": True, HOSTILE: None}


@pytest.mark.parametrize(
    ("old", "new", "pieces"),
    [
        ("2 + 3 = 4", "2 + 3 = 5", [("same", "2 + 3 = "), ("removed", "4"), ("added", "5")]),
        ("one", "two", [("added", "two")]),
        ("", "new", [("added", "new")]),
        ("so it is", "so it", [("same", "so it"), ("removed", " is")]),
    ],
)
def test_changes_are_marked_word_by_word(old: str, new: str, pieces: list[tuple[str, str]]) -> None:
    assert answers.changes(old, new) == pieces


def test_a_long_answer_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GREEDY, "gained", [("w " * 5000, 0.0)])
    html = page.html(open_run(begun(tmp_path / "run").store.root))
    assert "8500 more characters" in words(html) and len(html) < 200_000


def test_a_run_that_is_under_way_and_locked_is_shown_as_far_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run")
    with run.store.lock():
        run.begin()
        run.stage("samples", {"prompts": 2, "completions": 6})
        code, out, err = command(capsys, str(run.store.root))
    assert (code, err) == (0, "") and "2 rounds" in out
    said = words((run.store.root / "report.html").read_text(encoding="utf-8"))
    assert "Round 1 is not finished; done of it: samples." in said and "No round's policy has been promoted yet" in said


def test_of_a_damaged_run_the_rest_is_shown_and_the_code_is_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "run")
    run.begin()
    gone = run.stage("samples", {"prompts": 2, "completions": 6})
    cut = run.stage("scores", {}, {}, {"scored": scored(1)})
    (run.store.path(gone) / "artifact.json").write_text("{")
    (run.store.path(cut) / "scored.parquet").write_bytes(b"PAR1")
    same_size = run.store.path(run.rounds[0]["stages"]["heldout"]) / "heldout.parquet"
    same_size.write_bytes(b"x" * same_size.stat().st_size)
    target = tmp_path / "elsewhere" / "run.html"
    code, _, err = command(capsys, str(run.store.root), "--out", str(target))
    assert code == 5 and len(err.splitlines()) == 1
    assert f"round 1, samples: artifacts/{gone}" in err and "and 2 more, listed in the page" in err
    said = words(target.read_text(encoding="utf-8"))
    assert f"artifacts/{cut}/scored.parquet is gone or cut" in said and "heldout.parquet cannot be read" in said
    assert "0.500 [0.450, 0.550]" in said  # the figures are in the manifest, which is whole


def test_what_is_no_run_gets_one_error_that_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capsys, str(tmp_path / "none"))
    assert code == 2 and "there is no run here" in err and "posttrain round" in err
    Made(tmp_path / "young")
    code, _, err = command(capsys, str(tmp_path / "young"))
    assert code == 2 and "no stage of this run is done yet" in err
    for broken in ("{", "[]", '{"rounds": [{"round": 0}], "recipe": "x"}'):
        (tmp_path / "young" / "run.json").write_text(broken)
        code, _, err = command(capsys, str(tmp_path / "young"))
        assert code == 5 and len(err.splitlines()) == 1 and "run.json" in err
    run = begun(tmp_path / "run")
    (tmp_path / "file").write_text("")
    code, _, err = command(capsys, str(run.store.root), "--out", str(tmp_path / "file" / "report.html"))
    assert code == 2 and "cannot be written" in err
