"""All figures of the paper, one after the other, and a page of what they found.

``python run.py [--full] [--data FOLDER] [--cache FOLDER] [--out FOLDER] [fig1 fig5 ...]``
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shared import COLUMNS, RESULTS

HERE = Path(__file__).resolve().parent
FIGURES = {path.stem.split("_")[1]: path for path in sorted(HERE.glob("plot_fig*.py"))}
HEAD = """# The figures of the paper

What the scripts of `examples/paper` find, beside what was published and what an audit of it found.
`make paper` writes this page. Size: {size}.

| figure | what | published | audited | here | verdict | seconds |
|---|---|---|---|---|---|---|
"""


def arguments(argv=None):
    """Figures to run, and what they are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help="all by default")
    parser.add_argument("--full", action="store_true", help="the sizes of the paper")
    parser.add_argument("--data", help="folder of mnist.npz")
    parser.add_argument("--cache", help="folder of the results of cells that are done")
    parser.add_argument("--out", default=HERE.parents[1] / "doc" / "paper", type=Path)
    args = parser.parse_args(argv)
    unknown = [name for name in args.figures if name not in FIGURES]
    if unknown:
        parser.error(f"Expected figures among {', '.join(FIGURES)}; got {', '.join(unknown)}.")
    return args


def run(script, options, folder):
    """Rows of one figure, and its seconds; a row with the error where it failed."""
    environment = {"MPLBACKEND": "Agg"} | os.environ | {RESULTS: str(folder)}
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, script, *options], env=environment, check=False)
    seconds = time.perf_counter() - begin
    figure = script.stem.split("_")[1]
    try:
        rows = json.loads((folder / f"{figure}.json").read_text())
    except OSError:
        rows = []
    if done.returncode or not rows:
        rows.append(dict.fromkeys(COLUMNS, "") | {"what": "the script", "verdict": "**failed**"})
    return rows, seconds, done.returncode == 0


def page(found, size):
    """The page, in Markdown."""
    lines = []
    for figure, (rows, seconds, _) in found.items():
        for i, row in enumerate(rows):
            first = (figure.removeprefix("fig"), f"{seconds:.0f}") if i == 0 else ("", "")
            cells = [first[0], *(row[column].replace("|", "\\|") for column in COLUMNS), first[1]]
            lines.append(f"| {' | '.join(cells)} |")
    return HEAD.format(size=size) + "\n".join(lines) + "\n"


def main(argv=None):
    """Run the figures and write the page; 0 if all of them held."""
    args = arguments(argv)
    options = ["--full"] if args.full else []
    for name in ("data", "cache"):
        if getattr(args, name):
            options += [f"--{name}", str(Path(getattr(args, name)).resolve())]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for figure in args.figures or FIGURES:
            print(f"--- {figure}", flush=True)
            found[figure] = run(FIGURES[figure], options, Path(folder))
        args.out.mkdir(parents=True, exist_ok=True)
        size = "the paper's" if args.full else "quick"
        if args.cache:
            size += "; the seconds are without those of cells from earlier runs"
        text = page(found, size)
        (args.out / "results.md").write_text(text)
    print(text)
    return 0 if all(held for _, _, held in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
