"""A real browser, headless, driven by the DevTools protocol through a pipe."""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")


class Page:
    """One page of a browser.

    Args:
        send, receive: the ends of the pipes.
    """

    def __init__(self, send, receive) -> None:
        self._send, self._receive, self._number, self._session = send, receive, 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        self.call("Page.enable")

    def call(self, method: str, **given) -> dict:
        """Returns what a command of the protocol gives."""
        self._number += 1
        told = {"id": self._number, "method": method, "params": given, **self._session}
        self._send.write(json.dumps(told).encode() + b"\0")
        self._send.flush()
        while True:
            message = json.loads(b"".join(iter(lambda: self._receive.read(1), b"\0")))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def js(self, expression: str):
        """Returns the value of an expression in the page, or of its promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.js(expression):
            assert time.monotonic() < end, (expression, self.js("document.body.innerText"))
            time.sleep(0.05)

    def open(self, address: str, width: int = 1280, scheme: str = "light") -> None:
        """Opens an address in a window of a width, for a reader who likes it light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def press(self, key: str, code: int) -> None:
        """Presses a key and lets it go."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )

    def choose(self, selector: str, *files: str) -> None:
        """Gives files to an input as a person's choice does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(files))

    def picture(self, file: pathlib.Path) -> None:
        """Writes a PNG of what is seen."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def printed(self) -> bytes:
        """Returns the PDF of the page on paper."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])


@contextlib.contextmanager
def browser(folder: pathlib.Path):
    """Gives a page of a new browser, whose profile lies in a folder."""
    commands, send = os.pipe()
    receive, answers = os.pipe()
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder}", "--no-first-run"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", *command],
        pass_fds=(commands, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    try:
        with os.fdopen(send, "wb") as sending, os.fdopen(receive, "rb") as receiving:
            page = Page(sending, receiving)
            yield page
            page._session = {}
            page.call("Browser.close")
        process.wait(30)
    finally:
        process.kill()
        process.wait()
