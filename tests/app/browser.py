"""What a page holds, and what a real browser makes of it."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Tags(HTMLParser):
    """Ids, and whatever a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.ids, self.fetched, self.scripts = [], [], 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in {"src", "href", "srcset", "data", "poster", "action", "background", "xlink:href"}:
                self.fetched.append((tag, value))


def parsed(page):
    tags = Tags()
    tags.feed(page)
    return tags


def browse(folder, address):
    """The page as the browser drew it, and what a page asked for; the browser's own requests have no origin."""
    log = folder / "net.json"
    quiet = ["gpu", "quic", "background-networking", "component-update", "sync", "extensions"]
    dom = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", f"--user-data-dir={folder / 'user'}",
         *[f"--disable-{name}" for name in quiet], f"--log-net-log={log}",
         "--virtual-time-budget=8000", "--dump-dom", address],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    parts = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    begun = {part["url"] for part in parts if part.get("initiator", "not an origin") != "not an origin"}
    return dom, {url for url in begun if not url.startswith(("file:", "data:", "blob:"))}
