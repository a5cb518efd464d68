"""A new user's first minutes, for real: from the wheel to a model on a Hub. Writes docs/first-steps.md.

    python benchmarks/first_steps.py [--wheel FILE] [--fresh] [--whole] [--page FILE]

Builds the wheel (or takes the one given), installs it into a new virtual environment and runs the commands of `STEPS`
there, one after the other, in an empty folder. The page has each command, its output (shortened, where it says so) and
its seconds. The Hub is the small one of the tests, on loopback.

- `--fresh` installs all dependencies, too, from the package registry: minutes. Without it they are those of the
  environment that runs this, and only the wheel is installed.
- `--whole` runs the quickstart in its own size. Without it `SMALLER` is set, as on the page.

What this does not cover: huggingface.co itself, and the time to fetch the dependencies unless `--fresh`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.hub_server import HubServer

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "first-steps.md"
LIMIT = 600  # seconds for everything but the installation
SHOWN = 14  # lines of output that are shown whole; of more, the first and the last ones
FIRST = 5
EDITED = "mine/quickstart.yaml"
EDIT = ("  temperature: 1.0\n  max_new_tokens: 48", "  temperature: 0.9\n  max_new_tokens: 48")
SMALLER = (
    "prompts.dev.rows=:240",
    "prompts.heldout.rows=:240",
    "preferences.prompts=240",
    "samples.prompts=300",
    "pairs.prompts=600",
)
QUESTION = "Mia has 7 apples and buys 12 more. How many has she?"


@dataclass(frozen=True)
class Step:
    """`folder`: where it is typed, from the empty folder. `title` and `why` stand above it on the page."""

    title: str
    command: str
    why: str
    folder: str = "mine"


@dataclass(frozen=True)
class Done:
    step: Step
    output: str
    seconds: float


def steps(whole: bool) -> list[Step]:
    small = "" if whole else "".join(f" \\\n  --set {setting}" for setting in SMALLER)
    return [
        Step("init", "posttrain init mine", "A recipe to edit, with its rewards and prompts.", "."),
        Step(
            "check",
            f"posttrain check ./quickstart.yaml --n 2{small}",
            "All checks, and estimates of time, memory and disk.",
        ),
        Step("round", f"posttrain round ./quickstart.yaml --n 2{small}", "Two rounds."),
        Step("report", "posttrain report runs/quickstart", "One HTML file, for a browser."),
        Step(
            "push, dry",
            "posttrain push runs/quickstart --to me/mine --dry-run",
            "What would be sent to the Hub. This needs no token.",
        ),
        Step("push", "posttrain push runs/quickstart --to me/mine", "Sends it, with a card and a tag for the round."),
        Step(
            "chat",
            f'echo "{QUESTION}" | posttrain chat me/mine',
            "Loads it back from the Hub. After two small rounds of a tiny model, sums are often wrong.",
        ),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--wheel", type=Path)
    options.add_argument("--fresh", action="store_true")
    options.add_argument("--whole", action="store_true")
    options.add_argument("--page", type=Path, default=PAGE)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as made, HubServer() as hub:
        place = Path(made).resolve()
        wheel = given.wheel or build(place)
        installed = install(wheel, place / "venv", given.fresh)
        folder = place / "empty"
        folder.mkdir()
        variables = environment(place, hub.url)
        load = os.getloadavg()[0]
        done, diff = walk(steps(given.whole), folder, variables)
        files = sorted(hub.model("me/mine").commits[hub.model("me/mine").branches["main"]])
    given.page.write_text(page(wheel.name, installed, load, done, diff, files, given), encoding="utf-8")
    total = sum(one.seconds for one in done)
    print(f"{given.page}: {len(done)} commands, {total:.0f} s")
    if total > LIMIT:
        raise SystemExit(f"that is more than {LIMIT} s")


def build(place: Path) -> Path:
    """The wheel, from a copy of what git knows: nothing is left in the checkout."""
    source = place / "source"
    listed = ["git", "ls-files", "-co", "--exclude-standard", "posttrain", "recipes", "reward", "data"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in ("pyproject.toml", "README.md", "LICENSE", *names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = place.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path, fresh: bool) -> float:
    """A virtual environment with the wheel. Returns the seconds that took."""
    started = time.monotonic()
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    if fresh:
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    else:
        subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
        # Paths from a .pth come after the environment's own; .pth files found there are not read.
        (site,) = (folder / "lib").glob("python*/site-packages")
        here = [path for path in sys.path if path.endswith("site-packages")]
        (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in here))
    return time.monotonic() - started


def environment(place: Path, hub: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("HF_")}
    return kept | {
        "PATH": f"{place / 'venv' / 'bin'}:{kept['PATH']}",
        "HF_ENDPOINT": hub,
        "HF_TOKEN": "hf_mine",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(place / "home"),
        "COLUMNS": "120",
    }


def walk(todo: list[Step], folder: Path, variables: Mapping[str, str]) -> tuple[list[Done], str]:
    """All steps, and the edit after the first. Returns also what the edit changed, as a diff."""
    first = perform(todo[0], folder, variables)
    diff = edit(folder / EDITED)
    return [first, *(perform(step, folder, variables) for step in todo[1:])], diff


def perform(step: Step, folder: Path, variables: Mapping[str, str]) -> Done:
    """Run it in a shell.

    Raises:
        SystemExit: it failed.
    """
    print(f"$ {step.command}", flush=True)
    started = time.monotonic()
    command = ["bash", "-o", "pipefail", "-ec", step.command]
    made = subprocess.run(
        command, cwd=folder / step.folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seconds = time.monotonic() - started
    if made.returncode:
        raise SystemExit(f"{made.stdout}\n{step.command}: exit code {made.returncode}")
    said = made.stdout.replace(str(folder), "~")
    return Done(step, re.sub(r"/\S*/site-packages/", "…/site-packages/", said), seconds)


def edit(path: Path) -> str:
    before = path.read_text("utf-8")
    assert before.count(EDIT[0]) == 1
    after = before.replace(*EDIT)
    path.write_text(after, "utf-8")
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), EDITED, EDITED, n=1, lineterm="")
    return "\n".join(lines)


def shortened(output: str, shown: int = SHOWN) -> str:
    """The first and the last lines, with what is left out between them counted."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    if len(lines) <= shown + 1:
        return "\n".join(lines)
    left_out = len(lines) - shown
    return "\n".join([*lines[:FIRST], f"  … {left_out} lines …", *lines[FIRST - shown :]])


def page(
    wheel: str, installed: float, load: float, done: list[Done], diff: str, files: list[str], given: argparse.Namespace
) -> str:
    command = "python benchmarks/first_steps.py" + " --fresh" * given.fresh + " --whole" * given.whole
    total = sum(one.seconds for one in done)
    parts = [
        HEAD.format(command=command, cores=os.cpu_count(), load=load, total=minutes(total)),
        "## Install\n",
        f"```console\n$ pip install {shlex.quote(wheel)}\n```\n",
        f"{installed:.0f} s, with all dependencies.\n"
        if given.fresh
        else f"{installed:.0f} s here, where all dependencies were installed already; else minutes.\n",
    ]
    for number, one in enumerate(done, 1):
        parts += [f"## {number}. {one.step.title}\n", f"{one.step.why}\n"]
        parts.append(f"```console\n$ {one.step.command}\n{shortened(one.output)}\n```\n")
        parts.append(f"{one.seconds:.1f} s\n")
        if number == 1:
            parts.append(f"Then one key is changed:\n\n```diff\n{diff}\n```\n\n```console\n$ cd mine\n```\n")
    parts.append(f"What the Hub has now: {', '.join(f'`{name}`' for name in files)}.\n")
    parts.append(table(done))
    return "\n".join(parts)


def table(done: list[Done]) -> str:
    rows = ["## In all\n", "| step | seconds |", "| --- | --- |"]
    rows += [f"| {one.step.title} | {one.seconds:.1f} |" for one in done]
    return "\n".join([*rows, f"| all | {sum(one.seconds for one in done):.1f} |"]) + "\n"


def minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


HEAD = """\
# First steps

What a new user types, from an empty folder to a model on the Hub, and the output, as recorded by
`{command}`: {total} in all, on {cores} shared cores (load {load:.1f} at the start).

The `--set` options make the two rounds smaller than the quickstart's own; without them the commands are the same. The
Hub is a small server on this machine with the same protocol (`HF_ENDPOINT` names it). For huggingface.co you need
`hf auth login` and your own `owner/name`, nothing else.
"""


if __name__ == "__main__":
    main()
