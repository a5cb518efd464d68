"""What every engine must do alike, our own and those behind a server, one of them a real `transformers serve`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.fake_server import FakeServer
from support.parrot import CHAIN, CHOICES, CONTEXT, ENDS, GOES_ON, LOOP, ROLLS, SPELLS, SPOKEN, STOPS, save
from support.tiny_models import tokenizer
from transformers.utils.import_utils import is_serve_available

from posttrain import rollouts
from posttrain.engines import Engine, Request, SamplingParams, ServerSettings, load_engine, own_server
from posttrain.engines.protocol import Completion
from posttrain.engines.server import ServerEngine
from posttrain.errors import EngineError, ModelError
from posttrain.job import Job
from posttrain.stages import run_stage

SUPPORT = Path(__file__).parents[1] / "support"
SERVE = ("transformers", "serve", "{model}", "--port", "{port}", "--host", "127.0.0.1", "--device", "cpu")
GREEDY = SamplingParams(0.0, 12)
WARM = SamplingParams(1.0, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("parrot"))


@pytest.fixture(scope="module")
def serve(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerEngine]:
    """A real `transformers serve`, started as a stage starts it."""
    if not is_serve_available():
        pytest.skip("transformers[serving] is not installed: pip install 'posttrain[serve]'")
    log = tmp_path_factory.mktemp("serve") / "server.log"
    served = ServerEngine(folder, ServerSettings("transformers", SERVE, None, str(log)))
    yield served
    served.close()


@pytest.fixture(
    scope="module",
    params=["shared-prefix", "plain", "vllm", "tgi", pytest.param("transformers", marks=pytest.mark.slow)],
)
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    if request.param in ("shared-prefix", "plain"):
        yield load_engine(folder, request.param, "float32")
    elif request.param == "transformers":
        yield request.getfixturevalue("serve")
    else:  # what these answer is written by hand here after their documentation; the servers themselves are not run
        with FakeServer(folder, request.param) as fake:
            served = ServerEngine(folder, fake.settings())
            yield served
            served.close()


def asked(text: str, *seeds: int) -> Request:
    return Request(tuple(tokenizer().encode(text, add_special_tokens=False)), seeds or (1,))


def one(engine: Engine, text: str, params: SamplingParams) -> Completion:
    return engine.generate([asked(text)], params)[0][0]


def ids(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False))


def test_the_same_seeds_give_the_same_answers_and_others_give_others(engine: Engine) -> None:
    requests = [asked(f"one {ROLLS}", 1, 2, 3, 2), asked(f"another {ROLLS}", 7), asked(f"none {ROLLS}")]
    requests[2] = Request(requests[2].prompt_ids, ())
    made = engine.generate(requests, WARM)
    assert [len(answers) for answers in made] == [4, 1, 0]
    texts = [answer.text for answer in made[0]]
    assert all(len(text) == 12 and set(text) <= set(CHOICES) for text in texts)
    assert texts[1] == texts[3]
    assert len(set(texts)) == 3
    assert engine.generate(requests, WARM) == made
    assert engine.generate([asked(f"one {ROLLS}", 3)], WARM)[0][0] == made[0][2]


def test_temperature_0_is_greedy_and_reads_no_seed(engine: Engine) -> None:
    made = engine.generate([asked(f"a {ROLLS}", 1, 2, 3)], GREEDY)[0]
    assert made[0] == made[1] == made[2]


def test_a_completion_without_a_seed_is_greedy(engine: Engine) -> None:
    greedy = engine.generate([asked(f"a {ROLLS}", 1)], GREEDY)[0][0]
    drawn = engine.generate([asked(f"a {ROLLS}", 1, 2)], WARM)[0]
    mixed = Request(asked(f"a {ROLLS}").prompt_ids, (1, None, 2))
    assert [answer.tokens for answer in engine.generate([mixed], WARM)[0]] == [
        drawn[0].tokens,
        greedy.tokens,
        drawn[1].tokens,
    ]


def test_every_choice_is_drawn(engine: Engine) -> None:
    """Sampling is on, and not cut to a few likely tokens."""
    made = engine.generate([asked(f"a {ROLLS}", *range(12))], WARM)[0]
    assert set("".join(answer.text for answer in made)) == set(CHOICES)


def test_an_answer_ends_at_the_end_token_or_at_the_limit(engine: Engine) -> None:
    ended, cut = one(engine, SPELLS, WARM), one(engine, GOES_ON, WARM)
    assert (ended.text, ended.finish) == (SPOKEN, "stop")
    assert (cut.text, cut.finish) == (LOOP * 3, "length")
    assert one(engine, SPELLS, SamplingParams(1.0, 6)).finish == "length"
    assert (ended.tokens, cut.tokens) == (ids(SPOKEN), ids(LOOP * 3))


def test_a_stop_string_ends_an_answer_and_leaves_its_text(engine: Engine) -> None:
    made = one(engine, STOPS, SamplingParams(1.0, 12, stop=("M", "never")))
    assert (made.text, made.finish) == (CHAIN[:2], "stop")
    whole = one(engine, STOPS, SamplingParams(1.0, 12, stop=("never",)))
    assert (whole.text, whole.finish) == (CHAIN, "stop")


def test_an_answer_may_be_empty(engine: Engine) -> None:
    made = one(engine, ENDS, WARM)
    assert (made.text, made.tokens, made.finish) == ("", (), "stop")
    assert engine.generate([], WARM) == []


def test_a_character_may_be_split_over_tokens_and_by_the_limit(engine: Engine) -> None:
    assert one(engine, SPELLS, GREEDY).text == SPOKEN
    for most, text in ((1, "\ufffd"), (2, "\u00e9"), (4, "\u00e9\ufffd")):
        made = one(engine, SPELLS, SamplingParams(1.0, most))
        assert (made.text, made.finish) == (text, "length")


def test_what_does_not_fit_the_context_is_refused(engine: Engine) -> None:
    fits = Request(ids("p" * (CONTEXT - 13) + SPELLS), (1,))
    assert engine.generate([fits], WARM)[0][0].text == SPOKEN
    with pytest.raises(ValueError, match=rf"prompt 1 has 53 tokens.*context of {CONTEXT}"):
        engine.generate([fits, Request(ids("p" * (CONTEXT - 12) + SPELLS), (1,))], WARM)
    with pytest.raises(ValueError, match="prompt 0 is empty"):
        engine.generate([Request((), (1,))], WARM)


def test_log_probabilities_are_there_where_they_are_promised(engine: Engine) -> None:
    made = one(engine, ROLLS, SamplingParams(0.7, 12))
    if not engine.capabilities.logprobs:
        assert made.logprobs is None
        return
    assert made.logprobs == pytest.approx([-2.0794] * 12, abs=1e-3)  # one of eight
    assert len(one(engine, SPELLS, WARM).logprobs or ()) == len(SPOKEN.encode())


def test_control_tokens_of_a_template_reach_the_model_as_such(engine: Engine) -> None:
    prompt = Request((3, *ids("tell "), 4, *ids(SPELLS)), (1,))  # <|user|>, <|assistant|>
    assert engine.generate([prompt], WARM)[0][0].text == SPOKEN


# Servers alone


@pytest.fixture
def fake(folder: Path) -> Iterator[FakeServer]:
    with FakeServer(folder, "vllm") as server:
        yield server


ROLLED = [asked(f"{at} {ROLLS}", *range(4)) for at in range(6)]


def test_text_that_would_become_a_control_token_is_refused_where_only_text_is_taken(folder: Path) -> None:
    written_out = Request(ids("a <") + ids("/s") + ids(">"), (1,))
    assert tokenizer().decode(list(written_out.prompt_ids)) == "a </s>"
    with FakeServer(folder, "tgi") as fake:
        with pytest.raises(EngineError, match=r"as other tokens.*\[server-prompt-as-text\]"):
            ServerEngine(folder, fake.settings()).generate([written_out], WARM)
        assert fake.answered == 0


def test_a_server_that_is_down_is_named_at_once(folder: Path) -> None:
    with FakeServer(folder, "vllm") as fake:
        settings = fake.settings()
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"no server answers at http://127.*engine\.server\.start.*\[server-away\]"):
        ServerEngine(folder, settings).generate(ROLLED, WARM)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", ["vllm", "sglang", "tgi", "transformers"])
def test_a_server_with_other_weights_is_named_before_anything_is_sampled(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    with FakeServer(folder, kind, serves="/models/last-week") as fake:
        with pytest.raises(EngineError, match=r"does not serve .*last-week.*\[server-other-weights\]"):
            ServerEngine(folder, fake.settings()).generate(ROLLED, WARM)
        assert fake.answered == 0


def test_a_server_that_calls_the_weights_by_another_name_is_asked_by_it(folder: Path) -> None:
    with FakeServer(folder, "vllm", called="policy") as fake:
        assert ServerEngine(folder, fake.settings()).generate(ROLLED, WARM)
        assert {body["model"] for body in fake.bodies} == {"policy"}


def test_a_server_that_fails_now_and_then_is_asked_again(folder: Path, fake: FakeServer) -> None:
    wanted = ServerEngine(folder, fake.settings()).generate(ROLLED, WARM)
    fake.fail_next = [500, 503, 429, "cut"]  # cut: it made the answer, and the connection broke on the way
    engine = ServerEngine(folder, fake.settings(), patience=20)
    assert engine.generate(ROLLED, WARM) == wanted
    assert engine.retried == 4


def test_a_server_that_dies_and_comes_back_is_asked_again_and_nothing_is_counted_twice(
    folder: Path, fake: FakeServer
) -> None:
    wanted = ServerEngine(folder, fake.settings()).generate(ROLLED, WARM)
    fake.answered = 0
    fake.die_after(7, back_after=0.7)
    engine = ServerEngine(folder, fake.settings(), patience=20)
    made = engine.generate(ROLLED, WARM)
    assert made == wanted
    assert [len(answers) for answers in made] == [4] * 6
    assert engine.retried > 0
    assert fake.answered >= 24  # what was under way was made again


def test_a_server_that_stays_away_ends_the_stage(folder: Path, fake: FakeServer) -> None:
    fake.die_after(5, back_after=None)
    with pytest.raises(EngineError, match=r"server at http:.* gave no answer in \d s, asked \d times"):
        ServerEngine(folder, fake.settings(), patience=1).generate(ROLLED, WARM)


def test_a_request_that_is_refused_is_not_repeated(folder: Path, fake: FakeServer) -> None:
    fake.fail_next = [400]
    with pytest.raises(EngineError, match=r"refuses a request: 400.*\[server-refuses\]"):
        ServerEngine(folder, fake.settings()).generate([asked(ROLLS)], WARM)


def test_a_server_that_reads_another_prompt_is_found_out(folder: Path, fake: FakeServer) -> None:
    fake.extra_tokens = 1  # a second begin token
    with pytest.raises(EngineError, match=r"read 2 tokens where the prompt has 1.*\[server-other-prompt\]"):
        ServerEngine(folder, fake.settings()).generate([asked(ROLLS)], WARM)


def test_a_program_that_is_not_there_or_ends_is_named(folder: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "server.log")
    missing = ServerSettings("vllm", ("no-such-program", "{model}", "{port}"), None, log)
    with pytest.raises(EngineError, match=r"'no-such-program' is not installed.*\[server-program\]"):
        ServerEngine(folder, missing).generate(ROLLED, WARM)
    ends = ServerSettings("vllm", ("sh", "-c", "echo no room for {model}; exit 7"), None, log)
    with pytest.raises(EngineError, match=r"ended with code 7 before it was ready.*\[server-ended\]\n.*no room for"):
        ServerEngine(folder, ends).generate(ROLLED, WARM)


def test_a_server_of_ours_that_is_never_ready(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_server, "_START_SECONDS", 0.3)
    idle = ServerSettings("vllm", ("sh", "-c", "sleep 60 # {model} {port}"), None, str(tmp_path / "server.log"))
    with pytest.raises(EngineError, match=r"not ready after 0 s.*\[server-not-ready\]"):
        ServerEngine(folder, idle).generate(ROLLED, WARM)


def test_an_end_token_that_is_text_is_refused_where_only_text_is_given(folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ids("a")[0]}))
    with pytest.raises(ModelError, match=r"is ordinary text to the tokenizer.*\[server-end-token\]"):
        ServerEngine(model, ServerSettings("tgi", None, "http://127.0.0.1:1", ""))


def test_a_policy_that_cannot_be_read_or_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the model folder.*\[server-policy\]"):
        ServerEngine(tmp_path, ServerSettings("vllm", None, "http://127.0.0.1:1", ""))
    model = Path(shutil.copytree(folder, tmp_path / "model@next"))
    with FakeServer(folder, "transformers") as fake, pytest.raises(EngineError, match=r"\[server-model-name\]"):
        ServerEngine(model, fake.settings()).generate([asked(ROLLS)], WARM)


@pytest.mark.slow
def test_a_real_server_of_other_weights_is_named(serve: ServerEngine, folder: Path, tmp_path: Path) -> None:
    serve.generate([asked(ROLLS)], WARM)
    assert serve._own is not None
    there = ServerSettings("transformers", None, serve._own.url, "")
    with pytest.raises(EngineError, match=r"does not serve .*Server is pinned to"):
        ServerEngine(save(tmp_path / "next"), there).generate([asked(ROLLS)], WARM)
    assert ServerEngine(folder, there).generate([asked(ROLLS)], WARM) == serve.generate([asked(ROLLS)], WARM)


# A server that the stage starts: the fake one as a program


def program(kind: str = "vllm", *more: str) -> tuple[str, ...]:
    return (sys.executable, str(SUPPORT / "fake_server.py"), kind, "{model}", "{port}", *more)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pid: int, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and is_running(pid):
        time.sleep(0.05)
    return not is_running(pid)


def servers(log: Path) -> list[int]:
    """The process ids of the fake servers that wrote this log."""
    return [int(line.split()[-1]) for line in log.read_text().splitlines() if line.startswith("serving")]


@pytest.mark.slow
def test_a_server_of_ours_that_dies_is_started_again_and_ends_with_us(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    settings = ServerSettings("vllm", program("vllm", str(tmp_path / "died")), None, str(log))
    engine = ServerEngine(folder, settings)
    made = engine.generate(ROLLED, WARM)
    with FakeServer(folder, "vllm") as fake:
        assert made == ServerEngine(folder, fake.settings()).generate(ROLLED, WARM)
    first, second = servers(log)
    assert not is_running(first)
    assert is_running(second)
    engine.close()
    assert gone(second)


def test_there_is_a_server_for_every_so_many_gpus(tmp_path: Path) -> None:
    settings = ServerSettings("vllm", program(), None, str(tmp_path / "server.log"), devices=2)
    assert [one.gpus for one in settings.each(["2", "3", "5", "7", "8"])] == ["2,3", "5,7"]
    assert settings.each([]) == [settings]
    with pytest.raises(EngineError, match=r"needs 2 GPUs .*, and 1 can be used here.*\[server-devices\]"):
        settings.each(["4"])
    alone = replace(settings, devices=None)
    assert alone.each(["2", "3"]) == [alone]


def test_each_server_sees_its_own_gpus_and_they_share_the_shards(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "gpus", lambda: ["2", "3"])
    told = ("sh", "-c", f'echo $CUDA_VISIBLE_DEVICES >> {tmp_path}/seen; exec "$@"', "sh", *program())
    server = ServerSettings("vllm", told, None, str(tmp_path / "server.log"), devices=1)
    asks = [[{"role": "user", "content": f"{word} {ROLLS}"}] for word in ("one", "another")]
    prompts = [{"id": str(at), "prompt": prompt, "columns": "{}"} for at, prompt in enumerate(asks)]
    sampling = rollouts.Sampling(str(folder), WARM, 2, 0, use="server", server=server)
    shards = rollouts.plan(prompts, sampling, 1)
    job = Job({}, {}, tmp_path, tmp_path / "scratch", 0)
    assert len(shards) == 2 and rollouts.run_rollouts(shards, job, tmp_path / "answers.parquet") == 4
    assert sorted((tmp_path / "seen").read_text().split()) == ["2", "3"]


@pytest.mark.slow
def test_a_server_of_ours_that_dies_again_and_again_is_given_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_server, "_RESTARTS", 0)
    settings = ServerSettings("vllm", program("vllm", str(tmp_path / "died")), None, str(tmp_path / "server.log"))
    engine = ServerEngine(folder, settings)
    with pytest.raises(EngineError, match=r"the server died 1 times: .*\[server-died\]"):
        engine.generate(ROLLED, WARM)
    engine.close()


@pytest.mark.slow
def test_the_server_ends_when_the_stage_is_killed(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    script = f"""
import sys, time
from posttrain.engines import Request, SamplingParams, ServerSettings
from posttrain.engines.server import ServerEngine
settings = ServerSettings("vllm", {program()!r}, None, {str(log)!r})
ServerEngine({str(folder)!r}, settings).generate([Request((5,), (1,))], SamplingParams(1.0, 2))
print("sampled", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout is not None
        assert stage.stdout.readline() == "sampled\n"
        (server,) = servers(log)
        assert is_running(server)
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    assert gone(server)


def test_a_stage_starts_one_server_and_says_what_sampled(folder: Path, tmp_path: Path) -> None:
    for name in ("prompts", "out", "scratch"):
        (tmp_path / name).mkdir()
    rows = [
        {"id": f"{at}", "prompt": [{"role": "user", "content": f"{at}"}], "columns": json.dumps({})} for at in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts" / "train.parquet")
    job = Job(
        config={
            "set": "train",
            "where": {},
            "take": {"seed": 0, "start": 0, "count": None},
            "answers": {"k": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 4},
            "tag": "",
            "greedy": False,
            "further": [],
            "system": None,
            "engine": {"use": "server", "dtype": "auto", "shard_tokens": 64, "server": "vllm"},
        },
        inputs={"prompts": tmp_path / "prompts", "policy": folder},
        out=tmp_path / "out",
        scratch=tmp_path / "scratch",
        seed=0,
        runtime={"server": {"kind": "vllm", "start": list(program()), "url": None}},
        workers=2,
    )
    metrics = run_stage("answers", job)
    assert (metrics["prompts"], metrics["completions"]) == (5, 15)
    assert metrics["engine"] == {"server": "vllm", "seeds": True, "token_ids": True, "same_bits_again": False}
    table = pq.read_table(tmp_path / "out" / "answers.parquet")
    places = set(zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
    assert len(places) == table.num_rows == 15
    (server,) = servers(tmp_path / "scratch" / "server.log")
    assert gone(server)
