"""``python -m bench [NAME [OPTIONS…]] [--json]``: run one bench with its options, or all of them.

Exit 1 where a goal is not met. With ``--json``: one document for one bench, a list of documents for all.
"""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence

import bench

_NOT_BENCHES = {"__main__", "ceiling", "peers", "report", "console"}


def names() -> list[str]:
    """Return the benches there are."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(bench.__path__)
        if module.name not in _NOT_BENCHES and (not module.ispkg or module.name == "leak")
    )


def main(words: Sequence[str]) -> int:
    """Run the named bench, or all."""
    name = words[0] if words and not words[0].startswith("-") else None
    if name is not None:
        if name not in names():
            sys.stderr.write(f"bench: no bench called {name}; there are: {', '.join(names())}\n")
            return 2
        return subprocess.run(_program(name, words[1:]), check=False).returncode
    if "--json" not in words:
        return max(subprocess.run(_program(each, words), check=False).returncode for each in names())
    done = [subprocess.run(_program(each, words), check=False, stdout=subprocess.PIPE) for each in names()]
    print(json.dumps([json.loads(item.stdout) for item in done], indent=2, ensure_ascii=False))
    return max(item.returncode for item in done)


def _program(name: str, words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}", *words]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
