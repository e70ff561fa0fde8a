"""All benchmarks, or those named, one after the other, each in a process of its own. Run: make bench"""

import subprocess
import sys
from pathlib import Path

ORDER = (
    "startup", "checks", "training_set", "online", "governance", "lineage", "serving", "models", "serving_rivals",
    "compression", "compression_billion", "soak", "rollback", "demo",
)  # fmt: skip


def main() -> int:
    folder = Path(__file__).parent
    found = {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))}
    wrong = 0
    named = sys.argv[1:] or list(found)
    if unknown := [name for name in named if name not in found]:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(found)}", file=sys.stderr)
        return 2
    for name in sorted(named, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
        print(f"\n{name}\n{'=' * len(name)}", flush=True)
        wrong |= subprocess.run([sys.executable, str(found[name])], cwd=folder.parent, check=False).returncode
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
