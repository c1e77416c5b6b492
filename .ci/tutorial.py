"""The first tutorial, docs/tutorial.md, as one session of a shell: every block in its order, with the seconds of each.

python .ci/tutorial.py [--small]        small: few pictures and one epoch, as in .ci/run
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOUSE = Path(__file__).parent.parent
SMALL = {'"train": 200, "test": 80': '"train": 20, "test": 8', "--epochs 6": "--epochs 1"}

TIME = 'import sys, time; print(f"== {time.time() - float(sys.argv[1]):.0f} s: {sys.argv[2]}", flush=True)'


def script(*, is_small: bool) -> str:
    """Return the blocks as a script that prints a line `== seconds: heading` before each."""
    sys.path.insert(0, str(HOUSE / "tests"))
    from pages import blocks

    parts = ["set -euo pipefail", "begun=$EPOCHREALTIME"]
    for heading, kind, text in blocks(HOUSE / "docs" / "tutorial.md"):
        if kind in ("bash", "python"):
            parts.append(f"python -c '{TIME}' $begun '{heading}'")
            parts.append(text if kind == "bash" else f"python - <<'END'\n{text}END")
    session = "\n".join(parts)
    for own, small in SMALL.items() if is_small else ():
        assert own in session, f"the tutorial does not say {own}"
        session = session.replace(own, small)
    return session


def main() -> None:
    """Run the session in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        session = script(is_small="--small" in sys.argv)
        begun = time.monotonic()
        with subprocess.Popen(["bash"], stdin=subprocess.PIPE, cwd=folder, text=True) as shell:
            shell.communicate(session)
        print(f"== {time.monotonic() - begun:.0f} s: the end")
        sys.exit(shell.returncode)


if __name__ == "__main__":
    main()
