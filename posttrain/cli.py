"""The command line: which commands there are, and how errors leave it. Each command is a file in `commands/`."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from posttrain.commands.chat import chat_
from posttrain.commands.check import check_
from posttrain.commands.compare import compare
from posttrain.commands.env import env_
from posttrain.commands.eval import eval_
from posttrain.commands.filter import filter_
from posttrain.commands.init import init_
from posttrain.commands.push import push_
from posttrain.commands.recipes import recipes_
from posttrain.commands.report import report
from posttrain.commands.round import round_
from posttrain.commands.sample import sample_
from posttrain.commands.schema import schema_
from posttrain.commands.stage import stage
from posttrain.commands.status import status_
from posttrain.commands.terminal import say
from posttrain.commands.verify import verify_
from posttrain.errors import PosttrainError
from posttrain.storage.redact import escape_libraries, redact

# The same table is in docs/commands.md. What is between two empty lines is a paragraph.
EPILOG = """
Begin with `posttrain init mine`. `posttrain COMMAND --help` has examples; `--install-completion` is for the shell.

Exit codes: 0 done; 1 an error that has no code of its own; 2 what was given is wrong, nothing was changed; \
3 a stage, an engine or a probe failed, what is whole stays; 4 another process works on this run; \
5 a file of the run is damaged; 6 the Hub refused or could not be reached; 130 stopped by Ctrl-C, 143 by SIGTERM.
"""

app = typer.Typer(
    help="The Llama 3 post-training loop: reward model, rejection sampling, filters, SFT, DPO, round after round.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("recipes")(recipes_)
app.command("init")(init_)
app.command("check")(check_)
app.command("round")(round_)
app.command("status")(status_)
app.command("report")(report)
app.command("verify")(verify_)
app.command("push")(push_)
app.command("eval")(eval_)
app.command("compare")(compare)
app.command("sample")(sample_)
app.command("chat")(chat_)
app.command("stage")(stage)
app.command("filter")(filter_)
app.command("env")(env_)
app.command("schema")(schema_)


def main() -> None:
    """Console entry: one message and an exit code for what we know of, a traceback for what we do not."""
    if not sys.stderr.isatty():  # bars of the libraries below, which a log file does not want
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    escape_libraries()
    try:
        app()
    except PosttrainError as error:
        say(f"posttrain: {redact(str(error))}", error=True)
        sys.exit(error.exit_code)
    except Exception:  # a mistake of ours: all of it, but in it may be what others wrote
        say(redact(traceback.format_exc()), error=True)
        sys.exit(1)
