"""The page in a real Chromium, driven as a person would."""

import pytest
from browsing import (
    BOX,
    CONE,
    browser,
    draw,
    expect_first,
    expect_loaded,
    expect_nothing,
    forgive,
    needs_chromium,
    opened,
    score,
    searches,
    settled,
    shown,
    until,
)  # fmt: skip
from serving import TOKEN, FakeGallery, running, sketch

__all__ = ["browser"]  # a fixture
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return FakeGallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def served(shared):
    with running(shared) as client:
        yield client


@pytest.fixture
def gallery(shared):
    """The gallery that is served; a test may watch its encoder."""
    yield shared
    shared.encoder.hold.set()
    vars(shared.encoder).pop("prepare", None)


@pytest.fixture
def own(tmp_path):
    return FakeGallery(tmp_path)


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served.address)


def test_draw_refine_undo_redo_clear(page):
    assert "Draw what" in page.locator("#hint").text_content() and shown(page) == []
    draw(page, BOX)
    expect_first(page, "box", "box", "box", "box")
    expect_loaded(page)
    assert page.locator("#status").text_content() == "24 photos" and score(page) > 0.9
    draw(page, [[(25, 25), (75, 75)], [(25, 75), (75, 25)]])
    assert score(page) < 0.9
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    settled(page)
    assert score(page) > 0.9
    page.click("#undo")
    expect_nothing(page)
    assert page.locator("#undo").is_disabled()
    page.keyboard.press("Control+Shift+z")
    expect_first(page, "box", "box")
    page.keyboard.press("Delete")
    expect_nothing(page)
    page.click("#undo")
    expect_first(page, "box", "box")


def test_results_come_while_a_line_is_drawn(page):
    draw(page, BOX, release=False, pause=0.25)
    expect_first(page, "box")
    page.wait_for_timeout(400)  # the last look at the stroke
    settled(page)
    before = searches(page)
    assert before >= 2
    page.mouse.up()
    settled(page)
    assert searches(page) == before + 1


def test_a_dot_is_a_drawing(page, gallery):
    prepare, seen = gallery.encoder.prepare, []
    gallery.encoder.prepare = lambda image, modality: seen.append(image) or prepare(image, modality)
    draw(page, [[(50, 50)]])
    until(page, "document.querySelectorAll('#grid li').length > 0")
    dark = sum(seen[-1].convert("L").histogram()[:128])
    assert 30 < dark < 150, "a round dot as wide as the pen"


def test_eraser_and_width(page):
    draw(page, BOX)
    expect_first(page, "box")
    page.locator("label:has([value=eraser])").click()
    page.click("#width")
    assert page.locator("#width").get_attribute("aria-label") == "Width: thick"
    draw(page, [[(15, y), (85, y)] for y in range(15, 90, 8)])
    until(page, "document.querySelectorAll('#grid li').length === 0")  # nothing is left: the service calls it blank
    page.keyboard.press("b")
    page.keyboard.press("[")
    page.keyboard.press("[")
    assert page.locator("#width").get_attribute("aria-label") == "Width: thin"
    draw(page, CONE)
    expect_first(page, "cone", "cone")
    forgive(page, "422")


def test_stale_answers_are_dropped(page, gallery, served):
    gallery.encoder.hold.clear()
    draw(page, BOX, settle=False)
    page.wait_for_timeout(200)
    page.click("#clear")
    draw(page, CONE, settle=False)
    until(page, "document.getElementById('results').className === 'busy'")
    gallery.encoder.hold.set()
    expect_first(page, "cone")
    page.wait_for_timeout(200)
    assert shown(page)[0] == "cone" and "busy" not in page.locator("#results").get_attribute("class")


def test_words_beside_the_drawing(page):
    page.fill("#text", "cone")
    expect_first(page, "cone", "cone", "cone", "cone")
    assert page.locator(".chip").count() == 1 and page.locator(".chip select").count() == 0, "alone it has no weight"
    draw(page, BOX)
    assert page.locator(".chip").count() == 2
    page.select_option("select[aria-label='Weight of drawing']", "4")
    expect_first(page, "box", "box", "box", "box")
    page.select_option("select[aria-label='Weight of drawing']", "0.25")
    page.select_option("select[aria-label='Weight of cone']", "4")
    expect_first(page, "cone", "cone", "cone", "cone")
    page.click("[aria-label='Take out: cone']")
    expect_first(page, "box", "box", "box", "box")
    assert page.input_value("#text") == ""
    page.click("[aria-label='Take out: drawing']")
    expect_nothing(page)


def test_upload_paste_and_drop(page, tmp_path):
    (tmp_path / "cone.png").write_bytes(sketch("cone"))
    page.set_input_files("#file", tmp_path / "cone.png")
    expect_first(page, "cone", "cone", "cone", "cone")
    assert page.locator("#preview").is_visible() and page.locator("#kinds").is_visible()
    page.locator("#kinds label").nth(1).click()
    page.wait_for_timeout(200)
    expect_first(page, "cone")
    page.click("#back")
    expect_nothing(page)
    hand_over = """([kind, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "p.png", {type: "image/png"}));
      const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
                                     : new DragEvent("drop", {dataTransfer: data, bubbles: true});
      document.body.dispatchEvent(event);
    }"""
    page.evaluate(hand_over, ["paste", list(sketch("ball"))])
    expect_first(page, "ball", "ball")
    page.evaluate(hand_over, ["drop", list(sketch("slash"))])
    expect_first(page, "slash", "slash")


def test_svg_and_damaged_uploads(page, tmp_path):
    shape = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M1 1H8V8H1z" fill="none" stroke="#000"/></svg>'
    (tmp_path / "box.svg").write_text(shape)
    page.set_input_files("#file", tmp_path / "box.svg")
    expect_first(page, "box", "box")
    (tmp_path / "x.png").write_bytes(b"\x89PNG damaged")
    page.set_input_files("#file", tmp_path / "x.png")
    page.wait_for_selector("#problem:visible")
    assert "cannot read" in page.locator("#problem").text_content()
    forgive(page, "422")
    page.set_input_files("#file", tmp_path / "box.svg")
    page.wait_for_selector("#problem", state="hidden")
    expect_first(page, "box")


def test_filter_by_label(page):
    draw(page, BOX)
    expect_first(page, "box")
    page.click("#filters-open")
    page.fill("#label", "CO")
    assert page.locator("#suggestions li").all_text_contents() == ["cone4"]
    page.press("#label", "Enter")
    expect_first(page, "cone", "cone", "cone", "cone")
    assert len(shown(page)) == 4 and page.input_value("#label") == ""
    page.fill("#label", "al")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#grid li').length === 8")
    assert set(shown(page)) == {"cone", "ball"} and page.locator("#filters-open").text_content() == "Filter (2)"
    page.locator(".chip.only button").first.click()
    until(page, "document.querySelectorAll('#grid li').length === 4")
    page.locator(".chip.only button").first.click()
    until(page, "document.querySelectorAll('#grid li').length === 24")
    page.fill("#label", "nonsense")
    assert page.locator("#suggestions").is_hidden()
    page.press("#label", "Enter")
    assert page.locator(".chip.only").count() == 0


def test_one_photo_in_full(page, gallery):
    draw(page, BOX)
    expect_first(page, "box")
    page.locator("#grid .photo").nth(5).click()
    place = page.locator("#place")
    assert place.text_content() == "6 of 24"
    until(page, "document.getElementById('large').naturalWidth === 64")
    page.keyboard.press("ArrowLeft")
    assert place.text_content() == "5 of 24"
    page.click("#next")
    page.click("#next")
    assert place.text_content() == "7 of 24"
    page.keyboard.press("i")
    facts = page.locator("#facts").text_content()
    assert str(gallery.items[1].path.parent.parent) in facts and "Similarity0." in facts
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    until(page, "document.activeElement.closest('#grid li') === document.querySelectorAll('#grid li')[6]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer:visible")
    page.go_back()
    page.wait_for_selector("#viewer", state="hidden")
    assert shown(page)[0] == "box", "the Back button closes the photo, and no more"


def test_more_like_this_begins_anew_and_back_brings_all_of_it_back(page):
    draw(page, BOX)
    with page.expect_request("**/v1/search"):  # only then is the page busy
        page.fill("#text", "ball")
    until(page, "document.querySelectorAll('.chip').length === 2")
    settled(page)
    page.locator("#grid .photo").nth(shown(page).index("cone")).click()
    page.click("#more")
    page.wait_for_selector("#viewer", state="hidden")
    expect_first(page, "cone", "cone", "cone", "cone")
    assert page.input_value("#text") == "" and page.locator(".chip").count() == 1
    assert page.locator("#paper.drawn").count() == 0
    page.click("#undo-query")
    until(page, "document.querySelectorAll('.chip').length === 2")
    expect_first(page, "box") if score(page) > 1 else settled(page)
    assert page.input_value("#text") == "ball" and page.locator("#paper.drawn").count() == 1
    page.go_forward()
    expect_first(page, "cone", "cone", "cone", "cone")


def test_like_and_unlike(page):
    draw(page, BOX)
    expect_first(page, "box", "box")
    page.locator("#grid .photo").first.focus()
    for _ in range(shown(page).index("cone")):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+M")
    until(page, "document.querySelectorAll('.chip').length === 2")
    page.select_option(".chip select[aria-label^='Weight of like']", "4")
    expect_first(page, "cone")
    page.locator("#grid li").first.locator(".act").nth(1).click(force=True)
    page.wait_for_selector(".chip.unlike")
    until(page, "!document.querySelector('#grid .facts').textContent.includes('cone')")
    page.click("[aria-label='Take out: drawing']")
    page.wait_for_selector("#problem:visible")
    assert "only things that are not looked for" in page.locator("#problem").text_content()
    assert shown(page) == [], "no photos that answer something else"
    forgive(page, "422")


def test_parts_that_cancel_out(page):
    page.fill("#text", "cone")
    expect_first(page, "cone")
    body = {"error": "invalid", "message": "the parts of the query cancel out"}
    page.route("**/v1/search", lambda route: route.fulfill(status=422, json=body))
    page.locator("#grid .photo").first.focus()
    page.keyboard.press("l")
    page.wait_for_selector("#problem:visible")
    assert page.locator("#problem p").text_content() == "the parts of the query cancel out."
    assert shown(page) == []
    forgive(page, "422")


def test_everything_by_keyboard(page):
    page.focus("#canvas")
    # A line from the middle to the right: the pen goes down, moves, and is lifted.
    page.keyboard.press("Space")
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect_first(page, "dash")
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
            )
        )
        ring = page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle + "
            "(document.activeElement.labels?.[0] ? getComputedStyle(document.activeElement.labels[0]).outlineStyle : '') + "
            "(document.activeElement.nextElementSibling ? getComputedStyle(document.activeElement.nextElementSibling).outlineStyle : '')"
        )
        assert "solid" in ring or reached[-1] == "BODY", (reached[-1], ring)
    assert {"file", "text", "filters-open"} <= set(reached) and reached.count("photo") == 1
    page.locator("#grid .photo").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer:visible")
    assert page.locator("#place").text_content() == "2 of 24"
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    page.keyboard.press("?")
    page.wait_for_selector("#help:visible")
    assert page.locator("#keys dt").count() > 12
    page.keyboard.press("Escape")
    page.wait_for_selector("#help", state="hidden")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "text"


def test_touch_on_a_small_screen(browser, served):
    options = {
        "viewport": {"width": 360, "height": 740},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 3,
    }
    for page in opened(browser, served.address, color_scheme="dark", **options):
        box = page.locator("#canvas").bounding_box()
        assert box["width"] > 250 and page.locator("#canvas").evaluate("c => c.width") == round(3 * box["width"])
        devtools = page.context.new_cdp_session(page)
        points = [(30, 30), (30, 70), (70, 70), (70, 30), (30, 30)]
        for number, (x, y) in enumerate(points):
            at = [{"x": box["x"] + box["width"] * x / 100, "y": box["y"] + box["height"] * y / 100}]
            devtools.send(
                "Input.dispatchTouchEvent", {"type": "touchMove" if number else "touchStart", "touchPoints": at}
            )
            page.wait_for_timeout(60)  # else it is a fling, and the next tap stops that
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        expect_first(page, "box")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, "nothing sticks out"
        assert page.evaluate("scrollY") == 0, "drawing does not scroll"
        settled(page)
        for number, y in enumerate(range(640, 340, -50)):
            kind = "touchMove" if number else "touchStart"
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": 180, "y": y}]})
            page.wait_for_timeout(30)
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        until(page, "scrollY > 100")  # below the canvas a finger scrolls
        page.wait_for_timeout(300)
        page.evaluate("scrollTo(0, 0)")
        page.locator("#grid .photo").first.tap()
        page.wait_for_selector("#viewer:visible")
        assert page.locator("#more").bounding_box()["x"] + page.locator("#more").bounding_box()["width"] <= 360
        stage = page.locator("#stage").bounding_box()
        at = [{"x": stage["x"] + 250, "y": stage["y"] + 90}]
        devtools.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": at})
        devtools.send(
            "Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{**at[0], "x": at[0]["x"] - 120}]}
        )
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        until(page, "document.getElementById('place').textContent === '2 of 24'")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(int(v) for v in dark[4:-1].split(",")) < 60


def test_the_drawing_that_is_sent_is_dark_on_white(page, gallery):
    prepare, seen = gallery.encoder.prepare, []
    gallery.encoder.prepare = lambda image, modality: seen.append(image) or prepare(image, modality)
    draw(page, BOX)
    expect_first(page, "box")
    image = seen[-1]
    assert image.size == (384, 384)
    grey = image.convert("L")
    assert grey.getpixel((2, 2)) == 255 and grey.getextrema()[0] < 40
    dark = sum(grey.histogram()[:128]) / 384**2
    assert 0.01 < dark < 0.1


def test_timing_of_each_stage(page):
    draw(page, BOX)
    expect_first(page, "box")
    page.locator("#timing summary").click()
    stages = page.locator("#stages li").all_text_contents()
    assert [s.split()[0] for s in stages] == ["decode", "prepare", "wait", "encode", "search", "lookup", "network"]
    assert float(stages[0].split()[1]) > 0 and page.locator("#total").text_content().endswith(" ms")


def test_a_service_that_goes_away_and_comes_back(page, served):
    draw(page, BOX)
    expect_first(page, "box")
    page.route("**/v1/search", lambda route: route.abort())
    draw(page, [[(10, 10), (20, 20)]])
    page.wait_for_selector("#problem:visible")
    assert "does not answer. Your drawing is kept" in page.locator("#problem").text_content()
    assert shown(page) == [] and page.locator("#paper.drawn").count() == 1
    page.unroute("**/v1/search")
    page.evaluate("document.getElementById('retry').click()")  # also where it has just been tried again without
    page.wait_for_selector("#problem", state="hidden")
    assert len(shown(page)) == 24
    forgive(page, "ERR_FAILED")


def test_a_service_that_is_starting(browser, own):
    own.encoder.hold.clear()
    with running(own, wait=False) as client:
        context = browser.new_context()
        page = context.new_page()
        page.goto(client.address)
        page.wait_for_selector("#problem:visible")
        assert "starting" in page.locator("#problem").text_content()
        own.encoder.hold.set()
        page.wait_for_selector("#problem", state="hidden")
        page.wait_for_selector("#text:visible")
        context.close()


def test_busy_is_said_and_tried_again(page, served):
    draw(page, BOX)
    expect_first(page, "box")
    refusal = {
        "status": 429,
        "headers": {"Retry-After": "1"},
        "json": {"error": "busy", "message": "too many searches"},
    }
    page.route("**/v1/search", lambda route: route.fulfill(**refusal))
    page.fill("#text", "box")  # one search, while a stroke may make two
    page.wait_for_selector("#problem:visible")
    assert "too many searches" in page.locator("#problem").text_content() and shown(page) == []
    page.unroute("**/v1/search")
    page.wait_for_selector("#problem", state="hidden")
    assert len(shown(page)) == 24
    forgive(page, "429")


def test_an_empty_gallery(browser, own):
    own.items.clear()
    with running(own) as client:
        for page in opened(browser, client.address):
            until(page, "document.getElementById('invite').textContent.includes('splip index add')")
            draw(page, BOX)
            page.wait_for_timeout(300)
            assert shown(page) == [] and page.locator("#filters-open").is_hidden()


def test_a_gallery_that_asks_for_a_token(browser, own):
    with running(own, token=TOKEN, protect="all") as client:
        for page in opened(browser, client.address):
            page.fill("#token", "wrong")
            page.keyboard.press("Enter")
            until(page, "document.getElementById('login-problem').textContent")
            page.fill("#token", TOKEN)
            page.keyboard.press("Enter")
            page.wait_for_selector("#login", state="hidden")
            until(page, "document.getElementById('about').textContent")
            draw(page, BOX)
            expect_first(page, "box")
            expect_loaded(page)
            forgive(page, "401")


def test_the_list_of_the_api(browser, served):
    for page in opened(browser, served.address):
        page.click("header a")
        page.wait_for_selector("code:text-is('/v1/search/batch')")
        width = (
            "Math.min(...[...document.querySelectorAll('main > *')].map((one) => one.getBoundingClientRect().width))"
        )
        assert page.evaluate(width) > 600, "below one another"
        assert page.locator("section h3").count() >= 10
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
