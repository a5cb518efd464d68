"""The SHA-256 of all that a reduced quickstart makes, to compare two states of the code: a change that moves code must
change nothing. The figures depend on the processor: take both on one machine.

    python benchmarks/same_bits.py > before.txt; git switch …; python benchmarks/same_bits.py | diff before.txt -

One line a file of the last round's artifacts, the final policy's weights first. About a minute a round on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import faults

from posttrain import open_run
from posttrain.storage import store
from posttrain.storage.files import file_hash


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=1, help="rounds")
    with tempfile.TemporaryDirectory() as folder:
        run = faults.finished(Path(folder) / "run", parser.parse_args().n)
        view = open_run(run.root)
        assert view.policy
        print(file_hash(view.policy / "model.safetensors"), "policy")
        for role in view.rounds[-1].keys:
            for name, path in store.payload(view.artifact(view.rounds[-1], role)).items():
                print(file_hash(path), role, name)


if __name__ == "__main__":
    main()
