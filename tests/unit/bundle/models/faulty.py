"""An estimator that does what its first feature says: the models of this world are not all well."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

(WELL, RAISES, ENDS, HANGS, FILLS, BABBLES, SHOUTS, SHORT, TELLS, FORKS) = range(10)


class Faulty:
    """`predict` of rows whose first number chooses."""

    def predict(self, features: Any) -> Any:
        """Twice the second feature, or trouble."""
        act = int(features[0, 0])
        if act == RAISES:
            raise ValueError("no such carrier")
        if act == ENDS:
            os._exit(3)
        if act == HANGS:
            time.sleep(600)
        if act == FILLS:
            return np.ones((len(features), 1 << 30)).sum(axis=1)
        if act == BABBLES:
            for number in range(3, 4096):  # whatever number it has
                try:
                    socket.socket(fileno=os.dup(number)).sendall(b"\xff" * 64)
                except OSError:
                    continue
        if act == SHOUTS:
            for line in range(20_000):
                sys.stderr.write(f"line {line} of many\n")
            os._exit(4)
        if act == FORKS:
            return np.full(len(features), subprocess.Popen(["sleep", "600"]).pid)
        if act == SHORT:
            return features[:0, 1]
        if act == TELLS:
            open_files = [
                str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
            ]
            raise ValueError(repr((sorted(os.environ), open_files, os.getpgid(0) == os.getpid())))
        return features[:, 1] * 2
