"""Endurance of the web demo under concurrent users: memory, open files, hooks and threads.

    python benchmarks/app_endurance.py [--minutes 10] [--users 8] [--output FOLDER]

A separate process serves the embedded model. Users act at random: they choose images, ask for texts
that are rarely repeated, save files, cancel long work, or leave while it runs. Every image that
comes back is compared with the API's result. Samples are taken while the server is idle. Needs
Linux's /proc. Writes app_endurance.json.
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from endurance import Found, Sample, report, sample
from PIL import Image
from tqdm import tqdm

from captum_clip_surgery import LayerCLIPSurgery, ZeroShotClassifier
from captum_clip_surgery._utils.provenance import environment_info
from captum_clip_surgery.app import _figures as figures
from captum_clip_surgery.app import serve
from captum_clip_surgery.app._settings import MAX_TEXTS, Settings
from captum_clip_surgery.app._templates import escape
from captum_clip_surgery.attr._descriptions import title_of
from captum_clip_surgery.demo import Scenes, nouns

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests._helpers.served import Visitor, free_port, until_work_begins

#: Actions of users, and their weights.
ACTS = {"explains": 6, "chooses": 2, "saves": 1, "stops": 1, "leaves": 1}
#: A method of one pass, and one that takes gradients text by text.
METHODS = (["CLIP", "CLIPSurgery"], ["CLIPSurgery", "GradCam"], ["CLIPSurgery", "LeGrad"])
LONG = ["CLIPSurgery", "LeGrad"]
REST = 0.5  # seconds between checks whether the process is idle


# --- the process that serves ----------------------------------------------------------------------


def _serve(port: int, asked: Connection) -> None:
    """Serve the page, with a thread that reports the process's resources."""
    torch.set_num_threads(1)
    clip = ZeroShotClassifier.demo(["dog"])

    def tell() -> None:
        while True:
            asked.send(sample(asked.recv(), clip.model))

    threading.Thread(target=tell, daemon=True).start()
    serve(clip, port=port)


@dataclass
class Page:
    """A served page: its address, and the resources of its process."""

    address: str
    asked: Connection

    def sample(self, requests: int) -> Sample:
        """Take a sample once no files are opened or closed any more."""
        last = None
        for _ in range(60):
            self.asked.send(requests)
            now: Sample = self.asked.recv()
            if last is not None and now.files == last.files:
                break
            last = now
            time.sleep(REST)
        return now


@contextmanager
def served() -> Iterator[Page]:
    """Serve a page in a process of its own within the block."""
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    asked, tells = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(port, tells))
    process.start()
    try:
        page = Page(f"http://127.0.0.1:{port}", asked)
        while True:
            try:
                Visitor(page)
                break
            except OSError:
                if process.exitcode is not None:
                    raise
                time.sleep(REST)
        yield page
    finally:
        process.terminate()
        process.join()


# --- the users ------------------------------------------------------------------------------------


class User:
    """A user with an image and texts of their own, who checks the page's maps.

    Args:
        page: The page to visit.
        number: Number of the user, which determines the images.
        clip: The page's model, loaded in this process.
    """

    def __init__(self, page: Page, number: int, clip: ZeroShotClassifier) -> None:
        self.page, self.draw, self.clip = page, random.Random(number), clip
        self.scenes = Scenes("test", 8 * (number + 1), size=256, objects=[2, 3])
        self.first = 8 * number
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._comes()

    def acts(self, count: int) -> None:
        """Run a number of random actions, and record failures."""
        for name in self.draw.choices(list(ACTS), list(ACTS.values()), k=count):
            try:
                getattr(self, "_" + name)()
            except Exception as error:  # of any kind; the other users continue
                self.wrong.append(f"{name}: {error!r}")
            self.done[name] += 1

    def goes(self) -> None:
        self.stays.close()

    def _comes(self) -> None:
        self.visitor = Visitor(self.page)
        self.stays = self.visitor.stays()
        self._chooses()

    def _chooses(self) -> None:
        scene = self.scenes[self.first + self.draw.randrange(8)]
        self.image, buffer = Image.fromarray(scene.image), io.BytesIO()
        self.image.save(buffer, format="PNG")
        self._wants(["CLIPSurgery"], self.draw.randint(1, 4))
        self._check(self.visitor.uploads(buffer.getvalue(), "scene.png"))

    def _explains(self) -> None:
        self._wants(self.draw.choice(METHODS), self.draw.randint(1, 6))
        self._check(self.visitor.asks("ccs-run", "click"))

    def _saves(self) -> None:
        answer = self.visitor.asks("ccs-get-NPZ", "click")
        (content,) = re.findall(r'"content":"([^"]+)"', _last(answer))
        found = np.load(io.BytesIO(base64.b64decode(content)))
        if tuple(found["texts"]) != self.texts:
            raise AssertionError(f"asked for {self.texts}, saved {found['texts']}")

    def _stops(self) -> None:
        self._begins_what_is_long(stop=True)
        self._explains()

    def _leaves(self) -> None:
        self._begins_what_is_long(stop=False)
        self.goes()
        self._comes()

    def _begins_what_is_long(self, stop: bool) -> None:
        self._wants(LONG, MAX_TEXTS)
        joined = self.visitor.joins("ccs-run", "click")
        with self.visitor.listens() as stream:
            until_work_begins(stream)
            if stop:
                self.visitor.cancels(joined)

    def _wants(self, methods: list[str], count: int) -> None:
        # Texts of two nouns rarely repeat, so a cache without a limit would grow.
        self.texts = tuple(" ".join(self.draw.sample(nouns(), 2)) for _ in range(count))
        self.visitor.values |= {
            "ccs-texts": "\n".join(self.texts),
            "ccs-methods": methods,
            "ccs-sign": Settings(self.texts).sign,
        }

    def _check(self, answer: str) -> None:
        check(answer, self.clip.with_texts(self.texts), self.image)


def check(answer: str, clip: ZeroShotClassifier, image: Image.Image) -> None:
    """Compare the images of an answer with the API's.

    Args:
        answer: The answer, with maps by CLIPSurgery.
        clip: The model with the texts of the request.
        image: The image of the request.

    Raises:
        AssertionError: If a map is missing or differs.
    """
    data = json.loads(_last(answer))["output"].get("data", [])
    html = next((part for part in data if isinstance(part, str) and "ccs-row" in part), None)
    if html is None:
        raise AssertionError(f"no maps came: {_last(answer)[:300]}")
    maps = LayerCLIPSurgery(clip).attribute_all(clip.preprocess(image))[0].detach()
    style = figures.map_style(maps, Settings(clip.texts))
    for text, attribution in zip(clip.texts, maps, strict=True):
        alt = re.escape(str(escape(f"Where {title_of('CLIPSurgery')} sees {text!r} in the image")))
        shown = re.search(rf'src="data:image/png;base64,([^"]+)" alt="{alt}"', html)
        if shown is None:
            raise AssertionError(f"no map of {text!r}")
        drawn = figures.overlay(image, attribution, style)
        difference = np.abs(_pixels(base64.b64decode(shown[1])) - _pixels(drawn.content)).mean()
        if difference > 1:
            raise AssertionError(f"another map of {text!r}: pixels differ by {difference:.1f}")


def _last(answer: str) -> str:
    return answer.strip().splitlines()[-1].removeprefix("data:")


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


# --- a run ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Samples of the process's resources, the users' actions, and failures."""

    found: Found
    done: Counter[str]
    wrong: list[str]


def run(seconds: float, count: int = 8, acts: int = 3) -> Run:
    """Run concurrent users, who all pause after a few actions for a sample.

    Args:
        seconds: Duration; at least two rounds are run.
        count: Number of users.
        acts: Actions per user in a round, after which a sample is taken.
    """
    clip = ZeroShotClassifier.demo(["dog"])
    with served() as page, ThreadPoolExecutor(count) as pool:
        users = list(pool.map(lambda number: User(page, number, clip), range(count)))
        samples = [page.sample(0)]
        end = time.monotonic() + seconds
        with tqdm(disable=not sys.stderr.isatty()) as progress:
            while len(samples) < 3 or time.monotonic() < end:
                list(pool.map(lambda user: user.acts(acts), users))
                samples.append(page.sample(sum(user.done.total() for user in users)))
                progress.update(count * acts)
        for user in users:
            user.goes()
    done = sum((user.done for user in users), Counter[str]())
    return Run(Found(samples), done, [wrong for user in users for wrong in user.wrong])


def main(
    minutes: Annotated[float, typer.Option(min=0, help="Duration of the run in minutes.")] = 10,
    users: Annotated[int, typer.Option(min=1, help="Number of concurrent users.")] = 8,
    output: Annotated[Path, typer.Option(help="Folder for app_endurance.json.")] = Path(
        "clip-surgery-endurance"
    ),
) -> None:
    """Print the process's resources after the warm-up and at the end, and the failures."""
    torch.set_num_threads(1)
    ended = run(60 * minutes, users)
    output.mkdir(parents=True, exist_ok=True)
    content = {
        **environment_info(torch.device("cpu")),
        "minutes": minutes,
        "users": users,
        "done": ended.done,
        "wrong": ended.wrong,
        "mib_per_thousand": ended.found.mib_per_thousand,
        "samples": [asdict(one) for one in ended.found.samples],
    }
    (output / "app_endurance.json").write_text(json.dumps(content, indent=2) + "\n")
    print(report(ended.found, "acts"))
    print(f"{users} users: " + ", ".join(f"{name} {n}" for name, n in ended.done.most_common()))
    print(f"{len(ended.wrong)} went wrong")
    for wrong in ended.wrong:
        print(wrong)


if __name__ == "__main__":
    typer.run(main)
