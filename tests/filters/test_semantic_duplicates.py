"""Semantic duplicates: the greedy walk against its definition, and corpora with planted ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from support.tiny_models import causal_lm, tokenizer

from posttrain import filters
from posttrain.errors import InputError, ModelError
from posttrain.filters import FilterContext, embedding
from posttrain.filters.file import filter_file
from posttrain.filters.semantic_duplicates import clustered, greedy, worth
from posttrain.recipe.load import load

WORDS = [a + b for a in "bdfglmnprstvz" for b in ("a", "ela", "ino", "oru", "ump", "ish", "ade", "ovin")]


def table(rows: list[tuple[str, str, float | None]]) -> pa.Table:
    return pa.table(dict(zip(("prompt", "completion", "score"), map(list, zip(*rows, strict=True)), strict=True)))


def filtered(rows: list[tuple[str, str, float | None]], *chain: dict, size: int = 50) -> tuple[list[str], list[dict]]:
    run = filters.run(table(rows).to_batches(max_chunksize=size), filters.parse(chain), FilterContext(["evaluated"]))
    kept, dropped = [], []
    for part in run:
        kept += part.kept["completion"].to_pylist()
        dropped += part.dropped.to_pylist()
    return kept, dropped


def test_the_greedy_walk_is_the_papers():
    """Llama 3, 4.2.3: sorted by quality × difficulty, kept where the largest similarity to those kept is below."""
    generator = np.random.default_rng(0)
    points = embedding.unit(generator.normal(size=(200, 3)))
    clusters, weight = generator.integers(0, 4, 200), generator.random(200)
    expected: dict[int, float] = {}
    for cluster in range(4):
        kept: list[int] = []
        for row in sorted(np.flatnonzero(clusters == cluster), key=lambda row: -weight[row]):
            nearest = max((float(points[row] @ points[other]) for other in kept), default=-1.0)
            if nearest < 0.8:
                kept.append(int(row))
            else:
                expected[int(row)] = nearest
    found = greedy(points, clusters, weight, 0.8)
    assert found.keys() == expected.keys() and 50 < len(found) < 190
    assert all(found[row] == pytest.approx(expected[row], abs=1e-6) for row in found)


def test_worth_is_quality_times_difficulty():
    keys, scores = [1, 1, 1, 2, 2, 3], [0.9, 0.8, 0.1, 0.9, 0.2, float("nan")]
    quality = [5 / 5, 3 / 5, 1 / 5, 5 / 5, 2 / 5]  # the share of scores that are no higher
    difficulty = [1 - 2 / 4] * 3 + [1 - 1 / 3] * 2
    assert worth(keys, scores, 0.5).tolist() == pytest.approx(
        [q * d for q, d in zip(quality, difficulty, strict=True)] + [0]
    )


@pytest.mark.parametrize("size", [7, 1000])
def test_planted_duplicates_in_another_order_go_and_the_best_of_each_stays(size: int):
    chance = random.Random(0)
    rows: list[tuple[str, str, float | None]] = []
    for at in range(300):
        words = [chance.choice(WORDS) for _ in range(20)]
        rows.append((f"p{at}", " ".join(words), 0.6))
        if at % 3 == 0:
            half = words[10:] + words[:10]  # the same said in another order, and better: n-grams hardly see it
            rows.append((f"p{at}", " ".join(half), 0.9))
    chance.shuffle(rows)
    rows.sort(key=lambda row: row[0])
    chain = {"use": "semantic-duplicates", "threshold": 0.9}
    kept, dropped = filtered(rows, chain, size=size)
    worse = {answer for prompt, answer, score in rows if score == 0.6 and int(prompt[1:]) % 3 == 0}
    found = {row["completion"] for row in dropped}
    assert len(found & worse) / len(worse) >= 0.95 and len(found & worse) / len(found) >= 0.98
    assert all(0.9 <= row["figure"] <= 1.00001 and row["reason"] == "semantic duplicate" for row in dropped)
    assert len(kept) + len(dropped) == len(rows)


def test_what_an_earlier_filter_drops_takes_nothing_with_it():
    rows: list[tuple[str, str, float | None]] = [
        ("p", "so the answer to it is twelve apples</s>", 0.9),
        ("p", "so the answer to it is twelve apples", 0.5),
        ("q", "something quite different is said here", 0.5),
        ("q", "something quite different is said here", 0.4),
    ]
    kept, dropped = filtered(rows, {"use": "format"}, {"use": "semantic-duplicates"})
    assert kept == [rows[1][1], rows[2][1]]
    assert [row["filter"] for row in dropped] == ["format", "semantic-duplicates"]


def test_clusters_are_of_some_500_rows_and_the_same_each_time():
    points = embedding.unit(np.random.default_rng(0).normal(size=(1200, 8)))
    assert len(set(clustered(points, None, 0))) == 3
    assert (clustered(points, 5, 1) == clustered(points, 5, 1)).all()
    assert set(clustered(points[:400], None, 0)) == {0}


def test_a_models_points_are_the_mean_of_its_hidden_states(tmp_path: Path):
    import torch

    model, tok = causal_lm("llama"), tokenizer()
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    texts = ["one two three", "a", "quite another sentence, and a longer one"]
    points = embedding.by_model([texts[:2], texts[2:]], str(tmp_path))
    for text, point in zip(texts, points, strict=True):
        with torch.no_grad():
            states = model.model(torch.tensor([tok(text)["input_ids"]])).last_hidden_state[0].mean(0)
        assert point == pytest.approx((states / states.norm()).numpy(), abs=1e-5)
    rows: list[tuple[str, str, float | None]] = [("p", text, 0.5) for text in (*texts, texts[0])]
    kept, _ = filtered(rows, {"use": "semantic-duplicates", "embed": str(tmp_path), "threshold": 0.9999})
    assert kept == texts


def test_a_model_that_cannot_be_had_is_named_with_the_offline_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (one,) = filters.parse([{"use": "semantic-duplicates", "embed": str(tmp_path / "nowhere")}])
    with pytest.raises(ModelError, match=r"(?s)the embedding model .*nowhere.*embed: tfidf"):
        one.external_hashes()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (one,) = filters.parse([{"use": "semantic-duplicates", "embed": "nobody/no-such-model-here"}])
    with pytest.raises(ModelError, match=r"(?s)nobody/no-such-model-here.*embed: tfidf"):
        one.external_hashes()


def test_a_file_is_gone_through_twice_and_counted_once(tmp_path: Path):
    lines = [
        json.dumps({"prompt": "p", "completion": text}) for text in ("one two three", "four five", "one two three")
    ]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, "no row"]) + "\n")
    chain = filters.parse([{"use": "format"}, {"use": "semantic-duplicates"}])
    figures = filter_file(tmp_path / "in.jsonl", chain, FilterContext(), tmp_path / "out")
    assert (figures["rows"], figures["kept"]) == (4, 2)
    assert figures["filters"][-1]["reasons"] == {"semantic duplicate": 1}


def test_rows_that_can_be_read_once_are_refused():
    batches = iter(table([("p", "a", 0.5)]).to_batches())
    with pytest.raises(InputError, match=r"goes over the rows twice.*\[filter-read-once\]"):
        filters.run(batches, filters.parse([{"use": "semantic-duplicates"}]), FilterContext())


def test_a_recipe_names_a_model_beside_it_or_words(tmp_path: Path):
    recipe = load("quickstart", ["filters=[{use: semantic-duplicates}]"])
    assert recipe.filters[0].model_dump()["embed"] == "tfidf"
    recipe = load("quickstart", ["filters=[{use: semantic-duplicates, embed: tiny-base}]"])
    assert len(filters.parse([recipe.filters[0].model_dump()])[0].external_hashes()["embed"]) == 64
