"""Strokes, prefixes of them, and what training keeps of a sketch."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from splip.data import strokes
from splip.errors import UserError
from splip.images import tracing
from splip.images.decode import square
from splip.models import load_model
from splip.train import loop
from splip.train.batches import Feed
from splip.train.objective import Objective

# An L: 10 down, then 10 to the right, and a bar of 20 above it.
L = [np.array([[0.0, 0], [0, 10], [10, 10]]), np.array([[0.0, 20], [20, 20]])]


def own(lines):
    """Back to the drawing's own numbers: whole drawings are scaled to the frame."""
    room = 1 - 2 * strokes.INK_MARGIN - strokes.PEN
    return [((line - 0.5) * 20 / room + 10).round(6).tolist() for line in lines]


def test_prefixes_by_length():
    drawing = strokes.Strokes(L)
    assert own(drawing.first(1)) == [line.tolist() for line in L]
    assert own(drawing.first(0.5)) == [L[0].tolist()]
    assert own(drawing.first(0.125)) == [[[0, 0], [0, 5]]]
    assert own(drawing.first(0.375)) == [[[0, 0], [0, 10], [5, 10]]]
    assert own(drawing.first(0.75)) == [L[0].tolist(), [[0, 20], [10, 20]]]


def test_all_parts_have_the_frame_of_the_whole():
    drawing = strokes.Strokes(L)
    whole, part = (np.asarray(drawing.picture(share)) for share in (1, 0.5))
    assert whole.shape == (strokes.SIDE, strokes.SIDE, 3)
    assert (part >= whole).all() and (part > whole).any()  # ink is only missing
    dark = np.argwhere(whole[..., 0] < 128)
    border = strokes.INK_MARGIN * strokes.SIDE
    assert abs(dark.min() - border) < 2 and abs(strokes.SIDE - 1 - dark.max() - border) < 2
    upright = whole[strokes.SIDE // 4, :, 0] < 128  # the first stroke's width
    assert abs(upright.sum() - strokes.PEN * strokes.SIDE) < 2


def test_dots_count_and_are_drawn():
    drawing = strokes.Strokes([np.array([[3.0, 3]]), np.array([[0.0, 0], [6, 0]])])
    assert drawing.lengths[0] == strokes.PEN
    dot = np.asarray(drawing.picture(0.001))
    assert 0 < (dot < 128).any(axis=2).sum() < 2 * (strokes.PEN * strokes.SIDE) ** 2


def ndjson(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_quickdraw_simplified_and_raw(tmp_path):
    simple = {"key_id": "1", "word": "cat", "drawing": [[[0, 0, 10], [0, 10, 10]], [[0, 20], [20, 20]]]}
    raw = {"key_id": "2", "word": "cat", "drawing": [[[*map(float, [0, 0, 10])], [0, 10, 10], [0, 5, 9]]]}
    found = strokes.read_ndjson(ndjson(tmp_path / "cat.ndjson", simple, "", raw))
    assert own(found["1"].lines) == [line.tolist() for line in L]
    assert len(found["2"].lines) == 1 and found["2"].lines[0].shape == (3, 2)
    assert list(strokes.read_ndjson(tmp_path / "cat.ndjson", ["2", "9"])) == ["2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"drawing": []}', "line 2: no key_id and drawing"),
        ("[1]", "line 2: no key_id and drawing"),
        ('{"key_id": "2", "drawing": []}', "line 2: no strokes"),
        ('{"key_id": "2", "drawing": [[[1, 2], [1]]]}', "line 2: stroke 1 is not"),
        ('{"key_id": "2", "drawing": [[[1], [1]], [[1]]]}', "line 2: stroke 2 is not"),
        ('{"key_id": "2", "drawing": [[[1, NaN], [1, 2]]]}', "line 2: stroke 1 has a coordinate that is not finite"),
        ('{"key_id": "2", "drawing": [[["a"], ["b"]]]}', "line 2: no key_id and drawing"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = ndjson(tmp_path / "cat.ndjson", {"key_id": "1", "drawing": [[[0, 1], [0, 1]]]}, line)
    with pytest.raises(UserError) as caught:
        strokes.read_ndjson(path)
    assert str(caught.value).startswith(f"{path}, {message}")


def test_a_file_without_strokes(tmp_path):
    with pytest.raises(UserError, match=r"cat.ndjson: no strokes"):
        strokes.read_ndjson(ndjson(tmp_path / "cat.ndjson"))
    (tmp_path / "a.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>')
    with pytest.raises(UserError, match=r"a.svg: no strokes"):
        strokes.read_svg(tmp_path / "a.svg")


@pytest.mark.parametrize("shares", [(), (0.0,), (1.1,), (0.5, -1), (float("nan"),)])
def test_shares_out_of_range(shares):
    with pytest.raises(UserError, match="--shares must be above 0 and at most 1"):
        strokes.check_shares(shares)


# ---- drawings of which only the picture is left ----


def picture():
    """A long line above a short one, four pixels wide, on grey paper's white."""
    image = Image.new("RGB", (64, 64), "white")
    pen = ImageDraw.Draw(image)
    pen.line([(4, 12), (59, 12)], "black", 4)
    pen.line([(20, 40), (43, 40)], "black", 4)
    return image


def test_tracing_walks_the_longer_line_first():
    grey = np.asarray(picture().convert("L"))
    when, dark = tracing.order(grey), grey < 128
    assert ((when > 0) == dark).all()
    long, short = when[:30][dark[:30].any(axis=1)][:, 4:60], when[30:][dark[30:].any(axis=1)][:, 20:44]
    assert (long > 0).all() and (short > 0).all()
    assert long.max() < short.min() and short.max() == 1
    assert 0.63 < long.max() < 0.77  # 56 of 80, but for what thinning takes off the ends
    columns = long.mean(axis=0)
    assert (np.diff(columns) >= 0).all() or (np.diff(columns) <= 0).all()  # from one end to the other


def test_thin_lines_are_one_pixel_wide_and_whole():
    lines = tracing.thin(np.asarray(picture().convert("L")) < 128)
    assert lines[:20].sum(axis=0).max() == 1 and lines[:20].any(axis=0).sum() >= 50
    ring = np.zeros((40, 40), dtype=bool)
    y, x = np.mgrid[:40, :40] - 20
    ring[(np.hypot(x, y) < 14) & (np.hypot(x, y) > 9)] = True
    walked = tracing.walk(tracing.thin(ring))
    assert len(walked[0]) > 55 and sum(map(len, walked[1:])) <= 2  # one line round


def test_the_whole_of_a_traced_drawing_is_its_picture():
    image = picture()
    drawing = strokes.traced(image, crop=False)
    assert np.array_equal(np.asarray(drawing.picture(1)), np.asarray(image))
    half = np.asarray(drawing.picture(0.5))
    assert (half[30:] == 255).all() and (half[:30] < 255).any()
    with pytest.raises(UserError, match="no strokes"):
        strokes.traced(Image.new("RGB", (8, 8), "white"), crop=False)


# ---- training ----


def parts(partial, B=4, seed=0, rows=None, names=None):
    images = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1).expand(B, -1, -1, -1).contiguous()
    rows = torch.arange(B) if rows is None else rows
    return partial(images[rows], torch.Generator().manual_seed(seed), rows, B, names)


def test_a_share_of_sketches_is_kept_in_part():
    whole = torch.from_numpy(np.asarray(picture()).copy()).permute(2, 0, 1)
    assert torch.equal(parts(strokes.Partial(0, 0.2, False, "pad"))[3], whole)
    found = parts(strokes.Partial(1, 0.2, False, "pad"), B=8)
    assert (found >= whole).all() and all((one > whole).any() for one in found)
    ink = [(one < 128).sum() / (whole < 128).sum() for one in found]
    assert min(ink) > 0.15 and len({float(one) for one in ink}) > 4
    mixed = parts(strokes.Partial(0.5, 0.2, False, "pad"), B=16)
    assert 0 < sum(torch.equal(one, whole) for one in mixed) < 16


def test_parts_do_not_depend_on_the_number_of_processes():
    every = parts(strokes.Partial(0.7, 0.2, False, "pad"), names=[5, 5, 6, 5])
    two = torch.tensor([2, 3])
    assert torch.equal(parts(strokes.Partial(0.7, 0.2, False, "pad"), rows=two), every[2:])
    assert not torch.equal(parts(strokes.Partial(0.7, 0.2, False, "pad"), seed=1), every)


def test_what_stays_is_cropped_as_the_page_does():
    (found,) = parts(strokes.Partial(1, 0.5, True, "pad"), B=1)
    plain = parts(strokes.Partial(1, 0.5, False, "pad"), B=1)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found.permute(1, 2, 0).numpy(), square(Image.fromarray(plain), 64, "pad", True))


def test_training_with_parts(settings, tree):
    settings.data = dataclasses.replace(settings.data, partial=1.0, augment="none")
    model = load_model(loop.train(settings), torch.device("cpu"))
    assert model.config.data.partial == 1.0
    objective = Objective(model)
    from splip.data.trees import load_tree

    found = load_tree(tree, settings.data)
    side = model.backbone.image_size
    feeds = [
        Feed(found, dataclasses.replace(settings, data=dataclasses.replace(settings.data, partial=p)), side, torch.device("cpu"))
        for p in (0.0, 1.0)
    ]  # fmt: skip
    whole, part = (feed.part(3, objective).images for feed in feeds)
    B = settings.batch_size
    assert torch.equal(whole[B:], part[B:])  # photos are whole
    assert (part[:B] >= whole[:B]).all() and (part[:B].sum((1, 2, 3)) > whole[:B].sum((1, 2, 3))).all()


@pytest.mark.parametrize(("name", "value"), [("partial", 1.5), ("partial_least", 0.0)])
def test_settings_out_of_range(settings, name, value):
    setattr(settings.data, name, value)
    with pytest.raises(UserError, match=f"data.{name} must be"):
        loop.train(settings)


def test_crumbs_of_a_line_come_with_it():
    """Else a finished circle would have gaps until the very end; a dot of its own comes when it is drawn."""
    grey = np.full((30, 30), 255, dtype=np.uint8)
    grey[10, 2:28] = 0
    grey[9, 15] = 0  # a crumb
    grey[20, 5] = 0
    when = tracing.order(grey)
    assert abs(when[9, 15] - when[10, 15]) < 2 / 26 and when[20, 5] == 1 > when[10].max()


@pytest.mark.parametrize("drawing", ["[[[1" + "0" * 400 + ",1],[2,3]]]", "[[[[1,2]],[[3,4]]]]", "[[[1e308,1],[2,3]]]"])
def test_numbers_that_are_no_drawing(tmp_path, drawing):
    path = tmp_path / "cat.ndjson"
    path.write_text('{"key_id": 1, "drawing": ' + drawing + "}")
    with pytest.raises(UserError, match=r"cat.ndjson, line 1: "):
        strokes.read_ndjson(path)
