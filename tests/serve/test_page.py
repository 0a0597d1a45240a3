"""The page in a real Chromium, driven as a person would."""

import shutil
import time

import pytest
from serving import TOKEN, FakeGallery, running, sketch

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'splip[test]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, e.g. apt install chromium")

BOX = [[(25, 25), (75, 25), (75, 75), (25, 75), (25, 25)]]
CONE = [[(50, 20), (20, 80), (80, 80), (50, 20)]]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def gallery(tmp_path):
    return FakeGallery(tmp_path)


@pytest.fixture
def served(gallery):
    with running(gallery) as client:
        yield client


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served.address)


def opened(browser, address, **options):
    """A page that fails the test on an error of its own or a request to anywhere else."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page = context.new_page()
    page.wrong, page.asked = [], []
    page.on("console", lambda message: message.type in ("error", "warning") and page.wrong.append(message.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    until(page, "document.getElementById('about').textContent || document.querySelector('dialog[open]')")
    yield page
    foreign = [url for url in page.asked if not url.startswith((address, "blob:", "data:"))]
    context.close()
    assert not foreign and not page.wrong


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
    return page.locator("#grid .name").all_text_contents()


def expect_first(page, *labels):
    """Wait until the first photos have these labels."""
    script = "want => want.every((w, i) => document.querySelectorAll('#grid .name')[i]?.textContent === w)"
    until(page, script, list(labels))


def expect_nothing(page):
    until(page, "document.querySelectorAll('#grid li').length === 0 && !document.getElementById('empty').hidden")


def expect_loaded(page):
    until(page, "[...document.querySelectorAll('#grid img')].every(i => i.complete && i.naturalWidth > 0)")


def searches(page):
    return sum(url.endswith("/v1/search") for url in page.asked)


def test_draw_refine_undo_redo_clear(page):
    assert "Draw what" in page.locator("#hint").text_content() and shown(page) == []
    draw(page, BOX)
    expect_first(page, "box", "box", "box", "box")
    expect_loaded(page)
    assert page.locator("#status").text_content() == "24 photos, best: box"
    draw(page, [[(25, 25), (75, 75)], [(25, 75), (75, 25)]])
    until(page, "document.querySelector('#grid .score').textContent !== '1.00'")
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    until(page, "Number(document.querySelector('#grid .score').textContent) > 0.85")
    page.click("#undo")
    expect_nothing(page)
    assert page.locator("#undo").is_disabled() and page.locator("#status").text_content() == ""
    page.keyboard.press("Control+Shift+z")
    expect_first(page, "box", "box")
    page.keyboard.press("Delete")
    expect_nothing(page)
    page.click("#undo")
    expect_first(page, "box", "box")


def test_results_come_while_a_line_is_drawn(page):
    draw(page, BOX, release=False, pause=0.25)
    expect_first(page, "box")
    before = searches(page)
    assert before >= 2
    page.mouse.up()
    page.wait_for_timeout(300)
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
    page.locator("#width").fill("32")
    draw(page, [[(15, y), (85, y)] for y in range(15, 90, 8)])
    expect_nothing(page)  # nothing is left: the service calls it blank
    page.keyboard.press("b")
    page.locator("#width").fill("8")
    draw(page, CONE)
    expect_first(page, "cone", "cone")
    forgive(page, "422")


def test_stale_answers_are_dropped(page, gallery, served):
    gallery.encoder.hold.clear()
    draw(page, BOX, settle=False)
    page.wait_for_timeout(200)
    page.click("#clear")
    draw(page, CONE, settle=False)
    page.wait_for_timeout(200)
    assert page.locator("#results").get_attribute("class") == "busy"
    gallery.encoder.hold.set()
    expect_first(page, "cone")
    page.wait_for_timeout(200)
    assert shown(page)[0] == "cone" and "busy" not in page.locator("#results").get_attribute("class")


def test_words_beside_the_drawing(page):
    page.fill("#text", "cone")
    expect_first(page, "cone", "cone", "cone", "cone")
    assert page.locator("#weights").is_hidden()
    draw(page, BOX)
    page.locator("#weight").fill("0")
    expect_first(page, "box", "box", "box", "box")
    page.locator("#weight").fill("1")
    expect_first(page, "cone", "cone")


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


def test_filter_by_label_and_number(page):
    draw(page, BOX)
    expect_first(page, "box")
    page.select_option("#k", "12")
    until(page, "document.querySelectorAll('#grid li').length === 12")
    page.fill("#label", "cone")
    page.press("#label", "Enter")
    expect_first(page, "cone", "cone", "cone", "cone")
    assert len(shown(page)) == 4
    page.fill("#label", "ball")
    page.press("#label", "Enter")
    until(page, "document.querySelectorAll('#grid li').length === 8")
    assert set(shown(page)) == {"cone", "ball"}
    page.locator("#chips button").first.click()
    until(page, "document.querySelectorAll('#grid li').length === 4")
    page.locator("#chips button").first.click()
    expect_first(page, "box")
    page.type("#label", "nonsense")
    page.press("#label", "Enter")
    assert page.input_value("#label") == "nonsense"
    assert page.locator("#chips li").count() == 0


def test_full_picture_and_more_like_this(page, gallery):
    draw(page, BOX)
    expect_first(page, "box")
    page.locator("#grid button").nth(5).click()
    title = page.locator("#viewer-title")
    assert title.text_content().startswith("6. ")
    until(page, "document.getElementById('large').naturalWidth === 64")
    page.keyboard.press("ArrowLeft")
    assert title.text_content().startswith("5. ")
    page.click("#next")
    page.click("#next")
    assert title.text_content().startswith("7. ")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    assert page.evaluate("document.activeElement.closest('#grid') !== null")
    cone = shown(page).index("cone")
    page.locator("#grid button").nth(cone).click()
    assert str(gallery.items[1].path.parent.parent) in page.locator("#viewer-path").text_content()
    page.click("#more")
    expect_first(page, "cone", "cone", "cone", "cone")
    assert page.locator("#like").is_visible() and page.locator("#kinds").is_hidden()
    page.click("#back")
    expect_first(page, "box")


def test_everything_by_keyboard(page):
    page.focus("#canvas")
    # A line from the middle to the right: the pen goes down, moves, and is lifted.
    page.keyboard.press("Space")
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    expect_first(page, "dash")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.tagName")
        )
        ring = page.evaluate(
            "getComputedStyle(document.activeElement).outlineStyle + "
            "(document.activeElement.labels?.[0] ? getComputedStyle(document.activeElement.labels[0]).outlineStyle : '') + "
            "(document.activeElement.nextElementSibling ? getComputedStyle(document.activeElement.nextElementSibling).outlineStyle : '')"
        )
        assert "solid" in ring or reached[-1] == "BODY", (reached[-1], ring)
    assert {"file", "text", "label", "k"} <= set(reached) and reached.count("BUTTON") > 10
    page.locator("#grid button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#viewer:visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#viewer", state="hidden")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas, a')].filter(e => !(e.getAttribute('aria-label')"
        " || e.textContent.trim() || e.labels?.length || e.title)).map(e => e.outerHTML)"
    )
    assert not unnamed


def test_touch_on_a_small_screen(browser, served):
    options = {
        "viewport": {"width": 360, "height": 740},
        "has_touch": True,
        "is_mobile": True,
        "device_scale_factor": 3,
    }
    for page in opened(browser, served.address, color_scheme="dark", **options):
        box = page.locator("#canvas").bounding_box()
        assert box["width"] > 280 and page.locator("#canvas").evaluate("c => c.width") == round(3 * box["width"])
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
        page.locator("#grid button").first.tap()
        page.wait_for_selector("#viewer:visible")
        assert page.locator("#more").bounding_box()["x"] + page.locator("#more").bounding_box()["width"] <= 360
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
    assert "does not answer" in page.locator("#problem").text_content()
    page.unroute("**/v1/search")
    page.click("#retry")
    page.wait_for_selector("#problem", state="hidden")
    forgive(page, "ERR_FAILED")


def test_a_service_that_is_starting(browser, gallery):
    gallery.encoder.hold.clear()
    with running(gallery, wait=False) as client:
        context = browser.new_context()
        page = context.new_page()
        page.goto(client.address)
        page.wait_for_selector("#problem:visible")
        assert "starting" in page.locator("#problem").text_content()
        gallery.encoder.hold.set()
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
    page.route("**/v1/search", lambda route: route.fulfill(**refusal), times=1)
    page.select_option("#k", "12")
    page.wait_for_selector("#problem:visible")
    assert "too many searches" in page.locator("#problem").text_content()
    page.wait_for_selector("#problem", state="hidden")
    assert len(shown(page)) == 12
    forgive(page, "429")


def test_an_empty_gallery(browser, gallery):
    gallery.items.clear()
    with running(gallery) as client:
        for page in opened(browser, client.address):
            until(page, "document.getElementById('invite').textContent.includes('splip index add')")
            draw(page, BOX)
            page.wait_for_timeout(300)
            assert shown(page) == [] and page.locator("#filter").is_hidden()


def test_a_gallery_that_asks_for_a_token(browser, gallery):
    with running(gallery, token=TOKEN, protect="all") as client:
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
        assert page.locator("section h3").count() >= 10
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
