"""Chromium without a window, driven over a pipe by the DevTools protocol: what a person does with a page."""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlparse

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
"""The browser; None where there is none."""

_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_KEYS = {
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowDown": 40,
    "Home": 36,
    "End": 35,
    "PageUp": 33,
    "Tab": 9,
    "Enter": 13,
}


class Page:
    """A page that is open, and what went wrong on it so far (`problems`)."""

    def __init__(self, write, read):
        self._write, self._read, self._count, self._session = write, read, 0, None
        self.problems = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _next(self):
        """The next message; problems that it tells of are kept."""
        text = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        message = json.loads(text)
        method, about = message.get("method", ""), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(about["exceptionDetails"])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.problems.append(about["entry"])
        elif method == "Network.requestWillBeSent" and not about["request"]["url"].startswith(("file:", "data:", "about:")):
            self.problems.append(about["request"]["url"])
        return message

    def open(self, path, width=1200, height=900, dark=False):
        """Show a file in a window of a size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[colours])
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + 30
        while self.value("document.readyState") != "complete" or self.value("location.href") == "about:blank":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.02)

    def value(self, expression):
        """The value of an expression, waited for if it is a promise."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key, times=1):
        """Press a key, as a person would."""
        for _ in range(times):
            # A button is pressed by the character that Enter makes.
            letters = {"text": "\r"} if key == "Enter" else {}
            for kind, more in (("keyDown" if letters else "rawKeyDown", letters), ("keyUp", {})):
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_KEYS[key], **more)

    def close(self):
        """End the browser."""
        self._session = None
        self.call("Browser.close")

    def picture(self, path, whole=False):
        """Save what is seen, or the whole page, as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(folder):
    """A page in a browser of its own, whose profile is in `folder`; both end with the block."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    # The protocol is on file descriptors 3 and 4; the shell lays them there.
    command = 'a=$1; b=$2; shift 2; eval "exec 3<&$a 4>&$b"; exec "$@"'
    flags = [*_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", str(from_us), str(to_us), PROGRAM, *flags],
        pass_fds=(from_us, to_us),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    with os.fdopen(to_browser, "wb") as write, os.fdopen(from_browser, "rb") as read:
        try:
            page = Page(write, read)
            yield page
            page.close()
            process.wait(timeout=20)
        finally:
            process.terminate()
            process.wait(timeout=20)


_LOADED = re.compile(
    r"""<(?:script|link|img|iframe|source|object|embed)\b[^>]*?\b(?:src|srcset|href|data)\s*=\s*["'](?!data:)([^"']*)"""
    r"""|@import([^;]*)|url\((?!["']?(?:#|data:))([^)]*)\)"""
)


def loaded(html):
    """What a page would load from elsewhere when it is opened; a link that one may click on loads nothing."""
    return ["".join(parts) for parts in _LOADED.findall(html)]


def assert_readable(page, path):
    """A page of a report on a phone and on a desk: no wider than either, with guides, and with figures as large as drawn."""
    assert loaded(path.read_text(encoding="utf-8")) == []
    for width in (390, 1280):
        page.open(path, width=width)
        assert page.value("document.documentElement.scrollWidth") <= width, (path, width)
        figures = page.value(
            "[...document.querySelectorAll('figure')].map(one => [one.querySelector('a[href$=\".svg\"] > img')])"
            ".map(([img]) => img && [img.getBoundingClientRect().width, img.naturalWidth])"
        )
        assert all(figures), path
        assert width > 390 or all(shown >= natural - 1 for shown, natural in figures), (path, figures)
    links = page.value("[...document.querySelectorAll('footer a')].map(one => one.href)")
    guides = [Path(unquote(urlparse(link).path)) for link in links if link.startswith("file:")]
    assert [guide.name for guide in guides] == ["glossary.html", "practice.html"]
    assert all(guide.is_file() for guide in guides)
    assert "https://arxiv.org/abs/2602.02712" in links
    assert page.problems == []
