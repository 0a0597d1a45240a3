"""The page where something goes wrong or changes under it; and on a gallery in a folder, with what a service really answers."""

import json

import pytest
from browsing import (
    BOX,
    Listing,
    browser,
    draw,
    expect_first,
    expect_nothing,
    forgive,
    needs_chromium,
    opened,
    searches,
    served,
    settled,
    shown,
    until,
)
from photographs import exif, photograph
from serving import running, sketch

__all__ = ["browser", "served"]  # fixtures
pytestmark = needs_chromium
CHIPS = "[...document.querySelectorAll('#chips .chip span:first-of-type')].map(c => c.textContent)"
FOCUSED = "document.activeElement.id || document.activeElement.className"


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served.address)


def test_a_query_outlives_fragments_and_a_reload(page):
    draw(page, BOX)
    with page.expect_request("**/v1/search"):  # only then is the page busy
        page.fill("#text", "ball")
    until(page, "document.querySelectorAll('.chip').length === 2")
    settled(page)
    steps = page.evaluate("history.length")
    page.focus("#skip")
    page.keyboard.press("Enter")
    assert page.evaluate(FOCUSED) == "results" and page.evaluate("history.length") == steps
    liked = page.locator("#grid li").nth(shown(page).index("cone"))
    liked.locator(".photo").focus()
    page.keyboard.press("m")
    expect_first(page, "cone", "cone")
    settled(page)
    like = page.evaluate(CHIPS)
    assert len(like) == 1 and like[0].startswith("like ")
    page.evaluate("location.hash = 'results'")
    page.wait_for_timeout(100)
    assert page.evaluate(CHIPS) == like, "a fragment asks for nothing"
    before = searches(page)
    page.locator("#grid .photo").first.focus()
    page.keyboard.press("l")  # not like the only one that is looked for: nothing would be asked for
    assert page.locator("#grid .act").nth(1).is_hidden() and page.evaluate(CHIPS) == like and searches(page) == before
    page.reload()
    expect_first(page, "cone", "cone")
    assert page.evaluate(CHIPS) == like
    assert page.evaluate("localStorage.getItem('splip-drawing').length") > 50, "for a new tab: what was drawn last"
    page.go_back()
    page.click("#undo-query")
    until(page, "document.querySelectorAll('.chip').length === 2")
    assert page.input_value("#text") == "ball" and page.locator("#paper.drawn").count() == 1
    settled(page)


def test_the_viewer_keeps_what_is_looked_at(browser, served):
    def larger(page):
        about = {"count": 1000, "max_k": 90}
        page.route("**/v1/gallery", lambda route: route.fulfill(json={**route.fetch().json(), **about}))

    refusing = [True]

    def many(route):
        body = route.request.post_data_json
        if body["k"] > 24 and refusing:
            route.fulfill(status=429, json={"error": "busy", "message": "too many searches"})
            return
        first = 500 if "like" in body else 1
        ids = range(first, first + body["k"])
        matches = [{"id": i, "score": 1 - i / 1000, "label": "box", "tags": {}, "name": f"{i}.jpg"} for i in ids]
        route.fulfill(json={"matches": matches, "partial": False, "timing_ms": {}, "batch": 1})

    for page in opened(browser, served.address, larger, viewport={"width": 1280, "height": 320}):
        page.route("**/v1/search", many)
        Listing().route(page)
        page.route("**/v1/images/*", lambda route: route.abort())
        draw(page, BOX)
        until(page, "document.querySelectorAll('#grid .photo').length === 24")
        page.evaluate("document.querySelectorAll('#grid .photo')[22].click()")
        until(page, "document.getElementById('status').textContent === 'too many searches.'")
        assert len(shown(page)) == 24 and page.locator("#problem").is_hidden()
        refusing.clear()
        page.keyboard.press("ArrowRight")
        assert page.locator("#viewer-title").text_content() == "24.jpg"
        until(page, "document.getElementById('place').textContent === '24 of 48'")  # it was asked again
        # Words that were typed before the photo was opened: the answer comes under it.
        page.evaluate("text.value = 'cone', text.dispatchEvent(new Event('input'))")
        until(page, "document.querySelector('#grid .name').textContent === '500.jpg'")
        page.keyboard.press("ArrowLeft")
        assert page.locator("#viewer-title").text_content() == "23.jpg"
        page.evaluate("close.click(), close.click()".replace("close", "document.getElementById('close')"))
        page.wait_for_selector("#viewer", state="hidden")
        page.wait_for_timeout(100)
        assert page.url.startswith(served.address), "one step back, not two"
        assert page.evaluate(FOCUSED) == "results", "that photo is not among them any more"
        page.wrong = [text for text in page.wrong if "429" not in text and "ERR_FAILED" not in text]


def test_strokes_suggestions_and_pictures_that_are_not_wanted(page, tmp_path):
    draw(page, BOX, release=False, pause=0.25)
    expect_first(page, "box")
    page.evaluate("canvas.dispatchEvent(new PointerEvent('pointercancel', { pointerId: 1 }))")
    page.mouse.up()
    expect_nothing(page)
    page.click("#filters-open")
    page.fill("#label", "co")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    assert page.locator(".chip.only").count() == 0, "nobody saw it"
    page.evaluate("""() => {
      const [decode, make, revoke] = [createImageBitmap, URL.createObjectURL, URL.revokeObjectURL];
      window.urls = new Set();
      URL.createObjectURL = (blob) => (urls.add(make(blob)), [...urls].at(-1));
      URL.revokeObjectURL = (url) => (urls.delete(url), revoke(url));
      let slow = 400;
      window.createImageBitmap = async (file) => {
        const wait = slow;
        slow = 0;
        await new Promise((done) => setTimeout(done, wait));
        return decode(file);
      };
    }""")
    for kind in ("cone", "ball"):
        (tmp_path / f"{kind}.png").write_bytes(sketch(kind))
        page.set_input_files("#file", tmp_path / f"{kind}.png")
    expect_first(page, "ball")
    page.wait_for_timeout(600)
    settled(page)
    assert shown(page)[0] == "ball" and page.evaluate("urls.size") == 1
    page.focus("#chips button")
    page.evaluate("words.hidden = true")
    page.keyboard.press("Enter")
    expect_nothing(page)
    assert page.evaluate(FOCUSED) == "results" and page.evaluate("urls.size") == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A gallery of 104 photographs of four months, in a folder."""
    import gallery_faults as faults

    from splip.gallery import Gallery, Picture

    folder = tmp_path_factory.mktemp("photos")
    (folder / "model").write_bytes(faults.MODEL)
    for n in range(104):
        photograph(folder / f"{n:03}.jpg", seed=n, tags=exif(f"2019:0{1 + n // 26}:14 10:00:{n % 60:02}"))
    with Gallery.create(folder / "gallery", folder / "model", encoder=faults.PixelEncoder()) as gallery:
        gallery.add([Picture(path) for path in sorted(folder.glob("*.jpg"))])
    return folder


def test_a_gallery_in_a_folder(browser, folder):
    import gallery_faults as faults

    from splip.gallery import Gallery

    def trouble(page):
        page.route("**/v1/timeline", lambda route: route.fulfill(status=503, json={"error": "starting"}), times=1)
        page.route("**/v1/thumbnails/104?*", lambda route: route.fulfill(status=429))
        page.route("**/v1/thumbnails/103?*", gone)

    def gone(route):
        (folder / "102.jpg").unlink(missing_ok=True)
        route.continue_()

    with Gallery.open(folder / "gallery", encoder=faults.PixelEncoder()) as gallery, running(gallery) as client:
        for page in opened(browser, client.address, trouble):
            until(
                page, "document.querySelectorAll('#grid .photo').length === 100"
            )  # whatever is the matter with the dates
            facts = "id => document.querySelector(`#grid li[data-id='${id}'] .facts`).textContent"
            until(page, f"({facts})(103) === 'the file is gone'")
            assert page.evaluate(facts, 104) == "cannot be shown"
            assert page.locator("#status").text_content() == "104 photos"
            assert page.evaluate(
                "[...document.querySelectorAll('#grid .heading')].map(h => h.textContent.split(' ')[0])"
            ) == ["April", "March", "February", "January"]
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            until(page, "document.querySelectorAll('#grid .photo').length === 104")
            page.evaluate("scrollTo(0, 0)")
            until(page, "!document.getElementById('filters-open').hidden")  # the months came when asked again
            page.click("#filters-open")
            page.select_option("#month", "2019-02")
            until(page, "document.querySelectorAll('#grid .photo').length === 26")
            settled(page)
            assert page.locator("#grid .act").nth(1).is_hidden(), "less like this: than what?"
            with page.expect_request("**/v1/search") as request:
                page.locator("#grid .photo").first.focus()
                page.keyboard.press("m")
            body = json.loads(request.value.post_data)
            assert body["taken_from"] == body["taken_to"] == "2019-02" and body["id"] == 52
            settled(page)
            assert len(shown(page)) == 24 and {told.split(" ")[0] for told in shown(page)} == {"Feb"}
            for status in ("503", "429", "404"):
                forgive(page, status)
