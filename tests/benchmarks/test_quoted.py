"""Numbers that pages quote in sentences stand in the results that they name."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def page(name):
    return " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())


def result(name):
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def test_the_page_of_the_service():
    text, found = page("tutorials/serve.md"), result("page")
    latency, photo, trial = found["latency"], found["trial"]["photo"], found["trial"]
    document, frame, pixels = (latency[f"{kind}_ms"]["p50"] for kind in ("document", "frame", "pixels"))
    assert f"it takes {document:.0f} ms until the photos are in the document, {frame:.0f} to the frame" in text
    assert f"and {pixels:.0f} until every picture" in text
    assert f"medians of {latency['strokes']} strokes, {latency['model']}, {latency['photos']:,} pictures" in text
    assert trial["limit_s"] == 30 and trial["pace_s"] == 1 and photo["found"] == photo["of"] == len(trial["drawings"])
    assert f"{trial['photos']} pictures, {photo['of']} clean sketches" in text
    assert f"in all {photo['of']} cases" in text
    assert f"after {photo['median_strokes']:g} strokes and {photo['median_seconds']:.0f} seconds" in text
    assert f"in {photo['by_chance']:.0%} of the cases" in text
    assert f"that the robot took, in {photo['by_chance_in_all_looks']:.0%}" in text
    assert f"[{frame:.0f} ms](tutorials/serve.md" in page("speed.md")


def test_indexing_photographs():
    text, rows = page("how-to/photographs.md"), result("index-photographs-cpu")["rows"]
    tiny, large, *heics = rows
    for name, row in (("splip-tiny", tiny), ("ViT-B/32", large)):
        assert row["form"] == "jpg" and f"{row['pictures']} JPEGs of {row['megapixels']:.0f} megapixels" in text
        rates = [f"{row[key]:.0f}" for key in ("decode_per_s", "encode_per_s", "together_per_s")]
        share = f"{100 * row['share_of_sum']:.0f} %"
        assert f"| {name} | {rates[0]} a second | {rates[1]} | {rates[2]} | {share} |" in text
    ms = [f"{row['decode_cpu_ms']:.0f}" for row in (tiny, large)]
    assert f"takes {ms[0]} to {ms[1]} ms of one processor" in text
    rates, shares = ([row[key] for row in heics] for key in ("together_per_s", "share_of_sum"))
    assert {row["pictures"] for row in heics} == {4} and "four of them" in text
    assert f"{rates[0]:.1f} and {rates[1]:.1f} a second, {100 * shares[0]:.0f} and {100 * shares[1]:.0f} %" in text


def test_the_packaged_models():
    text, heldback, icons = page("model.md"), result("heldback"), result("icons")
    for model in ("splip-tiny", "splip-tiny-3"):
        views = [heldback["views"][view]["rows"][f"plain {model}"] for view in ("all", "kept", "shown")]
        numbers = [f"{100 * row['class mAP@all']:.1f}" for row in views] + [f"{100 * views[2]['by words, mAP']:.1f}"]
        assert f"| plain {model} | {' | '.join(numbers)} |" in text
    for model in ("splip-tiny", "splip-tiny-2", "splip-tiny-3"):
        found = [heldback["sample"][split][f"plain {model}"] for split in ("validation", "unseen")]
        numbers = [", ".join(f"{100 * row[key]:.1f}" for key in ("mAP@all", "Acc@1")) for row in found]
        assert f"| {model} | {' | '.join(numbers)} |" in text
    kept = heldback["views"]["kept"]["rows"]
    words = [f"{100 * kept[f'plain {model}']['by words, mAP']:.1f}" for model in ("splip-tiny", "splip-tiny-3")]
    assert (
        f"neither knows anything: {words[0]} and {words[1]}, chance is {100 * kept['chance']['class mAP@all']:.1f}"
        in text
    )
    curve = {row["step"]: row for row in icons["curve"]}
    steps = [f"{100 * curve[step]['val_mAP']:.1f}" for step in (300, 1500, 4000)]
    assert f"rose from {steps[0]} at step 300 to {steps[1]} at step 1,500 and {steps[2]} at the end" in text
    assert f"things ({curve[4000]['things']:.1f}) and pairs ({curve[4000]['pairs']:.1f}," in text
    adapted = result("demo")["query_mean"]
    told = [f"{100 * adapted['SpLIP'][key]:.1f}" for key in ("mAP@all", "Acc@1")]
    worth = [100 * (adapted["SpLIP"][key] - adapted["SpLIP, prompts removed"][key]) for key in ("mAP@all", "Acc@1")]
    assert (
        f"it gives {told[0]} and {told[1]} on the unseen classes, of which the prompts are {worth[0]:.1f} and {worth[1]:.1f}"
        in text
    )
