"""`posttrain sample`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from posttrain.commands.terminal import say


def sample_(
    model: Annotated[str, typer.Argument(help="A run's folder (its promoted policy), a model's folder, or a Hub id.")],
    out: Annotated[Path, typer.Option("--out", help="A new .parquet or .jsonl file.")],
    recipe: Annotated[str | None, typer.Option("--recipe", help="Whose prompts, engine and settings to use.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="A file with a column `prompt`, instead.")] = None,
    on: Annotated[
        Literal["train", "dev", "heldout"], typer.Option("--on", help="Which set of the recipe.")
    ] = "heldout",
    k: Annotated[int | None, typer.Option("--k", min=1, help="Answers per prompt. Default: samples.k, or 1.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token.")] = 1.0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: the recipe's, or 256.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same answers.")] = 0,
) -> None:
    """Sample answers of a model to prompts into a file that `datasets` and TRL read.

    posttrain sample runs/quickstart --recipe quickstart --on dev --k 4 --out answers.parquet

    posttrain sample ./my-model --prompts questions.jsonl --temperature 0 --out answers.jsonl
    """
    from posttrain.config import Engine
    from posttrain.errors import InputError
    from posttrain.inference.models import prompts_in, prompts_of, sample
    from posttrain.recipe.load import load

    if (recipe is None) == (prompts is None):
        raise InputError(
            "prompts come from a recipe or from a file",
            hint="give either --recipe NAME or --prompts FILE",
            rule="command-options",
        )
    resolved = load(recipe) if recipe else None
    prompt_list = prompts_of(resolved, on) if resolved else prompts_in(prompts or Path())
    sampling = {
        "k": k or (resolved.samples.k if resolved else 1),
        "temperature": temperature,
        "top_p": resolved.samples.top_p if resolved else 1.0,
        "max_new_tokens": max_new_tokens or (resolved.samples.max_new_tokens if resolved else 256),
        "seed": seed,
    }
    engine = resolved.engine if resolved else Engine()
    workers = (resolved.compute.workers if resolved else None) or os.cpu_count() or 1
    count = sample(model, prompt_list, sampling, engine, out, workers)
    say(f"{count} answers to {len(prompt_list)} prompts: {out}")
