"""The page, served by a process of its own, and what visitors send it without a browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests._helpers.waiting import wait_until

#: The system's browser; None where it has none.
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def chromium(driver: Any) -> Any:
    """The system's browser, by Playwright's driver."""
    return driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@dataclass
class Server:
    """A page that is served, and where its uploads lie."""

    address: str
    process: subprocess.Popen[bytes]
    temporary: Path
    log: Path

    def uploads(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve(folder: Path, *options: str) -> Server:
    temporary, log = folder / "temporary", folder / "log.txt"
    temporary.mkdir()
    port = free_port()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "captum_clip_surgery", "app", "--port", str(port), *options],
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "TMPDIR": str(temporary),
                # PyTorch makes this folder when it is imported, by default in TMPDIR.
                "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def begun() -> bool:
        told = log.read_text(encoding="utf-8")
        assert process.poll() is None, told
        return "The page is at" in told

    wait_until(begun, "the page", seconds=120)
    return Server(f"http://127.0.0.1:{port}", process, temporary, log)


def end(server: Server, by: signal.Signals = signal.SIGINT) -> None:
    """As from a keyboard: what the page wrote goes with it, and nothing went wrong meanwhile."""
    server.process.send_signal(by)
    try:
        server.process.wait(60)
    except subprocess.TimeoutExpired:
        server.process.kill()
        raise
    assert list(server.temporary.rglob("*")) == []
    log = server.log.read_text(encoding="utf-8")
    assert "Traceback" not in log, log
    assert "warning:" not in log, log


def until_work_begins(stream: Any) -> None:
    """Read answers until the first of what was asked for is there."""
    for line in stream:
        if b"process_generating" in line:
            return


class Visitor:
    """Somebody who sends what a browser would, or would not.

    Controls are named by their `elem_id`; `values` are what they say.
    """

    def __init__(self, server: Server) -> None:
        self.address = server.address + "/gradio_api"
        with urllib.request.urlopen(server.address + "/config") as answer:
            config = json.load(answer)
        self._names = {c["id"]: self._name(c) for c in config["components"]}
        self._events = config["dependencies"]
        self.session = uuid.uuid4().hex
        self.values: dict[str, Any] = {
            "ccs-texts": "star\nzebra",
            "ccs-minus": "",
            "query": "",
            "ccs-methods": ["CLIP"],
            "ccs-model": "embedded model",
            "ccs-side": "native",
            "ccs-feature-surgery": "auto",
            "ccs-distractors": "",
            "ccs-trust": False,
            "ccs-opacity": 0.7,
            "ccs-cmap": "auto",
            "ccs-sign": "range",
            "ccs-pointed": False,
            "ccs-across": 50,
            "ccs-down": 50,
            "ccs-background": "a background",
            "ccs-instances": "one",
            "ccs-boxes": True,
            "ccs-caption": "a star",
            "tab": "maps",
        }
        self.asks("", "load")

    @staticmethod
    def _name(component: dict[str, Any]) -> str:
        props = component["props"]
        return props.get("elem_id") or props.get("label") or component["type"]

    def joins(self, control: str, event: str, **given: Any) -> dict[str, Any]:
        """Ask, without waiting for the answer; what `cancels` takes."""
        (found,) = (
            one
            for one in self._events
            for target in one["targets"]
            if one["backend_fn"]  # and not a script on the same click
            and (
                (target[1] == event and self._names.get(target[0], "") == control)
                or (event == target[1] == "load")
            )
        )
        values = self.values | {name.replace("_", "-"): value for name, value in given.items()}
        asked = {
            "data": [values.get(self._names[number]) for number in found["inputs"]],
            "fn_index": found["id"],
            "session_hash": self.session,
        }
        return asked | self._posts("queue/join", asked)

    def cancels(self, joined: dict[str, Any]) -> None:
        """As Stop does."""
        names = ("session_hash", "fn_index", "event_id")
        self._posts("cancel", {name: joined[name] for name in names})

    def _posts(self, end: str, given: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.address}/{end}",
            json.dumps(given).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def uploads(self, content: bytes, name: str) -> str:
        """Choose a picture; all answers."""
        sign = uuid.uuid4().hex
        head = (
            f'--{sign}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        )
        request = urllib.request.Request(
            f"{self.address}/upload",
            head.encode() + content + f"\r\n--{sign}--\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={sign}"},
        )
        with urllib.request.urlopen(request) as answer:
            (path,) = json.load(answer)
        given = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        return self.asks("ccs-upload", "upload", **{"ccs-upload": given})

    def stays(self) -> Any:
        """A stream that tells the page that its visitor is there, as browsers hold; who closes it
        leaves."""
        return urllib.request.urlopen(f"{self.address}/heartbeat/{self.session}")

    def listens(self) -> Any:
        """The stream of answers, which ends the work where it is closed."""
        address = f"{self.address}/queue/data?session_hash={self.session}"
        return urllib.request.urlopen(address, timeout=60)

    def asks(self, control: str, event: str, **given: Any) -> str:
        """All answers to one event, as they came."""
        self.joins(control, event, **given)
        lines = []
        with self.listens() as stream:
            for line in stream:
                lines.append(line.decode())
                if '"msg":"process_completed"' in lines[-1].replace(" ", ""):
                    break
        return "".join(lines)
