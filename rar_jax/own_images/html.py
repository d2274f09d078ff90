"""Writes a web page of headings, paragraphs, tables, pictures and commands, which needs no other site."""

import dataclasses
import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.55 system-ui, sans-serif; max-width: 58rem; margin: 0 auto; padding: 1rem; }
p, td, figcaption { overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.2rem; }
.lead { font-size: 1.15rem; }
img { max-width: 100%; height: auto; background: white; }
figure { margin: 1rem 0; } figcaption { font-size: 0.9rem; }
table { border-collapse: collapse; } td, th { padding: 0.3rem 1rem 0.3rem 0; text-align: left; vertical-align: top; }
tr { border-top: 1px solid #8886; } td:nth-child(2) { font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { overflow-x: auto; padding: 0.6rem; background: #8882; border-radius: 0.3rem; }
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
      file: its path, relative to the page.
      alt: what it shows, for readers who cannot see it.
      caption: the text below it.
    """

    file: str
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of the page; its parts follow in this order.

    Attributes:
      heading: the heading.
      paragraphs: texts.
      rows: the rows of a table: what, value, and what it means.
      pictures: pictures.
      commands: what a command does -> the command.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    rows: Sequence[tuple[str, str, str]] = ()
    pictures: Sequence[Picture] = ()
    commands: Sequence[tuple[str, str]] = ()


def render(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns the HTML of a page.

    Args:
      title: title and first heading.
      lead: the sentence below it.
      sections: the sections.
    """
    body = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']
    for section in sections:
        body += _section(section)
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def _section(section: Section) -> list[str]:
    lines = [f"<h2>{html.escape(section.heading)}</h2>"]
    lines += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    if section.rows:
        lines.append("<table>")
        for name, *cells in section.rows:
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>')
        lines.append("</table>")
    for picture in section.pictures:
        source, alt, caption = map(html.escape, dataclasses.astuple(picture))
        lines.append(f'<figure><a href="{source}"><img src="{source}" alt="{alt}" loading="lazy"></a>')
        lines.append(f"<figcaption>{caption}</figcaption></figure>")
    for what, command in section.commands:
        lines.append(f"<p>{html.escape(what)}</p>\n<pre><code>{html.escape(command)}</code></pre>")
    return lines
