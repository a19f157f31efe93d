"""Markdown of answers to HTML that a page may show: nothing in it runs, loads or looks like the page itself."""

from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

LONGEST = 100_000
"""Characters of a text at most."""
_LONGEST_CODE = 20_000
"""Characters of code that are highlighted at most: lexers are slow."""
_LEXERS = """
bash c cpp c++ csharp c# css diff dockerfile go golang haskell html http ini java javascript js json jsx julia kotlin
latex lua make makefile markdown md objective-c perl php powershell python py pycon r ruby rb rust rs scala sh shell
sql swift tex toml ts tsx typescript xml yaml yml zig
""".split()  # noqa: SIM905
"""Languages that answers are written in; lexers for others see no text of strangers."""
_TAGS = {
    "a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span", "strong",
    "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES: dict[str, set[str]] = {"a": {"href", "title"}, "ol": {"start"}, "pre": {"data-language"}}
_ALIGNED = {"text-align:left": "left", "text-align:center": "center", "text-align:right": "right"}


@dataclass(frozen=True)
class Block:
    """A block of the topmost level (a paragraph, a list, a table), and its lines `begin <= line < end`."""

    html: str
    begin: int
    end: int


class _Renderer(RendererHTML):
    """markdown-it's own, but for code and images."""

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        language = tokens[idx].info.strip().partition(" ")[0].lower()[:32]
        return (
            f'<pre data-language="{nh3.clean_text(language)}"><code>{_code(tokens[idx].content, language)}</code></pre>'
        )

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        return f"<pre><code>{nh3.clean_text(tokens[idx].content)}</code></pre>"

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: MutableMapping[str, Any]) -> str:
        """A link: an image would be a request to wherever the model says, with whatever it says."""
        image = tokens[idx]
        text = self.renderInlineAsText(image.children, options, env) or "image"
        return f'<a href="{nh3.clean_text(str(image.attrs["src"]))}">{nh3.clean_text(text)}</a>'


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}, renderer_cls=_Renderer)
    return parser.enable(["table", "strikethrough"])


def _code(text: str, language: str) -> str:
    if language not in _LEXERS or len(text) > _LONGEST_CODE:
        return nh3.clean_text(text)
    return str(highlight(text, get_lexer_by_name(language, stripnl=False), HtmlFormatter(nowrap=True)))


def render(text: str) -> list[Block]:
    """The blocks of a Markdown text (CommonMark with GitHub's tables and strikethrough), highlighted and cleaned.

    HTML in the text stays text. Links lead to http, https and mailto only, images become links, headings begin at the
    third level, below the page's own.
    """
    environment: dict[str, Any] = {}
    parser = _parser()
    blocks = []
    for tokens in _blocks(parser.parse(text, environment)):
        for token in tokens:
            _adapt(token)
        html = parser.renderer.render(tokens, parser.options, environment)
        begin, end = tokens[0].map or [0, 0]
        blocks.append(Block(_clean(html), begin, end))
    return blocks


def closed(text: str, blocks: list[Block]) -> int:
    """How many of the first blocks stay as they are, whatever is appended to the text.

    A block is closed when another one begins in a line that is whole: `#` could still become `#tag`, which would
    belong to the paragraph before it.
    """
    whole = text.count("\n")
    return sum(following.begin < whole for following in blocks[1:])


def _blocks(tokens: list[Token]) -> Iterator[list[Token]]:
    block: list[Token] = []
    depth = 0
    for token in tokens:
        block.append(token)
        depth += token.nesting
        if depth == 0:
            yield block
            block = []


def _adapt(token: Token) -> None:
    if token.type in ("heading_open", "heading_close"):
        token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    elif token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", None)):
        token.attrs["align"] = _ALIGNED[str(style)]  # the page's policy allows no style attribute


def _clean(html: str) -> str:
    return nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        allowed_classes={"span": set(STANDARD_TYPES.values())},
        tag_attribute_values={"th": {"align": set(_ALIGNED.values())}, "td": {"align": set(_ALIGNED.values())}},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
