"""A model folder that is not what it seems is refused by the rule of its kind; a good one is taken."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import gguf_file
from support.tiny_models import causal_lm, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from posttrain.config import Model
from posttrain.engines import load
from posttrain.errors import ModelError
from posttrain.models import finite, inspect_model, inspection, json_files, resolve
from posttrain.models.folder import check_files, special_tokens
from posttrain.models.inspection import inspect

BASE = Path(__file__).parents[2] / "data" / "tiny-base"
ASKED = [[{"role": "user", "content": "Mia has 7 apples and buys 12 more. How many has she?"}]]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 3547592\n"

Change = Callable[[Path], Any]


def folder(tmp_path: Path, change: Change | None = None) -> Path:
    made = Path(shutil.copytree(BASE, tmp_path / "model"))
    if change:
        change(made)
    return made


def config(**values: Any) -> Change:
    return settings("config.json", **values)


def settings(name: str, **values: Any) -> Change:
    """`...` takes a key out."""

    def change(made: Path) -> None:
        said = {**json.loads((made / name).read_text()), **values}
        (made / name).write_text(json.dumps({key: value for key, value in said.items() if value is not ...}))

    return change


def file(name: str, content: bytes | str) -> Change:
    return lambda made: (made / name).write_bytes(content.encode() if isinstance(content, str) else content)


def renamed(name: str) -> Change:
    return lambda made: (made / "model.safetensors").rename(made / name)


def dead_link(made: Path) -> None:
    (made / "model.safetensors").unlink()
    (made / "model.safetensors").symlink_to("nothing")


def header(said: Any, length: int = 8) -> bytes:
    text = json.dumps(said).encode()
    return len(text).to_bytes(8, "little") + text + bytes(length)


def index(**shards: str) -> Change:
    def change(made: Path) -> None:
        (made / "model.safetensors").rename(made / "one.safetensors")
        (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def write(made: Path) -> None:
        save_file(change(load_file(made / "model.safetensors")), made / "model.safetensors")

    return write


def not_finite(value: float) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    def change(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given["model.layers.2.mlp.up_proj.weight"][3, 4] = value
        return given

    return change


def adapter_alone(made: Path) -> None:
    (made / "model.safetensors").rename(made / "adapter_model.safetensors")
    (made / "config.json").rename(made / "adapter_config.json")


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
SEEN_IN_THE_FILES: list[tuple[str, Change]] = [
    ("model-no-config", lambda made: (made / "config.json").unlink()),
    ("model-no-weights", lambda made: (made / "model.safetensors").unlink()),
    ("model-pickled-weights", renamed("pytorch_model.bin")),
    ("model-gguf", renamed("model.Q4_K_M.gguf")),
    ("model-weights-name", renamed("consolidated.safetensors")),
    ("model-weights-not-regular", dead_link),
    ("model-weights-format", file("model.safetensors", b"PK\x03\x04" + bytes(100))),
    ("model-weights-empty", file("model.safetensors", b"")),
    ("model-weights-truncated", lambda made: shrink(made / "model.safetensors", 1_000_000)),
    ("model-weights-truncated", lambda made: shrink(made / "model.safetensors", 100)),
    ("model-weights-header", file("model.safetensors", header([1]))),
    ("model-weights-header", file("model.safetensors", header({"a": {**TENSOR, "dtype": "F33"}}))),
    ("model-weights-header", file("model.safetensors", header({"a": {**TENSOR, "shape": [-2]}}))),
    ("model-weights-header", file("model.safetensors", b"\xff" * 100)),
    ("model-weights-offsets", file("model.safetensors", header({"a": {**TENSOR, "shape": [3]}}))),
    ("model-weights-offsets", file("model.safetensors", header({"a": TENSOR, "b": TENSOR}))),
    ("model-weights-offsets", file("model.safetensors", header({"a": TENSOR}, 16))),
    ("model-lfs-pointer", file("model.safetensors", POINTER)),
    ("model-lfs-pointer", file("config.json", POINTER)),
    ("model-index", index()),
    ("model-index-absent", index(a="one.safetensors", b="two.safetensors")),
    ("model-index-file", index(a="../one.safetensors")),
    ("model-index-tensors", index(a="one.safetensors")),
    ("model-adapter-alone", adapter_alone),
    ("model-adapter-beside", file("adapter_config.json", "{}")),
    ("model-json", file("config.json", "{")),
    ("model-json", file("tokenizer_config.json", b"\xff\xfe{}")),
    ("model-json-object", file("config.json", "[]")),
    ("model-json-nesting", file("config.json", "[" * 100_000)),
    ("model-json-nesting", file("config.json", '{"a":' * 200 + "1" + "}" * 200)),
    ("model-json-size", file("config.json", '{"a": "' + "a" * 11_000_000 + '"}')),
    ("model-config-size", config(num_hidden_layers=100_000)),
    ("model-config-size", config(text_config={"num_experts": 100_000})),
    ("model-config-list", config(layer_types=["full_attention"] * 100_001)),
]


def marked(name: str) -> Change:
    """As some editors of Windows save it."""
    return lambda made: (made / name).write_bytes(
        b"\xef\xbb\xbf" + ((made / name).read_bytes() if (made / name).exists() else b"{}")
    )


def in_place_of(name: str, put: Change) -> Change:
    def change(made: Path) -> None:
        (made / name).unlink(missing_ok=True)
        put(made / name)

    return change


NO_FILES: dict[str, Change] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
SEEN_IN_THE_FILES += [("model-json", marked(name)) for name in json_files.NAMES]
SEEN_IN_THE_FILES += [("model-not-regular", in_place_of(name, NO_FILES["a pipe"])) for name in json_files.NAMES]
SEEN_IN_THE_FILES += [("model-not-regular", in_place_of("config.json", put)) for put in NO_FILES.values()]


def shrink(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(("rule", "change"), SEEN_IN_THE_FILES, ids=[rule for rule, _ in SEEN_IN_THE_FILES])
def test_what_the_files_show_is_told_by_every_command_that_names_a_model(
    tmp_path: Path, rule: str, change: Change
) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(Model(path=str(folder(tmp_path, change))))
    told(caught.value, rule, tmp_path)


def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path, rule: str) -> Path:
    """What the code in the hint makes of the folder."""
    with pytest.raises(ModelError) as caught:
        resolve(Model(path=str(made)))
    assert caught.value.rule == rule and caught.value.hint
    monkeypatch.chdir(tmp_path)
    exec("\n".join(line.strip() for line in caught.value.hint.splitlines()[1:]), {})
    return resolve(Model(path=f"./{made.name}-safetensors")).path


def test_pickled_weights_are_converted_by_what_the_error_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder(tmp_path)
    weights = load_file(made / "model.safetensors")
    torch.save(weights, made / "pytorch_model.bin")
    (made / "model.safetensors").unlink()
    new = converted(tmp_path, monkeypatch, made, "model-pickled-weights")
    inspect(new, ASKED)
    after = load_file(new / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in after)


def test_gguf_is_converted_by_what_the_error_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf: Any = pytest.importorskip("gguf", reason="pip install gguf")
    made = tmp_path / "model"
    made.mkdir()
    tensors = gguf_file.write(
        gguf.GGUFWriter(made / "tiny.Q8_0.gguf", "llama")
    )  # alone, as it is downloaded: it holds config and tokenizer too
    new = converted(tmp_path, monkeypatch, made, "model-gguf")
    after = load_file(new / "model.safetensors")
    assert torch.equal(after["model.embed_tokens.weight"], torch.from_numpy(tensors["token_embd.weight"]))
    assert AutoModelForCausalLM.from_pretrained(new).config.vocab_size == len(AutoTokenizer.from_pretrained(new))


def test_a_model_of_the_hub_in_another_format_is_told_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.hf_api import ModelInfo

    def nothing_here(*_: object, **options: object) -> str:
        assert options.get("local_files_only"), "fetches"
        raise LocalEntryNotFoundError("none")

    info = ModelInfo(id="somebody/model", siblings=[{"rfilename": "config.json"}, {"rfilename": "m.Q4_K_M.gguf"}])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing_here)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: info)
    with pytest.raises(ModelError) as caught:
        inspect_model(Model(path="somebody/model"))
    assert (caught.value.rule, caught.value.file) == ("model-gguf", "somebody/model")
    assert "from_pretrained('somebody/model', gguf_file='m.Q4_K_M.gguf')" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/other.jinja"])
@pytest.mark.parametrize("kind", NO_FILES)
def test_a_template_that_is_no_file_is_told_as_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    made = folder(tmp_path)
    (made / name).parent.mkdir(exist_ok=True)
    in_place_of(name, NO_FILES[kind])(made)
    with pytest.raises(ModelError, match=rf"{name}: is {kind}, ") as caught:
        inspect(made, ASKED)
    told(caught.value, "model-not-regular", tmp_path)


def test_a_template_with_a_byte_order_mark(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        inspect(folder(tmp_path, marked("chat_template.jinja")), ASKED)
    told(caught.value, "template-encoding", tmp_path)


def told(error: ModelError, rule: str, place: Path) -> None:
    """The rule, where it is, and what to do."""
    assert (error.rule, error.exit_code) == (rule, 2), error
    assert error.file and error.file.startswith(str(place)) and error.hint


SEEN_BEFORE_IT_IS_BUILT: list[tuple[str, Change]] = [
    ("model-config-range", config(attention_dropout=5.0)),
    ("model-config-range", config(rms_norm_eps=-5.0)),
    ("model-config-range", config(rope_theta=0)),
    ("model-config-range", config(rope_parameters={"rope_type": "default", "rope_theta": -1.0})),
    ("model-config-range", config(rope_scaling={"rope_type": "linear", "factor": 0.0})),
    ("model-config-range", config(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 0.0}})),
    ("model-architectures", config(architectures=...)),
    ("model-architectures", config(architectures=3)),
    ("model-dtype", config(dtype="floaty")),
    ("model-dtype", config(dtype=..., torch_dtype="int8")),
    ("model-dtype", config(vision_config={"dtype": "save"})),
    ("model-padding-id", config(pad_token_id=5000)),
    ("model-padding-id", config(pad_token_id="x")),
    ("model-end-id", config(eos_token_id=5000)),
    ("model-end-id", settings("generation_config.json", eos_token_id=[4, "x"])),
    ("model-tokenizer-setting", settings("tokenizer_config.json", eos_token=4)),
    ("model-tokenizer-setting", settings("tokenizer_config.json", eos_token={"a": 1})),
    ("model-tokenizer-setting", settings("tokenizer_config.json", eos_token=["<|end|>"])),
    ("model-tokenizer-setting", settings("tokenizer_config.json", model_max_length="many")),
    ("model-tokenizer-setting", settings("tokenizer_config.json", tokenizer_class=3)),
]
SEEN_AS_IT_IS_BUILT: list[tuple[str, Change]] = [
    ("model-generation-config", settings("generation_config.json", max_new_tokens="many")),
    ("model-type-unknown", config(model_type="nope")),
    ("model-config-values", config(hidden_size="128")),
    ("model-config-values", config(num_attention_heads=0)),
    ("model-config-values", config(rope_parameters={"rope_type": "nope"})),
    ("model-not-causal", config(model_type="t5")),
    ("model-not-causal-class", config(architectures=["LlamaForSequenceClassification"])),
    ("model-vocabulary", config(vocab_size=600)),
    ("model-quantised", config(quantization_config={"quant_method": "gptq", "bits": 4})),
    ("model-quantised", config(quantization_config={"quant_method": "awq", "bits": 4})),
    ("model-quantised", config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
    ("model-attention", config(attn_implementation="flash_attention_2")),
    ("model-attention", config(attn_implementation="nope")),
    ("model-no-tokenizer", lambda made: (made / "tokenizer.json").unlink()),
    ("model-tokenizer-json", file("tokenizer.json", "{}")),
    ("model-tokenizer", settings("tokenizer_config.json", extra_special_tokens=[3])),
    ("model-tokenizer-reads", settings("tokenizer_config.json", tokenizer_class="BertTokenizer")),
    ("model-weights-shape", config(intermediate_size=353)),
    ("model-weights-shape", config(hidden_size=10**9)),
    ("model-weights-missing", config(num_hidden_layers=5)),
    ("model-weights-missing", config(tie_word_embeddings=False)),
    ("model-weights-missing", weights(lambda given: {f"policy.{name}": value for name, value in given.items()})),
    ("model-weights-unexpected", config(num_hidden_layers=3)),
    ("model-weights-integers", weights(lambda given: {name: value.to(torch.int8) for name, value in given.items()})),
    ("model-weights-not-finite", weights(not_finite(float("nan")))),
    ("model-weights-not-finite", weights(not_finite(float("-inf")))),
]
BUILT = SEEN_BEFORE_IT_IS_BUILT + SEEN_AS_IT_IS_BUILT


@pytest.mark.parametrize(("rule", "change"), BUILT, ids=[rule for rule, _ in BUILT])
def test_what_is_wrong_within_is_told_before_anything_is_sampled(tmp_path: Path, rule: str, change: Change) -> None:
    with pytest.raises(ModelError) as caught:
        inspect(folder(tmp_path, change), ASKED)
    told(caught.value, rule, tmp_path)


def test_weights_that_were_read_whole_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = finite._is_finite
    monkeypatch.setattr(finite, "_is_finite", lambda tensor, buffer: read.append("") or plain(tensor, buffer))
    monkeypatch.setattr(finite, "_LARGE", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = folder(tmp_path)

    def reads() -> bool:
        read.clear()
        finite.check(made)
        return bool(read)

    assert reads() and not reads()
    known = tmp_path / "cache" / "posttrain" / "finite-weights.txt"
    for broken in (b"\xff\x00\n" * 9, known.read_bytes()[:-9], b"a" * 2_000_000):
        known.write_bytes(broken)
        assert reads() and not reads()
    known.unlink()
    known.mkdir()  # neither read nor written: no reason to stop
    assert reads() and reads()
    known.rmdir()
    weights(not_finite(float("nan")))(made)
    for _ in range(2):  # a failed verdict is asked for again
        with pytest.raises(ModelError, match=r"\[model-weights-not-finite\]"):
            finite.check(made)


def test_every_missing_weight_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    made = folder(tmp_path, weights(lambda given: {f"policy.{name}": value for name, value in given.items()}))
    with pytest.raises(ModelError, match=r"^\S+: 39 \(lm_head.weight, model.embed_tokens.weight, .*38 \(policy\.model"):
        inspect(made, ASKED)


def test_weights_beside_the_models_own_are_told_and_taken(tmp_path: Path) -> None:
    beside = {"v_head.weight": torch.ones(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    assert inspect(folder(tmp_path, weights(lambda given: {**given, **beside})), ASKED) == ["v_head.weight"]


_SMALL = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_EXPERTS = {**_SMALL, "num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8}
OTHERS: dict[str, dict[str, Any]] = {
    "mixtral": {**_SMALL, "num_local_experts": 4, "head_dim": 8},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "gpt_oss": {**_SMALL, "num_local_experts": 4, "head_dim": 8, "sliding_window": 12},
    "falcon": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gpt_neox": _SMALL,
    "phi3": _SMALL,
}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "gemma3_text", "mamba", *OTHERS])
def test_a_model_as_it_is_saved_is_taken(tmp_path: Path, kind: str) -> None:
    """Experts in files of their own, tied heads, buffers of former versions: what transformers itself puts right."""
    if kind in OTHERS:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **OTHERS[kind]))
    else:
        model = causal_lm(kind)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer().save_pretrained(tmp_path)
    assert inspect(tmp_path, ASKED) == []


@pytest.mark.parametrize("kind", ["gpt2", "bloom", "gemma3_text"])
def test_weights_without_the_prefix_of_a_language_model_are_taken(tmp_path: Path, kind: str) -> None:
    """As GPT-2's are on the Hub: the head is tied, and transformers adds the prefix."""
    model = causal_lm(kind)
    model.base_model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    config(architectures=[type(model).__name__])(tmp_path)
    assert inspect(tmp_path, ASKED) == []


def test_a_vocabulary_of_words_is_asked_with_the_runs_own(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "<user>": 2, "<assistant>": 3, "two": 4, "words": 5}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<unk>", eos_token="</s>")
    fast.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% if m.role == 'assistant' %} </s>{% endif %} "
        "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    causal_lm("llama").save_pretrained(tmp_path)
    fast.save_pretrained(tmp_path)
    inspect(tmp_path, [[{"role": "user", "content": "two words"}]])
    with pytest.raises(ModelError) as caught:
        inspect(tmp_path, [[{"role": "user", "content": "three letters"}]])
    told(caught.value, "template-writes-padding", tmp_path)


def test_a_folder_whose_weights_are_not_here_yet_is_looked_at_without_them(tmp_path: Path) -> None:
    made = folder(tmp_path, lambda made: (made / "model.safetensors").unlink())
    assert inspect(made, ASKED) == []
    settings("tokenizer_config.json", eos_token=4)(made)
    with pytest.raises(ModelError):
        inspect(made, ASKED)


def test_special_tokens_that_are_none(tmp_path: Path) -> None:
    made = folder(tmp_path, settings("tokenizer.json", added_tokens=[3]))
    with pytest.raises(ModelError) as caught:
        special_tokens(made)
    told(caught.value, "model-added-tokens", tmp_path)


def test_a_config_whose_model_takes_too_long_to_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder(tmp_path, config(num_hidden_layers=1000))
    monkeypatch.setattr(inspection, "_SECONDS", 1)
    with pytest.raises(ModelError) as caught:
        inspect(made, ASKED)
    told(caught.value, "model-out-of-bounds", tmp_path)


def test_a_tokenizer_that_takes_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder(tmp_path)
    # More than what is free in a process that has done other tests before: that is not counted.
    vocabulary = {f"word{at}" + "x" * 300: at for at in range(200_000)}
    said = {**json.loads((made / "tokenizer.json").read_text()), "model": {"type": "WordLevel", "vocab": vocabulary}}
    said["model"]["unk_token"] = "word0" + "x" * 300
    (made / "tokenizer.json").write_text(json.dumps(said))
    monkeypatch.setattr(inspection, "_MEMORY", 8 << 20)
    with pytest.raises(ModelError) as caught:
        inspect(made, ASKED)
    told(caught.value, "model-tokenizer-out-of-bounds", tmp_path)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(ModelError) as caught:
        resolve(Model(path="./nowhere"))
    assert caught.value.rule == "model-not-found"
    with pytest.raises(ModelError) as caught:
        resolve(Model(path="nobody/nothing"))  # no test touches the network
    assert caught.value.rule == "model-hub" and caught.value.hint


def test_an_engine_says_what_it_cannot_load(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load.pick_dtype("float8", "cpu")
    assert caught.value.rule == "model-engine-dtype"
    with pytest.raises(ModelError) as caught:
        load.load(folder(tmp_path, config(model_type="t5")), "float32", "cpu")
    told(caught.value, "model-load", tmp_path)


def test_the_shipped_model_is_taken() -> None:
    check_files(BASE, "tiny-base")
    assert inspect(BASE, ASKED) == []
