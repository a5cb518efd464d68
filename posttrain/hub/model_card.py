"""The model card: metadata, figures, lineage, data, limits and recipe of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.evaluation.statistics import in_words
from posttrain.hub.markdown import code, fenced, plain, table
from posttrain.hub.metadata import file_name, measured, metadata
from posttrain.hub.run_summary import RunSummary
from posttrain.stages.registry import REFERENCED, STAGES


def model_card(summary: RunSummary, repo: str, data_repo: str | None, *, adapter: bool) -> str:
    """The text of README.md in `repo`. `data_repo`: where the rounds' data are pushed, if they are."""
    sections = {
        "": _introduction(summary, data_repo),
        "Use": _use(summary, repo, adapter),
        "Figures": _figures(summary),
        "Lineage": _lineage(summary),
        "Data": _data(summary),
        "Limits": _limits(summary),
        "Recipe": _recipe(summary),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text)
    text = f"---\n{metadata(summary, repo, data_repo).to_yaml()}\n---\n\n# {plain(repo.split('/')[1])}\n\n{body}\n"
    return summary.without_secrets(text)


def _introduction(summary: RunSummary, data_repo: str | None) -> str:
    promoted, number = sum(1 for shown in summary.rounds[1:] if shown["promoted"]), summary.number
    base = plain(summary.base)
    if summary.base_on_hub:
        base = f"[{base}](https://huggingface.co/{summary.base})"
    if not number:
        return f"{base}, the model that a run of posttrain starts from, unchanged."
    stages = [one.label for one in STAGES.values() if one.label and summary.recipe.get(one.name)]
    data = f" The data of all rounds: [{data_repo}](https://huggingface.co/datasets/{data_repo})." if data_repo else ""
    return (
        f"{base} after {number} round{'s' if number > 1 else ''} of post-training with posttrain, the loop "
        f"of Llama 3 ([arXiv 2407.21783](https://arxiv.org/abs/2407.21783), section 4.1): {', '.join(stages)}. "
        f"Promoted so far: {promoted} of {number}. The tag `round-{number}` is this model.{data}"
    )


def _use(summary: RunSummary, repo: str, adapter: bool) -> str:
    loading = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}", revision="round-{summary.number}")',
        f'model = AutoModelForCausalLM.from_pretrained("{repo}", revision="round-{summary.number}")',
        'messages = [{"role": "user", "content": "..."}]',
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)",
        "answer = model.generate(**inputs, max_new_tokens=256)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    text = fenced("\n".join(loading), "python") + "\n\n`main` is the last promoted round; each has a tag, `round-N`."
    if adapter:
        text += (
            " The model is merged. `adapter/` holds the last stage's LoRA adapter alone; its `adapter_config.json` "
            "says which model it belongs on: a Hub id, or the key of the artifact that its stage started from."
        )
    return text


def _figures(summary: RunSummary) -> str:
    now = list(measured(summary, summary.rounds[-1]))
    if not now:
        return "The held-out prompts were not answered yet when this was pushed."
    base = {kind: figure for kind, _, figure in measured(summary, summary.rounds[0])}
    rows = [
        [plain(title), in_words(base.get(kind), none=""), in_words(figure, none=""), str(figure["n"])]
        for kind, title, figure in now
        if summary.number or figure
    ]
    said = "On the held-out prompts, on which nothing was trained and nothing chosen; in brackets 95 % intervals."
    header = ["figure", "the base", f"round {summary.number}", "prompts"]
    return f"{said}\n\n{table(header, rows)}"


def _lineage(summary: RunSummary) -> str:
    if not summary.number:
        return ""
    rows = [_round(shown) for shown in summary.rounds]
    header = [
        "round",
        "promoted",
        "greedy",
        "pass@1",
        "reward model, pair accuracy",
        "kept of sampled",
        "preference rows",
    ]
    chain = " → ".join(code(key) for key in summary.chain)
    return (
        "A round starts from the policy promoted last; what it made replaces that by the recipe's rule, "
        f"{code(summary.recipe.get('promote', 'better'))}, on prompts of its own (dev). The accuracies here are on the "
        f"held-out ones.\n\n{table(header, rows)}\n\nWhat this model was trained from, by "
        f"the keys of its run: {chain}."
    )


def _round(shown: Mapping[str, Any]) -> list[str]:
    heldout = (shown.get("evaluate") or {}).get("heldout") or {}
    model, samples = shown.get("reward_model"), shown.get("samples")
    promoted = {True: "yes", False: "no", None: "under way"}[shown["promoted"]] if shown["round"] else ""
    return [
        f"{shown['round']}{'' if shown['round'] else ' (base)'}",
        promoted,
        in_words(heldout.get("greedy"), none=""),
        in_words(heldout.get("pass@1"), none=""),
        in_words(model["pair_accuracy"], none="") if model else "",
        f"{samples['kept']} of {samples['completions']}" if samples else "",
        " + ".join(str(shown["pairs"][name]) for name in REFERENCED if name in shown["pairs"]),
    ]


def _data(summary: RunSummary) -> str:
    prompts = summary.recipe.get("prompts") or {}
    use = {"train": "to train on", "dev": "to choose by", "heldout": "to report on"}
    rows = [[name, plain(why), _source(prompts.get(name) or {})] for name, why in use.items()]
    return f"{table(['prompts', 'for', 'from'], rows)}\n\n{flow(summary)}".strip()


def flow(summary: RunSummary) -> str:
    """Samples kept and dropped in each round, by filter and reason."""
    rounds = [shown for shown in summary.rounds if shown.get("samples")]
    if not rounds:
        return ""
    reasons = list(dict.fromkeys(reason for shown in rounds for reason in shown["samples"]["dropped"]))
    rows = [["sampled", *(str(shown["samples"]["completions"]) for shown in rounds)]]
    rows += [
        [f"dropped: {plain(reason)}", *(str(shown["samples"]["dropped"].get(reason, 0)) for shown in rounds)]
        for reason in reasons
    ]
    rows.append(["**kept**", *(str(shown["samples"]["kept"]) for shown in rounds)])
    header = ["samples, by round", *(str(shown["round"]) for shown in rounds)]
    return "What SFT learns from is sampled from the policy and filtered:\n\n" + table(header, rows)


def _limits(summary: RunSummary) -> str:
    rewards = [str(entry.get("use")) for entry in summary.recipe.get("reward") or [] if isinstance(entry, dict)]
    judges = ", ".join(code(Path(use).name) for use in rewards)
    known = summary.base_card.get("license")
    lines = [
        f"- Trained towards what these rewards measure: {judges}. What they do not see was not trained, and a policy "
        "can learn to please them.",
        "- The figures are of prompts like those that it was trained on. They say nothing of other tasks, languages or "
        "longer texts, and nothing of safety: neither was tested.",
        f"- What limits {plain(summary.base)} limits this model too, its licence among it"
        + (f" ({plain(known)})." if known else "; its card on this machine names none, so look it up before use."),
    ]
    return "\n".join(lines)


def _recipe(summary: RunSummary) -> str:
    made_with = ", ".join(f"{plain(name)} {plain(number)}" for name, number in summary.versions.items())
    block = fenced(summary.recipe_text(), "yaml")
    note = "Every default is written out; paths of the machine and secrets are left out."
    return (
        f"{note}{f' Made with {made_with}.' if made_with else ''}\n\n"
        f"<details>\n<summary>The recipe</summary>\n\n{block}\n\n</details>"
    )


def _source(prompts: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    if not isinstance(prompts, Mapping):  # a set for each round
        return ", then ".join(map(_source, prompts))
    name = prompts.get("dataset_name")
    if not name:
        return code(file_name(prompts))
    parts = [prompts.get("name"), prompts.get("split"), prompts.get("revision")]
    said = ", ".join(code(part) for part in parts if part)
    return f"[{plain(name)}](https://huggingface.co/datasets/{name}) ({said})"
