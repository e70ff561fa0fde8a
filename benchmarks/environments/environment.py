"""Environments of what we are measured against: made by uv from a folder's pinned requirements, once."""

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent


def python_of(name: str, *, dependencies: bool = True) -> Path:
    """The interpreter of `benchmarks/environments/NAME/requirements.txt`'s environment; made if it is not there.

    It lies in `.cache`, which git ignores, and is made again when the requirements change. dependencies: whether what
    the requirements ask for comes too.
    """
    requirements = HERE / name / "requirements.txt"
    folder = HERE / ".cache" / name
    stamp, digest = folder / "requirements.sha256", sha256(requirements.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != digest:
        print(f"making the environment of {name} (once) …", file=sys.stderr, flush=True)
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run(
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True
        )
        command = [uv, "pip", "install", "--quiet", "--python", str(python), "-r", str(requirements)]
        command += [] if dependencies else ["--no-deps"]
        subprocess.run(command, check=True)
        stamp.write_text(digest)
    return python
