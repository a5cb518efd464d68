"""The learned quality classifier: fitted to planted verdicts, measured, kept without pickle, off until it is good."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.loop_runs import go
from support.tiny_models import causal_lm, tokenizer

from posttrain import filters
from posttrain.engines.embedder import Embedder
from posttrain.errors import DataError, RecipeError
from posttrain.filters import FilterContext, dropped_schema, quality_model
from posttrain.job import Job
from posttrain.recipe.load import load
from posttrain.stages import quality_classifier
from posttrain.storage.files import read_json
from posttrain.storage.store import Store

ROWS = pa.schema([("prompt_id", pa.string()), ("prompt", pa.string()), ("completion", pa.string())])
WORDS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "red",
    "blue",
    "green",
    "kite",
    "boat",
    "house",
    "tree",
]


def rows(count: int, good: bool, seed: int, tell: float = 1.0) -> list[dict[str, Any]]:
    """Random words; good ones hold `therefore`, bad ones `whatever`, in a share `tell` of the cases."""
    rng = random.Random(f"{seed} {good}")
    made = []
    for number in range(count):
        words = rng.choices(WORDS, k=12)
        if rng.random() < tell:
            words[rng.randrange(12)] = "therefore" if good else "whatever"
        made.append(
            {"prompt_id": f"{seed}/{number}", "prompt": f"About {WORDS[number % 17]}", "completion": " ".join(words)}
        )
    return made


def filtered(folder: Path, kept: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> Path:
    """What a filters stage leaves. `dropped` rows may say by which filter; the default is `quality`."""
    folder.mkdir(parents=True)
    said = [{"filter": "quality", "reason": "judged too low", "figure": 1.0, **row} for row in dropped]
    pq.write_table(pa.Table.from_pylist(kept, ROWS), folder / "kept.parquet")
    pq.write_table(pa.Table.from_pylist(said, dropped_schema(ROWS)), folder / "dropped.parquet")
    return folder


def fitted(tmp_path: Path, inputs: dict[str, Path], labels: Path | None = None, **keys: Any) -> dict[str, Any]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    section = {**keys, "labels": str(labels) if labels else None}
    return quality_classifier.run(Job({"classifier": section}, inputs, out, tmp_path / "scratch", 0))


def dropped_by(folder: Path, given: list[dict[str, Any]], policy: Path | None = None) -> list[tuple[str, float]]:
    run = filters.run(
        pa.Table.from_pylist(given, ROWS).to_batches(),
        filters.parse([{"use": "learned-quality"}]),
        FilterContext(classifier=folder, policy=policy),
    )
    return [(row["completion"], row["figure"]) for part in run for row in part.dropped.to_pylist()]


class TestFitting:
    def test_it_finds_what_the_judge_dropped_on_prompts_it_has_not_seen(self, tmp_path: Path) -> None:
        source = filtered(tmp_path / "f1", rows(200, True, 1), rows(200, False, 1))
        metrics = fitted(tmp_path, {"filters_001": source})
        assert metrics["on"] and metrics["rows"] == 400 and metrics["good"] == 200
        assert metrics["auc"]["value"] > 0.99
        new = rows(50, True, 2) + rows(50, False, 2)
        gone = dropped_by(tmp_path / "out", new)
        assert len(gone) == 50 and all("whatever" in text and figure < 0.5 for text, figure in gone)

    def test_several_rounds_are_learned_from(self, tmp_path: Path) -> None:
        parts = {f"filters_{n:03}": filtered(tmp_path / str(n), rows(60, True, n), rows(60, False, n)) for n in (1, 2)}
        assert fitted(tmp_path, parts)["rows"] == 240

    def test_where_nothing_can_be_learned_it_is_off_and_drops_nothing(self, tmp_path: Path) -> None:
        source = filtered(tmp_path / "f1", rows(200, True, 1, tell=0), rows(200, False, 1, tell=0))
        metrics = fitted(tmp_path, {"filters_001": source})
        low, high = metrics["auc"]["ci95"]
        assert low < 0.5 < high and not metrics["on"]
        assert "not above 0.7" in metrics["why"]
        assert dropped_by(tmp_path / "out", rows(20, False, 2)) == []

    def test_how_good_it_must_be_is_a_key(self, tmp_path: Path) -> None:
        source = filtered(tmp_path / "f1", rows(200, True, 1, tell=0.5), rows(200, False, 1, tell=0.5))
        figure = fitted(tmp_path, {"filters_001": source})["auc"]
        low, high = figure["ci95"]
        assert 0.5 < low < figure["value"] < high < 1
        assert fitted(tmp_path, {"filters_001": source}, min_auc=low - 0.01)["on"]
        assert not fitted(tmp_path, {"filters_001": source}, min_auc=low + 0.01)["on"]

    @pytest.mark.parametrize(("good", "bad"), [(0, 0), (100, 0), (100, 49), (49, 100)])
    def test_with_too_few_of_a_kind_it_is_off(self, tmp_path: Path, good: int, bad: int) -> None:
        source = filtered(tmp_path / "f1", rows(good, True, 1), rows(bad, False, 1))
        metrics = fitted(tmp_path, {"filters_001": source})
        assert not metrics["on"] and "too few" in metrics["why"] and metrics["auc"]["value"] is None
        assert dropped_by(tmp_path / "out", rows(20, False, 2)) == []

    def test_only_the_named_filters_verdicts_count(self, tmp_path: Path) -> None:
        others = [{**row, "filter": "length", "reason": "too long"} for row in rows(100, False, 1)]
        unsure = [{**row, "reason": "no score"} for row in rows(100, False, 2)]
        source = filtered(tmp_path / "f1", rows(100, True, 1), others + unsure + rows(60, False, 3))
        metrics = fitted(tmp_path, {"filters_001": source})
        assert (metrics["rows"], metrics["good"]) == (160, 100)

    def test_the_same_rows_give_the_same_weights(self, tmp_path: Path) -> None:
        source = filtered(tmp_path / "f1", rows(100, True, 1), rows(100, False, 1))
        made = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            fitted(tmp_path / name, {"filters_001": source})
            made.append((tmp_path / name / "out" / quality_model.WEIGHTS).read_bytes())
        assert made[0] == made[1]

    def test_what_is_kept_is_json_and_safetensors_and_says_the_same(self, tmp_path: Path) -> None:
        texts = [row["completion"] for row in rows(50, True, 1) + rows(50, False, 1)]
        made = quality_model.fit(texts, [True] * 50 + [False] * 50)
        made.about["on"] = True
        made.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.json", "weights.safetensors"]
        back = quality_model.load(tmp_path)
        assert back is not None
        assert back.probabilities(texts) == pytest.approx(made.probabilities(texts), abs=1e-12)

    def test_its_probabilities_are_those_of_scikit_learns_own_pipeline(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        given = rows(60, True, 1, tell=0.7) + rows(60, False, 1, tell=0.7)
        texts, good = [row["completion"] for row in given], [1] * 60 + [0] * 60
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]", min_df=2, max_features=50_000, sublinear_tf=True
        )
        theirs = make_pipeline(vectorizer, LogisticRegression(class_weight="balanced", max_iter=2000)).fit(texts, good)
        new = [row["completion"] for row in rows(20, True, 2)] + ["", "word unknown"]
        ours = quality_model.fit(texts, [bool(one) for one in good]).probabilities(new)
        assert ours == pytest.approx(theirs.predict_proba(new)[:, 1].tolist(), abs=1e-9)


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = random.Random(0)
    chances = [rng.choice([0.1, 0.4, 0.4, 0.8]) for _ in range(60)]
    good = [rng.random() < 0.4 for _ in chances]
    pairs = list(
        product(
            (c for c, g in zip(chances, good, strict=True) if g),
            (c for c, g in zip(chances, good, strict=True) if not g),
        )
    )
    wanted = sum((one > other) + 0.5 * (one == other) for one, other in pairs) / len(pairs)
    figure = quality_model.auc(chances, good, [str(number // 3) for number in range(60)], 0)
    assert figure["value"] == pytest.approx(wanted)
    assert figure["ci95"][0] < wanted < figure["ci95"][1]


class TestPeoplesVerdicts:
    def test_they_are_learned(self, tmp_path: Path) -> None:
        lines = [{**row, "good": good} for good in (True, False) for row in rows(80, good, 1)]
        file = tmp_path / "labels.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert fitted(tmp_path, {}, labels=file, judged_by=[])["auc"]["value"] > 0.9

    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "no verdict"),
            ('{"prompt": "p", "completion": "c"}', "'good'"),
            ('{"prompt": "p", "good": true}', "'completion'"),
            ('{"prompt": "p", "completion": "c", "good": 1}', "neither true nor false"),
            ('["p"]', "no verdict"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path: Path, line: str, says: str) -> None:
        file = tmp_path / "labels.jsonl"
        file.write_text('{"prompt": "p", "completion": "c", "good": true}\n' + line + "\n")
        with pytest.raises(DataError, match=says) as e:
            fitted(tmp_path, {}, labels=file)
        assert e.value.line == 2


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    causal_lm("llama").save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


class TestThePolicysStates:
    def test_the_mean_of_the_last_states(self, policy: Path) -> None:
        import torch
        from transformers import AutoModel

        model: Any = AutoModel.from_pretrained(policy)
        texts = ["How many?", "", "Mia has 7 apples and buys 12 more."]
        found = Embedder(policy, "cpu")(texts)
        for text, row in zip(texts, found, strict=True):
            ids = tokenizer().encode(text, add_special_tokens=False)
            with torch.no_grad():
                wanted = model(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy() if ids else np.zeros(32)
            assert row == pytest.approx(wanted, abs=1e-5)

    def test_a_classifier_of_states(self, policy: Path, tmp_path: Path) -> None:
        source = filtered(tmp_path / "f1", rows(80, True, 1), rows(80, False, 1))
        metrics = fitted(tmp_path, {"filters_001": source, "policy": policy}, features="policy", min_auc=0.5)
        assert metrics["auc"]["value"] > 0.5
        (tmp_path / "out" / "classifier.json").write_text(
            json.dumps({**json.loads((tmp_path / "out" / "classifier.json").read_text()), "on": True})
        )
        assert len(dropped_by(tmp_path / "out", rows(20, False, 2), policy)) > 0
        with pytest.raises(RecipeError, match=r"works only in the run it was fitted in \[filter-policy-states\]"):
            dropped_by(tmp_path / "out", rows(2, False, 2))


ON = ["quality_classifier={}", "filters=[{use: learned-quality}, {use: quality}]"]


class TestInTheLoop:
    def test_it_is_fitted_between_rounds_on_all_rounds_before(self, tmp_path: Path) -> None:
        ran, _ = go(tmp_path / "run", 3, *ON)
        assert ran.count("quality_classifier") == 2  # there is nothing to learn from before round 1
        assert ran.index("quality_classifier") > ran.index("filters")
        last = read_json(tmp_path / "run" / "round-3" / "quality-classifier" / "artifact.json")
        assert list(last["input_keys"]) == ["filters_001", "filters_002"]
        read = read_json(tmp_path / "run" / "round-3" / "filtered" / "artifact.json")["input_keys"]
        assert read["quality_classifier"] == last["key"]

    def test_states_come_from_the_policy_that_the_round_samples_from(self, tmp_path: Path) -> None:
        go(tmp_path / "run", 2, *ON, "quality_classifier.features=policy")
        run = Store(tmp_path / "run")
        keys = run.read_run()["rounds"][2]["stages"]
        policies = {
            run.manifest(keys[name])["input_keys"]["policy"]
            for name in ("answers_samples", "quality_classifier", "filters")
        }
        assert len(policies) == 1

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["filters=[{use: learned-quality}]"], "the classifier that it reads is not fitted"),
            (["quality_classifier={}"], "no such filter is there"),
            (["quality_classifier={judged_by: []}"], "no source of labels is given"),
            (["quality_classifier={feature: policy}"], "did you mean 'features'?"),
        ],
    )
    def test_what_cannot_be_is_told(self, overrides: list[str], says: str) -> None:
        with pytest.raises(RecipeError) as e:
            load("quickstart", overrides)
        assert says in str(e.value)
