"""A headless browser that does what a person would: it opens pages, clicks, types and says what it shows."""

import base64
import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from browser import CHROMIUM

WAIT = 60.0


class Page:
    """One tab, spoken to over two pipes by Chromium's DevTools protocol."""

    def __init__(self, send, session):
        self._send, self._session = send, session

    def do(self, method, **parameters):
        return self._send(method, parameters, self._session)

    def js(self, expression):
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression, seconds=WAIT):
        ends = time.monotonic() + seconds
        while not (found := self.js(expression)):
            assert time.monotonic() < ends, f"never: {expression}; the page says {self.text('body')[:2000]}"
            time.sleep(0.1)
        return found

    def text(self, selector):
        return self.js(f"document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector, nth=0):
        self.js(f"document.querySelectorAll({json.dumps(selector)})[{nth}].click()")

    def type(self, selector, text):
        self.js(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(text)};"
            f" field.dispatchEvent(new Event('input', {{bubbles: true}}));"
            f" field.dispatchEvent(new Event('change', {{bubbles: true}})); }})()"
        )

    def press_at(self, x, y):
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def size(self, width, height=900, *, dark=False):
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, file):
        found = self.do("Page.captureScreenshot", captureBeyondViewport=True)
        Path(file).write_bytes(base64.b64decode(found["data"]))


class Browser:
    """Chromium with a folder of its own."""

    def __init__(self, folder):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def third_and_fourth():
            high = [os.dup(one) for one in (to_browser, from_browser)]  # out of the way of 3 and 4
            for place, one in zip((3, 4), high, strict=True):
                os.dup2(one, place)

        line = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            line, pass_fds=(3, 4), preexec_fn=third_and_fourth, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._count, self._rest, self.requested = 0, b"", []

    def page(self, address):
        target = self._send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self._send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self._send, session)
        for domain in ("Page", "Runtime", "Network"):
            page.do(f"{domain}.enable")
        page.do("Page.navigate", url=address)
        page.until("document.readyState === 'complete'")
        return page

    def _send(self, method, parameters, session=None):
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (found := self._next()).get("id") != self._count:
            if found.get("method") == "Network.requestWillBeSent":
                self.requested.append(found["params"]["request"]["url"])
        assert "error" not in found, found
        return found["result"]

    def _next(self):
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 20)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=WAIT)
        os.close(self._out)
        os.close(self._in)


@contextmanager
def browsing(folder):
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()
