"""Parts of the report's page: HTML of tables, pictures, notes and tiles, and the style they stand in.

Every text is escaped here; pictures are set in as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from dlrm_factory.tools.evaluation.pictures import COLOURS

__all__ = ["document", "judgement", "note", "picture", "table", "tiles"]

_PART = re.compile(r"([/_.,:=?-])(?=\w)")

# The colours of the pictures on a dark page; those on a light one are the pictures' own.
_DARK = {
    "paper": "#15181d",
    "ink": "#e4e8ed",
    "muted": "#9aa5b1",
    "line": "#333b45",
    "model": "#7fb3ea",
    "baseline": "#f5a742",
    "clicks": "#ff8087",
    "others": "#8d99a6",
}
assert _DARK.keys() == COLOURS.keys()


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_STYLE = f"""
:root {{ color-scheme: light dark; --soft: #f5f7fa; {_variables(COLOURS)} }}
@media (prefers-color-scheme: dark) {{ :root {{ --soft: #1d2228; {_variables(_DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; font-variant-numeric: tabular-nums; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2.6rem 0 .7rem; overflow-wrap: anywhere; }}
.lead {{ color: var(--muted); margin: 0; overflow-wrap: anywhere; }}
.word {{ white-space: nowrap; }}
.tiles {{ display: grid; grid-template-columns: repeat(5, 1fr); gap: .8rem; margin: 1.5rem 0; }}
.tile {{ background: var(--soft); border-radius: .5rem; padding: .7rem 1rem; }}
.tile .name, .tile .beside {{ color: var(--muted); font-size: .82rem; }}
.tile .value {{ font-size: 1.4rem; font-weight: 600; line-height: 1.35; }}
.tile .spread {{ font-size: .9rem; font-weight: 400; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: separate; border-spacing: 0; line-height: 1.35; }}
th, td {{ padding: .32rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }}
td {{ white-space: nowrap; }}
thead th {{ font-weight: 600; color: var(--muted); vertical-align: bottom; border-bottom: 2px solid var(--line); }}
th:first-child {{ text-align: left; padding-left: 0; font-weight: 500; position: sticky; left: 0;
  background: var(--paper); }}
tbody th .text {{ display: inline-block; max-width: 18rem; overflow-wrap: break-word; }}
tbody tr:hover > * {{ background: var(--soft); }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1.2rem 2rem;
  align-items: start; }}
figure {{ margin: 0; }}
figure svg {{ display: block; width: 100%; max-width: 34rem; height: auto; }}
figcaption {{ color: var(--muted); font-size: .85rem; margin-top: .2rem; }}
.judgement {{ border-left: 4px solid var(--model); border-radius: 0 .4rem .4rem 0; padding: .5rem 1rem; margin: .8rem 0;
  background: var(--soft); }}
.note {{ color: var(--muted); font-size: .88rem; max-width: 52rem; }}
@media (max-width: 60rem) {{
  .tiles {{ grid-template-columns: 1fr 1fr; }}
  .tile:first-child {{ grid-column: span 2; }}
}}
@media (max-width: 36rem) {{
  body {{ margin: 1rem auto; }}
  th, td {{ padding: .32rem .5rem; }}
  tbody th .text {{ max-width: 11.5rem; }}
}}
@media print {{ figure, .tile, tr {{ break-inside: avoid; }} .scroll {{ overflow: visible; }} }}
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page, which needs no other file and runs no script."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in a box that scrolls sideways by itself; the first cell of a row is its name and stays in sight."""
    head = "".join(f'<th scope="col">{_words(heading)}</th>' for heading in headings)
    lines = [
        f'<tr><th scope="row"><span class="text">{_name(name)}</span></th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    ]
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )


def _words(heading: str) -> str:
    """Lines break between words, and a browser would take the parts of ``log-loss`` for two; ± keeps its number."""
    words = heading.replace("± ", "±\N{NO-BREAK SPACE}").split(" ")
    return " ".join(f'<span class="word">{escape(word)}</span>' for word in words)


def _name(name: str) -> str:
    """A long name breaks where its parts end; within one only if the part is longer than the column."""
    return _PART.sub(r"\1<wbr>", escape(name))


def tiles(found: Sequence[tuple[str, str, Sequence[tuple[str, str]]]]) -> str:
    """Figures to see first: the name and the value of each, and names with values that stand beside it."""
    each = []
    for name, value, others in found:
        number, _, spread = value.partition(" ± ")
        spread = f' <span class="spread">± {escape(spread)}</span>' if spread else ""
        beside = ", ".join(
            f'{escape(name)} <span class="word">{escape(text)}</span>' for name, text in others
        )
        each.append(
            f'<div class="tile"><div class="name">{_words(name)}</div>'
            f'<div class="value word">{escape(number)}{spread}</div><div class="beside">{beside}</div></div>'
        )
    return f'<div class="tiles">{"".join(each)}</div>'


def picture(svg: str, caption: str) -> str:
    """A picture in the page's colours, light or dark, above its caption."""
    inline = svg[svg.index("<svg") :]  # HTML takes no XML declaration or document type within a page
    for name, colour in COLOURS.items():
        inline = inline.replace(colour, f"var(--{name})")
    inline = inline.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" ', 1)
    return f"<figure>{inline}<figcaption>{escape(caption)}</figcaption></figure>"


def judgement(text: str) -> str:
    """A sentence that follows from the figures."""
    return f'<p class="judgement">{escape(text)}</p>'


def note(sentences: Sequence[str]) -> list[str]:
    """A paragraph below a table; none of no sentences."""
    return [f'<p class="note">{escape(" ".join(sentences))}</p>'] if sentences else []
