"""Pushing a run: what goes, what the cards tell, and the real client against a small Hub on loopback."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file, save_file
from support.hub_server import HubServer
from support.loop_runs import METRICS, FakeLauncher, go
from support.tiny_models import causal_lm, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import cli
from posttrain.config import Push
from posttrain.config.push import problem
from posttrain.errors import DamagedError, HubError, InputError, PosttrainError, RecipeError
from posttrain.hub.after_rounds import AfterRounds
from posttrain.hub.client import HubClient, RetryPolicy
from posttrain.hub.plan import RepoPlan, make, promoted_rounds
from posttrain.hub.upload import push, sign_in
from posttrain.recipe.load import load
from posttrain.storage import pushed
from posttrain.storage.files import file_hash, read_json
from posttrain.storage.pushed import Pushed
from posttrain.storage.store import Store

MINE, THEIRS, REPO = "hf_mine", "hf_theirs", "me/mine"
MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"}
MODEL_FILES |= {"tokenizer.json", "tokenizer_config.json"}
LITTER = ("training_args.bin", "optimizer.pt", "trainer_state.json", "scheduler.pt", "rng_state.pth")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    causal_lm("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


class Models(FakeLauncher):
    """Stages that make models make a small one, no two alike, and litter beside it; tables are small tables."""

    def __init__(self, base: Path, adapter: bool = False, **given: Any) -> None:
        super().__init__(**given)
        self.base, self.adapter = base, adapter

    def run(self, folder: Path) -> None:
        stage, out = read_json(folder / "stage.json"), folder / "out"
        if stage["stage"] in ("sft", "dpo"):
            self._model(out, int(stage["key"][-8:], 16))
        table = pa.table({"prompt": ["<b>Who?</b>"], "reason": [stage["key"]]})
        for name in {"filters": ("kept", "dropped"), "preferences": ("pairs",), "pairs": ("pairs",)}.get(
            stage["stage"], ()
        ):
            pq.write_table(table, out / f"{name}.parquet")
        super().run(folder)

    def _model(self, out: Path, seed: int) -> None:
        shutil.copytree(self.base, out, dirs_exist_ok=True)
        weights = load_file(out / "model.safetensors")
        torch.manual_seed(seed)
        weights["model.norm.weight"] += torch.rand_like(weights["model.norm.weight"])
        save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
        for name in LITTER:
            (out / name).write_bytes(b"secret state")
        if self.adapter:
            (out / "adapter").mkdir()
            (out / "adapter" / "adapter_config.json").write_text("{}")
            save_file({"a": torch.ones(1)}, out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="session")
def two_rounds(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    root = tmp_path_factory.mktemp("hub") / "run"
    go(root, 2, launcher=Models(base))
    return root


@pytest.fixture
def run(tmp_path: Path, two_rounds: Path) -> Store:
    """Two rounds, both promoted."""
    return Store(Path(shutil.copytree(two_rounds, tmp_path / "run", symlinks=True)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The tests' own Hub, for a client that may use the network and has no token but what a test gives it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        yield server


@pytest.fixture
def default(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The same, as what HF_ENDPOINT names: the command asks nobody else."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    return hub


class Waits:
    """How long was waited, without waiting; and what was said."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.said: list[str] = []

    def client(self, hub: HubServer, token: str | None = MINE) -> HubClient:
        retries = RetryPolicy(sleep=self.seconds.append)
        return HubClient(token, endpoint=hub.url, retries=retries, say=self.said.append)


def send(plans: list[RepoPlan], hub: HubServer, waits: Waits | None = None, token: str | None = MINE) -> list[Pushed]:
    client = (waits or Waits()).client(hub, token)
    sign_in(client)
    pushed: list[Pushed] = []
    for plan in plans:
        push(plan, client, pushed.append)
    return pushed


def planned(run: Store, to: str = REPO, **changes: Any) -> list[RepoPlan]:
    return make(run, to, **{"private": False, "data": False, "numbers": None, **changes})


def command(*words: str | Path) -> int:
    """The command line, in this process: its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["posttrain", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# What goes.


def test_a_pushed_model_comes_back_with_the_same_logits(run: Store, hub: HubServer, tmp_path: Path) -> None:
    (pushed,) = send(planned(run), hub)
    assert set(pushed.sent) == MODEL_FILES | {"README.md"}
    back = snapshot_download(REPO, revision="round-2", endpoint=hub.url, token=MINE, cache_dir=tmp_path / "cache")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        told, held = (AutoModelForCausalLM.from_pretrained(at)(ids).logits for at in (back, run.root / "policy"))
    assert torch.equal(told, held)
    chats = [
        AutoTokenizer.from_pretrained(at).apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        for at in (back, run.root / "policy")
    ]
    assert chats[0] == chats[1] == "<|user|>Hi"


def test_what_training_leaves_behind_never_goes(run: Store, hub: HubServer) -> None:
    policy = run.root / "policy"
    assert all((policy / name).exists() for name in (*LITTER, "artifact.json", "payload"))
    send(planned(run, data=True), hub)
    assert set(hub.model(REPO).commits[hub.model(REPO).tags["round-2"]]) == MODEL_FILES | {
        "README.md",
        ".gitattributes",
    }


def test_adapters_that_the_run_kept_go_along(tmp_path: Path, base: Path) -> None:
    go(tmp_path / "run", 1, launcher=Models(base, adapter=True))
    (plan,) = planned(Store(tmp_path / "run"))
    paths = {file.path for file in plan.rounds[0].files}
    assert paths >= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert "LoRA adapter" in plan.rounds[0].card


def test_each_round_is_a_tag_and_main_is_the_last(run: Store, hub: HubServer) -> None:
    pushed = send(planned(run, numbers=[1, 2]), hub)
    repo, rounds = hub.model(REPO), run.read_run()["rounds"]
    assert repo.summaries == ["initial commit", *(f"Round {n} ({rounds[n]['stages']['dpo']})" for n in (1, 2))]
    assert repo.tags == {"round-1": pushed[0].commit, "round-2": pushed[1].commit}
    assert repo.branches["main"] == pushed[1].commit
    for number in (1, 2):
        local = (run.root / rounds[number]["policy"] / "model.safetensors").read_bytes()
        assert repo.commits[repo.tags[f"round-{number}"]]["model.safetensors"][0] == local
    assert set(pushed[1].sent) == {"model.safetensors", "README.md"}  # the rest is as in round 1


def test_an_older_round_does_not_replace_main(run: Store, hub: HubServer) -> None:
    send(planned(run), hub)
    main = hub.model(REPO).branches["main"]
    (older,) = send(planned(run, numbers=[1]), hub)
    repo = hub.model(REPO)
    assert repo.branches["main"] == main
    assert repo.tags["round-1"] == older.commit != main
    rounds = run.read_run()["rounds"]
    local = (run.root / rounds[1]["policy"] / "model.safetensors").read_bytes()
    assert repo.commits[older.commit]["model.safetensors"][0] == local


def test_a_second_push_sends_nothing_and_says_so(run: Store, hub: HubServer) -> None:
    (first,) = send(planned(run, numbers=[2]), hub)
    before = len(hub.calls)
    (second,) = send(planned(run, numbers=[2]), hub)
    assert (second.sent, second.bytes, second.commit) == ((), 0, first.commit)
    assert set(second.there) == MODEL_FILES | {"README.md"}
    assert not [call for call in hub.calls[before:] if not call.startswith("GET")]


def test_shards_of_an_older_policy_do_not_stay_beside_the_new_one(run: Store, hub: HubServer) -> None:
    """transformers would load them, or refuse."""
    repo = hub.create("models", REPO, private=False)
    files = {"model-00001-of-00002.safetensors": (b"old", True), "notes.txt": (b"mine", False)}
    repo.commit("main", "by hand", {**repo.commits[repo.branches["main"]], **files})
    send(planned(run), hub)
    held = repo.commits[repo.branches["main"]]
    assert "model-00001-of-00002.safetensors" not in held
    assert "notes.txt" in held


def test_the_base_goes_only_when_said(tmp_path: Path, base: Path, hub: HubServer) -> None:
    go(tmp_path / "run", 1, launcher=Models(base, promoted=False))
    run = Store(tmp_path / "run")
    with pytest.raises(InputError, match=r"none of its 1 .* was promoted.*\[hub-nothing-promoted\]\n.*--round 0"):
        planned(run)
    with pytest.raises(InputError, match=r"round 1 was not promoted \[hub-no-round\]\n  promoted: none"):
        planned(run, numbers=[1])
    with pytest.raises(InputError, match=r"there is no round 7 \[hub-no-round\]"):
        planned(run, numbers=[7])
    send(planned(run, numbers=[0]), hub)
    repo = hub.model(REPO)
    shipped = load("quickstart").model.path
    assert shipped == "tiny-base"
    assert "unchanged" in repo.commits[repo.tags["round-0"]]["README.md"][0].decode()


def test_the_data_of_all_rounds_so_far_go_to_a_data_set(run: Store, hub: HubServer, tmp_path: Path) -> None:
    send(planned(run, numbers=[1, 2], data=True, private=True), hub)
    repo = hub.repos["datasets", f"{REPO}-data"]
    assert repo.private
    tables = {f"round-{n}/{name}.parquet" for n in (1, 2) for name in ("kept", "dropped", "preferences", "pairs")}
    assert set(repo.commits[repo.tags["round-2"]]) == {*tables, "README.md", ".gitattributes"}
    assert {path for path in repo.commits[repo.tags["round-1"]] if "round-2" in path} == set()
    kept = run.read_run()["rounds"][2]["stages"]["filters"]
    assert (
        repo.commits[repo.branches["main"]]["round-2/kept.parquet"][0] == (run.path(kept) / "kept.parquet").read_bytes()
    )


@pytest.mark.slow
def test_datasets_reads_each_table_by_its_name_and_round(run: Store, hub: HubServer, tmp_path: Path) -> None:
    from datasets import get_dataset_config_names, load_dataset

    send(planned(run, data=True), hub)
    back = snapshot_download(
        f"{REPO}-data", repo_type="dataset", endpoint=hub.url, token=MINE, local_dir=tmp_path / "data"
    )
    assert get_dataset_config_names(back) == ["kept", "dropped", "preferences", "pairs"]
    keys = [entry["stages"].get("pairs") for entry in run.read_run()["rounds"]]
    found = load_dataset(back, "pairs", cache_dir=str(tmp_path / "cache"))
    assert {split: rows["reason"][0] for split, rows in found.items()} == {"round_1": keys[1], "round_2": keys[2]}


# What can go wrong.

COMMIT = "POST /api/models/me/mine/commit"


@pytest.mark.parametrize(
    ("call", "how", "waited"),
    [
        (COMMIT, 500, [1.0]),
        (COMMIT, 503, [1.0]),
        (COMMIT, 409, [1.0]),  # somebody committed meanwhile
        (COMMIT, "cut", [1.0]),
        (COMMIT, "cut after", [1.0]),  # it was done, and nobody said so
        ("POST /api/models/me/mine/tag", 500, [1.0]),
        ("POST /api/models/me/mine/tag", "cut after", [1.0]),
        ("GET /api/models/me/mine/refs", 502, [1.0]),
        ("POST /api/repos/create", "cut after", [1.0]),
        ("GET /api/whoami-v2", 500, [1.0]),
    ],
)
def test_what_passes_is_waited_for(call: str, how: int | str, waited: list[float], run: Store, hub: HubServer) -> None:
    hub.fail_once(call, how)
    waits = Waits()
    (pushed,) = send(planned(run), hub, waits)
    assert waits.seconds == waited
    assert "again in 1 s" in waits.said[0]
    repo = hub.model(REPO)
    assert repo.tags == {"round-2": pushed.commit}
    assert repo.branches["main"] == pushed.commit
    assert len(repo.summaries) == 2  # one commit of ours
    assert len(hub.sent("PUT /storage")) == 1


def test_the_hub_says_how_long_to_wait(run: Store, hub: HubServer) -> None:
    hub.fail_once(COMMIT, 429, **{"Retry-After": "42"})
    hub.fail_once(COMMIT, 429, RateLimit='"api";r=0;t=55')
    waits = Waits()
    send(planned(run), hub, waits)
    assert waits.seconds == [42.0, 55.0]
    hub.fail_once("GET /api/models/me/mine", 429, **{"Retry-After": "3600"})
    with pytest.raises(HubError, match="asks for fewer requests"):
        send(planned(run), hub, waits)
    assert waits.seconds == [42.0, 55.0]


@pytest.mark.parametrize("call", ["PUT /storage", "POST /me/mine.git/info/lfs"])
@pytest.mark.parametrize("how", [500, "cut"])
def test_a_large_file_that_breaks_off_is_sent_again(call: str, how: int | str, run: Store, hub: HubServer) -> None:
    """Here the client itself waits and tries again."""
    hub.fail_once(call, how)
    send(planned(run), hub)
    assert len(hub.stored) == 1
    assert "round-2" in hub.model(REPO).tags


def test_a_push_that_failed_goes_on_where_it_was(run: Store, hub: HubServer) -> None:
    before = files_of(run.root)
    for _ in range(5):
        hub.fail_once(COMMIT, 500)
    waits = Waits()
    with pytest.raises(HubError, match="could not push round 2 to me/mine: the Hub answers 500") as failed:
        send(planned(run), hub, waits)
    assert failed.value.exit_code == 6
    assert waits.seconds == [1.0, 2.0, 4.0, 8.0]
    assert files_of(run.root) == before
    assert hub.model(REPO).tags == {}
    send(planned(run), hub)
    assert len(hub.sent("PUT /storage")) == 1  # what was stored is not sent again
    assert set(hub.model(REPO).tags) == {"round-2"}


@pytest.mark.parametrize(
    ("token", "to", "said"),
    [
        ("hf_wrong", REPO, "does not accept the token"),
        (THEIRS, REPO, r"them may not do that.*\n.*them/NAME"),
        (MINE, "them/theirs", r"me may not do that.*\n.*me/NAME"),
    ],
)
def test_who_may_not_is_told_what_to_do(token: str, to: str, said: str, run: Store, hub: HubServer) -> None:
    hub.create("models", "them/theirs", private=False)
    with pytest.raises(HubError, match=said) as refused:
        send(planned(run, to), hub, token=token)
    assert token not in str(refused.value)
    assert hub.sent("commit") == []


def test_without_a_token_nothing_is_asked(run: Store, hub: HubServer) -> None:
    with pytest.raises(HubError, match="there is no token to push with\n  hf auth login, or set HF_TOKEN"):
        send(planned(run), hub, token=None)
    assert hub.calls == []


def test_without_a_network_it_says_so_at_once(run: Store, hub: HubServer) -> None:
    hub.__exit__()
    started, waits = time.monotonic(), Waits()
    with pytest.raises(HubError, match=r"no connection to http://127\.0\.0\.1"):
        send(planned(run), hub, waits)
    assert waits.seconds == []
    assert time.monotonic() - started < 5


def test_offline_mode_is_named(run: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set\n  unset it"):
        send(planned(run), hub)


def test_what_is_private_does_not_go_where_everybody_sees_it(run: Store, hub: HubServer) -> None:
    hub.create("models", REPO, private=False)
    with pytest.raises(HubError, match="is there already and public, and this push is private; nothing was sent"):
        send(planned(run, private=True), hub)
    assert hub.sent("PUT|commit") == []


def test_a_tag_is_not_moved_to_another_model(run: Store, hub: HubServer, base: Path) -> None:
    send(planned(run), hub)
    tags = dict(hub.model(REPO).tags)
    go(run.root, 2, "dpo.learning_rate=3e-4", launcher=Models(base))
    with pytest.raises(
        HubError, match=r"has another round-2 already: model.safetensors differs; nothing was sent\n.*tag"
    ):
        send(planned(run), hub)
    assert hub.model(REPO).tags == tags


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_artifact_never_goes(file: str, run: Store, hub: HubServer) -> None:
    path = run.root / "policy" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # the size is the same
    with pytest.raises(DamagedError, match=f"{file} is gone or not what its manifest says; nothing was pushed"):
        planned(run)
    path.unlink()
    with pytest.raises(DamagedError):
        planned(run)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no run here \[command-no-run\]"):
        planned(Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


NAMES = [
    "me/mine",
    "Me-2/my.model_v1",
    "mine",
    "a/b/c",
    "me/-x",
    "me/x.",
    "me/a--b",
    "me/a..b",
    "me/x.git",
    "/x",
    "me/",
]
NAMES += ["me/ö", "me/a b", "m/" + "a" * 96, "m/" + "a" * 97, "me/mine\n", "datasets/me/x"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_refused_as_the_client_refuses_them(name: str) -> None:
    try:
        validate_repo_id(name)
        allowed = "/" in name  # ours always has an owner
    except HFValidationError:
        allowed = False
    assert (problem(name) is None) == allowed


# The cards.


def facts(run: Store) -> dict[str, Any]:
    return run.manifest(run.read_run()["rounds"][2]["stages"]["heldout"])["metrics"]["heldout"]


def test_the_card_has_the_figures_with_their_intervals_as_a_model_index(run: Store, tmp_path: Path) -> None:
    data: Any = ModelCard(planned(run)[0].rounds[0].card).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.license == "apache-2.0"  # as the base's own card says
    assert {"posttrain", "trl", "sft", "dpo"} <= set(data.tags or [])
    assert data.base_model is None  # a folder is no name on the Hub
    results = {result.metric_type: result for result in data.eval_results or []}
    assert set(results) == {"accuracy", "pass@1", "pass@8"}
    for kind, name in {"accuracy": "greedy", "pass@1": "pass@1", "pass@8": "pass@8"}.items():
        told, made = results[kind], facts(run)[name]
        assert (told.metric_value, told.metric_args) == (made["value"], {"ci95": made["ci95"], "n": made["n"]})
        assert told.dataset_name == "word-problems.heldout.jsonl"


def test_a_base_and_data_sets_of_the_hub_are_named_in_the_metadata(run: Store) -> None:
    path = run.root / "recipe.yaml"
    recipe = path.read_text().replace("path: tiny-base", "path: owner/base")
    recipe = recipe.replace("path: word-problems.train.jsonl\n    dataset_name: null", "dataset_name: owner/prompts")
    path.write_text(recipe)
    data: Any = ModelCard(planned(run, data=True)[0].rounds[0].card).data
    assert data.base_model == "owner/base"
    assert data.datasets == [f"{REPO}-data", "owner/prompts"]


def test_the_card_tells_the_lineage_the_data_and_the_recipe(run: Store) -> None:
    card = planned(run)[0].rounds[0].card
    stages = [entry["stages"] for entry in run.read_run()["rounds"]]
    chain = [stages[1]["sft"], stages[1]["dpo"], stages[2]["sft"], stages[2]["dpo"]]
    places = [card.index(f"<code>{key}</code>") for key in chain]
    assert places == sorted(places)
    assert "| 2 | yes | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] | 0.500 [0.400, 0.600] | 7 of 80 | 4 |" in card
    assert "| sampled | 80 | 80 |" in card
    assert "| dropped: format\\: empty | 73 | 73 |" in card
    assert "| **kept** | 7 | 7 |" in card
    assert 'from_pretrained("me/mine", revision="round-2")' in card
    assert "learning_rate: 0.0001" in card.split("<summary>The recipe</summary>")[1]


def test_nothing_that_is_secret_is_on_a_card(
    run: Store, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret, cached = "hunter2hunter2", "hf_" + "a1" * 12
    monkeypatch.setenv("SOME_API_KEY", secret)
    recipe = run.root / "recipe.yaml"
    text = recipe.read_text().replace("word-problems.train.jsonl", f"{tmp_path}/customers.jsonl")
    text = text.replace("too_long: stop", f'too_long: stop\n  system: "Use {secret} or\\n{cached}\\nall of it"')
    text = text.replace("server: null", "server: {kind: vllm, url: 'http://u:pw@10.0.0.7/', start: [x, --api-key, k]}")
    recipe.write_text(text.replace("  system: null\n", ""))
    cards = [one.card for plan in planned(run, data=True) for one in plan.rounds]
    for hidden in (secret, cached, "10.0.0.7", "--api-key", str(tmp_path)):
        assert all(hidden not in card for card in cards)
    assert "customers.jsonl" in cards[0]
    assert "(left out)" in cards[0]


def test_what_users_and_models_wrote_stays_text(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nasty = "x | <script>alert(1)</script> [a](javascript:b) `c` \n| 1 | 2 |\n# Title\n---"
    monkeypatch.setitem(METRICS, "filters", {"kept": 7, "dropped": {nasty: 73}})
    go(tmp_path / "run", 1, f"prompts.system={json.dumps('a ``` b </details>')}", launcher=Models(base))
    for plan in planned(Store(tmp_path / "run"), data=True):
        card = plan.rounds[0].card
        body = card.split("---\n", 2)[2]
        assert "<script>" not in card
        assert "](javascript" not in card.replace("\\", "\\\\").replace("\\]", "")
        assert "\n# Title" not in body
        rows = [line for line in body.splitlines() if "script" in line]
        assert [row.replace("\\|", "").count("|") for row in rows] == [3]  # two cells
    card = planned(Store(tmp_path / "run"))[0].rounds[0].card
    assert "\n````yaml\n" in card  # longer than what the recipe holds
    assert card.rstrip().endswith("\n````\n\n</details>")


def test_a_card_is_the_same_each_time_it_is_made(run: Store) -> None:
    """Else a second push would always send it."""
    assert planned(run)[0].rounds == planned(run)[0].rounds
    go(run.root, 2)
    first = planned(run, numbers=[1])[0].rounds
    assert first == planned(run, numbers=[1, 2])[0].rounds[:1]


def test_a_card_says_when_there_are_no_figures_yet(run: Store) -> None:
    """A round can be pushed while its held-out prompts are still answered in the background."""
    state = run.read_run()
    del state["rounds"][2]["stages"]["heldout"]
    run.write_run(state, (run.root / "recipe.yaml").read_text())
    card = planned(run)[0].rounds[0].card
    assert "The held-out prompts were not answered yet" in card
    assert "model-index" not in card


# The commands, and the recipe's key.


def test_a_dry_run_shows_all_and_asks_nobody(run: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """As the tests run: offline, and without a token."""
    before = files_of(run.root)
    assert command("push", run.root, "--to", REPO, "--all-rounds", "--data", "--dry-run") == 0
    shown = capsys.readouterr().out
    policy = run.root / "policy" / "model.safetensors"
    assert file_hash(policy)[:12] in shown
    for word in ("round-1: dpo-", "round-2: dpo-", "tokenizer.json", f"{REPO}-data (dataset", "# mine", "model-index"):
        assert word in shown
    assert files_of(run.root) == before
    assert command("push", run.root, "--to", REPO, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    (one,) = told["repos"][0]["rounds"]
    assert {file["path"]: file["size"] for file in one["files"]}["model.safetensors"] == policy.stat().st_size
    assert one["tag"] == "round-2"


def test_the_command_pushes_says_what_and_writes_it_down(
    run: Store, default: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = default
    monkeypatch.setenv("HF_TOKEN", MINE)
    before = files_of(run.root)
    assert command("push", run.root, "--to", REPO, "--private") == 0
    said = capsys.readouterr().out
    assert f"{REPO}: round-2, 7 files sent" in said and said.endswith(f"  {hub.url}/{REPO}\n")
    assert hub.model(REPO).private
    assert command("push", run.root, "--to", REPO, "--private") == 0
    assert f"{REPO}: round-2 is there already, all 7 files" in capsys.readouterr().out
    assert command("push", run.root, "--to", REPO, "--json") == 0
    told = json.loads(capsys.readouterr().out)["pushed"]
    (written,) = pushed.read(run)
    assert told[0]["commit"] == written["commit"] == hub.model(REPO).tags["round-2"]
    assert (written["repo"], written["round"], written["tag"]) == (REPO, 2, "round-2")
    after = files_of(run.root)
    assert {name for name in after if after[name] != before.get(name)} == {"pushed.json", "push.lock"}
    assert MINE.encode() not in b"".join(after.values())
    assert command("status", run.root) == 0
    assert capsys.readouterr().out.endswith(f"pushed: round 2, model {REPO} at round-2\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--to", "mine"], 2, "is not of the form owner/name"),
        (["--to", REPO, "--round", "9"], 2, "there is no round 9 [hub-no-round]\n  promoted: 1, 2; 0 is the base"),
        (["--to", REPO, "--round", "1", "--all-rounds"], 2, "exclude each other"),
        (["--to", REPO], 6, "there is no token to push with"),
    ],
)
def test_exit_codes(
    words: list[str], code: int, said: str, run: Store, default: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("push", run.root, *words) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_one_push_of_a_run_at_a_time(
    run: Store, default: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that goes on holds another lock: it can be pushed meanwhile."""
    monkeypatch.setenv("HF_TOKEN", MINE)
    with run.lock("push.lock"):
        assert command("push", run.root, "--to", REPO) == 4
    with run.lock():
        assert command("push", run.root, "--to", REPO) == 0


def test_a_wrong_token_is_nowhere_in_what_is_said(
    run: Store, default: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "hf_" + "wrong" * 6
    monkeypatch.setenv("HF_TOKEN", token)
    assert command("push", run.root, "--to", REPO) == 6
    told = capsys.readouterr()
    assert token not in told.out + told.err
    assert "hf auth login" in told.err


def test_the_recipes_key_changes_no_artifact_and_names_are_checked(tmp_path: Path) -> None:
    go(tmp_path / "run", 1)
    assert go(tmp_path / "run", 1, "push={to: me/mine, private: true, data: true}") == ([], [])
    with pytest.raises(RecipeError, match=r"'mine' is not of the form owner/name \[recipe-hub-name\]"):
        load("quickstart", ["push.to=mine"])
    for name in ("a/b.git", "a/-b", "a/" + "b" * 97):
        with pytest.raises(RecipeError, match=rf"'{name}' is not allowed on the Hub: letters.*\[recipe-hub-name\]"):
            load("quickstart", [f"push.to={name}"])
    with pytest.raises(RecipeError, match="unknown key"):
        load("quickstart", ["push={to: me/mine, secret: x}"])


ROUND = ("round", "quickstart", "--n", "2", "--set", "dpo.learning_rate=1e-4", "--set", "compute.stages_at_once=1")


def test_the_round_command_pushes_what_its_recipe_says(
    run: Store, default: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is done, so nothing but the push is left. Without a token it is a warning, and the command ends well."""
    words = (*ROUND, "--run", run.root, "--set", "push={to: me/mine}")
    before = (run.root / "run.json").read_bytes()
    assert command(*words) == 0
    assert "warning: there is no token to push with" in capsys.readouterr().out
    assert default.calls == []
    monkeypatch.setenv("HF_TOKEN", MINE)
    assert command(*words) == 0
    assert "pushed round-1 to me/mine\npushed round-2 to me/mine" in capsys.readouterr().out
    assert set(default.model(REPO).tags) == {"round-1", "round-2"}
    assert (run.root / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_user_pushes_and_somebody_loads_it_by_its_name(run: Store, tmp_path: Path) -> None:
    """In processes of their own, which know the Hub by HF_ENDPOINT alone."""
    loading = (
        "import torch; from transformers import AutoModelForCausalLM as M; ids = torch.tensor([[5, 6, 7, 8]]); "
        f"one, other = (M.from_pretrained(at)(ids).logits for at in ({REPO!r}, {str(run.root / 'policy')!r})); "
        "assert torch.equal(one, other)"
    )
    with HubServer() as server:
        changed = {"HF_ENDPOINT": server.url, "HF_TOKEN": MINE, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **changed, "HF_HOME": str(tmp_path / "home")}
        for words in (["-m", "posttrain", "push", str(run.root), "--to", REPO, "--private"], ["-c", loading]):
            subprocess.run([sys.executable, *words], env=environment, check=True, timeout=120)


def pushing(run: Store, client: Callable[[], HubClient], said: list[str], **changes: Any) -> AfterRounds:
    return AfterRounds(run, Push(to=REPO, **changes), client, said.append)


def test_promoted_rounds_go_during_a_run_and_once(run: Store, hub: HubServer) -> None:
    said: list[str] = []
    after = pushing(run, lambda: Waits().client(hub), said, data=True)
    for number in (0, 1, 2):
        after.round_done(number)
    after.finish()
    assert set(hub.model(REPO).tags) == set(hub.repos["datasets", f"{REPO}-data"].tags) == {"round-1", "round-2"}
    assert said == [f"pushed round-{n} to {repo}" for repo in (REPO, f"{REPO}-data") for n in (1, 2)]
    assert promoted_rounds(run) == [1, 2]
    calls = len(hub.calls)
    again = pushing(run, lambda: Waits().client(hub), said, data=True)
    again.round_done(2)
    again.finish()
    assert hub.calls[calls:] == ["GET /api/whoami-v2"]


def test_a_push_that_fails_warns_and_is_tried_again(run: Store, hub: HubServer) -> None:
    for _ in range(5):
        hub.fail_once(COMMIT, 500)
    said: list[str] = []
    after = pushing(run, lambda: Waits().client(hub), said)
    after.round_done(2)
    deadline = time.monotonic() + 20
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert said[0].startswith("warning: could not push round 1 to me/mine: the Hub answers 500")
    after.finish()
    assert set(hub.model(REPO).tags) == {"round-1", "round-2"}


def test_nothing_that_goes_wrong_with_a_push_ends_the_run(run: Store) -> None:
    def client() -> HubClient:
        raise ZeroDivisionError("by hf_secretsecretsecret")

    said: list[str] = []
    after = pushing(run, client, said)
    after.round_done(2)
    after.finish()
    assert all(text.startswith("warning: the push failed: ZeroDivisionError\n") for text in said)
    assert issubclass(HubError, PosttrainError)
    assert HfApi  # the real client is what all of this ran with
