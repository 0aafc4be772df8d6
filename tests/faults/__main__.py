"""`python -m tests.faults`: kills, stops, starves and damages training; checks what comes of it.

python -m tests.faults --seed 1 --count 100
python -m tests.faults --hours 8 --stage 3 --only sigkill-rank --only hang-c
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.faults.forks import Forks
from tests.faults.harness import Harness, table
from tests.faults.kinds import KINDS
from tests.tiny_corpus import make_corpus


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="injections (of one round)")
    parser.add_argument("--hours", type=float, default=0.0, help="rounds with new seeds, so long")
    parser.add_argument("--processes", type=int, help="ranks (default: 1 to 4)")
    parser.add_argument("--stage", type=int, help="of ZeRO (default: 0 to 3)")
    parser.add_argument("--only", action="append", choices=sorted(KINDS), help="may be repeated")
    parser.add_argument(
        "--fresh-every", type=int, default=8, help="campaigns whose processes import anew; 0: none"
    )
    parser.add_argument("--parallel", type=int, default=1, help="campaigns at a time")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one, removed")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Runs the harness; 1 if something was not as it should be."""
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    with Forks() as forks, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        (folder / "corpus").mkdir(parents=True)
        corpus = make_corpus(folder / "corpus")
        end = time.monotonic() + 3600 * arguments.hours
        seed = arguments.seed
        harness = Harness(
            corpus / "run.yaml",
            folder,
            forks,
            arguments.stage,
            arguments.processes,
            fresh_every=arguments.fresh_every,
        )
        # Ctrl-C: what is under way ends, and the table comes.
        with suppress(KeyboardInterrupt):
            while True:
                names = arguments.only or harness.possible()
                harness.run(seed, arguments.count, names, arguments.parallel)
                seed += 1
                if time.monotonic() >= end:
                    break
        if arguments.json:
            print(json.dumps(harness.result(), indent=2))  # noqa: T201
        else:
            print(table(harness))  # noqa: T201
    return 1 if harness.problems else 0


if __name__ == "__main__":
    sys.exit(main())
