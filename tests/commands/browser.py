"""A page in a headless Chromium that is on the machine; what its console says is kept."""

import tempfile
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def opened(url, patience=120.0):
    """The page at an address, and the list of all complaints: errors, warnings of its scripts, failed requests."""
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    complaints = []
    with tempfile.TemporaryDirectory() as profile, playwright.sync_playwright() as started:
        context = started.chromium.launch_persistent_context(
            profile, executable_path=str(CHROMIUM), headless=True, args=list(_FLAGS)
        )
        page = context.new_page()
        page.set_default_timeout(1000.0 * patience)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("response", lambda answer: complaints.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda asked: complaints.append(asked.url) if not _is_local(asked.url) else None)
        try:
            page.goto(url)
            yield page, complaints
        finally:
            context.close()


def _is_local(url):
    return url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:"))


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    """The address of a folder on this machine alone."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Silent, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
