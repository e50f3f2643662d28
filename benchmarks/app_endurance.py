"""Many visitors of the page at once: do memory, file handles, hooks or threads grow?

    python benchmarks/app_endurance.py [--minutes 10] [--users 8] [--output FOLDER]

A process of its own serves the embedded model. Users choose pictures, ask for texts that hardly
anybody asked before, save files, stop work that is long, and leave in the midst of it, drawn at
random; every picture that comes back is held against what the API finds. Samples are taken while
nobody asks. Needs Linux's /proc. Writes app_endurance.json.
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
from captum_clip_surgery.demo import Scenes, nouns

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests._helpers.served import Visitor, free_port, until_work_begins

#: What users do, and how often.
ACTS = {"explains": 6, "chooses": 2, "saves": 1, "stops": 1, "leaves": 1}
#: By one pass, and by gradients, a text at a time.
METHODS = (["CLIP", "CLIPSurgery"], ["CLIPSurgery", "GradCam"], ["CLIPSurgery", "LeGrad"])
LONG = ["CLIPSurgery", "LeGrad"]
REST = 0.5  # seconds between looks whether the process is at rest


# --- the process that serves ----------------------------------------------------------------------


def _serve(port: int, asked: Connection) -> None:
    """The page, beside a thread that tells what the process holds."""
    torch.set_num_threads(1)
    clip = ZeroShotClassifier.demo(["dog"])

    def tell() -> None:
        while True:
            asked.send(sample(asked.recv(), clip.model))

    threading.Thread(target=tell, daemon=True).start()
    serve(clip, port=port)


@dataclass
class Page:
    """A page that is served, by its address, and what its process holds."""

    address: str
    asked: Connection

    def sample(self, requests: int) -> Sample:
        """As it is once no file is opened or closed any more."""
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
    """A page in a process of its own, which ends with it."""
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
    """Somebody with a picture and texts of their own, who knows what the page must show.

    Args:
        page: to visit.
        number: of this user, who has pictures that no other has.
        clip: the model of the page, in this process.
    """

    def __init__(self, page: Page, number: int, clip: ZeroShotClassifier) -> None:
        self.page, self.draw, self.clip = page, random.Random(number), clip
        self.scenes = Scenes("test", 8 * (number + 1), size=256, objects=[2, 3])
        self.first = 8 * number
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._comes()

    def acts(self, count: int) -> None:
        """So many things, drawn at random; what goes wrong is kept."""
        for name in self.draw.choices(list(ACTS), list(ACTS.values()), k=count):
            try:
                getattr(self, "_" + name)()
            except Exception as error:  # whatever it is, the others go on
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
        # Of two nouns each, so that hardly any was there before: nothing may keep them all.
        self.texts = tuple(" ".join(self.draw.sample(nouns(), 2)) for _ in range(count))
        self.visitor.values |= {"ccs-texts": "\n".join(self.texts), "ccs-methods": methods}

    def _check(self, answer: str) -> None:
        check(answer, self.clip.with_texts(self.texts), self.image)


def check(answer: str, clip: ZeroShotClassifier, image: Image.Image) -> None:
    """Hold the pictures of an answer against the API's.

    Args:
        answer: all that came, with maps by CLIPSurgery.
        clip: the model under the texts that were asked for.
        image: the picture they were asked of.

    Raises:
        AssertionError: no maps, a text without one, or with another one.
    """
    data = json.loads(_last(answer))["output"].get("data", [])
    html = next((part for part in data if isinstance(part, str) and "ccs-row" in part), None)
    if html is None:
        raise AssertionError(f"no maps came: {_last(answer)[:300]}")
    maps = LayerCLIPSurgery(clip).attribute_all(clip.preprocess(image))[0].detach()
    for text, attribution in zip(clip.texts, maps, strict=True):
        alt = re.escape(str(escape(f"Where CLIPSurgery sees {text!r} in the image")))
        shown = re.search(rf'src="data:image/png;base64,([^"]+)" alt="{alt}"', html)
        if shown is None:
            raise AssertionError(f"no map of {text!r}")
        drawn = figures.overlay(image, attribution, Settings(clip.texts))
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
    """What the process held, what users did, and what went wrong."""

    found: Found
    done: Counter[str]
    wrong: list[str]


def run(seconds: float, count: int = 8, acts: int = 3) -> Run:
    """Users at once, who all rest after a few acts, for a sample.

    Args:
        seconds: how long; at least two rounds.
        count: of users.
        acts: of each in a round, after which a sample is taken.
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
    minutes: Annotated[float, typer.Option(min=0, help="How long.")] = 10,
    users: Annotated[int, typer.Option(min=1, help="At once.")] = 8,
    output: Annotated[Path, typer.Option(help="Folder for app_endurance.json.")] = Path(
        "clip-surgery-endurance"
    ),
) -> None:
    """Print what the page's process held after the warm-up and at the end, and what went wrong."""
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
