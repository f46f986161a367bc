"""The page at `/`, to try a server in a browser: drop pictures, type labels, see bars.

It holds nothing of the server, and asks it as any client does. Names and labels stay text: the page's policy lets
nothing run but its own script, by its hash, and nothing be asked but its own server.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from clipcls.outputs.content_policy import inline_source


@dataclass(frozen=True, slots=True)
class Page:
    """A page and what is sent with it.

    Attributes:
        html: in UTF-8.
        headers: by their names.
    """

    html: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """Return the page, which is read once."""
    html = files(__package__).joinpath("page.html").read_bytes()
    text = html.decode()
    policy = (
        f"default-src 'none'; script-src {inline_source(text, 'script')}; style-src {inline_source(text, 'style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # after an upgrade, the page that is shown is the server's own
        "Cache-Control": "no-cache",
    }
    return Page(html, headers)
