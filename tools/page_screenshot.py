"""Draw on the page of ``splip serve`` in a real Chromium and photograph it, for the documentation.

    python tools/page_screenshot.py --gallery gallery --out docs/pictures/page.png
    python tools/page_screenshot.py --gallery gallery --out page-phone.png --width 360 --height 800 --dark

The gallery is one that ``splip index add`` made, e.g. of what tools/build_photographs.py brings. Needs ``pip install 'splip[test]'`` and
a Chromium; ``--chromium`` says where it is.
"""

import argparse
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from serve_faults import served

# A horse in a square of 100: lines of x, y.
HORSE = [
    [(22, 38), (17, 44), (12, 47), (9, 44), (12, 37), (18, 27), (24, 21), (27, 17), (29, 22), (35, 29), (40, 38)],
    [(40, 38), (52, 42), (66, 40), (76, 40), (82, 45), (84, 55)],
    [(22, 38), (27, 46), (30, 57), (34, 62), (33, 74), (31, 88), (36, 88), (40, 72), (43, 63)],
    [(43, 63), (54, 65), (66, 61), (70, 70), (69, 79), (66, 88), (71, 88), (76, 76), (80, 66), (84, 55)],
    [(82, 45), (89, 50), (91, 62), (88, 71)],
    [(29, 22), (37, 24), (43, 32), (44, 40)],
    [(21, 29), (22, 29)],
]


def draw(page: Page, lines: list[list[tuple[int, int]]]) -> None:
    """Draw lines, in hundredths of the paper's side, with the mouse."""
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    for line in lines:
        at = [(box["x"] + box["width"] * x / 100, box["y"] + box["height"] * y / 100) for x, y in line]
        page.mouse.move(*at[0])
        page.mouse.down()
        for x, y in at[1:]:
            page.mouse.move(x, y, steps=6)
        page.mouse.up()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--empty", action="store_true", help="nothing is drawn: the gallery's photos")
    parser.add_argument("--text", default="", help="words beside the drawing")
    parser.add_argument("--label", nargs="*", default=[], help="labels to search only")
    parser.add_argument("--weight", default="1", help="of the words: 0.25, 0.5, 1, 2 or 4")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with served(args.gallery) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": args.width, "height": args.height}, color_scheme="dark" if args.dark else "light"
        )
        page.goto(address)
        if not args.empty:
            draw(page, HORSE)
        if args.text:
            page.fill("#text", args.text)
            page.select_option(f"select[aria-label='Weight of {args.text}']", args.weight)
        if args.label:
            page.click("#filters-open")
            for label in args.label:
                page.fill("#label", label)
                page.press("#label", "Enter")
            page.click("#filters-open")
        page.evaluate("document.activeElement.blur()")  # no ring around the last field
        page.wait_for_selector("#grid .photo img")
        page.wait_for_timeout(1000)  # the last answer, and its pictures
        page.mouse.move(5, 5)
        picture = Image.open(BytesIO(page.screenshot()))
        browser.close()
    # 255 colours are enough for a page, and a third of the bytes.
    picture.convert("RGB").quantize(255, dither=Image.Dither.FLOYDSTEINBERG).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
