"""The engines: the same function as the plain model, the same tokens for the same seeds, every answer ended rightly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from support.tiny_models import EOS, causal_lm, tokenizer

from posttrain.engines import Request, SamplingParams, completion_seed, load_engine
from posttrain.engines.decoder import HookedDecoder, LeanDecoder
from posttrain.engines.fast_linear import rows_to_pad
from posttrain.engines.kv_cache import Pool, Suffixes
from posttrain.engines.load import Loaded, kept_dtype, pick_dtype, prepare
from posttrain.engines.plain import PlainEngine
from posttrain.engines.protocol import Completion
from posttrain.engines.sampler import draw, uniforms
from posttrain.engines.shared_prefix import SharedPrefixEngine
from posttrain.errors import ModelError

LEAN = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")
FITTING = (*LEAN, "gemma", "gemma2", "gpt2")
WARM = SamplingParams(temperature=1.0, max_new_tokens=24)


def loaded(kind: str = "llama", **changes: Any) -> Loaded:
    return prepare(causal_lm(kind, **changes), tokenizer(), "float32", "cpu")


def request(length: int, k: int, name: str = "") -> Request:
    ids = tuple((17 * at + 29 * length + 5 * len(name)) % 295 + 5 for at in range(length))
    return Request(ids, tuple(completion_seed(0, f"{length}{name}", index) for index in range(k)))


# Several lengths and K, more samples than run at once: cohorts, padding and dropped rows all occur.
MIXED = [request(length, k) for length, k in ((9, 4), (1, 2), (20, 5), (9, 0), (14, 1), (11, 4), (3, 8), (12, 3))]


def tokens(made: Sequence[Sequence[Completion]]) -> list[list[tuple[Any, ...]]]:
    return [[(one.text, one.tokens, one.finish) for one in answers] for answers in made]


@pytest.fixture(scope="module")
def llama() -> Loaded:
    return loaded()


@pytest.fixture(scope="module")
def shared(llama: Loaded) -> SharedPrefixEngine:
    return SharedPrefixEngine(llama, at_once=10)


@pytest.fixture(scope="module")
def plain() -> PlainEngine:
    return PlainEngine(loaded(), rows=7)


# Weights that are finite, and a config or sizes of which nothing finite comes.
NOT_FINITE: dict[str, Any] = {
    "a division by 0": lambda: causal_lm("granite", logits_scaling=0.0),
    "an overflow": lambda: filled(causal_lm("llama"), 3e38),
}


def filled(model: Any, value: float) -> Any:
    model.lm_head.weight.data.fill_(value)
    model.model.norm.weight.data.fill_(1e3)
    return model


@pytest.mark.parametrize("use", ["shared-prefix", "plain"])
@pytest.mark.parametrize("how", NOT_FINITE)
def test_logits_that_are_no_numbers_are_told_of_the_model(
    tmp_path: Path, how: str, use: Literal["shared-prefix", "plain"]
) -> None:
    NOT_FINITE[how]().save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    for dtype, hint in (("float32", "compare its config.json"), ("bfloat16", "try engine.dtype: float32")):
        with pytest.raises(ModelError, match=rf"computed in {dtype}.*\[model-logits-not-finite\]") as caught:
            load_engine(tmp_path, use, dtype).generate([request(5, 2)], WARM)
        assert caught.value.file == str(tmp_path) and str(caught.value.hint).startswith(hint)


def test_so_they_are_where_prompts_share_a_prefix() -> None:
    model = loaded()
    model.model.model.embed_tokens.weight.data[250] = math.nan  # which the comparison with the plain model does not ask
    engine = SharedPrefixEngine(model)
    with pytest.raises(ModelError, match="model-logits-not-finite"):
        engine.generate([Request((7, 250), (1,))], WARM)
    engine.generate([Request((7, 8), (1,))], WARM)


@pytest.mark.parametrize("kind", FITTING)
@torch.inference_mode()
def test_logits_are_those_of_the_plain_model(kind: str) -> None:
    """Token by token over a dropped row and grown room for keys, with prompts of two lengths."""
    model = loaded(kind)
    texts = [[(13 * at + 7 * row) % 300 for at in range(9 + 30)] for row in range(4)]
    for row, start in ((0, 9), (1, 9), (2, 9), (3, 4)):
        texts[row] = [*texts[0][:9], *texts[row][9:]] if row < 3 else texts[row][: start + 30]
    wanted = [model.model(torch.tensor([text])).logits[0, -31:] for text in texts]
    engine = SharedPrefixEngine(model)
    assert isinstance(engine.decoder, LeanDecoder if kind in LEAN else HookedDecoder)
    prefix, first = engine.decoder.prefill([texts[0][:9], texts[3][:4]])
    suffixes = Suffixes(prefix, torch.tensor([0, 0, 0, 1]), 4, engine.decoder.kv_heads, 30, Pool(prefix.lengths.device))
    rows, worst = [0, 1, 2, 3], 0.0
    got = first[[0, 0, 0, 1]]
    for step in range(31):
        worst = max(worst, *((got[at] - wanted[row][step]).abs().max().item() for at, row in enumerate(rows)))
        if step == 12:
            suffixes.keep(torch.tensor([0, 2, 3]), 3)
            rows = [0, 2, 3]
        if step == 20:
            suffixes.keep(torch.tensor([2]), 1)  # and with it a whole prompt
            rows = [3]
        if step < 30:
            token = torch.tensor([texts[row][len(texts[row]) - 30 + step] for row in rows])
            position = torch.tensor([len(texts[row]) - 30 + step for row in rows])
            got = engine.decoder.step(token, position, [suffixes])
    assert worst < 1e-5


@pytest.mark.parametrize("kind", FITTING)
def test_the_same_seeds_give_the_tokens_of_the_plain_engine(kind: str) -> None:
    made = SharedPrefixEngine(loaded(kind), at_once=10).generate(MIXED, WARM)
    wanted = PlainEngine(loaded(kind), rows=7).generate(MIXED, WARM)
    assert tokens(made) == tokens(wanted)
    for ours, theirs in zip(made, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


# Cold enough for some samples to stay together, with end tokens enough for rows to be left and taken again.
COLD, COLD_ENDS = SamplingParams(0.02, 24), frozenset(range(0, 300, 25))
ALIKE = [request(length, 9) for length in (9, 3, 14)]


def cold(kind: str = "llama") -> Loaded:
    return replace(loaded(kind), eos_ids=COLD_ENDS)


@pytest.mark.parametrize("kind", FITTING)
def test_samples_are_computed_as_one_until_their_tokens_differ(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, fed = SharedPrefixEngine(cold(kind)), 0
    real = engine.decoder.step

    def counted(token: torch.Tensor, *given: Any) -> torch.Tensor:
        nonlocal fed
        fed += len(token)
        return real(token, *given)

    monkeypatch.setattr(engine.decoder, "step", counted)
    made = engine.generate(ALIKE, COLD)
    assert tokens(made) == tokens(PlainEngine(cold(kind)).generate(ALIKE, COLD))
    sampled = sum(len(one.tokens) for answers in made for one in answers)
    beginnings = {
        (at, one.tokens[:end])
        for at, answers in enumerate(made)
        for one in answers
        for end in range(1, len(one.tokens) + 1)
    }
    assert len({one.tokens for answers in made for one in answers}) > 3
    assert len(beginnings) < 0.8 * sampled
    assert fed < 1.25 * len(beginnings)  # a row is dropped only together with others
    assert engine.generate(ALIKE, COLD) == made  # to the bit, in memory used before


@pytest.mark.parametrize(
    "params", [COLD, replace(COLD, temperature=0.03, top_p=0.9), replace(COLD, stop=("a", "e", " t"))]
)
@pytest.mark.parametrize("at_once", [4, 10, 1000])
def test_several_batches_of_samples_that_part_are_those_of_the_plain_engine(
    params: SamplingParams, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy ones among them, and no more room kept than for as many as run at once."""
    asked = [replace(each, seeds=(*each.seeds[:3], None, *each.seeds[3:])) for each in [*ALIKE, *MIXED]]
    engine, kept = SharedPrefixEngine(cold(), at_once=at_once), 0
    real = engine.decoder.step

    def watched(token: torch.Tensor, position: torch.Tensor, cohorts: Sequence[Suffixes]) -> torch.Tensor:
        nonlocal kept
        kept = max(kept, sum(one.most_rows for one in cohorts))
        assert all(one.rows <= one.most_rows for one in cohorts)
        return real(token, position, cohorts)

    monkeypatch.setattr(engine.decoder, "step", watched)
    assert tokens(engine.generate(asked, params)) == tokens(PlainEngine(cold()).generate(asked, params))
    assert kept <= at_once


def test_out_of_memory_among_samples_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tokens(PlainEngine(cold()).generate(ALIKE, COLD))
    engine, steps = SharedPrefixEngine(cold()), 0
    real = engine.decoder.step

    def fails_at_times(*given: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps in (5, 14):
            raise torch.OutOfMemoryError("no room")
        return real(*given)

    monkeypatch.setattr(engine.decoder, "step", fails_at_times)
    assert tokens(engine.generate(ALIKE, COLD)) == wanted


def test_counts_of_rows_are_few_and_little_is_filled_up() -> None:
    filled = {rows: rows + rows_to_pad(rows, torch.device("cpu")) for rows in range(1, 4097)}
    assert all(rows <= count <= max(rows * 1.125, rows + 31) for rows, count in filled.items())
    assert all(count < 2 * rows for rows, count in filled.items())
    assert len(set(filled.values())) < 50


def test_a_completion_without_a_seed_is_greedy(shared, plain) -> None:
    asked = [replace(each, seeds=(*each.seeds[:2], None, *each.seeds[2:])) for each in MIXED]
    made, greedy = shared.generate(asked, WARM), shared.generate(MIXED, replace(WARM, temperature=0.0))
    assert tokens(made) == tokens(plain.generate(asked, WARM))
    for answers, drawn, likeliest in zip(made, shared.generate(MIXED, WARM), greedy, strict=True):
        at = min(2, len(drawn))
        assert tokens([[*answers[:at], *answers[at + 1 :]]]) == tokens([drawn])
        assert not likeliest or answers[at].tokens == likeliest[0].tokens
        assert not likeliest or answers[at].logprobs == pytest.approx(likeliest[0].logprobs, abs=1e-5)


def test_alone_in_another_batch_or_at_another_k_the_tokens_are_the_same(shared, llama) -> None:
    wanted = tokens(shared.generate(MIXED, WARM))
    assert tokens(SharedPrefixEngine(llama, at_once=1000).generate(MIXED[::-1], WARM))[::-1] == wanted
    for asked, answers in zip(MIXED, wanted, strict=True):
        assert tokens(shared.generate([asked], WARM)) == [answers]
        assert tokens(shared.generate([replace(asked, seeds=asked.seeds[1:])], WARM)) == [answers[1:]]


def test_the_same_requests_give_the_same_bits(shared) -> None:
    assert shared.generate(MIXED, WARM) == shared.generate(MIXED, WARM)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_is_what_generate_gives(kind: str) -> None:
    model = loaded(kind)
    wanted = []
    for asked in (MIXED[0], MIXED[2]):
        ids = torch.tensor([asked.prompt_ids])
        out = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        wanted.append([an_id for an_id in out[0, ids.shape[1] :].tolist() if an_id != EOS])
    made = SharedPrefixEngine(model).generate([MIXED[0], MIXED[2]], SamplingParams(0.0, 24))
    assert [list(answers[0].tokens) for answers in made] == wanted
    assert all(one == answers[0] for answers in made for one in answers)


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_answers_end_at_an_end_token_or_at_the_limit(engine: str, request: pytest.FixtureRequest) -> None:
    engine_ = request.getfixturevalue(engine)
    before = engine_.loaded.eos_ids
    engine_.loaded.eos_ids = frozenset(range(0, 300, 12))
    try:
        made = [one for answers in engine_.generate(MIXED, WARM) for one in answers]
    finally:
        engine_.loaded.eos_ids = before
    assert {one.finish for one in made} == {"stop", "length"}
    for one in made:
        assert not any(an_id % 12 == 0 for an_id in one.tokens)  # the end token is not part of the answer
        assert (len(one.tokens) == 24) == (one.finish == "length")
        assert one.logprobs is not None and len(one.logprobs) == len(one.tokens)
    assert any(not one.tokens and one.text == "" for one in made)  # ended at once


def test_every_limit_is_kept(shared) -> None:
    for most in (1, 2, 17):
        made = shared.generate(MIXED, SamplingParams(1.0, most))
        assert all(len(one.tokens) <= most for answers in made for one in answers)
        assert any(len(one.tokens) == most and one.finish == "length" for answers in made for one in answers)


def test_stop_strings_end_an_answer_and_leave_its_text(shared, plain) -> None:
    params = SamplingParams(1.0, 60, stop=("a", " b"))
    made = shared.generate(MIXED, params)
    assert tokens(made) == tokens(plain.generate(MIXED, params))
    flat = [one for answers in made for one in answers]
    assert any(one.finish == "stop" and one.tokens for one in flat)
    decode = shared.loaded.tokenizer.decode
    for one in flat:
        assert "a" not in one.text and " b" not in one.text
        whole = decode(list(one.tokens), skip_special_tokens=True)
        before = decode(list(one.tokens[:-1]), skip_special_tokens=True)
        assert "a" not in before and " b" not in before  # it ended at the first
        assert whole.startswith(one.text)


def test_a_character_cut_in_two_by_the_limit_is_text_all_the_same(shared) -> None:
    made = shared.generate([request(5, 8)], SamplingParams(1.0, 2))
    decode = shared.loaded.tokenizer.decode
    assert [one.text for one in made[0]] == [decode(list(one.tokens), skip_special_tokens=True) for one in made[0]]
    assert any("\ufffd" in one.text for one in made[0])


@pytest.mark.parametrize("params", [WARM, SamplingParams(0.6, 24), SamplingParams(1.3, 24, top_p=0.8)])
def test_log_probabilities_are_the_models_own_at_temperature_1(shared, params: SamplingParams) -> None:
    asked = MIXED[2]
    model = causal_lm("llama")
    for one in shared.generate([asked], params)[0]:
        with torch.inference_mode():
            logits = model(torch.tensor([[*asked.prompt_ids, *one.tokens]])).logits[0, len(asked.prompt_ids) - 1 : -1]
        at = torch.tensor(one.tokens, dtype=torch.long)[:, None]
        assert one.logprobs == pytest.approx(logits.log_softmax(-1).gather(1, at)[:, 0].tolist(), abs=2e-5)


def test_bfloat16_is_near(llama) -> None:
    exact, near = (
        SharedPrefixEngine(llama),
        SharedPrefixEngine(prepare(causal_lm("llama"), tokenizer(), "bfloat16", "cpu")),
    )
    greedy = SamplingParams(0.0, 3)
    ours, theirs = near.generate(MIXED, greedy), exact.generate(MIXED, greedy)
    firsts = [(a[0].logprobs, b[0].logprobs) for a, b in zip(ours, theirs, strict=True) if a]
    assert all(abs(a[0] - b[0]) < 0.2 for a, b in firsts if a and b)
    plain = PlainEngine(prepare(causal_lm("llama"), tokenizer(), "bfloat16", "cpu"))
    again = [(a[0].logprobs, b[0].logprobs) for a, b in zip(ours, plain.generate(MIXED, greedy), strict=True) if a]
    assert all(abs(a[0] - b[0]) < 0.2 for a, b in again if a and b)


def test_uniforms_depend_on_seed_and_step_alone() -> None:
    made = uniforms([5, 6, 7], 1000)
    assert (made[1:, :10] == uniforms([6, 7], 10)).all()
    assert made.min() >= 0
    assert made.max() < 1
    many = uniforms(range(200), 500)
    assert many.mean() == pytest.approx(0.5, abs=0.005)
    assert np.histogram(many, 10, (0, 1))[0] / many.size == pytest.approx([0.1] * 10, abs=0.005)
    assert abs(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("vocab", [3, 64, 300])
def test_draws_follow_the_probabilities(vocab: int) -> None:
    """A fine even comb of uniforms must hit each token as often as its probability says."""
    teeth = 20_000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(1)) * 2
    uniform = (torch.arange(teeth) + 0.5) / teeth
    token, logprob = draw(logits.expand(teeth, -1).clone(), torch.arange(teeth), uniform, 0.7, 1.0)
    share = torch.bincount(token, minlength=vocab) / teeth
    assert (share - (logits / 0.7).softmax(-1)).abs().max() < 2 / teeth
    assert torch.allclose(logprob, logits.log_softmax(-1)[token], atol=1e-5)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.1, 0.25, 0.15]).log()
    uniform = (torch.arange(1000) + 0.5) / 1000
    for top_p, kept in ((0.4, {0}), (0.6, {0, 2}), (0.8, {0, 2, 3}), (1.0, {0, 1, 2, 3})):
        token, _ = draw(logits.expand(1000, -1).clone(), torch.arange(1000), uniform, 1.0, top_p)
        assert set(token.tolist()) == kept
    token, _ = draw(logits.expand(1000, -1).clone(), torch.arange(1000), uniform, 1.0, 0.6)
    assert (token == 0).float().mean().item() == pytest.approx(2 / 3, abs=0.002)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
def test_the_ends_of_the_interval_draw_tokens_of_some_weight(extreme: float) -> None:
    logits = torch.full((1, 130), -math.inf)
    logits[0, [3, 70]] = 0.0
    token, logprob = draw(logits, torch.tensor([0]), torch.tensor([extreme]), 1.0, 1.0)
    assert token.item() == (3 if extreme == 0 else 70)
    assert logprob.item() == pytest.approx(math.log(0.5))


def test_out_of_memory_halves_the_batch_and_is_remembered(shared, llama, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tokens(shared.generate(MIXED, WARM))
    engine = SharedPrefixEngine(llama, at_once=16)
    real = engine.decoder.step

    def small(token: torch.Tensor, *given: Any) -> torch.Tensor:
        if len(token) > 5:
            raise torch.OutOfMemoryError("no room")
        return real(token, *given)

    monkeypatch.setattr(engine.decoder, "step", small)
    assert tokens(engine.generate(MIXED, WARM)) == wanted
    assert engine.at_once is not None and engine.at_once <= 5
    monkeypatch.setattr(engine.decoder, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("never")))
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(MIXED, WARM)


@pytest.mark.parametrize("engine", ["shared", "plain"])
def test_prompts_that_cannot_be_continued_are_refused(engine: str, request: pytest.FixtureRequest) -> None:
    engine_ = request.getfixturevalue(engine)
    with pytest.raises(ValueError, match=r"prompt 1 has 90 tokens.*context of 96"):
        engine_.generate([Request((5,), (1,)), Request((5,) * 90, (1,))], SamplingParams(1.0, 7))
    assert engine_.generate([Request((5,) * 90, (1,))], SamplingParams(1.0, 6))
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        engine_.generate([Request((), (1,))], WARM)
    assert engine_.generate([], WARM) == []


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"max_new_tokens": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"stop": ("",)}],
)
def test_params_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "stop" not in wrong else "stop string"):
        SamplingParams(**{"temperature": 1.0, "max_new_tokens": 8, **wrong})


def test_seeds_differ_by_run_prompt_and_index() -> None:
    made = {completion_seed(seed, name, at) for seed in (0, 1) for name in ("a", "b", "1") for at in range(20)}
    assert len(made) == 120
    assert all(0 <= seed < 2**63 for seed in made)


def test_a_folder_is_loaded_with_the_engine_that_fits(tmp_path) -> None:
    cases: list[tuple[str, Literal["shared-prefix", "plain"], str, str | None]] = [
        ("llama", "shared-prefix", "shared-prefix", None),
        ("llama", "plain", "plain", None),
        ("bloom", "shared-prefix", "plain", "shared-prefix does not fit bloom: its logits differ"),
        ("mamba", "shared-prefix", "plain", "shared-prefix does not fit mamba: "),
    ]
    for kind, use, name, reason in cases:
        causal_lm(kind).save_pretrained(tmp_path / kind)
        tokenizer().save_pretrained(tmp_path / kind)
        engine = load_engine(tmp_path / kind, use, "float32")
        assert engine.name == name
        assert engine.fallback is None if reason is None else str(engine.fallback).startswith(reason)
        assert [len(answers) for answers in engine.generate(MIXED, SamplingParams(1.0, 2))] == [4, 2, 5, 0, 1, 4, 8, 3]
    with pytest.raises(ModelError, match="cannot load a causal language model"):
        load_engine(tmp_path / "missing")
    with pytest.raises(ModelError, match="no dtype 'int4'"):
        load_engine(tmp_path / "llama", dtype="int4")


def test_a_model_that_never_ends_is_refused() -> None:
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no end-of-text token"):
        prepare(causal_lm("llama", eos_token_id=None), endless, "float32", "cpu")


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_on_a_gpu_too_auto_is_bfloat16_where_it_is_fast(
    fast: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: fast)
    assert pick_dtype("auto", "cuda") == dtype
    assert kept_dtype(dtype, "cuda") == dtype
