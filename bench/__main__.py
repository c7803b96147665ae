"""``python -m bench [NAME [OPTIONS…]] [--json]``: run one bench with its options, or all of them.

Exit 1 where a goal is not met or a bench broke. With ``--json``: one document for one bench, a list of documents for all (a bench
that broke has none; what it said is on stderr).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

NAMES = ("api", "audit", "lazy", "leak", "lease", "receipt", "seal", "wipe")
"""The modules and folders here that are programs of their own, run without words, and answer as ``bench.report`` says."""


def main(words: Sequence[str]) -> int:
    """Run the named bench, or all."""
    name = words[0] if words and not words[0].startswith("-") else None
    if name is not None:
        if name not in NAMES:
            sys.stderr.write(f"bench: no bench called {name}; there are: {', '.join(NAMES)}\n")
            return 2
        return subprocess.run(_program(name, words[1:]), check=False).returncode
    if "--json" not in words:
        return _worst([subprocess.run(_program(each, words), check=False).returncode for each in NAMES])
    done = [subprocess.run(_program(each, words), check=False, stdout=subprocess.PIPE) for each in NAMES]
    print(json.dumps([json.loads(item.stdout) for item in done if item.stdout], indent=2, ensure_ascii=False))
    return _worst([item.returncode for item in done])


def _worst(codes: Sequence[int]) -> int:
    """Return 0 where every bench ended well. One that a signal ended has a negative code, which must not count as less than 0."""
    return int(any(codes))


def _program(name: str, words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}", *words]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
