"""`posttrain check`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from posttrain.commands.completion import recipes
from posttrain.commands.terminal import json_text, say
from posttrain.errors import InputError
from posttrain.system import bytes_in_words


def check_(
    recipe: Annotated[
        str, typer.Argument(help="A shipped recipe's name, or a path.", autocompletion=recipes)
    ] = "quickstart",
    n: Annotated[int, typer.Option("--n", min=1, help="Number of rounds to plan.")] = 1,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key.")] = None,
    probe: Annotated[bool, typer.Option(help="Measure a small round on this machine, for times and memory.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    script: Annotated[
        Literal["slurm", "kuberay", "skypilot"] | None,
        typer.Option(help="Print what runs the recipe on `compute.cluster`, no more."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Plan for such GPUs, which are not here: h100, a100, ...")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="GPUs of a node of it; 1.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; 1.")] = None,
    parameters: Annotated[
        float | None, typer.Option(min=1, help="Plan for a model of so many parameters, such as 8e9.")
    ] = None,
    trains: Annotated[float | None, typer.Option(min=1, help="TFLOP/s that a GPU reaches in training.")] = None,
    samples: Annotated[float | None, typer.Option(min=1, help="TFLOP/s that a GPU reaches in sampling.")] = None,
) -> None:
    """Check everything of a recipe that can be checked without training, and plan its rounds. Writes nothing.

    posttrain check ./mine.yaml --n 6

    posttrain check 8b-one-gpu --set model.path=tiny-base --no-probe

    posttrain check llama3 --device h100 --devices 8 --nodes 4

    Exit code 0: all checks passed. 2: the recipe or its inputs are wrong. 3: the engine or the probe failed.
    """
    from posttrain.planning.at_scale import cluster_of
    from posttrain.planning.check import check
    from posttrain.planning.scripts import Machines, scripts
    from posttrain.report.forecasts import in_words

    if not device and any(one is not None for one in (devices, parameters, trains, samples, None if script else nodes)):
        raise InputError(
            "--devices, --nodes, --parameters, --trains and --samples are for other machines",
            hint="add --device, such as --device h100",
            rule="command-device",
        )
    if script:
        say(scripts(recipe, set_ or [], n, script, Machines(nodes or 1, devices or 1, device)))
        return
    elsewhere = (cluster_of(device, devices or 1, nodes or 1, trains, samples), parameters) if device else None
    done = check(recipe, set_ or [], n, probe, elsewhere=elsewhere)
    if as_json:
        checks = [{"name": name, "right": right, "said": said} for name, right, said in done.found]
        result = {"recipe": done.recipe.name, "checks": checks, "notes": done.notes, "plan": done.plan}
        if done.forecast is not None:
            result["forecast"] = done.forecast
        say(json_text(result))
    else:
        width = max([8, *(len(name) for name, _, _ in done.found)])
        for name, right, said in done.found:
            say(f"{'ok ' if right else 'BAD'}  {name:<{width}} {said}")
        for note in done.notes:
            say(f"note  {note}")
        if done.plan:
            say("\n" + "\n".join((lines_elsewhere if elsewhere else _lines)(done.plan, n)))
        if done.forecast is not None:
            say(in_words(done.forecast))
    if done.error:
        raise typer.Exit(done.error.exit_code)


def lines_elsewhere(plan: dict[str, Any], n: int) -> list[str]:
    """The plan for other machines, as it is printed."""
    cluster = plan["cluster"]
    count = cluster["nodes"] * cluster["devices"]
    shown, lines = None, []
    lines.append(f"{'round':<6}{'stage':<28}{'tokens':>17}{'PFLOP':>11}{'devices':>9}{'time':>10}{'device hours':>14}")
    for entry in plan["rounds"]:
        if entry["stages"] == shown:
            lines.append(_row_elsewhere(entry["round"], f"as round {entry['round'] - 1}", entry))
            continue
        shown = entry["stages"]
        for at, stage in enumerate(shown):
            lines.append(_row_elsewhere(entry["round"] if at == 0 else "", stage["stage"].replace("_", " "), stage))
        lines.append(_row_elsewhere("", f"round {entry['round']}", entry))
    lines.append(_row_elsewhere("", f"{n} round{'s' if n > 1 else ''}", plan))
    lines.append(
        f"\nat most: all rows there can be, answers as long as they may be; {plan['parameters'] / 1e9:g}B parameters "
        f"on {count} devices at {cluster['trains']:.0f} TFLOP/s in training and {cluster['samples']:.0f} in sampling, "
        "one stage after the other. Not in it: loading, filters, rewards that are Python"
    )
    return lines


def _row_elsewhere(number: object, name: str, amounts: dict[str, Any]) -> str:
    return (
        f"{number!s:<6}{name:<28}{amounts['tokens']:>17,.0f}{amounts['tflop'] / 1000:>11,.0f}"
        f"{amounts.get('devices', ''):>9}{_time(3600 * amounts['hours']):>10}{amounts['device_hours']:>14,.1f}"
    )


HEADER = (
    f"{'round':<6}{'stage':<18}{'prompts':>9}{'completions':>13}{'tokens':>12}{'steps':>7}"
    f"{'time':>9}{'memory':>10}{'disk':>10}"
)


def _lines(plan: dict[str, Any], n: int) -> list[str]:
    lines, shown = [HEADER], None
    for entry in plan["rounds"]:
        stages = entry["stages"]
        if stages == shown:
            lines.append(f"{entry['round']:<6}{'as round ' + str(entry['round'] - 1):<59}{_time(entry['seconds']):>9}")
            continue
        shown = stages
        for at, stage in enumerate(stages):
            lines.append(_row(entry["round"] if at == 0 else "", stage["stage"].replace("_", " "), stage))
        lines.append(_row("", f"round {entry['round']}", entry))
    overlapping = f", {plan['machine']['at_once']} stages side by side" if plan["machine"]["at_once"] > 1 else ""
    lines.append(
        f"\n{n} round{'s' if n > 1 else ''}: {plan['completions']:,} completions, {plan['tokens']:,} new tokens, "
        f"{plan['steps']:,} steps, {bytes_in_words(plan['disk'])} on disk"
    )
    if plan["seconds"] is None:
        lines.append("no times: nothing was measured; rows are the most there can be")
        return lines
    lines.append(
        f"about {_time(plan['seconds'])} with nothing else on this machine{overlapping}; "
        f"memory at most about {bytes_in_words(plan['memory'])}"
    )
    if plan["not_measured"]:
        lines.append(f"not in the time: {', '.join(plan['not_measured'])}, which could not be measured")
    return lines


def _row(number: object, name: str, amounts: dict[str, Any]) -> str:
    counts = "".join(
        f"{amounts.get(key) or '':>{width},}" if amounts.get(key) else " " * width
        for key, width in (("prompts", 9), ("completions", 13), ("tokens", 12), ("steps", 7))
    )
    memory, disk = amounts.get("memory"), amounts["disk"]
    return (
        f"{number!s:<6}{name:<18}{counts}{_time(amounts['seconds']):>9}"
        f"{bytes_in_words(memory) if memory else '':>10}{bytes_in_words(disk) if disk else '':>10}"
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
