"""The demo's job, as a customer would write it: name the type of every file with the sealed model, write the answer to /out."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from magika import Magika, PredictionMode


def main(weights: Path, data: Path, out: Path) -> None:
    """Classify every file below ``data`` with the model in ``weights``; write ``result.json`` into ``out``."""
    start = time.monotonic()
    model = Magika(model_dir=weights, prediction_mode=PredictionMode.HIGH_CONFIDENCE)
    print(f"model loaded in {time.monotonic() - start:.2f} s", flush=True)
    answers = {}
    for path in sorted(item for item in data.rglob("*") if item.is_file()):
        result = model.identify_path(path)
        answers[str(path.relative_to(data))] = {
            "type": str(result.output.label),
            "score": round(float(result.score), 4),
            "bytes": path.stat().st_size,
        }
        print(f"{path.name}: {result.output.label}", flush=True)
    (out / "result.json").write_text(json.dumps({"model": model.get_model_name(), "files": answers}, indent=2) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
