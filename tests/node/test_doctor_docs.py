import re
from pathlib import Path

from sandbox.node.doctor import all_ids


def test_every_check_is_documented_and_none_besides():
    text = (Path(__file__).parents[2] / "docs" / "posture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([a-z0-9-]+)`", " ".join(rows))) == sorted(all_ids())
