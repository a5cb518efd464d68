"""What every test runs under. Set before anything imports torch or the Hugging Face libraries, which read it once."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

pytest.register_assert_rewrite("support")
_cache = tempfile.mkdtemp(prefix="posttrain-tests-")

os.environ.update(
    HF_HUB_OFFLINE="1",  # no test touches the network
    HF_HUB_DISABLE_TELEMETRY="1",  # each TRL trainer reports itself otherwise
    HF_HOME=_cache,  # nor what the user has cached
    OMP_NUM_THREADS="1",  # two cores; the same bits with one thread or two
    TOKENIZERS_PARALLELISM="false",  # its threads and fork do not go together
)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_cache, ignore_errors=True)
