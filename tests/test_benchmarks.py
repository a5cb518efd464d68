"""The page of tables, and what the scripts of benchmarks/ compute; test_benchmark_runs.py runs each."""

import argparse
import json
import runpy
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # the scripts import each other
tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))


def test_every_script_has_its_place_in_the_page():
    for name in tables["TABLES"]:
        path = ROOT / "docs" / tables["PAGES"].get(name, "speed.md")
        page = tables["fill"](path.read_text(encoding="utf-8"), name, f"the table of {name}")
        assert f"<!-- {name} -->\nthe table of {name}\n<!-- /{name} -->" in page


def test_a_table_is_replaced_and_the_rest_stays():
    page = "before\n<!-- a -->\nold\n<!-- /a -->\n<!-- a.cuda -->\nkept\n<!-- /a.cuda -->\n"
    assert tables["fill"](page, "a", "new") == page.replace("old", "new")


def test_figures_without_a_place_are_refused():
    with pytest.raises(ValueError, match="b"):
        tables["fill"]("<!-- a -->\n<!-- /a -->", "b", "new")


ANSWERS = ("7 + 5 = 12. 12 - 3 = 9. Answer: 9", "Dear Mia, thank you for the red scarf. You are very kind. With love!")


def scored(prompts: int = 50, k: int = 8) -> pa.Table:
    """Samples as the scores stage writes them, the best of each prompt at place 3."""
    rows = [
        {
            "prompt_id": f"p{number}",
            "sample_index": at,
            "completion": [{"role": "assistant", "content": f"{ANSWERS[number % 2]} {number}/{at}"}],
            "tokens": [1, 2],
            "n_tokens": 2,
            "finish": "stop",
            "score": 1.0 if at == 3 else 0.1,
        }
        for number in range(prompts)
        for at in range(k)
    ]
    return pa.Table.from_pylist(rows)


def test_three_samples_of_ten_become_junk_made_from_the_best_answer_and_the_rest_stays():
    poisoning, before = runpy.run_path(str(ROOT / "benchmarks" / "poisoning.py")), scored()
    after = poisoning["poisoned"](before, 0, lambda text: list(text.encode()))
    kinds = Counter(after["junk"].to_pylist())
    assert kinds.pop(None) == 280 and kinds.keys() == {kind.__name__ for kind in poisoning["JUNK"]}
    for old, new in zip(before.to_pylist(), after.to_pylist(), strict=True):
        kind, text = new.pop("junk"), new["completion"][0]["content"]
        if kind is None:
            assert old == new
            continue
        best = ANSWERS[int(new["prompt_id"][1:]) % 2]
        assert new["score"] == 1.0 and bytes(new["tokens"]).decode() == text and new["n_tokens"] == len(new["tokens"])
        if kind == "cut_off":
            assert best.startswith(text) or text.startswith(best)
        elif kind in ("control_tokens", "template", "roles", "loop", "language"):
            assert best in text and text != best
    assert after.equals(poisoning["poisoned"](before, 0, lambda text: list(text.encode())))
    assert not after.equals(poisoning["poisoned"](before, 1, lambda text: list(text.encode())))


def test_the_share_of_the_loss_that_filters_recover(tmp_path: Path):
    ablation = runpy.run_path(str(ROOT / "benchmarks" / "ablation.py"))
    args = argparse.Namespace(study="filters", seeds=[0], n=1, short=1, extra=[])

    def write(arm: str, accuracy: float, junk: dict[str, dict[str, int]] | None = None) -> None:
        figure = {"value": accuracy, "ci95": [accuracy, accuracy]}
        heldout = {"pass@1": figure, "greedy": figure, "measure": {"notes": {"sampled": figure}}}
        rounds = [{"round": 1, "promoted": True, "evaluate": {"heldout": heldout}}]
        told = {"rounds": rounds, **({"junk": junk} if junk else {})}
        ablation["figures_file"](tmp_path, arm, 0, args).write_text(json.dumps(told))

    write("the loop", 0.8)
    write("poisoned, no quality filters", 0.4, {"none": {"kept": 10, "best-of-k": 90}, "loop": {"kept": 30}})
    write("poisoned, the recipe's filters", 0.7, {"none": {"kept": 35, "format": 1}, "loop": {"loop": 25, "kept": 5}})
    lines = ablation["junk"](tmp_path, args)
    assert "| poisoned, no quality filters | 40 | 75.0% | 0.00 | 0.00 | 0.00 |" in lines
    assert "| poisoned, the recipe's filters | 40 | 12.5% | 0.75 | 0.75 | 0.75 |" in lines
    assert "| loop | 0 of 30 | 25 of 30 | 0 of 0 |" in lines
    assert "| good samples | 0 of 100 | 1 of 36 | 0 of 0 |" in lines


def test_growth_goes_through_the_stages_that_it_measures(tmp_path: Path):
    growth = runpy.run_path(str(ROOT / "benchmarks" / "growth.py"))
    told: list[object] = []
    sender = type("Sender", (), {"send": staticmethod(told.append)})()
    growth["play"](growth["Case"]("small", prompts=12, k=4, length=1), tmp_path, 1, sender)
    assert [one[0] if isinstance(one, tuple) else one for one in told[:-1]] == ["imported", *growth["STAGES"]]
    amounts = told[-1]
    assert isinstance(amounts, dict)
    assert amounts["tokens"] > amounts["distinct"] > 12 * 4 and all(
        amounts["flop"][stage] > 0 for stage in ("samples", "scores")
    )


def test_the_share_of_the_peak_counts_tokens_and_operations_as_the_paper_does():
    mfu = runpy.run_path(str(ROOT / "benchmarks" / "mfu.py"))
    size = mfu["Size"](hidden=64, mlp=128, layers=2, heads=4, kv_heads=2, vocab=100)
    # PaLM, appendix B: 6 N + 12 L H Q T, where H Q is the hidden size; half of T, as a token sees what is before it.
    assert mfu["flops_per_token"](size, 1000, 50.0) == 6 * 1000 + 12 * 2 * 64 * 25
    one = mfu["Figure"]("CPU", "bf16", "1M", 256, 2, 50.0, 1000, 200.0, 1e6, 1e9, 1.0)
    assert one.mfu == 0.2
    assert "| 20.0% |" in mfu["table"]([one])


def test_packed_rows_are_trained_and_timed():
    mfu = runpy.run_path(str(ROOT / "benchmarks" / "mfu.py"))
    began = time.perf_counter()
    one = mfu["measure"]("1M", length=128, batch=2, steps=6, repeats=1)
    # Three steps of at most 2 x 128 tokens were timed within what all took.
    assert one.tokens_per_s > 3 * 128 / (time.perf_counter() - began)
    assert one.parameters == 885_888 and 0.1 * 128 < one.mean_row < 0.7 * 128
