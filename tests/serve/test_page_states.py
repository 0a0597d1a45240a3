"""What the page shows when there is nothing to show, too much, or something wrong; and that axe finds nothing wrong with it."""

import json

import pytest
from browsing import (
    BOX,
    Listing,
    browser,
    draw,
    expect_first,
    expect_nothing,
    find_axe,
    forgive,
    needs_chromium,
    opened,
    served,
    settled,
    shown,
    until,
    violations,
)
from serving import FakeGallery, running

__all__ = ["browser", "served"]  # fixtures
pytestmark = needs_chromium
TITLES = "[...document.querySelectorAll('#grid .heading')].map(h => h.textContent)"


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served.address)


@pytest.fixture
def listing():
    return Listing()


@pytest.fixture
def album(browser, served, listing):
    yield from opened(browser, served.address, listing.route)


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    script = find_axe(tmp_path_factory.mktemp("axe"))
    if script is None:
        pytest.skip("needs axe-core: npm, and a registry that it reaches")
    return script


def answered(page, **fields):
    """Give answers of the service more fields; of their matches by number."""

    def change(route):
        answer = route.fetch().json()
        each = fields.get("matches", {})
        for i, match in enumerate(answer["matches"]):
            match.update(each(i) if callable(each) else each)
        route.fulfill(json={**answer, **{key: value for key, value in fields.items() if key != "matches"}})

    page.route("**/v1/search", change)


def test_a_drawing_is_there_after_a_reload_and_in_a_new_tab(browser, served):
    for page in opened(browser, served.address):
        draw(page, BOX)
        expect_first(page, "box")
        page.wait_for_timeout(50)
        page.reload()
        expect_first(page, "box")
        page.click("#undo")
        expect_nothing(page)
        draw(page, [[(20, 50), (80, 50)]])
        expect_first(page, "dash")
        page.wait_for_timeout(50)
        other = page.context.new_page()
        other.goto(served.address)
        expect_first(other, "dash")
        other.click("#clear")
        expect_nothing(other)
        other.wait_for_timeout(50)
        page.reload()
        expect_first(page, "dash")  # each tab keeps its own
        page.evaluate("sessionStorage.setItem('splip-drawing', '[{\"points\": \"no\"}]')")
        page.goto("about:blank")
        page.goto(served.address)
        settled(page)  # nonsense is passed over


def test_an_example_is_drawn_and_searched(page):
    page.click("#examples button >> nth=0")
    until(page, "document.querySelectorAll('#grid li').length > 0")
    assert page.locator("#examples").is_hidden() and page.locator("#paper.drawn").count() == 1


@pytest.mark.parametrize("finger", [False, True])
def test_a_line_that_begins_on_an_example_is_a_line(browser, served, finger):
    for page in opened(browser, served.address, has_touch=finger):
        box, button = page.locator("#canvas").bounding_box(), page.locator("#examples button >> nth=0").bounding_box()
        x, y = button["x"] + button["width"] / 2, button["y"] + button["height"] / 2
        line = [(x, y), (x + 2, y - 2), (x + 90, y - 90), (x + 90, y - 150)]
        if finger:
            devtools = page.context.new_cdp_session(page)
            for number, (across, down) in enumerate(line):
                kind, at = "touchMove" if number else "touchStart", [{"x": across, "y": down}]
                devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})
            devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        else:
            page.mouse.move(*line[0])
            page.mouse.down()
            for at in line[1:]:
                page.mouse.move(*at)
            page.mouse.up()
        until(page, "document.querySelectorAll('#grid li').length > 0")
        page.wait_for_timeout(50)
        (made,) = json.loads(
            page.evaluate("sessionStorage.getItem('splip-drawing') ?? localStorage.getItem('splip-drawing')")
        )
        first, last = made["points"][0], made["points"][-1]
        assert first == pytest.approx([(x - box["x"]) / box["width"], (y - box["y"]) / box["height"]], abs=0.01)
        assert last == pytest.approx([first[0] + 90 / box["width"], first[1] - 150 / box["height"]], abs=0.01)
        page.click("#clear")  # and a press that stays is the example still
        expect_nothing(page)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 2, y)
        page.mouse.up()
        until(page, "document.getElementById('examples').hidden")


def test_fingers_tremble_and_draw_one_at_a_time(browser, served):
    for page in opened(browser, served.address, has_touch=True):
        devtools = page.context.new_cdp_session(page)
        one, other = (page.locator(f"#examples button >> nth={n}").bounding_box() for n in (0, 2))
        (x, y), (far, _) = ((box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in (one, other))

        def touch(kind, *points):
            at = [{"x": across, "y": down, "id": number} for number, across, down in points]
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})

        def kept():
            page.wait_for_timeout(60)
            stored = "sessionStorage.getItem('splip-drawing') ?? localStorage.getItem('splip-drawing')"
            return json.loads(page.evaluate(stored) or "[]")

        touch("touchStart", (0, x, y))
        touch("touchMove", (0, x + 6, y - 5))
        touch("touchEnd")
        until(page, "document.getElementById('examples').hidden")
        assert len(kept()) > 1, "the example: several lines"
        page.click("#clear")
        expect_nothing(page)
        touch("touchStart", (0, x, y))
        touch("touchStart", (0, x, y), (1, far, y))
        for step in range(1, 6):
            touch("touchMove", (0, x, y - 30 * step), (1, far, y - 30 * step))
        touch("touchEnd")
        until(page, "document.getElementById('paper').classList.contains('drawn')")
        (line,) = kept()
        assert len({round(point[0], 3) for point in line["points"]}) == 1, "straight up: nothing of the other finger"


def test_likely_ones_stand_apart(page):
    answered(page, matches=lambda i: {"likely": i < 3}, cutoff=0.5)
    draw(page, BOX)
    until(page, "document.querySelectorAll('#grid li').length > 0")
    assert page.evaluate(TITLES) == ["Less likely"]
    assert (
        page.evaluate("[...document.querySelectorAll('#grid > li')].findIndex(l => l.classList.contains('heading'))")
        == 3
    )
    assert page.locator("#doubt").is_hidden()


def test_nothing_fits(page):
    answered(page, matches={"likely": False}, cutoff=0.99, unknown_words=["qwertz"])
    page.fill("#text", "cone qwertz")
    page.wait_for_selector("#doubt:visible")
    assert page.locator("#doubt p").all_text_contents() == [
        "The model does not know: qwertz.",
        "Probably nothing here shows that.",
    ]
    assert page.evaluate(TITLES) == [] and len(shown(page)) == 24


def test_photos_without_a_question(album, listing):
    page = album
    until(page, "document.querySelectorAll('#grid .photo').length === 100")
    assert page.evaluate(TITLES)[0] == "December 2024" and page.locator("#status").text_content() == "250 photos"
    assert page.locator("#grid .name").first.text_content() == "IMG_1.jpg"
    assert page.locator("#grid .facts").first.text_content() == "Dec 14, 2024"
    sizes = page.evaluate("[...document.querySelectorAll('#grid img')].slice(0, 3).map(i => i.width / i.height)")
    assert [round(size, 1) for size in sizes] == [1.3, 1.3, 0.7]
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    until(page, "document.querySelectorAll('#grid .photo').length > 100")
    page.select_option("#sort", "name")
    until(page, "document.querySelectorAll('#grid .heading').length === 0")
    assert listing.asked[-1]["sort"] == ["name"]
    page.click("#filters-open")
    page.select_option("#month", "2024-10")
    until(page, "document.querySelectorAll('.chip.only').length === 1")
    settled(page)
    assert listing.asked[-1]["taken_from"] == listing.asked[-1]["taken_to"] == ["2024-10"]
    page.evaluate("scrollTo(0, 0)")
    draw(page, BOX, settle=False)  # a date goes to the search too, which this stand-in of a gallery refuses or answers
    settled(page)
    page.wrong = [text for text in page.wrong if "422" not in text]


def test_facts_of_a_photo_and_a_file_that_is_gone(album, listing):
    listing.items[1] = listing.item(2, missing=True, copies=[7, 8], camera=None)
    page = album
    page.reload()
    until(page, "document.querySelectorAll('#grid .missing').length === 1")
    page.locator("#grid .photo").first.click()
    page.keyboard.press("i")
    facts = page.locator("#facts").text_content()
    assert page.locator("#why").is_hidden(), "nothing was asked for"
    for fact in ("December 14, 2024", "Canon EOS 80D", "1600 × 1200, 2.3 MB", "box"):
        assert fact in facts
    page.keyboard.press("ArrowRight")
    assert page.locator("#gone").is_visible() and "Copies2" in page.locator("#facts").text_content()


def test_more_come_as_one_scrolls(page):
    page.route(
        "**/v1/gallery",
        lambda route: route.fulfill(json={**route.fetch().json(), "count": 1000, "max_k": 90}),
    )
    asked = []

    def many(route):
        asked.append(route.request.post_data_json["k"])
        matches = [
            {"id": i, "score": 1 - i / 1000, "label": "box", "tags": {}, "name": f"{i}.jpg", "path": None}
            for i in range(1, asked[-1] + 1)
        ]
        route.fulfill(json={"matches": matches, "partial": False, "timing_ms": {}, "batch": 1})

    page.route("**/v1/search", many)
    Listing().route(page)
    page.reload()
    settled(page)
    draw(page, BOX)
    until(page, "document.querySelectorAll('#grid .photo').length >= 24")
    for _ in range(20):
        page.mouse.wheel(0, 2000)
        page.wait_for_timeout(60)
    until(page, "document.querySelectorAll('#grid .photo').length === 90")
    assert asked[-2:] == [48, 90] and set(asked) == {24, 48, 90}


def test_ten_thousand_labels(browser, served):
    labels = {f"label_{i:05}": 10_000 - i for i in range(10_000)}

    def many(page):
        page.route("**/v1/gallery", lambda route: route.fulfill(json={**route.fetch().json(), "labels": labels}))

    for page in opened(browser, served.address, many):
        page.click("#filters-open")
        page.fill("#label", "bel 0777")
        assert page.locator("#suggestions li").count() == 10
        page.fill("#label", "label")
        assert page.locator("#suggestions li").count() == 12
        page.fill("#label", "07777")
        page.press("#label", "Enter")
        until(page, "document.querySelector('.chip.only')?.textContent === 'label 07777'")


def test_a_gallery_of_one_picture(browser, tmp_path):
    gallery = FakeGallery(tmp_path)
    for id in list(gallery.items)[1:]:
        del gallery.items[id]
    with running(gallery) as client:
        for page in opened(browser, client.address):
            draw(page, BOX)
            expect_first(page, "ball")
            assert page.locator("#status").text_content() == "1 photo"
            page.locator("#grid .photo").click()
            assert page.locator("#next").is_disabled()
            page.keyboard.press("ArrowRight")
            assert page.locator("#place").text_content() == "1 of 1"


SCREENS = {
    "wide": {},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "color_scheme": "dark"},
    "tablet": {"viewport": {"width": 768, "height": 1024}, "has_touch": True},
    "landscape": {"viewport": {"width": 740, "height": 360}, "has_touch": True},
    "zoomed": {"viewport": {"width": 640, "height": 400}, "color_scheme": "dark"},
}
IN_SIGHT = """() => {
  const seen = [...document.querySelectorAll('#grid img')].filter((image) => image.getBoundingClientRect().bottom <= innerHeight);
  const paper = document.getElementById('paper').getBoundingClientRect();
  return [paper.top >= 0 && paper.bottom <= innerHeight, seen.length, document.documentElement.scrollWidth - innerWidth];
}"""
SMALL = """() => [...document.querySelectorAll('button, a, select, .button, input:not([type=radio], [type=file]), .choice label')]
  .filter((one) => one.checkVisibility() && !one.closest('[inert]') && !one.matches('.skip, .photo'))
  .map((one) => [one.id || one.className || one.textContent, one.getBoundingClientRect()])
  .filter(([, box]) => box.width > 0 && Math.min(box.width, box.height) < 43.5).map(([name, box]) => `${name} ${box.width} ${box.height}`)"""


@pytest.mark.parametrize("screen", SCREENS)
def test_drawing_and_photos_are_in_sight_together(browser, served, screen):
    for page in opened(browser, served.address, **SCREENS[screen]):
        draw(page, BOX)
        expect_first(page, "box")
        whole, photos, over = page.evaluate(IN_SIGHT)
        assert whole and photos >= 2 and over <= 0, (whole, photos, over)
        if SCREENS[screen].get("has_touch"):
            page.evaluate("document.activeElement.blur()")
            assert page.evaluate(SMALL) == []


def every_state(page, listing):
    """Bring the page into its states, one after the other; yields their names."""
    listing.route(page)
    page.reload()
    until(page, "document.querySelectorAll('#grid .photo').length === 100")
    yield "gallery"
    page.click("#filters-open")
    page.fill("#label", "b")
    page.keyboard.press("ArrowDown")
    yield "filters"
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('.chip.only').length === 1")
    answered(page, matches=lambda i: {"likely": i < 2}, unknown_words=["one"])
    page.fill("#text", "cone")
    draw(page, BOX)
    page.wait_for_selector("#doubt:visible")
    page.locator("#grid .photo").nth(1).focus()
    page.keyboard.press("l")
    page.wait_for_selector(".chip.unlike")
    settled(page)
    page.locator("#timing summary").click()
    yield "answers"
    page.locator("#grid .photo").nth(1).click(position={"x": 50, "y": 80})
    page.wait_for_selector("#viewer:visible")
    page.keyboard.press("i")
    yield "viewer"
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    page.keyboard.press("?")
    yield "help"
    page.keyboard.press("Escape")
    page.unroute("**/v1/search")
    page.route("**/v1/search", lambda route: route.abort())
    page.evaluate("scrollTo(0, 0)")
    draw(page, [[(10, 10), (30, 30)]])
    page.wait_for_selector("#problem:visible")
    yield "away"
    forgive(page, "ERR_FAILED")


@pytest.mark.parametrize(
    "screen", ["wide", *(pytest.param(s, marks=pytest.mark.exhaustive) for s in SCREENS if s != "wide")]
)
def test_axe_finds_nothing(browser, served, axe, listing, screen):
    for page in opened(browser, served.address, **SCREENS[screen]):
        assert violations(page, axe) == [], "empty"
        for state in every_state(page, listing):
            assert violations(page, axe) == [], state
        page.goto(f"{served.address}/docs")
        page.wait_for_selector("section h3")
        assert violations(page, axe) == [], "docs"


def test_why_a_photo_was_found(page):
    page.route("**/v1/gallery", lambda route: route.fulfill(json={**route.fetch().json(), "explains": True}))
    asked = []

    def why(route):
        asked.append(route.request.post_data_json)
        heat = [[0.0, 0.0, 1.0, 1.0]] * 4
        route.fulfill(
            json={"photo": 1, "grid": [4, 4], "heat": heat, "box": [0, -0.1, 1, 1.1], "score": 0.5, "timing_ms": {}}
        )

    page.route("**/v1/explain", why)
    page.reload()
    settled(page)
    draw(page, BOX)
    expect_first(page, "box")
    page.locator("#grid .photo").first.click()
    until(page, "document.getElementById('large').naturalWidth === 64")
    page.keyboard.press("w")
    page.wait_for_selector("#heat:visible")
    photo = int(page.locator("#grid li").first.get_attribute("data-id"))
    assert asked[0]["photo"] == photo and asked[0]["image"].startswith("data:image/png;base64,")
    shades = """() => {
      const { width, height } = heat, copy = new OffscreenCanvas(width, height).getContext('2d');
      copy.drawImage(heat, 0, 0);
      const row = copy.getImageData(0, height / 2, width, 1).data;
      return [0.05, 0.95, 0.5].map((share) => row[4 * Math.floor(share * width) + 3]);
    }"""
    dark, bright, _ = page.evaluate(shades)
    assert dark > 200 and bright < 10, "bright where it speaks for the match"
    over = "document.getElementById('heat').width / document.getElementById('heat').height"
    assert abs(page.evaluate(over) - 64 / 56) < 0.05, "over the photo, not over its frame"
    page.click("#why")
    assert page.locator("#heat").is_hidden()
    page.unroute("**/v1/explain")
    cropped = {"photo": 1, "grid": [1, 1], "heat": [[1.0]], "box": [0.25, 0, 0.75, 1], "score": 0.5, "timing_ms": {}}
    page.route("**/v1/explain", lambda route: route.fulfill(json=cropped))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("w")  # maybe before the file is there
    page.wait_for_selector("#heat:visible")
    left, right, middle = page.evaluate(shades)
    assert min(left, right) > 200 and middle < 10, "what the model did not see does not speak for the match"
    page.click("#why")
    page.unroute("**/v1/explain")
    page.route(
        "**/v1/explain",
        lambda route: route.fulfill(status=404, json={"error": "unsupported", "message": "not with ONNX"}),
    )
    page.keyboard.press("w")
    until(page, "document.getElementById('why-line').textContent === 'not with ONNX.'")
    forgive(page, "404")
