"""What alphatune tune found, as the outputs of a step: outputs.py RESULT.json SUMMARY.md OUTPUT EXIT_CODE."""

import json
import sys
from pathlib import Path


def main(result: str, page: str, output: str, code: str) -> None:
    """Print ``name=value`` lines; where tune failed, say so on the page."""
    try:
        document = json.loads(Path(result).read_text(encoding="utf-8"))
    except ValueError:  # killed before it could speak
        document = {}
    found = {"exit-code": code, "decision": "", "alpha": "", "gain": "", "significant": ""}
    if "decision" in document:
        alpha, gain = document["chosen"]["alpha"], document["gain"]
        found |= {
            "decision": "unchanged" if document["decision"]["keep_baseline"] else "tuned",
            "alpha": "per layer" if isinstance(alpha, dict) else str(alpha),
            "gain": "" if gain is None else str(gain["delta"]),
            "significant": json.dumps(document["decision"]["significant"]),
            "report": f"{output}/report.html",
            "result": f"{output}/result.json",
        }
    else:
        with Path(page).open("a", encoding="utf-8") as file:
            if file.tell() == 0:  # tune was killed before it could say why
                file.write(f"# alphatune tune\n\n❌ **Exit code {code}**: see the log.\n")
    for name, value in found.items():
        print(f"{name}={' '.join(value.split())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
