"""The parts of the package in layers, drawn as SVG from the imports in its source."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from functools import cache
from html import escape
from importlib.util import find_spec
from pathlib import Path

NAME = "sklearn_implicitreg"
ROOT = Path(find_spec(NAME).origin).parent  # the installed one, wherever it is
FACE = "__init__"  # the package's own, from which users import
SHELL = "__main__"  # the same, from a command line

_WIDTH, _HEIGHT, _GAP = 800, 46, 52  # of the picture, of a box, between layers
_COLORS = ("#1f4e79", "#d3dce6")  # of arrows that nothing else implies, and of the others


def dotted(path: Path) -> str:
    """Import name of a file, a package under the name of its directory."""
    parts = [NAME, *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Root module or package that a module belongs to."""
    part = module.split(".")[1] if "." in module else FACE
    return FACE if part == SHELL else part


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path.name}:{node.lineno} imports relatively.")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if _is_module(name) else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == NAME} - {dotted(path)}


def _is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@cache
def arrows() -> Counter[tuple[str, str]]:
    """How many modules of a part import how many of another, by the pair of parts."""
    found: Counter[tuple[str, str]] = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        mine = part_of(dotted(path))
        found.update((mine, part_of(m)) for m in sorted(imports(path)) if part_of(m) != mine)
    return found


def heights(pairs: set[tuple[str, str]]) -> dict[str, int]:
    """Arrows on the longest chain below each part."""
    below: dict[str, set[str]] = {part_of(dotted(path)): set() for path in ROOT.rglob("*.py")}
    for upper, lower in pairs:
        below[upper].add(lower)

    @cache
    def height(part: str) -> int:
        return max((1 + height(lower) for lower in below[part]), default=0)

    return {part: height(part) for part in below}


def implied(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Arrows between parts that are connected through others as well."""

    @cache
    def leads(upper: str, lower: str) -> bool:
        return (upper, lower) in pairs or any(leads(b, lower) for a, b in pairs if a == upper)

    return {(a, c) for a, c in pairs if any(leads(b, c) for x, b in pairs if x == a and b != c)}


def svg() -> str:
    """The picture: a box for each part, an arrow for imports, as wide as they are many."""
    counts = arrows()
    pairs = set(counts)
    indirect = implied(pairs)
    boxes = _placed(_layers(pairs), pairs - indirect)
    bottom = max(y for _, y, _ in boxes.values()) + _HEIGHT + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom}" '
        f'width="{_WIDTH}" height="{bottom}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{bottom}" fill="white"/>',
    ]
    ordered = sorted(pairs, key=lambda pair: (pair not in indirect, pair))
    lines += [_arrow(boxes, pair, counts, pair in indirect) for pair in ordered]
    lines += [_box(part, place) for part, place in boxes.items()]
    lines += [_number(boxes, pair, counts[pair]) for pair in ordered if pair not in indirect]
    return "\n".join([*lines, "</svg>\n"])


def _layers(pairs: set[tuple[str, str]]) -> list[list[str]]:
    """Parts from top to bottom, each directly above the highest part that it imports."""
    of = heights(pairs)
    return [sorted(p for p in of if of[p] == h) for h in range(max(of.values()), -1, -1)]


def _placed(
    layers: list[list[str]], pairs: set[tuple[str, str]]
) -> dict[str, tuple[float, float, float]]:
    """Left edge, top and width of each box; in a layer, below what imports it most."""
    boxes: dict[str, tuple[float, float, float]] = {}

    def middle(part: str) -> float:
        above = [boxes[a][0] + boxes[a][2] / 2 for a, b in pairs if b == part and a in boxes]
        return sum(above) / len(above) if above else _WIDTH / 2

    for i, layer in enumerate(layers):
        y = 10 + i * (_HEIGHT + _GAP)
        share = _WIDTH / len(layer)
        for j, part in enumerate(sorted(layer, key=middle)):
            width = min(170.0, share - 16)
            # Boxes of layers next to each other are shifted, so that arrows pass between them.
            shift = (i % 2 - 0.5) * 90 if len(layer) < 4 else 0.0
            boxes[part] = ((j + 0.5) * share - width / 2 + shift, y, width)
    return boxes


def _arrow(
    boxes: dict[str, tuple[float, float, float]],
    pair: tuple[str, str],
    counts: Counter[tuple[str, str]],
    indirect: bool,
) -> str:
    x1, y1, x2, y2 = _ends(boxes, pair)
    bend = (y2 - y1) / 2
    width = 1.2 if indirect else 1 + counts[pair] ** 0.5 * 0.7
    color = _COLORS[indirect]
    return (
        f'<path d="M{x1:.1f},{y1:.1f} C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} '
        f'{x2:.1f},{y2 - 7:.1f}" fill="none" stroke="{color}" stroke-width="{width:.1f}"/>'
        f'<path d="M{x2 - 5:.1f},{y2 - 9:.1f} h10 l-5,9 z" fill="{color}"/>'
    )


def _ends(
    boxes: dict[str, tuple[float, float, float]], pair: tuple[str, str]
) -> tuple[float, float, float, float]:
    """Where an arrow leaves and arrives: on each edge in the order of what it connects."""
    (upper, lower), ends = pair, []
    for own, other, top in ((upper, lower, False), (lower, upper, True)):
        x, y, width = boxes[own]
        others = sorted(_partners(own, top), key=lambda part: boxes[part][0] + boxes[part][2] / 2)
        place = (others.index(other) + 1) / (len(others) + 1)
        ends += [x + place * width, y if top else y + _HEIGHT]
    return ends[0], ends[1], ends[2], ends[3]


def _partners(part: str, above: bool) -> list[str]:
    """Parts that import this one, or that it imports."""
    return [a if above else b for a, b in arrows() if (b if above else a) == part]


def _box(part: str, place: tuple[float, float, float]) -> str:
    x, y, width = place
    files = [path for path in ROOT.rglob("*.py") if part_of(dotted(path)) == part]
    size = f"{len(files)} modules" if len(files) > 1 else "1 module"
    subject = ast.get_docstring(ast.parse(_source(part))) or ""
    return (
        f"<g><title>{escape(subject.splitlines()[0] if subject else part)}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_HEIGHT}" rx="5" '
        f'fill="#eef3f8" stroke="{_COLORS[0]}"/>'
        f'<text x="{x + width / 2:.1f}" y="{y + 21}" text-anchor="middle" font-size="15" '
        f'font-weight="bold">{escape(part)}</text>'
        f'<text x="{x + width / 2:.1f}" y="{y + 37}" text-anchor="middle" font-size="11" '
        f'fill="#555555">{size}</text></g>'
    )


def _source(part: str) -> str:
    """Text of the module, or of the package's ``__init__``."""
    path = ROOT / part
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def _number(boxes: dict[str, tuple[float, float, float]], pair: tuple[str, str], count: int) -> str:
    x1, y1, x2, y2 = _ends(boxes, pair)
    # On the curve of _arrow, in the gap below its start, where no box covers it.
    along = [i / 200 for i in range(101)]
    risen = {t: 1.5 * t * (1 - t) + t**3 for t in along}
    t = min(along, key=lambda t: abs(risen[t] * (y2 - y1) - _GAP / 2))
    x, y = x1 + (3 * t**2 - 2 * t**3) * (x2 - x1), y1 + risen[t] * (y2 - y1)
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="white"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="12" '
        f'fill="{_COLORS[0]}">{count}</text>'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(svg())
