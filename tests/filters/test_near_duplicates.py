"""Near-duplicates on planted corpora, against a comparison of each with each."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from posttrain import filters
from posttrain.filters import FilterContext
from posttrain.filters.minhash import Bands, among, band_size
from posttrain.filters.shingles import jaccard, shingles

WORDS = [a + b for a in "bdfglmnprstvz" for b in ("a", "ela", "ino", "oru", "ump", "ish", "ade", "ovin")]


def text(chance: random.Random, words: int = 60) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


def edited(chance: random.Random, given: str, edits: int) -> str:
    """The text after so many small edits, each a word exchanged, taken out or put in."""
    words = given.split()
    for _ in range(edits):
        at, kind = chance.randrange(len(words)), chance.randrange(3)
        words[at : at + (kind != 2)] = [] if kind == 1 else [chance.choice(WORDS)]
    return " ".join(words)


def kept_of(texts: list[str], size: int = 64, **keys) -> list[int]:
    table = pa.table({"prompt": [""] * len(texts), "completion": texts, "at": range(len(texts))})
    run = filters.run(
        table.to_batches(max_chunksize=size), filters.parse([{"use": "near-duplicates", **keys}]), FilterContext()
    )
    return [at for part in run for at in part.kept["at"].to_pylist()]


def grams(given: str, n: int) -> set[tuple[str, ...]]:
    words = given.split()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def greedy(texts: list[str], threshold: float, n: int) -> list[int]:
    """What is kept when each is compared with each that is kept, by Python's own sets."""
    kept: list[tuple[int, set]] = []
    for at, each in enumerate(texts):
        own = grams(each, n)
        if all(len(own & other) / len(own | other) < threshold for _, other in kept):
            kept.append((at, own))
    return [at for at, _ in kept]


@pytest.mark.parametrize(("threshold", "n"), [(0.8, 3), (0.6, 2), (0.9, 1)])
def test_recall_and_precision_against_a_comparison_of_each_with_each(threshold: float, n: int):
    chance = random.Random(0)
    originals = [text(chance) for _ in range(150)]
    copies = [edited(chance, each, edits) for each in originals for edits in (1, 2, 4, 8)]
    texts = originals + copies
    chance.shuffle(texts)
    truth = set(range(len(texts))) - set(greedy(texts, threshold, n))
    found = set(range(len(texts))) - set(kept_of(texts, threshold=threshold, n=n))
    assert 100 < len(truth) < 600
    assert len(found & truth) / len(truth) >= 0.95
    assert len(found & truth) / len(found) >= 0.98


def test_planted_copies_of_few_edits_are_found_and_nothing_else():
    """By edit distance, not by the measure that the filter itself uses: up to 2 of 60 words."""
    chance = random.Random(1)
    originals = [text(chance) for _ in range(500)]
    copies = [edited(chance, each, chance.choice((1, 2))) for each in originals[:250]]
    kept = kept_of(originals + copies)
    dropped = set(range(750)) - set(kept)
    assert dropped <= set(range(500, 750))
    assert len(dropped) >= 0.95 * 250


def test_batches_of_any_size_keep_the_same_rows():
    chance = random.Random(2)
    texts = [edited(chance, each, 2) for each in [text(chance) for _ in range(40)] for _ in range(4)]
    expected = kept_of(texts, size=1)
    assert all(kept_of(texts, size=size) == expected for size in (7, 50, 1000))


def test_the_first_of_two_thousand_equal_rows_is_kept():
    assert kept_of(["one two three four five six"] * 2_000, size=500) == [0]


def test_short_texts_are_compared_whole_and_texts_without_words_not_at_all():
    texts = ["12", " 12. ", "13", "", "", "!!", "one two", "One, two!", "two one"]
    assert kept_of(texts) == [0, 2, 3, 4, 5, 6, 8]


def test_text_without_spaces_is_taken_by_characters():
    sentence = "二人の子供が庭で七つの林檎を拾って母親に五つ渡したので残りは二つになりましたそれから皆で家に帰りました"
    assert kept_of([sentence, sentence.replace("七", "八"), sentence[::-1]], threshold=0.8) == [0, 2]


def test_what_earlier_rounds_kept_is_dropped_where_the_key_says_so():
    """By the stage, on tables as the loop writes them: round 2 against round 1, both filters."""
    chance = random.Random(4)
    first = [text(chance) for _ in range(3)]
    second = [first[0], edited(chance, first[1], 1), text(chance), edited(chance, first[0], 1)]
    for on in (False, True):
        context = FilterContext(earlier=lambda: pa.table({"prompt": ["p"] * 3, "completion": first}).to_batches(2))
        chain = [{"use": name, "across_rounds": on} for name in ("exact-duplicates", "near-duplicates")]
        table = pa.table({"prompt": ["p"] * 4, "completion": second})
        (part,) = filters.run(table.to_batches(), filters.parse(chain), context)
        lost = dict(zip(part.dropped["completion"].to_pylist(), part.dropped["reason"].to_pylist(), strict=True))
        if on:
            near = "near duplicate of an earlier round"
            assert lost == {second[0]: "duplicate of an earlier round", second[1]: near, second[3]: near}
        else:
            assert lost == {second[3]: "near duplicate"}


def test_what_is_compared_is_a_key():
    table = pa.table({"prompt": ["a b c d", "a b c d", "e f g h"], "completion": ["1 2 3 4", "5 6 7 8", "1 2 3 4"]})
    kept = {}
    for of in ("both", "prompt", "answer"):
        run = filters.run(table.to_batches(), filters.parse([{"use": "near-duplicates", "of": of}]), FilterContext())
        kept[of] = [row["completion"][0] for part in run for row in part.kept.to_pylist()]
    assert kept == {"both": ["1", "5", "1"], "prompt": ["1", "1"], "answer": ["1", "5"]}


def test_the_figure_is_the_similarity():
    one, other = "a b c d e f g h i j", "a b c d e f g h i k"
    table = pa.table({"prompt": ["", ""], "completion": [one, other]})
    run = filters.run(
        table.to_batches(), filters.parse([{"use": "near-duplicates", "threshold": 0.7}]), FilterContext()
    )
    (part,) = run
    assert part.dropped["figure"].to_pylist() == [pytest.approx(7 / 9)]


def test_long_texts_are_estimated_by_their_smallest_hashes():
    chance = random.Random(3)
    words = [str(chance.random()) for _ in range(6000)]
    for share in (0.1, 0.5, 0.9):
        other = words[: int(share * len(words))] + [str(chance.random()) for _ in range(int((1 - share) * len(words)))]
        exact = len(set(words) & set(other)) / len(set(words) | set(other))
        mine, theirs = (shingles([" ".join(each)], 1, 1024) for each in (words, other))
        assert jaccard(mine, theirs, 1024)[0] == pytest.approx(exact, abs=4 * 0.0156)


def test_the_index_finds_rows_that_share_a_band_through_all_merges():
    keys = np.random.default_rng(0).integers(0, 400, (300, 5)).astype(np.uint64)
    bands = Bands()
    for start in range(0, 200, 20):
        bands.add(keys[start : start + 20], np.arange(start, start + 20))
    asked = keys[200:]
    found = set(zip(*(each.tolist() for each in bands.candidates(asked)), strict=True))
    share = {(i, j) for i in range(100) for j in range(200) if (asked[i] == keys[j]).any()}
    assert found == share
    found = set(zip(*(each.tolist() for each in among(asked)), strict=True))
    assert found == {(j, i) for i, j in combinations(range(100), 2) if (asked[i] == asked[j]).any()}


@pytest.mark.parametrize(("threshold", "num_perm"), [(0.5, 128), (0.8, 128), (0.8, 32), (0.95, 256), (1.0, 16)])
def test_bands_are_as_long_as_the_promised_recall_allows(threshold: float, num_perm: int):
    def missed(size: int) -> float:
        return (1 - threshold**size) ** (num_perm // size)

    size = band_size(threshold, num_perm)
    assert missed(size) <= 0.02 and all(missed(longer) > 0.02 for longer in range(size + 1, num_perm + 1))
