"""Fetching pictures, from real servers on this machine; only names and addresses of the internet are made up."""

import gc
import gzip
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any

import pytest

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.web import Web
from clipcls.inputs.web.addresses import is_public
from clipcls.inputs.web.targets import parse

LIMIT = 1_000_000
PICTURE = bytes(range(256)) * 40
NAME = "pictures.example"
PUBLIC, SECOND, SIXTH = "93.184.216.34", "1.1.1.1", "2606:4700:4700::1111"

Answer = Callable[["Handler"], None]


# ---------------------------------------------------------------------------------------------------------
# A web server, and an internet


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    server: "Server"

    def setup(self) -> None:
        self.site = self.server.site
        self.site.opened += 1
        if self.server.context is not None:
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        super().finish()
        self.request.close()
        self.site.ended += 1

    def do_GET(self) -> None:
        path = self.path.encode("latin-1").decode()
        self.site.requests.append((path, dict(self.headers)))
        answers = self.site.answers[path]
        (answers.pop(0) if len(answers) > 1 else answers[0])(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, site: "Site", context: ssl.SSLContext | None) -> None:
        self.site, self.context = site, context
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are what is tested."""


class Site:
    """A server, what it answers to each path (one answer after the other, the last for good), and what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.opened = self.ended = 0
        self.over = threading.Event()
        self._server = Server(self, context)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.named = f"http{'s' if context else ''}://{NAME}:{self.port}"

    def __enter__(self) -> "Site":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def sees_all_connections_end(self) -> bool:
        until = time.monotonic() + 2
        while not 0 < self.ended == self.opened and time.monotonic() < until:
            time.sleep(0.01)
        return 0 < self.ended == self.opened


def reply(body: bytes = PICTURE, status: int = 200, **headers: str) -> Answer:
    """An answer with a length of its own, unless the headers (`_` for `-`) hold one."""

    def answer(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def moved(location: str, status: int = 302, **headers: str) -> Answer:
    return reply(b"moved", status, Location=location, **headers)


def raw(*pieces: bytes, pause: float = 0.0) -> Answer:
    """The pieces as they are, with a pause after each; then the connection ends."""

    def answer(handler: Handler) -> None:
        for piece in pieces:
            handler.wfile.write(piece)
            handler.site.over.wait(pause)
        handler.close_connection = True

    return answer


def silent(handler: Handler) -> None:
    handler.site.over.wait(5)
    handler.close_connection = True


def cut(length: int = len(PICTURE)) -> Answer:
    """An answer that promises more than it holds."""
    return raw(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + PICTURE[:50])


@dataclass
class Internet:
    """What names lead to, and what public addresses lead to: this machine.

    Attributes:
        names: what looking a name up gives or raises.
        asked: the names that were looked up.
        connected: the addresses that were connected to, whether they answered or not.
        refusing: addresses that refuse connections.
        silent: addresses that never answer.
        slow: addresses that answer after so many seconds.
    """

    names: dict[str, Callable[[], Sequence[str]]]
    asked: list[str]
    connected: list[str]
    refusing: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    slow: dict[str, float] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def internet(monkeypatch: pytest.MonkeyPatch) -> Internet:
    """No test asks a real name server, or a machine that isn't this one."""
    names: dict[str, Callable[[], Sequence[str]]] = {
        "localhost": lambda: ["::1", "127.0.0.1"],
        NAME: lambda: [PUBLIC],
        "other.example": lambda: [SECOND],
        "intranet.example": lambda: ["192.168.1.1", "fd00::1"],
    }
    web = Internet(names, [], [])
    look_up, connect = socket.getaddrinfo, socket.create_connection

    def found(host: str, port: int, *_: object, **__: object) -> Any:
        if host not in web.names:  # in whatever notation the system understands
            return look_up(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        web.asked.append(host)
        families = ((ip_address(address).version, address) for address in web.names[host]())
        kinds = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(kinds[version], socket.SOCK_STREAM, 6, "", (address, port)) for version, address in families]

    def connected(address: tuple[str, int], timeout: float, source_address: None = None) -> socket.socket:
        host, port = address
        web.connected.append(host)
        if host in web.refusing:
            raise ConnectionRefusedError(111, "Connection refused")
        if host in web.silent:
            time.sleep(timeout)
            raise TimeoutError("timed out")
        time.sleep(web.slow.get(host, 0))
        assert host in (PUBLIC, SECOND, SIXTH, "127.0.0.1"), f"a connection to {host}"
        return connect(("127.0.0.1", port), timeout)

    monkeypatch.setattr(socket, "getaddrinfo", found)
    monkeypatch.setattr(socket, "create_connection", connected)
    return web


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        site.answers["/a.png"] = [reply()]
        yield site


@pytest.fixture
def open_web(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Web]]:
    """Opens a `Web` that may ask this machine, and waits only for a moment between attempts."""
    monkeypatch.setattr("clipcls.inputs.web.fetching._FIRST_WAIT", 0.01)
    opened = []

    def open_web(**settings: Any) -> Web:
        opened.append(Web(**{"timeout": 2.0, "allow_private": True} | settings))
        return opened[-1]

    yield open_web
    for web in opened:
        web.close()


def problem(web: Web, url: str, max_bytes: int = LIMIT) -> str:
    """What fetching an address ends with."""
    with pytest.raises(ImageError) as caught:
        web.fetch(url, max_bytes)
    message = str(caught.value)
    assert "\n" not in message and url not in message
    return message


class Stopwatch:
    def __enter__(self) -> "Stopwatch":
        self._start = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._start


# ---------------------------------------------------------------------------------------------------------
# Asking


def test_fetch_gives_the_content(site: Site, open_web: Callable[..., Web]) -> None:
    assert open_web().fetch(f"{site.url}/a.png", LIMIT) == PICTURE


def test_fetch_gives_an_empty_content(site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/empty"] = [reply(b"")]
    assert open_web().fetch(f"{site.url}/empty", LIMIT) == b""


def test_fetch_gives_a_content_in_chunks_and_one_that_ends_with_its_connection(
    site: Site, open_web: Callable[..., Web]
) -> None:
    site.answers["/chunks"] = [
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
    ]
    site.answers["/old"] = [raw(b"HTTP/1.0 200 OK\r\n\r\n", b"abc")]
    web = open_web()
    assert web.fetch(f"{site.url}/chunks", LIMIT) == b"abcde"
    assert web.fetch(f"{site.url}/old", LIMIT) == b"abc"


def test_fetch_says_who_asks_and_for_what(site: Site, open_web: Callable[..., Web]) -> None:
    open_web(allow_private=False).fetch(f"{site.named}/a.png", LIMIT)
    headers = site.requests[0][1]
    assert re.fullmatch(r"clipcls/\d\S* \(.+\)", headers["User-Agent"])
    assert headers["Host"] == f"{NAME}:{site.port}"
    assert headers["Accept-Encoding"] == "identity"
    assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding"}


def test_fetch_encodes_what_an_address_cannot_hold(site: Site, open_web: Callable[..., Web]) -> None:
    expected = "/a%20b/%C3%A9%FF.png?q=%E7%8C%AB&r=1%2F2"
    site.answers[expected] = [reply()]
    assert open_web().fetch(f"{site.url}/a b/é\udcff.png?q=猫&r=1%2F2#part", LIMIT) == PICTURE
    assert site.paths() == [expected]


def test_fetch_keeps_connections(site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/moved"] = [moved("/a.png")]
    web = open_web()
    for path in ("a.png", "moved", "a.png"):
        web.fetch(f"{site.url}/{path}", LIMIT)
    assert len(site.requests) == 4
    assert site.opened == 1


def test_fetch_ignores_proxies_of_the_environment(
    site: Site, open_web: Callable[..., Web], internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://10.0.0.1:3128")
    assert open_web(allow_private=False).fetch(f"{site.named}/a.png", LIMIT) == PICTURE
    assert internet.connected == [PUBLIC]


def test_fetch_from_many_threads_gives_each_its_own(site: Site, open_web: Callable[..., Web]) -> None:
    count = 32
    together = threading.Barrier(count, timeout=5)

    def answer(number: int) -> Answer:
        def once_all_have_asked(handler: Handler) -> None:
            together.wait()
            reply(b"%d" % number * 1000)(handler)

        return once_all_have_asked

    site.answers |= {f"/{number}": [answer(number)] for number in range(count)}
    web = open_web(timeout=5.0)
    with ThreadPoolExecutor(count) as pool:
        contents = list(pool.map(lambda number: web.fetch(f"{site.url}/{number}", LIMIT), range(count)))
    assert contents == [b"%d" % number * 1000 for number in range(count)]
    assert site.opened == count


def test_web_ends_its_connections_when_it_is_no_longer_used(site: Site) -> None:
    def use() -> None:
        web = Web(timeout=2.0, allow_private=True)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: web.fetch(f"{site.url}/a.png", LIMIT), range(40)))

    use()
    gc.collect()
    assert site.sees_all_connections_end()


def test_web_loads_its_client_at_the_first_address() -> None:
    code = "import sys, clipcls.inputs.web; clipcls.inputs.web.Web(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"httpcore2", "h11", "ssl"} & set(done.stdout.split())


@pytest.mark.parametrize("settings", [{"timeout": 0.0}, {"timeout": float("nan")}, {"retries": -1}])
def test_web_refuses_limits_that_are_none(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"must be above 0|can't be negative"):
        Web(**settings)


# ---------------------------------------------------------------------------------------------------------
# Addresses


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("http://Example.COM", "example.com", 80, "/"),
        ("HTTPS://example.com.:8443/a?b", "example.com", 8443, "/a?b"),
        ("http://example.com?q", "example.com", 80, "/?q"),
        ("http://bücher.example/", "xn--bcher-kva.example", 80, "/"),
        ("http://[2606:4700::1]:81/", "2606:4700::1", 81, "/"),
        ("http://a_b-c.example:/x", "a_b-c.example", 80, "/x"),
    ],
)
def test_parse_takes_an_address_apart(url: str, host: str, port: int, path: str) -> None:
    target = parse(url)
    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("ftp://example.com/a.png", "http:// or https://"),
        ("file:///etc/passwd", "http:// or https://"),
        ("a.png", "http:// or https://"),
        ("http:///a.png", "host"),
        ("http://:80/", "host"),
        ("http://./", "host"),
        ("http://a..b/", "host"),
        ("http://" + "a" * 64 + ".example/", "host"),
        ("http://a b/", "host"),
        ("http://127.0.0.1\\.example.com/", "host"),
        ("http://%31%32%37.0.0.1/", "host"),
        ("http://[fe80::1%25eth0]/", "host"),
        ("http://[::1/", "host or port"),
        ("http://example.com:99999/", "host or port"),
        ("http://example.com:http/", "host or port"),
        ("http://exam\nple.com/", "control character"),
        ("http://example.com/a\0b", "control character"),
        ("http://anna:geheim@example.com/", "name or password"),
        ("http://anna@example.com/", "name or password"),
        ("http://example.com\\@127.0.0.1/", "name or password"),
    ],
)
def test_fetch_refuses_what_is_no_address(
    url: str, pattern: str, open_web: Callable[..., Web], internet: Internet
) -> None:
    message = problem(open_web(), url)
    assert re.search(pattern, message)
    assert "geheim" not in message and "anna" not in message
    assert internet.asked == internet.connected == []


NOT_PUBLIC = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254"),
    *("169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.88.99.1"),
    *("192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "224.0.1.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::", "3fff::1", "4000::1", "5f00::1", "fc00::1"),
    *("fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "ff0e::1"),
)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_is_public_refuses_what_the_public_web_does_not_reach(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "169.253.0.1", "172.32.0.1"),
        *("192.0.1.1", "223.255.255.254", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"),
        *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
    ],
)
def test_is_public_allows_ordinary_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0x7F000001", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("①②⑦.0.0.1", "127.0.0.1"),
        ("127。0。0。1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("0", "0.0.0.0"),
        ("2852039166", "169.254.169.254"),
        ("localhost", "::1"),
        ("LOCALHOST.", "::1"),
        ("intranet.example", "192.168.1.1"),
        ("[::1]", "::1"),
        ("[::]", "::"),
        ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1|::ffff:7f00:1"),
        ("[64:ff9b::7f00:1]", "64:ff9b::7f00:1"),
    ],
)
def test_fetch_refuses_hosts_that_are_not_public(
    host: str, named: str, site: Site, open_web: Callable[..., Web], internet: Internet
) -> None:
    message = problem(open_web(allow_private=False), f"http://{host}:{site.port}/a.png")
    assert re.search(rf"(^|leads to )({named}),? isn't on the public web; --allow-private-urls allows it$", message)
    assert internet.connected == site.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f000001", "localhost"])
def test_fetch_asks_this_machine_where_that_is_allowed(
    host: str, site: Site, open_web: Callable[..., Web], internet: Internet
) -> None:
    internet.refusing = ("::1",)
    assert open_web().fetch(f"http://{host}:{site.port}/a.png", LIMIT) == PICTURE


def test_fetch_tries_only_the_public_addresses_of_a_name(
    site: Site, open_web: Callable[..., Web], internet: Internet
) -> None:
    internet.names[NAME] = lambda: ["10.0.0.1", SIXTH, "::1", PUBLIC, "fe80::1%eth0"]
    internet.refusing = (SIXTH,)
    assert open_web(allow_private=False).fetch(f"{site.named}/a.png", LIMIT) == PICTURE
    assert internet.connected == [SIXTH, PUBLIC]


def test_fetch_connects_to_the_address_that_was_checked(
    site: Site, open_web: Callable[..., Web], internet: Internet
) -> None:
    """A name that leads elsewhere the second time (DNS rebinding)."""
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    internet.names[NAME] = lambda: next(answers)
    site.answers["/a.png"] = [reply(Connection="close")]
    web = open_web(allow_private=False)
    assert web.fetch(f"{site.named}/a.png", LIMIT) == PICTURE
    assert (internet.asked, internet.connected) == ([NAME], [PUBLIC])
    assert "leads to 127.0.0.1, isn't on the public web" in problem(web, f"{site.named}/a.png")
    assert internet.connected == [PUBLIC]
    assert len(site.requests) == 1


def test_fetch_leaves_time_for_the_second_address(site: Site, open_web: Callable[..., Web], internet: Internet) -> None:
    internet.names[NAME] = lambda: [SECOND, PUBLIC]
    internet.silent = (SECOND,)
    web = open_web(timeout=0.8, retries=0, allow_private=False)
    assert web.fetch(f"{site.named}/a.png", LIMIT) == PICTURE
    assert internet.connected == [SECOND, PUBLIC]


def test_fetch_says_that_a_name_cannot_be_resolved(open_web: Callable[..., Web], internet: Internet) -> None:
    def unknown() -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    internet.names["nowhere.invalid"] = unknown
    message = problem(open_web(), "http://nowhere.invalid/a.png")
    assert message == "the name nowhere.invalid can't be resolved: name or service not known"
    assert internet.asked == ["nowhere.invalid"]


def test_fetch_looks_a_name_up_again_after_a_passing_failure(
    site: Site, open_web: Callable[..., Web], internet: Internet
) -> None:
    def failing() -> list[str]:
        if len(internet.asked) < 3:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [PUBLIC]

    internet.names[NAME] = failing
    assert open_web(allow_private=False).fetch(f"{site.named}/a.png", LIMIT) == PICTURE


# ---------------------------------------------------------------------------------------------------------
# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_fetch_follows_redirects(status: int, site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/x/start"] = [moved("../second?n=1", status)]
    site.answers["/second?n=1"] = [moved(f"{site.url}/a.png", status)]
    assert open_web().fetch(f"{site.url}/x/start", LIMIT) == PICTURE
    assert site.paths() == ["/x/start", "/second?n=1", "/a.png"]


def test_fetch_follows_five_redirects_and_no_more(site: Site, open_web: Callable[..., Web]) -> None:
    for number in range(6):
        site.answers[f"/{number}"] = [moved(f"/{number + 1}")]
    site.answers["/6"] = [reply()]
    web = open_web()
    assert web.fetch(f"{site.url}/1", LIMIT) == PICTURE
    assert problem(web, f"{site.url}/0") == "more than 5 redirects"
    site.answers["/loop"] = [moved("/loop")]
    assert problem(web, f"{site.url}/loop") == "more than 5 redirects"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/secret",
        "http://2130706433:{port}/secret",
        "http://localhost:{port}/secret",
        "http://[::1]:{port}/secret",
        "//10.0.0.7/secret",
        "http://169.254.169.254/latest/meta-data/",
        "http://intranet.example/secret",
    ],
)
def test_fetch_refuses_redirects_to_what_is_not_public(
    location: str, site: Site, open_web: Callable[..., Web], internet: Internet
) -> None:
    site.answers["/start"] = [moved(location.format(port=site.port))]
    assert "isn't on the public web" in problem(open_web(allow_private=False), f"{site.named}/start")
    assert site.paths() == ["/start"]
    assert internet.connected == [PUBLIC]


@pytest.mark.parametrize(
    ("location", "pattern"),
    [
        ("file:///etc/passwd", "redirected to .*: not an address that begins with http"),
        ("ftp://other.example/a.png", "redirected to .*: not an address that begins with http"),
        ("http://anna:geheim@other.example/", "redirected to .*: an address with a user's name or password"),
        ("http://[::1/", "redirected to what isn't an address"),
        ("", "^HTTP 302: found$"),
    ],
)
def test_fetch_refuses_redirects_to_what_is_no_address(
    location: str, pattern: str, site: Site, open_web: Callable[..., Web]
) -> None:
    site.answers["/start"] = [moved(location)]
    message = problem(open_web(), f"{site.url}/start")
    assert re.search(pattern, message)
    assert "geheim" not in message
    assert site.paths() == ["/start"]


def test_fetch_hands_nothing_on_to_where_it_is_redirected(site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/start"] = [moved(f"http://other.example:{site.port}/a.png", Set_Cookie="id=7; Path=/")]
    web = open_web(allow_private=False)
    for _ in range(2):
        assert web.fetch(f"{site.named}/start", LIMIT) == PICTURE
    first, second, third, _ = (headers for _, headers in site.requests)
    assert not {"Cookie", "Referer", "Authorization"} & {*first, *second, *third}
    assert second["Host"] == f"other.example:{site.port}"


# ---------------------------------------------------------------------------------------------------------
# Answers without a picture


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "HTTP 404: not found"),
        (403, "HTTP 403: forbidden"),
        (410, "HTTP 410: gone"),
        (204, "HTTP 204: no content"),
        (206, "HTTP 206: partial content"),
        (599, "HTTP 599"),
    ],
)
def test_fetch_gives_up_at_once_where_that_will_not_pass(
    status: int, message: str, site: Site, open_web: Callable[..., Web]
) -> None:
    site.answers["/bad"] = [reply(b"", status)]
    assert problem(open_web(), f"{site.url}/bad") == message
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_fetch_tries_again_what_may_pass(status: int, site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/busy"] = [reply(b"busy", status), reply(b"busy", status), reply()]
    assert open_web().fetch(f"{site.url}/busy", LIMIT) == PICTURE
    assert len(site.requests) == 3


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_fetch_tries_no_more_often_than_asked(retries: int, site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/busy"] = [reply(b"busy", 503)]
    assert problem(open_web(retries=retries), f"{site.url}/busy") == "HTTP 503: service unavailable"
    assert len(site.requests) == retries + 1


@pytest.mark.parametrize("hang_up", [raw(), raw(b"HTTP/1.1 200"), raw(b"SSH-2.0-OpenSSH\r\n"), cut()])
def test_fetch_tries_again_after_a_broken_answer(hang_up: Answer, site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/broken"] = [hang_up, reply()]
    assert open_web().fetch(f"{site.url}/broken", LIMIT) == PICTURE
    site.answers["/broken"] = [hang_up]
    assert problem(open_web(retries=1), f"{site.url}/broken") == "the answer breaks off, or isn't HTTP"
    assert len(site.requests) == 4


def test_fetch_tries_again_after_a_reset(site: Site, open_web: Callable[..., Web]) -> None:
    def reset(handler: Handler) -> None:
        # with this, closing sends a reset
        handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        handler.close_connection = True

    site.answers["/reset"] = [reset, reply()]
    assert open_web().fetch(f"{site.url}/reset", LIMIT) == PICTURE
    site.answers["/reset"] = [reset]
    assert problem(open_web(retries=0), f"{site.url}/reset") == "the connection broke: connection reset by peer"


def test_fetch_says_that_nobody_answers_there(open_web: Callable[..., Web]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert problem(open_web(), f"http://127.0.0.1:{port}/") == "no connection to 127.0.0.1: connection refused"


def test_fetch_waits_as_long_as_the_server_asks(site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/busy"] = [reply(b"busy", 429, Retry_After="1"), reply()]
    with Stopwatch() as watch:
        assert open_web(timeout=4.0).fetch(f"{site.url}/busy", LIMIT) == PICTURE
    assert 1 <= watch.seconds < 2


@pytest.mark.parametrize("value", ["30", "9" * 400, "Wed, 21 Oct 2099 07:28:00 GMT", "Wed, 21 Oct 2099 07:28:00 -0000"])
def test_fetch_gives_up_where_it_would_wait_too_long(value: str, site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/busy"] = [reply(b"busy", 503, Retry_After=value)]
    with Stopwatch() as watch:
        message = problem(open_web(), f"{site.url}/busy")
    assert re.fullmatch(r"HTTP 503: service unavailable; it asks to wait (30|86,400) s", message)
    assert watch.seconds < 1
    assert len(site.requests) == 1


@pytest.mark.parametrize(
    "value", ["0", "-1", "soon", "", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Oct 2015 07:28 GMT"]
)
def test_fetch_tries_again_soon_where_no_wait_is_asked_for(
    value: str, site: Site, open_web: Callable[..., Web]
) -> None:
    site.answers["/busy"] = [reply(b"busy", 503, Retry_After=value), reply()]
    with Stopwatch() as watch:
        assert open_web().fetch(f"{site.url}/busy", LIMIT) == PICTURE
    assert watch.seconds < 1


# ---------------------------------------------------------------------------------------------------------
# Time


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(silent, id="no answer"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nX: ", *[b"x"] * 100, pause=0.05), id="headers that drip"),
        pytest.param(raw(HEAD, *[b"x"] * 100, pause=0.05), id="a body that drips"),
        pytest.param(raw(*[b"HTTP/1.1 100 Continue\r\n\r\n"] * 100, pause=0.05), id="answers without end"),
        pytest.param(reply(b"busy", 503), id="one attempt after the other"),
    ],
)
@pytest.mark.parametrize("retries", [0, 1000])
def test_fetch_takes_no_longer_than_said(
    answer: Answer, retries: int, site: Site, open_web: Callable[..., Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipcls.inputs.web.fetching._FIRST_WAIT", 0.2)
    site.answers["/slow"] = [answer]
    with Stopwatch() as watch:
        message = problem(open_web(timeout=0.4, retries=retries), f"{site.url}/slow")
    assert re.fullmatch(r"no (complete answer within 0.4|answer for 0.2) s|HTTP 503.*", message)
    assert watch.seconds < 0.9


def test_fetch_says_how_long_it_waited(site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/slow"] = [silent]
    assert problem(open_web(timeout=0.2, retries=0), f"{site.url}/slow") == "no complete answer within 0.2 s"


def test_fetch_ends_in_time_where_a_server_falls_silent_late(site: Site, open_web: Callable[..., Web]) -> None:
    def late(handler: Handler) -> None:
        raw(HEAD, b"x", pause=0.35)(handler)
        handler.wfile.write(b"x")
        silent(handler)

    site.answers["/late"] = [late]
    with Stopwatch() as watch:
        message = problem(open_web(timeout=0.8, retries=1), f"{site.url}/late")
    assert message == "no complete answer within 0.8 s"
    assert watch.seconds < 1


def test_fetch_tries_again_where_a_server_falls_silent(site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/slow"] = [silent, reply()]
    assert open_web(timeout=0.8).fetch(f"{site.url}/slow", LIMIT) == PICTURE


def test_fetch_waits_no_longer_than_said_for_a_connection(open_web: Callable[..., Web], internet: Internet) -> None:
    internet.silent = (PUBLIC,)
    with Stopwatch() as watch:
        assert problem(open_web(timeout=0.2, retries=0), f"http://{NAME}/") == "no complete answer within 0.2 s"
    assert watch.seconds < 0.7


def test_fetch_ends_a_connection_that_came_too_late(
    site: Site, open_web: Callable[..., Web], internet: Internet
) -> None:
    internet.slow[PUBLIC] = 0.25
    url = f"https://{NAME}:{site.port}/"
    assert problem(open_web(timeout=0.2, retries=0), url) == "no complete answer within 0.2 s"
    assert site.sees_all_connections_end()


def test_fetch_waits_no_longer_than_said_for_a_name(open_web: Callable[..., Web], internet: Internet) -> None:
    go_on = threading.Event()

    def slow() -> list[str]:
        go_on.wait(5)
        return [PUBLIC]

    internet.names["slow.example"] = slow
    with Stopwatch() as watch:
        message = problem(open_web(timeout=0.2, retries=0), "http://slow.example/")
    go_on.set()
    assert message == "no complete answer within 0.2 s"
    assert watch.seconds < 0.7


def test_fetch_waits_no_longer_than_said_for_a_handshake(open_web: Callable[..., Web]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Stopwatch() as watch:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        assert problem(open_web(timeout=0.2, retries=0), url) == "no complete answer within 0.2 s"
    assert watch.seconds < 0.7


# ---------------------------------------------------------------------------------------------------------
# Size


def test_fetch_takes_a_content_of_just_the_limit(site: Site, open_web: Callable[..., Web]) -> None:
    assert open_web().fetch(f"{site.url}/a.png", len(PICTURE)) == PICTURE


def test_fetch_refuses_what_is_announced_as_too_large(site: Site, open_web: Callable[..., Web]) -> None:
    def announced(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n")
        silent(handler)

    site.answers["/large"] = [announced]
    assert problem(open_web(), f"{site.url}/large") == "1,000,001 bytes, more than the limit of 1,000,000"


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_fetch_stops_reading_what_turns_out_too_large(head: bytes, site: Site, open_web: Callable[..., Web]) -> None:
    written = []

    def endless(handler: Handler) -> None:
        handler.wfile.write(head)
        for _ in range(1000):
            handler.wfile.write(b"10000\r\n" + bytes(2**16) + b"\r\n")
            written.append(2**16)

    site.answers["/endless"] = [endless]
    assert problem(open_web(), f"{site.url}/endless") == "more than the limit of 1,000,000 bytes"
    assert sum(written) < 30 * LIMIT  # what the system's buffers take in
    assert len(site.requests) == 1


def test_fetch_unpacks_what_comes_packed_unasked(site: Site, open_web: Callable[..., Web]) -> None:
    large = os.urandom(10_000) + bytes(200_000)
    site.answers["/packed"] = [reply(gzip.compress(large), Content_Encoding="gzip")]
    assert open_web().fetch(f"{site.url}/packed", LIMIT) == large


def test_fetch_refuses_what_is_too_large_unpacked(site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/bomb"] = [reply(gzip.compress(bytes(20 * LIMIT), 1), Content_Encoding="gzip")]
    web = open_web()
    web.fetch(f"{site.url}/a.png", LIMIT)  # loads what it needs
    tracemalloc.start()
    try:
        assert problem(web, f"{site.url}/bomb") == "more than the limit of 1,000,000 bytes"
        assert tracemalloc.get_traced_memory()[1] < 5 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "coding", "message"),
    [
        (gzip.compress(PICTURE)[:-9], "gzip", "it comes packed with gzip, and breaks off"),
        (b"\xff" * 99, "gzip", "it comes packed with gzip, and is damaged"),
        (PICTURE, "br", "it comes packed as 'br', unasked"),
        (PICTURE, "\x9b2J", r"it comes packed as '\\?.*2j', unasked"),
    ],
)
def test_fetch_refuses_what_it_cannot_unpack(
    body: bytes, coding: str, message: str, site: Site, open_web: Callable[..., Web]
) -> None:
    site.answers["/packed"] = [reply(body, Content_Encoding=coding)]
    found = problem(open_web(), f"{site.url}/packed")
    assert re.fullmatch(message, found) and found.isprintable()


# ---------------------------------------------------------------------------------------------------------
# Encryption


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for NAME that nobody has signed, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = f"{openssl} req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 -subj /CN={NAME}"
    extensions = ["-addext", f"subjectAltName=DNS:{NAME}", "-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command.split(), *extensions, *files], check=True, capture_output=True)
    return folder / "certificate.pem"


@pytest.fixture
def names_asked() -> list[str | None]:
    """The names that clients of `secure_site` gave when they began to encrypt."""
    return []


@pytest.fixture
def secure_site(certificate: Path, names_asked: list[str | None]) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    context.sni_callback = lambda _, name, __: names_asked.append(name)
    with Site(context) as site:
        site.answers["/a.png"] = [reply()]
        yield site


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))


def test_fetch_refuses_a_certificate_that_nobody_signed(secure_site: Site, open_web: Callable[..., Web]) -> None:
    message = problem(open_web(allow_private=False), f"{secure_site.named}/a.png")
    assert message.startswith("its certificate can't be trusted: self") and "SSL_CERT_FILE" in message
    assert secure_site.requests == []
    assert secure_site.opened == 1


@pytest.mark.usefixtures("trusted")
def test_fetch_over_an_encrypted_connection_keeps_the_name(
    secure_site: Site, open_web: Callable[..., Web], internet: Internet, names_asked: list[str | None]
) -> None:
    web = open_web(allow_private=False)
    assert [web.fetch(f"{secure_site.named}/a.png", LIMIT) for _ in range(2)] == [PICTURE] * 2
    assert internet.connected == [PUBLIC]
    assert names_asked == [NAME]
    assert secure_site.requests[0][1]["Host"] == f"{NAME}:{secure_site.port}"


@pytest.mark.usefixtures("trusted")
def test_fetch_refuses_the_certificate_of_another_host(secure_site: Site, open_web: Callable[..., Web]) -> None:
    for host in ("other.example", "127.0.0.1"):
        message = problem(open_web(), f"https://{host}:{secure_site.port}/a.png")
        assert message.startswith("its certificate can't be trusted: ") and host in message
    assert secure_site.requests == []


@pytest.mark.usefixtures("trusted")
def test_fetch_refuses_a_redirect_that_gives_up_encryption(
    secure_site: Site, site: Site, open_web: Callable[..., Web]
) -> None:
    secure_site.answers["/start"] = [moved(f"{site.named}/a.png")]
    message = problem(open_web(allow_private=False), f"{secure_site.named}/start")
    assert message.startswith("redirected from https to http, ")
    assert site.requests == []


@pytest.mark.usefixtures("trusted")
def test_fetch_follows_a_redirect_to_encryption(secure_site: Site, site: Site, open_web: Callable[..., Web]) -> None:
    site.answers["/start"] = [moved(f"{secure_site.named}/a.png")]
    assert open_web(allow_private=False).fetch(f"{site.named}/start", LIMIT) == PICTURE


def test_fetch_says_that_the_other_side_does_not_encrypt(open_web: Callable[..., Web]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        message = problem(open_web(retries=0), f"https://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()
    assert message.startswith("no secure connection: ")


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_fetch_says_that_the_named_certificates_cannot_be_read(
    content: str | None, site: Site, open_web: Callable[..., Web], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "bundle.pem").write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    with pytest.raises(UsageError, match="The certificates that SSL_CERT_FILE names can't be read: "):
        open_web().fetch(f"{site.url}/a.png", LIMIT)
