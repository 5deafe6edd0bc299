"""Two processes that write one folder at the same time."""

import subprocess
import sys


def assert_two_write(code, folder):
    """Assert that both print the same numbers and leave no part of a file.

    The code reads a line before it begins with the folder, its only argument.
    """
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    runs = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for run in runs:  # both begin at once
        run.stdin.write("\n")
        run.stdin.flush()
    ends = [run.communicate() for run in runs]
    assert [run.returncode for run in runs] == [0] * 2, ends
    (printed,) = {out for out, _ in ends}
    assert printed.strip()
    assert list(folder.rglob("*.*"))
    assert not list(folder.rglob("*.part"))
