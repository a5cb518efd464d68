"""The data set card: a configuration for each table, a split for each round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import DatasetCardData

from posttrain.hub.markdown import fenced, plain, table
from posttrain.hub.model_card import flow
from posttrain.hub.run_summary import RunSummary


@dataclass(frozen=True)
class Table:
    """A table that a stage writes in each round: `file` in its artifact."""

    name: str
    stage: str
    file: str
    what: str

    def path(self, number: int) -> str:
        """Its path in the repository."""
        return f"round-{number}/{self.name}.parquet"


TABLES = (
    Table(
        "kept", "filters", "kept.parquet", "samples that the filters kept, with their rewards; SFT learns from these"
    ),
    Table("dropped", "filters", "dropped.parquet", "samples that they dropped, each with the filter and the reason"),
    Table("preferences", "preferences", "pairs.parquet", "labelled pairs; the reward model learns from these"),
    Table("pairs", "pairs", "pairs.parquet", "best and worst of K answers; DPO learns from these"),
    Table("searched", "search", "pairs.parquet", "what a search found, over a wrong answer; DPO may learn from these"),
    Table(
        "corrected", "correction", "pairs.parquet", "corrected answers over the wrong ones; DPO may learn from these"
    ),
)


def data_card(summary: RunSummary, repo: str, model_repo: str, paths: Sequence[str]) -> str:
    """The text of README.md in `repo`, of which `paths` are the tables."""
    configs = [
        {"config_name": one.name, "data_files": [{"split": f"round_{number}", "path": path} for number, path in there]}
        for one in TABLES
        if (there := [(n, one.path(n)) for n in range(summary.number + 1) if one.path(n) in paths])
    ]
    names = [config["config_name"] for config in configs]
    header = DatasetCardData(
        tags=["posttrain", "preference-data", "rejection-sampling"],
        task_categories=["text-generation"],
        configs=configs,
    )
    rows = [[f"`{one.name}`", one.what] for one in TABLES if one.name in names]
    name, split = names[0], configs[0]["data_files"][-1]["split"]
    loading = f'from datasets import load_dataset\n\nrows = load_dataset("{repo}", "{name}", split="{split}")'
    sections = [
        f"---\n{header.to_yaml()}\n---\n\n# {plain(repo.split('/')[1])}",
        f"What a run of posttrain made, kept and dropped on the way to "
        f"[{model_repo}](https://huggingface.co/{model_repo}), up to round {summary.number}. The tag "
        f"`round-{summary.number}` is as of that round.",
        table(["configuration", "what"], rows),
        "A split is a round. Prompts and answers are chat messages, as TRL reads them (`prompt`, `completion`, "
        "`chosen`, `rejected`); `columns` and `rewards` are JSON. In `preferences`, the column `split` says which "
        "pairs were held out from training.",
        fenced(loading, "python"),
        flow(summary),
        "## Limits\n\nAnswers were written by models and judged by the rewards of the run; no person has read them. "
        "Prompts are under the licence of their source.",
    ]
    return summary.without_secrets("\n\n".join(section for section in sections if section) + "\n")
