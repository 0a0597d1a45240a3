"""A page of the service in a real Chromium, for tests that drive it as a person would."""

import base64
import json
import shutil
import subprocess
import tarfile
import time
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import pytest
from serving import FakeGallery, running

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'splip[test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, e.g. apt install chromium")

# One grey pixel.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
BOX = [[(25, 25), (75, 25), (75, 75), (25, 75), (25, 25)]]
CONE = [[(50, 20), (20, 80), (80, 80), (50, 20)]]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser, address, before=None, **options):
    """A page that fails the test on an error of its own or a request to anywhere else; ``before`` it is loaded: a call."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page = context.new_page()
    page.wrong, page.asked = [], []

    def said(message):
        # A service that does not list its photos says so with 404.
        unlisted = "/v1/timeline" in (message.location or {}).get("url", "") and "404" in message.text
        if message.type in ("error", "warning") and not unlisted:
            page.wrong.append(message.text)

    page.on("console", said)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    if before is not None:
        before(page)
    page.goto(address)
    until(page, "document.getElementById('about').textContent || document.querySelector('dialog[open]')")
    yield page
    foreign = [url for url in page.asked if not url.startswith((address, "blob:", "data:"))]
    context.close()
    assert not foreign and not page.wrong, (foreign, page.wrong)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with running(FakeGallery(tmp_path_factory.mktemp("gallery"))) as client:
        yield client


def until(page, script, argument=None, seconds=10):
    """Wait until a script says yes. (playwright's own way evals in the page, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(script, argument):
        assert time.monotonic() < end, script
        page.wait_for_timeout(20)


def draw(page, lines, release=True, pause=0.0, settle=True):
    """Lines in hundredths of the paper's side, with the mouse."""
    box = page.locator("#canvas").bounding_box()
    for line in lines:
        at = [(box["x"] + box["width"] * x / 100, box["y"] + box["height"] * y / 100) for x, y in line]
        page.mouse.move(*at[0])
        page.mouse.down()
        for x, y in at[1:]:
            page.mouse.move(x, y, steps=5)
            time.sleep(pause)
        if release:
            page.mouse.up()
    if release and settle:
        settled(page)


def settled(page):
    """Wait for the answer to the whole drawing."""
    until(page, "document.getElementById('results').getAttribute('aria-busy') === 'false'")


def forgive(page, status):
    """Chromium writes every refused request to the console; this one was asked for."""
    assert [text for text in page.wrong if status in text]
    page.wrong = [text for text in page.wrong if status not in text]


def shown(page):
    return page.locator("#grid .facts").all_text_contents()


def expect_first(page, *labels):
    """Wait until the first photos have these labels."""
    script = "want => want.every((w, i) => document.querySelectorAll('#grid .facts')[i]?.textContent === w)"
    until(page, script, list(labels))


def expect_nothing(page):
    """Wait until nothing is asked for."""
    settled(page)
    until(page, "document.querySelectorAll('#chips .chip').length === 0")
    until(page, "document.getElementById('results').getAttribute('aria-busy') === 'false'")
    assert page.locator("#grid li[title*=similarity]").count() == 0


def expect_loaded(page):
    until(page, "[...document.querySelectorAll('#grid img')].every(i => i.complete && i.naturalWidth > 0)")


def score(page):
    """The similarity of the first photo."""
    return float(page.locator("#grid li").first.get_attribute("title").split()[-1])


def searches(page):
    return sum(url.endswith("/v1/search") for url in page.asked)


AXE = "axe-core@4.14.1"


def find_axe(folder):
    """The script of axe, fetched by npm into a folder; None where there is no npm, or no registry."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    command = [npm, "pack", AXE, "--silent", "--pack-destination", str(folder)]
    with suppress(subprocess.TimeoutExpired):
        if subprocess.run(command, cwd=folder, capture_output=True, timeout=60).returncode == 0:
            archive = next(folder.glob("axe-core-*.tgz"))
            with tarfile.open(archive) as tar:
                script = tar.extractfile("package/axe.min.js")
                return script.read().decode() if script else None
    return None


def violations(page, axe):
    """What axe finds wrong with the page as it is now: rule and element."""
    devtools = page.context.new_cdp_session(page)  # not bound by the page's policy
    devtools.send("Runtime.evaluate", {"expression": axe})
    script = "axe.run().then((r) => JSON.stringify(r.violations.map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 160))])))"
    answer = devtools.send("Runtime.evaluate", {"expression": script, "awaitPromise": True, "returnByValue": True})
    return json.loads(answer["result"]["value"])


class Listing:
    """Stands in for the addresses that list a gallery's photos: ``count`` of them, a month apart for every third."""

    def __init__(self, count=250):
        self.count, self.asked = count, []
        ids = range(1, count + 1)
        self.items = [self.item(i) for i in ids]

    @staticmethod
    def item(number, **fields):
        month = f"{2024 - number // 36}-{12 - number // 3 % 12:02}"
        facts = {
            "id": number % 24 + 1 if number <= 24 else number, "label": "box", "tags": {}, "name": f"IMG_{number}.jpg", "path": None,
            "taken": f"{month}-14T10:02:03", "camera": "Canon EOS 80D", "width": 1600, "height": 1200 if number % 3 else 2400,
            "bytes": 2_345_678, "modified": "2024-01-01T00:00:00Z", "missing": False, "copies": [],
        }  # fmt: skip
        return {**facts, **fields}

    def route(self, page):
        page.route("**/v1/timeline*", self.timeline)
        page.route("**/v1/items*", self.list)
        page.route("**/v1/thumbnails/*", lambda route: route.fulfill(body=PICTURE, content_type="image/png"))

    def timeline(self, route):
        route.fulfill(
            json={"months": [{"month": "2024-11", "count": 3}, {"month": "2024-10", "count": 3}], "undated": 0}
        )

    def list(self, route):
        fields = parse_qs(urlsplit(route.request.url).query)
        self.asked.append(fields)
        start, limit = int(fields.get("cursor", ["0"])[0]), int(fields["limit"][0])
        part = self.items[start : start + limit]
        end = start + limit
        route.fulfill(json={"items": part, "next": str(end) if end < self.count else None, "total": self.count})
