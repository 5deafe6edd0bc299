"""Pages that need no network: formulas as MathML with their font, and nothing that is loaded."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import ExtensionError

# A script, a style sheet, a picture or a font of another host.
_LOADED = re.compile(
    r"""<(?:script|img|iframe)\b[^>]*\bsrc=["'](?:https?:)?//[^"']*"""
    r"""|<link\b(?=[^>]*\brel=["'](?:stylesheet|preload|preconnect))[^>]*\bhref=["'](?:https?:)?//[^"']*"""
    r"""|(?:@import|\burl\()\s*["']?(?:https?:)?//[^"')]*""",
    re.IGNORECASE,
)


def mathml(latex, *, block=False):
    """MathML of a formula; ValueError if a command is left over."""
    text = convert(latex, display="block" if block else "inline")
    if "\\" in text:
        raise ValueError(f"Expected commands that latex2mathml knows, got {latex!r}.")
    return text


def loaded(text):
    """Addresses of other hosts that a page or a style sheet loads."""
    return _LOADED.findall(text)


def _inline(self, node):
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(self, node):
    number = f'<span class="eqno">({node["number"]})</span>' if node["number"] else ""
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(f"{number}{mathml(node.astext(), block=True)}</div>\n")
    raise nodes.SkipNode


def _finish(app, exception):
    if exception or app.builder.format != "html":
        return
    # Without a mathematical font of its own a browser sets subscripts on the line.
    fonts = Path(find_spec("ziamath").origin).parent / "fonts"
    shutil.copy(fonts / "STIXTwoMath-Regular.ttf", Path(app.outdir) / "_static")
    pages = [app.builder.get_outfilename(name) for name in app.env.found_docs]
    files = [*map(Path, pages), *(Path(app.outdir) / "_static").rglob("*.css")]
    found = {path.name: loaded(path.read_text(encoding="utf-8")) for path in files}
    if any(found.values()):
        raise ExtensionError(f"Loaded from the network: { {k: v for k, v in found.items() if v} }")


def setup(app):
    """Register the renderer of formulas and the check."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("build-finished", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
