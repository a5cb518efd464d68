"""What a user of recipes relies on: what is read, what is refused, and where a message points."""

from __future__ import annotations

import fnmatch
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain import shipped
from posttrain.config import RewardEntry, Trained, by_round, trl_fields
from posttrain.config.training import TRAINED, TRL_CONFIGS
from posttrain.errors import RecipeError
from posttrain.filters import FILTERS
from posttrain.recipe.load import load
from posttrain.recipe.recipe import Recipe

SMALL = """\
model: {path: ./model}
prompts:
  train: {path: ./train.jsonl}
  dev: {path: ./dev.jsonl}
  heldout: {path: ./heldout.jsonl}
reward:
  - {use: ./check.py}
samples:
  k: 4
sft:
  learning_rate: 5e-7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").mkdir()
    for name in ("train.jsonl", "dev.jsonl", "heldout.jsonl", "check.py"):
        (tmp_path / name).touch()
    (tmp_path / "small.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(name: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(name, overrides)
    return caught.value


def wrong(folder: Path, old: str, new: str) -> RecipeError:
    assert old in SMALL
    (folder / "wrong.yaml").write_text(SMALL.replace(old, new))
    return fails("wrong.yaml")


class TestReading:
    def test_defaults_and_values(self, folder: Path) -> None:
        recipe = load("small.yaml")
        assert (recipe.name, recipe.seed, recipe.samples.k, recipe.promote) == ("small", 0, 4, "better")
        assert recipe.sft is not None and recipe.sft.trl["learning_rate"] == 5e-7
        assert recipe.dpo is recipe.pairs is recipe.preferences is None

    def test_paths_are_relative_to_the_recipe_not_to_the_current_folder(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "elsewhere").mkdir()
        monkeypatch.chdir(folder / "elsewhere")
        recipe = load("../small.yaml")
        assert by_round(recipe.prompts.train)[0].path == str(folder / "train.jsonl")
        assert recipe.model.path == str(folder / "model")

    def test_paths_from_set_are_relative_to_the_current_folder(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = folder / "elsewhere"
        here.mkdir()
        (here / "mine.jsonl").touch()
        monkeypatch.chdir(here)
        recipe = load("../small.yaml", ["prompts.train.path=./mine.jsonl"])
        assert by_round(recipe.prompts.train)[0].path == str(here / "mine.jsonl")

    def test_a_hub_id_stays_one(self, folder: Path) -> None:
        assert load("small.yaml", ["model.path=owner/some-model"]).model.path == "owner/some-model"

    def test_a_bare_name_is_shipped(self, folder: Path) -> None:
        recipe = load("small.yaml", ["reward.0.use=word-problems.py"])
        assert recipe.reward[0].use == "word-problems.py"

    def test_answers_are_as_long_everywhere_as_in_samples(self, folder: Path) -> None:
        recipe = load("small.yaml", ["samples.max_new_tokens=33", "pairs={}", "preferences={max_new_tokens: 5}"])
        assert recipe.pairs is not None and recipe.preferences is not None
        lengths = [recipe.pairs.max_new_tokens, recipe.evaluate.max_new_tokens, recipe.preferences.max_new_tokens]
        assert lengths == [33, 33, 5]

    def test_it_imports_neither_torch_nor_trl(self) -> None:
        code = (
            "import sys; from posttrain.recipe.load import load; load('quickstart', files=False);"
            "print([m for m in ('torch', 'trl', 'transformers', 'datasets', 'peft') if m in sys.modules])"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
        )
        assert run.stdout.strip() == "[]"


class TestMessages:
    """Each names file, line and column, and the nearest right name."""

    @pytest.mark.parametrize(
        ("old", "new", "expected", "rule"),
        [
            (
                "samples:",
                "sample:",
                "wrong.yaml:8:1: unknown key 'sample', did you mean 'samples'?",
                "recipe-unknown-key",
            ),
            (
                "  k: 4",
                "  kk: 4",
                "wrong.yaml:9:3: unknown key 'kk' in 'samples', did you mean 'k'?",
                "recipe-unknown-key",
            ),
            (
                "learning_rate:",
                "lr:",
                "wrong.yaml:11:3: unknown key 'lr' in 'sft', did you mean 'learning_rate'?",
                "recipe-unknown-key",
            ),
            (
                "learning_rate:",
                "learning_rat:",
                "wrong.yaml:11:3: unknown key 'learning_rat' in 'sft', did you mean 'learning_rate'?",
                "recipe-unknown-key",
            ),
            (
                "learning_rate: 5e-7",
                "output_dir: x",
                "wrong.yaml:11:3: 'output_dir' cannot be set here: a stage writes",
                "recipe-refused-key",
            ),
            (
                "learning_rate: 5e-7",
                "variants: [{}, {learning_rat: 1e-3}]",
                "wrong.yaml:11:19: unknown key 'learning_rat' in 'sft', did you mean 'learning_rate'?",
                "recipe-unknown-key",
            ),
            (
                "learning_rate: 5e-7",
                "packing: true",
                "wrong.yaml:11:3: packing needs `max_length`",
                "recipe-needs-key",
            ),
            (
                "learning_rate: 5e-7",
                "{packing: true, max_length: 64, packing_strategy: wrapped}",
                "with `wrapped`, examples attend to one another",
                "recipe-packing",
            ),
            (
                "learning_rate: 5e-7",
                "variants: [{seed: -1}]",
                "wrong.yaml:11:15: a variant's seed is a whole number",
                "recipe-variant",
            ),
            (
                "learning_rate: 5e-7",
                "bf16: 1",
                "wrong.yaml:11:3: 'bf16' must be true or false or null, not 1",
                "recipe-type",
            ),
            ("5e-7", "fast", "wrong.yaml:11:3: 'learning_rate' must be a number, not \"fast\"", "recipe-type"),
            ("5e-7", "-1", "wrong.yaml:11:3: 'learning_rate' must be above 0, not -1", "recipe-range"),
            (
                "learning_rate: 5e-7",
                "loss_type: nl",
                "wrong.yaml:11:3: 'loss_type' has no choice 'nl', did you mean 'nll'",
                "recipe-choice",
            ),
            ("k: 4", "k: 0", "wrong.yaml:9:6: 'samples.k' must be greater than or equal to 1, not 0", "recipe-range"),
            ("k: 4", "k: four", "wrong.yaml:9:6: 'samples.k' must be an integer, not \"four\"", "recipe-type"),
            ("k: 4", 'k: "4"', "wrong.yaml:9:6: 'samples.k' must be an integer, not \"4\"", "recipe-type"),
            ("k: 4", "k: true", "wrong.yaml:9:6: 'samples.k' must be an integer, not true", "recipe-type"),
            ("k: 4", "k:", "wrong.yaml:9:3: 'samples.k' must not be null", "recipe-null"),
            ("k: 4", "temperature: .nan", "wrong.yaml:9:16: .nan is not a finite number", "recipe-number-finite"),
            (
                "  k: 4\n",
                "  k: 4\n  k: 5\n",
                "wrong.yaml:10:3: duplicate key 'k', first in line 9",
                "recipe-duplicate-key",
            ),
            ("./dev.jsonl", "./" + "9" * 400, "wrong.yaml:4:15: no such file: ", "recipe-no-such-file"),
            ("samples:\n  k: 4\n", "", "wrong.yaml:1:1: 'samples' is missing", "recipe-missing-key"),
            (
                "{path: ./dev.jsonl}",
                "{}",
                "wrong.yaml:4:3: a prompt set needs either `path` or `dataset_name`",
                "recipe-one-of",
            ),
            ("./dev.jsonl", "./den.jsonl", "wrong.yaml:4:15: no such file: ", "recipe-no-such-file"),
            ("./dev.jsonl", "~nobody-here/dev.jsonl", "wrong.yaml:4:15: no such file: ", "recipe-no-such-file"),
            (
                "{path: ./train.jsonl}",
                "[{path: ./dev.jsonl}, {path: ./none.jsonl}]",
                "wrong.yaml:3:39: no such file: ",
                "recipe-no-such-file",
            ),
            ("{path: ./train.jsonl}", "[{}]", "wrong.yaml:3:11: a prompt set needs either", "recipe-one-of"),
            ("{path: ./train.jsonl}", "[]", "wrong.yaml:3:10: 'prompts.train'", "recipe-form"),
            (
                "{path: ./train.jsonl}",
                "[{pat: ./dev.jsonl}]",
                "wrong.yaml:3:12: unknown key 'pat' in 'prompts.train.0'",
                "recipe-unknown-key",
            ),
            ("{path: ./model}", "{path: ./modal}", "wrong.yaml:1:15: no such model folder: ", "recipe-no-such-file"),
            (
                "{path: ./model}",
                "{path: ./wrong.yaml}",
                "wrong.yaml is a file; a model is a folder",
                "recipe-no-such-file",
            ),
            (
                "{path: ./model}",
                "{path: tiny-bse}",
                "wrong.yaml:1:15: nothing shipped under data/ is called 'tiny-bse'",
                "recipe-not-shipped",
            ),
            ("./check.py", "./check.ph", "wrong.yaml:7:11: no such file: ", "recipe-no-such-file"),
            (
                "./check.py",
                "word-problem.py",
                "wrong.yaml:7:11: nothing shipped under reward/ is called",
                "recipe-not-shipped",
            ),
            (
                "{path: ./model}",
                "{path: ./model, trust_remote_code: true}",
                "'trust_remote_code' cannot be set: no code",
                "recipe-refused-key",
            ),
            (
                "sft:",
                "dpo:",
                "wrong.yaml:10:1: DPO takes pairs from `pairs`, and that section is left out",
                "recipe-needs-section",
            ),
            (
                "sft:",
                "reward_model:",
                "wrong.yaml:10:1: a reward model is trained on preferences, and there are none",
                "recipe-needs-section",
            ),
            (
                "sft:",
                "preferences: {prompts: 0}\nsft:",
                "wrong.yaml:10:15: no pair is sampled, and none is given",
                "recipe-nothing-to-do",
            ),
            ("./check.py}", "reward-model}", "no reward is left to score samples", "recipe-no-reward"),
            (
                "sft:",
                "filters: [{use: formt}]\nsft:",
                "wrong.yaml:10:12: unknown filter 'formt', did you mean 'format'?",
                "recipe-unknown-name",
            ),
            (
                "sft:",
                "filters: [{use: length, max: 3}]\nsft:",
                "wrong.yaml:10:25: unknown key 'max' in 'filters.0'",
                "recipe-unknown-key",
            ),
            ("sft:", "promote: beter\nsft:", "did you mean 'better'?", "recipe-choice"),
            ("sft:", "? [a]\n: b\nsft:", "wrong.yaml:10:3: a key must be a string", "recipe-yaml-feature"),
            ("sft:", "seed: !!python/object:os.system x\nsft:", "wrong.yaml:10:7: tags such as", "recipe-yaml-feature"),
            ("sft:", "\tsft:", "wrong.yaml:10:1: not valid YAML", "recipe-yaml"),
            (
                "sft:",
                "extends: [quickstart]\nsft:",
                "wrong.yaml:10:10: `extends` takes the name or path of one recipe",
                "recipe-extends",
            ),
        ],
    )
    def test_message(self, folder: Path, old: str, new: str, expected: str, rule: str) -> None:
        error = wrong(folder, old, new)
        assert expected in str(error)
        assert (error.exit_code, error.rule) == (2, rule)
        assert error.line is not None

    def test_all_that_is_wrong_is_told_the_first_first(self, folder: Path) -> None:
        (folder / "wrong.yaml").write_text(SMALL.replace("k: 4", "k: 0").replace("5e-7", "-1"))
        first, *others = str(fails("wrong.yaml")).splitlines()
        assert first.startswith("wrong.yaml:9:6: 'samples.k'")
        assert others == ["  also wrong.yaml:11:3: 'learning_rate' must be above 0, not -1.0 [recipe-range]"]

    @pytest.mark.parametrize("text", ["", "# nothing\n"])
    def test_an_empty_recipe(self, folder: Path, text: str) -> None:
        (folder / "wrong.yaml").write_text(text)
        assert "wrong.yaml: the recipe is empty" in str(fails("wrong.yaml"))

    def test_a_list_is_no_recipe(self, folder: Path) -> None:
        (folder / "wrong.yaml").write_text("- a\n")
        assert "wrong.yaml:1:1: a recipe is a mapping" in str(fails("wrong.yaml"))

    def test_not_utf8(self, folder: Path) -> None:
        (folder / "wrong.yaml").write_bytes(b"seed: \xff\n")
        assert "wrong.yaml: not UTF-8 text" in str(fails("wrong.yaml"))

    def test_an_alias_inside_itself_ends(self, folder: Path) -> None:
        (folder / "wrong.yaml").write_text("a: &a [*a]\n")
        assert "wrong.yaml" in str(fails("wrong.yaml"))

    def test_a_file_beside_the_recipe_is_named_with_a_slash(self, folder: Path) -> None:
        error = wrong(folder, "./check.py", "check.py")
        assert error.hint == "for the one beside the recipe write ./check.py"

    def test_an_unknown_recipe(self, folder: Path) -> None:
        assert "did you mean 'quickstart'?" in str(fails("quikstart"))
        assert "no such recipe file" in str(fails("./quickstart"))
        assert fails("quickstart.yaml").hint == "the shipped recipe is called 'quickstart'"
        assert fails("small").hint == "for the file here write ./small.yaml"

    def test_an_unknown_version_of_yaml(self, folder: Path) -> None:
        (folder / "odd.yaml").write_text("sft:\n%YAML 9.9\n  max_steps: 1\n")
        assert "there is no version (9, 9) of it" in str(fails("odd.yaml"))

    def test_files_are_not_looked_for_when_they_may_have_moved(self, folder: Path) -> None:
        (folder / "train.jsonl").unlink()
        assert fails("small.yaml").line == 3
        assert load("small.yaml", files=False).name == "small"


class TestExtends:
    def child(self, folder: Path, text: str) -> Recipe:
        (folder / "child.yaml").write_text("extends: ./small.yaml\n" + text)
        return load("child.yaml")

    def test_maps_are_merged_lists_replaced(self, folder: Path) -> None:
        recipe = self.child(folder, "samples: {temperature: 0.5}\nreward: [{use: word-problems.py}]\n")
        assert (recipe.samples.k, recipe.samples.temperature) == (4, 0.5)
        assert [entry.use for entry in recipe.reward] == ["word-problems.py"]
        assert recipe.name == "child"

    def test_null_leaves_a_stage_out_and_otherwise_means_the_default(self, folder: Path) -> None:
        recipe = self.child(folder, "sft: null\nsamples: {k: null}\n")
        assert recipe.sft is None
        assert recipe.samples.k == 8

    def test_another_source_of_prompts_takes_the_inherited_one_away(self, folder: Path) -> None:
        recipe = self.child(folder, "prompts: {dev: {dataset_name: a/b, split: test, columns: {prompt: question}}}\n")
        assert recipe.prompts.dev.path is None
        (folder / "third.yaml").write_text("extends: ./child.yaml\nprompts: {dev: {path: ./train.jsonl}}\n")
        dev = load("third.yaml").prompts.dev
        assert (dev.dataset_name, dev.split, dev.columns) == (None, None, {"prompt": "question"})

    def test_what_is_wrong_in_the_parent_is_told_there(self, folder: Path) -> None:
        (folder / "small.yaml").write_text(SMALL.replace("k: 4", "k: 0"))
        (folder / "child.yaml").write_text("extends: ./small.yaml\nseed: 1\n")
        assert str(fails("child.yaml")).startswith("small.yaml:9:6:")

    def test_paths_stay_relative_to_the_file_that_holds_them(self, folder: Path) -> None:
        below = folder / "below"
        below.mkdir()
        (below / "child.yaml").write_text("extends: ../small.yaml\n")
        assert load("below/child.yaml").prompts.dev.path == str(folder / "dev.jsonl")

    def test_a_circle(self, folder: Path) -> None:
        (folder / "a.yaml").write_text("extends: ./b.yaml\n")
        (folder / "b.yaml").write_text("extends: ./a.yaml\n")
        assert "b.yaml:1:10: recipes extend one another in a circle: a.yaml -> b.yaml -> a.yaml" in str(fails("a.yaml"))

    def test_a_shipped_recipe(self, folder: Path) -> None:
        (folder / "mine.yaml").write_text("extends: quickstart\ndpo: {learning_rate: 0.5}\n")
        dpo = load("mine.yaml", files=False).dpo
        assert dpo is not None
        assert (dpo.trl["learning_rate"], dpo.pairs_from) == (0.5, ["pairs"])


class TestSet:
    @pytest.mark.parametrize(
        ("override", "expected", "rule"),
        [
            (
                "sft.lr=1",
                "--set sft.lr: unknown key 'lr' in 'sft', did you mean 'learning_rate'?",
                "recipe-unknown-key",
            ),
            ("samples.k=x", "--set samples.k: 'samples.k' must be an integer", "recipe-type"),
            ("samples.k=", "--set samples.k: no value", "recipe-set"),
            ("samples.k", "--set samples.k: no value", "recipe-set"),
            ("samples.k={", "--set samples.k: not valid YAML", "recipe-yaml"),
            ("samples..k=1", "--set samples..k: a key is empty", "recipe-set"),
            ("samples.k.l=1", "--set samples.k.l: 'samples.k' is 4, which has no keys below it", "recipe-set"),
            (
                "reward.1.use=x",
                "--set reward.1.use: 'reward' is a list of 1: '1' is not one of its numbers from 0",
                "recipe-set",
            ),
            ("reward.first.use=x", "'first' is not one of its numbers from 0", "recipe-set"),
            ("extends=quickstart", "--set extends: cannot be set from here", "recipe-set"),
            ("prompts.dev.path=./none.jsonl", "--set prompts.dev.path: no such file: ", "recipe-no-such-file"),
            ("samples=null", "--set samples: ", "recipe-missing-key"),
        ],
    )
    def test_what_is_wrong_names_the_option(self, folder: Path, override: str, expected: str, rule: str) -> None:
        error = fails("small.yaml", override)
        assert expected in str(error) and error.rule == rule

    def test_a_list_item(self, folder: Path) -> None:
        assert load("small.yaml", ["reward.0.weight=0.5"]).reward[0].weight == 0.5

    def test_the_last_one_counts(self, folder: Path) -> None:
        assert load("small.yaml", ["seed=1", "seed=2"]).seed == 2

    def test_a_section_that_was_left_out(self, folder: Path) -> None:
        recipe = load("small.yaml", ["dpo.pairs_from=samples", "dpo.learning_rate=1e-4"])
        assert recipe.dpo is not None and recipe.dpo.trl["learning_rate"] == 1e-4

    def test_a_text_with_hash_and_colon_stays_whole(self, folder: Path) -> None:
        recipe = load("small.yaml", ["prompts.system=End so: #### 7", "prompts.dev.rows=-500:"])
        assert (recipe.prompts.system, recipe.prompts.dev.rows) == ("End so: #### 7", "-500:")

    @given(value=st.one_of(st.none(), st.text(st.characters(exclude_categories=("C",)), min_size=1)))
    @settings(max_examples=30, deadline=None)
    def test_any_value_that_is_quoted_comes_through(self, value: str | None) -> None:
        given_ = [f"prompts.system={json.dumps(value)}"]
        assert load("quickstart", given_, files=False).prompts.system == value


class TestDump:
    @pytest.mark.parametrize("name", shipped.names("recipes"))
    def test_every_shipped_recipe_is_read_and_dumped(self, name: str, tmp_path: Path) -> None:
        recipe = load(name, files=False)
        (tmp_path / "recipe.yaml").write_text(recipe.dump())
        assert load(str(tmp_path / "recipe.yaml"), files=False) == recipe

    def test_every_default_is_written_out(self, folder: Path) -> None:
        text = load("small.yaml").dump()
        for key in ("promote: better", "temperature: 1.0", "num_train_epochs: 3.0", "shard_tokens: 32768"):
            assert key in text

    def test_a_dump_can_be_read_from_anywhere(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = load("small.yaml")
        run = folder / "runs" / "small"
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(recipe.dump())
        monkeypatch.chdir("/")
        assert load(str(run / "recipe.yaml")) == recipe

    @given(
        rate=st.floats(min_value=1e-12, max_value=10, exclude_min=True),
        text=st.text(),
        seed=st.integers(0, 2**32 - 1),
        flag=st.booleans(),
    )
    @settings(max_examples=30, deadline=None)
    def test_any_values_survive(
        self, tmp_path_factory: pytest.TempPathFactory, rate: float, text: str, seed: int, flag: bool
    ) -> None:
        raw = load("quickstart", files=False).model_dump(mode="json", by_alias=True)
        raw["seed"] = seed
        raw["prompts"]["system"] = text
        raw["sft"] |= {"learning_rate": rate, "bf16": flag}
        recipe = Recipe.model_validate(raw)
        path = tmp_path_factory.mktemp("dump") / "recipe.yaml"
        path.write_text(recipe.dump())
        assert load(str(path), files=False) == recipe


class TestTrainedSections:
    def test_own_and_trl_fields_are_told_apart(self, folder: Path) -> None:
        sft = load("small.yaml", ["sft.packing=true", "sft.max_length=64"]).sft
        assert sft is not None
        assert sft.trl["packing"] is True and "start" not in sft.trl

    def test_a_key_holds_the_batch_not_how_it_is_cut(self, folder: Path) -> None:
        def key(*overrides: str) -> dict:
            sft = load("small.yaml", ["sft.per_device_train_batch_size=8", *overrides]).sft
            assert sft is not None
            return sft.in_key()

        assert key() == key("sft.per_device_train_batch_size=4", "sft.gradient_accumulation_steps=2")
        assert key() == key("sft.logging_steps=3") == key("sft.gradient_checkpointing=false")
        assert key() != key("sft.per_device_train_batch_size=4")
        assert key() != key("sft.num_train_epochs=2")

    def test_one_form_for_one_meaning(self, folder: Path) -> None:
        given_ = ["dpo.pairs_from=samples"]
        written = [*given_, "dpo.loss_type=sigmoid", "dpo.num_train_epochs=3"]
        listed = [*given_, "dpo.loss_type=[sigmoid]", "dpo.num_train_epochs=3.0"]
        assert load("small.yaml", written) == load("small.yaml", listed)

    def test_the_field_list_is_that_of_the_installed_trl(self) -> None:
        made = trl_fields.as_text(trl_fields.generate(TRL_CONFIGS))
        shipped = Path(trl_fields.__file__).with_suffix(".json").read_text("utf-8")
        assert made == shipped, "run: python -m posttrain.config.training"

    @pytest.mark.parametrize("kind", TRAINED.values(), ids=list(TRAINED))
    def test_what_is_refused_renamed_or_ranged_is_a_field(self, kind: type[Trained]) -> None:
        known, shown = trl_fields.fields(kind.trainer), {*trl_fields.SHOWN, *kind.shown}
        assert shown <= set(known)
        assert all(fnmatch.filter(known, pattern) for pattern in kind.refused)
        assert not any(trl_fields.refusal(name, kind.refused) for name in shown)
        every = set().union(*(trl_fields.fields(each) for each in TRAINED))
        assert every >= trl_fields.HOW_ONLY and set(trl_fields.RANGES) <= every
        for name, field in known.items():
            problem = trl_fields.problem(kind.trainer, name, field["default"], refused=kind.refused)
            assert trl_fields.refusal(name, kind.refused) or problem is None

    def test_what_trl_no_longer_has(self, folder: Path) -> None:
        assert "`warmup_steps` takes a share" in str(fails("small.yaml", "sft.warmup_ratio=0.1"))
        assert "train_sampling_strategy" in str(fails("small.yaml", "sft.group_by_length=true"))


class TestRewardEntries:
    def test_names(self) -> None:
        entry = RewardEntry.model_validate({"use": "/a/b/check.py", "function": "f", "for": "preferences"})
        assert (entry.name, entry.only_for) == ("check.f", "preferences")
        assert entry.model_dump(by_alias=True)["for"] == "preferences"

    def test_two_of_one_name(self, folder: Path) -> None:
        error = fails("small.yaml", "reward=[{use: word-problems.py}, {use: word-problems.py, weight: 2.0}]")
        assert "two rewards are called 'word-problems'" in str(error)

    def test_somebody_must_label_and_somebody_score(self, folder: Path) -> None:
        assert "no reward is left to score samples" in str(fails("small.yaml", "reward.0.for=preferences"))
        overrides = ["preferences={}", "reward_model={}", "reward=[{use: reward-model}]"]
        assert "learns from those labels" in str(fails("small.yaml", *overrides))


SERVER = (
    SMALL
    + """\
engine:
  use: server
  server:
    kind: transformers
    start: [python, -m, "x {model}", "{port}"]
"""
)


class TestServer:
    def wrong(self, folder: Path, old: str, new: str) -> RecipeError:
        assert old in SERVER
        (folder / "wrong.yaml").write_text(SERVER.replace(old, new))
        return fails("wrong.yaml")

    def test_a_command_or_an_address(self, folder: Path) -> None:
        (folder / "served.yaml").write_text(SERVER)
        engine = load("served.yaml").engine
        assert engine.server is not None and engine.server.start is not None
        assert engine.server.start[0] == "python"
        there = load("served.yaml", ["engine.server.url=http://127.0.0.1:8000"]).engine.server
        assert there is not None and there.start is None  # given on top, it takes the command away
        again = load("small.yaml", ["engine.use=plain"])
        assert again.engine.server is None and again.engine.lacks() == {}

    @pytest.mark.parametrize(
        ("old", "new", "line", "expected", "rule"),
        [
            ("use: server", "use: plain", 14, "`use: plain` does not use a server", "recipe-belongs"),
            ("    start:", "    url: http://a\n    start:", 14, "either `start` or `url`", "recipe-one-of"),
            ('"x {model}"', "x", 16, "the command lacks {model}", "recipe-server-command"),
            (
                "-m,",
                "-m, --continuous-batching,",
                16,
                "not with --continuous-batching: every request",
                "recipe-server-command",
            ),
            ("kind: transformers", "kind: transformer", 15, "did you mean 'transformers'?", "recipe-choice"),
            ("[python,", "[no-such-program,", 16, "no such program: no-such-program", "recipe-no-such-program"),
            ("[python,", "[./bin/vllm,", 16, "no such program: /", "recipe-no-such-program"),
            (
                "  use: server",
                "  use: server\n  dtype: bfloat16",
                14,
                "the dtype of a server is set",
                "recipe-belongs",
            ),
        ],
    )
    def test_what_cannot_be_is_told_with_its_line(
        self, folder: Path, old: str, new: str, line: int, expected: str, rule: str
    ) -> None:
        error = self.wrong(folder, old, new)
        assert expected in str(error)
        assert (error.line, error.rule) == (line, rule)

    def test_use_server_without_one(self, folder: Path) -> None:
        assert "`server` is missing" in str(fails("small.yaml", "engine.use=server"))

    def test_what_a_filter_needs_and_the_engine_lacks(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FILTERS["length"], "needs", frozenset({"logprobs"}))
        filters = SERVER + "filters:\n  - {use: format}\n  - {use: length}\n"
        (folder / "lacking.yaml").write_text(filters)
        error = fails("lacking.yaml")
        assert "it needs logprobs, which a server of kind transformers does not give" in str(error)
        assert (error.line, error.rule) == (19, "recipe-engine-lacks")
        (folder / "lacking.yaml").write_text(filters.replace("kind: transformers", "kind: vllm"))
        assert load("lacking.yaml").filters


class TestWatch:
    def test_the_second_reward_model_is_trained_as_the_first_from_the_base(self, folder: Path) -> None:
        overrides = ["reward_model.variants=[{}, {seed: 1}]", "reward_model.max_steps=7"]
        recipe = load("quickstart", [*overrides, "watch.share=0.2", "watch.reward_model.learning_rate=3e-3"])
        assert recipe.watch is not None and recipe.reward_model is not None
        first, second = recipe.reward_model, recipe.watch.reward_model
        assert (first.start, second.start, second.preferences, second.variants) == ("previous", "base", "all", [])
        assert second.trl == {**first.trl, "learning_rate": 3e-3}
        assert load("quickstart").watch is None

    def test_judges_are_files_like_rewards(self, folder: Path) -> None:
        recipe = load("quickstart", ["watch.judges=[{use: held-out-reward-model}, {use: ./check.py}]"])
        assert recipe.watch is not None and recipe.watch.judges is not None
        assert [judge.use for judge in recipe.watch.judges] == ["held-out-reward-model", str(folder / "check.py")]
        assert [judge.is_model for judge in recipe.watch.judges] == [True, False]

    @pytest.mark.parametrize(
        ("overrides", "expected", "rule"),
        [
            (["watch.share=0.9"], "no prompt is left for the reward model", "recipe-values-clash"),
            (["evaluate.memorisation={}"], "no answer that is trained on has 50 tokens", "recipe-values-clash"),
            (["watch.share=0.2", "preferences=null", "reward_model=null"], "there are none", "recipe-needs-section"),
            (
                ["watch.reward_model.start=previous"],
                "rounds are compared by the second reward model",
                "recipe-refused-key",
            ),
            (
                ["watch.reward_model.variants=[{seed: 1}]"],
                "rounds are compared by the second reward model",
                "recipe-refused-key",
            ),
            (["watch.judges=[{use: notes.py}, {use: notes.py}]"], "two judges are called 'notes'", "recipe-name-taken"),
            (["watch.judges=[{use: reward-model}]"], "that name is taken", "recipe-name-taken"),
            (
                ["watch.judges=[{use: held-out-reward-model, function: f}]"],
                "a reward model has no `function`",
                "recipe-belongs",
            ),
            (["watch.judges=[{use: ./notes.py}]"], "two reward files are called 'notes.py'", "recipe-name-taken"),
            (["watch.judges=[{use: ./none.py}]"], "no such file", "recipe-no-such-file"),
            (["watch.judgs=[]"], "did you mean 'judges'?", "recipe-unknown-key"),
        ],
    )
    def test_what_does_not_fit(self, folder: Path, overrides: list[str], expected: str, rule: str) -> None:
        (folder / "notes.py").touch()
        error = fails("quickstart", *overrides)
        assert expected in str(error) and error.rule == rule


def test_every_key_is_described() -> None:
    def undescribed(schema: dict) -> list[str]:
        found = []
        for part in [schema, *schema.get("$defs", {}).values()]:
            found += [name for name, field in part.get("properties", {}).items() if "description" not in field]
        return found

    assert undescribed(Recipe.model_json_schema()) == []
