"""What the page refuses: other hosts, other pages, other people, other files, and too much of anything."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest
from served_page import ServedPage

from sim.ui.site import BODY_S, MOST_AT_A_TIME, MOST_BYTES

pytestmark = pytest.mark.waits

ASKED = json.dumps({"name": "tiny.yaml"})


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


@pytest.mark.promise("The page's policy allows its one script by hash, and connections to itself.")
def test_the_page_opens_with_its_address_and_runs_nothing_but_its_own_script(served: ServedPage) -> None:
    status, text, headers = served.request("GET", f"/?token={served.token}")
    assert status == 200
    assert "<h1>tiny</h1>" in text
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers
    assert text.count("<script") == 1
    assert "http://" not in text.replace(served.origin, "")
    assert "https://" not in text


@pytest.mark.promise("`ui` listens on 127.0.0.1 only, and connects to nothing.")
def test_it_listens_on_this_machine_only(served: ServedPage) -> None:
    other = socket.gethostbyname_ex(socket.gethostname())[2]
    for address in {*other, "127.0.0.2"} - {"127.0.0.1"}:
        with contextlib.closing(socket.socket()) as tried:
            tried.settimeout(2)
            assert tried.connect_ex((address, served.port)) != 0


@pytest.mark.promise("Every request needs the token of its address, and a `Host` that names this machine and port.")
@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}"])
def test_another_host_name_is_refused(served: ServedPage, host: str) -> None:
    for method, body in (("GET", None), ("POST", ASKED)):
        headers = {**served.headers(), "Host": host.format(port=served.port)}
        status, text, _ = served.request(method, f"/?token={served.token}", headers, body)
        assert status == 403
        assert "127.0.0.1 and localhost only" in text


@pytest.mark.promise("Requests from other pages are refused by their `Origin`, and so is every change without one.")
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:1", ""])
def test_another_origin_is_refused(served: ServedPage, origin: str) -> None:
    headers = {**served.headers(), "Origin": origin}
    assert served.request("POST", "/api/follow", headers, ASKED)[0] == 403
    assert served.request("GET", f"/?token={served.token}", {"Origin": origin})[0] == 403


def test_a_change_needs_an_origin_and_no_other_site_behind_it(served: ServedPage) -> None:
    assert served.request("POST", "/api/open", without(served.headers(), "Origin"), ASKED)[0] == 403
    assert served.request("POST", "/api/open", {**served.headers(), "Sec-Fetch-Site": "cross-site"}, ASKED)[0] == 403
    assert served.request("POST", "/api/open", {**served.headers(), "Sec-Fetch-Site": "same-origin"}, ASKED)[0] == 200


@pytest.mark.parametrize("path", ["/", "/?token=", "/?token=wrong", "/?token=%C3%BC", "/runs/x/report.html"])
def test_without_the_token_nothing_is_answered(served: ServedPage, path: str) -> None:
    status, text, _ = served.request("GET", path)
    assert status == 403
    assert "token" in text
    headers = without(served.headers(), "X-Loraplan-Token")
    assert served.request("POST", "/api/open", headers, ASKED)[0] == 403
    assert served.request("POST", "/api/open", {**headers, "X-Loraplan-Token": served.token[:-1]}, ASKED)[0] == 403
    assert served.request("POST", "/api/open", {**headers, "Cookie": f"token={served.token}"}, ASKED)[0] == 403


@pytest.mark.promise("Reports that it shows lie in `runs` of that folder; links are not followed.")
def test_nothing_outside_the_reports_of_the_folder_is_read(served: ServedPage) -> None:
    runs = served.folder / "runs"
    (runs / "one").mkdir(parents=True)
    (runs / "one" / "report.html").write_text("<p>mine</p>")
    (runs / "one" / "manifest.json").write_text("{}")
    (served.folder / "report.html").write_text("outside")
    (runs / "linked").symlink_to(Path("/etc"))
    (runs / "two").mkdir()
    (runs / "two" / "report.html").symlink_to("/etc/hostname")
    token = f"?token={served.token}"
    status, text, headers = served.request("GET", f"/runs/one/report.html{token}")
    assert (status, text) == (200, "<p>mine</p>")
    assert "script-src 'sha256-" in headers["Content-Security-Policy"]
    for path in (
        "/runs/one/manifest.json",
        "/runs/../report.html",
        "/runs/%2e%2e/report.html",
        "/runs/..%2f..%2fetc/report.html",
        "/runs/one/..%2f..%2freport.html",
        "/runs/one%2f../report.html",
        "/runs/two/report.html",
        "/runs/linked/report.html",
        "/runs/linked/hostname",
        "/runs/one/",
        "/runs/%00/report.html",
        "/tiny.yaml",
        "//etc/hostname",
    ):
        status, text, _ = served.request("GET", path + token)
        assert status == 404, path
        assert "outside" not in text


@pytest.mark.promise("Only your own page can use the server of `ui`.", "and refuses other names")
@pytest.mark.parametrize(
    "asked",
    [
        {"name": "/etc/hostname"},
        {"name": "../tiny.yaml"},
        {"name": "mine.yaml", "text": "extends: /etc/hostname\n"},
        {"name": "mine.yaml", "text": "extends: quickstart\nname: m\nworkload: {trace: {file: ../../x.csv}}\n"},
        {"name": "mine.yaml", "text": "extends: quickstart\nname: m\nfleet: {profile: /etc/passwd}\n"},
    ],
)
def test_no_scenario_names_a_file_outside_the_folder(served: ServedPage, asked: dict[str, str]) -> None:
    status, text = served.post("/api/open", asked)
    found = json.loads(text)
    assert (status, found["stage"]) == (200, "refused")
    assert "root:" not in text


def test_a_bad_file_is_refused_with_its_line_and_value(served: ServedPage) -> None:
    text = "extends: quickstart\nname: mine\ncache:\n  gpu: {slots: many}\n"
    _, answer = served.post("/api/open", {"name": "mine.yaml", "text": text})
    (problem,) = json.loads(answer)["problems"]
    assert problem["text"].startswith("mine.yaml:4: cache.gpu.slots:")
    assert "got many" in problem["text"]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{",
        '{"name": 3}',
        '{"name": "tiny.yaml", "more": 1}',
        '{"name": "tiny.yaml", "pins": [{}, {}, {}, {}]}',
        json.dumps({"name": "tiny.yaml", "values": {str(n): "1" for n in range(101)}}),
        json.dumps({"name": "m.yaml", "text": "x" * 1_000_001}),
    ],
)
def test_what_is_no_question_is_answered_with_400(served: ServedPage, body: str) -> None:
    for path in ("/api/open", "/api/follow", "/api/scenario", "/api/report", "/api/plan"):
        status, _, _ = served.request("POST", path, served.headers(), body)
        assert status == 400


@pytest.mark.promise("A body has at most 4 MB, and 12 requests are answered at a time.")
def test_a_huge_body_is_refused_whatever_it_says_of_its_length(served: ServedPage) -> None:
    headers = {**served.headers(), "Content-Length": str(MOST_BYTES + 1)}
    assert served.request("POST", "/api/open", headers, b"")[0] == 413
    head = "".join(f"{key}: {value}\r\n" for key, value in served.headers().items())
    with contextlib.closing(socket.create_connection(("127.0.0.1", served.port), timeout=30)) as raw:
        start = f"POST /api/open HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n{head}Transfer-Encoding: chunked\r\n\r\n"
        raw.sendall(start.encode())
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):  # it may hang up at any time
            for _ in range(MOST_BYTES // 0x10000 + 2):
                raw.sendall(piece)
        answer = raw.recv(100)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_header_given_twice_is_refused(served: ServedPage) -> None:
    with contextlib.closing(socket.create_connection(("127.0.0.1", served.port), timeout=30)) as raw:
        host = f"Host: 127.0.0.1:{served.port}\r\n"
        token = f"X-Loraplan-Token: {served.token}\r\n"
        raw.sendall(f"GET / HTTP/1.1\r\n{host}{token}{token}\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.promise("12 requests are answered at a time")
def test_too_many_at_a_time_are_refused_and_those_that_leave_make_room(served: ServedPage) -> None:
    # Each of these computes for half a minute, unless its reader leaves.
    streams = [served.events({"name": "two-gpus", "values": {"cache.gpu.slots": str(n)}}) for n in range(20, 32)]
    assert len(streams) == MOST_AT_A_TIME
    threads = [threading.Thread(target=next, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    status, text = served.post("/api/follow", {"name": "tiny.yaml"})
    assert (status, "Too many" in text) == (429, True)
    for stream in streams:
        stream.close()
    for _ in range(200):
        if served.post("/api/open", {"name": "tiny.yaml"})[0] == 200:
            break
        threading.Event().wait(0.05)
    stages = [event["stage"] for event in served.events({"name": "tiny.yaml"})]
    assert "final" in stages


@pytest.mark.promise("A request's head and its body have five seconds each to arrive; then the connection is closed.")
def test_half_open_connections_and_slow_bodies_hold_the_page_for_seconds_only(served: ServedPage) -> None:
    headers = {**served.headers(), "Host": f"127.0.0.1:{served.port}", "Content-Length": "1000"}
    head = "POST /api/open HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in headers.items())
    with contextlib.ExitStack() as opened:

        def connections(count: int, sent: str) -> list[socket.socket]:
            address = ("127.0.0.1", served.port)
            made = [opened.enter_context(socket.create_connection(address, timeout=30)) for _ in range(count)]
            for each in made:
                each.sendall(sent.encode())
            return made

        began = time.monotonic()
        slow = connections(MOST_AT_A_TIME, head + "\r\n{")
        assert served.post("/api/open", {"name": "tiny.yaml"})[0] == 429
        half_open = connections(26, "") + connections(26, head)
        assert served.post("/api/open", {"name": "tiny.yaml"})[0] == 503
        while time.monotonic() - began < BODY_S - 1:  # bytes that trickle in are no reason to wait longer
            for each in (*slow, *half_open[26:]):
                each.sendall(b" " if each in slow else b"X")
            time.sleep(0.5)
        assert all(each.recv(100).startswith(b"HTTP/1.1 408") for each in slow)
        assert all(each.recv(100) == b"" for each in half_open)
        assert time.monotonic() - began < BODY_S + 5
        assert served.post("/api/open", {"name": "tiny.yaml"})[0] == 200


def test_web_sockets_and_other_methods_are_refused(served: ServedPage) -> None:
    upgrade = {**served.headers(), "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert served.request("GET", "/api/follow", upgrade)[0] in (400, 405)
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert served.request(method, "/api/follow", served.headers())[0] == 405
    assert served.request("GET", "/api/follow", served.headers())[0] == 405
