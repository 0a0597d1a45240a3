"""Prove that an export runs where torch is not: export here, install splip alone in a fresh environment, encode there.

    python tools/check_without_torch.py                      # the tiny backbone with random weights
    python tools/check_without_torch.py runs/mine            # a run, or any other name of a model

The environment gets splip without its dependencies, numpy, Pillow, onnxruntime and openvino, and nothing else; when
pictures have run, ftfy, regex and tokenizers for texts, then pyyaml, rich and tyro for a gallery.
Exit code 0 if both engines give the checkpoint's features to 1e-5 there, and pictures are indexed and found.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from splip.encoders import manifest
from splip.export import command, verify
from splip.export.config import ExportConfig
from splip.models import build, load_model
from splip.models.checkpoint import write_checkpoint
from splip.models.config import BackboneConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent

THERE = """
import importlib.util, sys, time
import numpy as np
from splip.encoders.encoder import Encoder

folder, what = sys.argv[1:]
# What reads texts brings yaml along.
for package in ("torch", "open_clip", "tyro", "yaml") if what == "pictures" else ("torch", "open_clip", "tyro"):
    assert importlib.util.find_spec(package) is None, f"{package} is installed here"
data = np.load(f"{folder}/data.npz")
for engine in ("onnxruntime", "openvino"):
    began = time.monotonic()
    encoder = Encoder.load(f"{folder}/exported", engine, device="cpu", precision="fp32")
    for modality in ("sketch", "photo") if what == "pictures" else ():
        got = encoder.encode(data[f"{modality} pixels"], modality)
        difference = float(np.abs(got - data[f"{modality} features"]).max())
        assert difference <= 1e-5, (engine, modality, difference)
        print(f"{engine} {modality}: {len(got)} pictures, largest difference {difference:.1e}")
    if what == "texts":
        texts = [str(text) for text in data["texts"]]
        difference = float(np.abs(encoder.encode_text(texts) - data["text features"]).max())
        assert difference <= 1e-5, (engine, "texts", difference)
        print(f"{engine}: {len(texts)} texts, largest difference {difference:.1e}")
    print(f"{engine}: {time.monotonic() - began:.1f} s from loading to the last vector")
"""
COMMANDS = """
import importlib.util, json, subprocess, sys
from PIL import Image, ImageDraw

assert importlib.util.find_spec("torch") is None
for number in range(3):
    picture = Image.new("RGB", (80, 80), "white")
    ImageDraw.Draw(picture).ellipse((20, 10 + 9 * number, 60, 70), outline="black", fill="red", width=5)
    picture.save(f"{number}.png")
splip = [sys.executable, "-m", "splip"]
subprocess.run([*splip, "index", "add", "0.png", "1.png", "2.png", "--gallery", "gallery", "--model", "exported"], check=True)
search = [*splip, "search", "--gallery", "gallery", "--photo", "1.png", "-k", "1", "--json"]
found = json.loads(subprocess.run(search, check=True, capture_output=True, text=True).stdout)["queries"][0]["matches"]
assert found[0]["path"].endswith("1.png") and found[0]["score"] > 0.999, found
print("splip index add, splip search: ok")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        name = args.model or str(place / "best.safetensors")
        if args.model is None:
            model = build(TrainConfig(backbone=BackboneConfig(name="splip-tiny")), ["dog", "cup"])
            write_checkpoint(model.checkpoint(), Path(name))
        config = ExportConfig(name, place / "exported", onnx=True, openvino=True, text=True, fuse_preprocess=True)
        if code := command.export(config):
            sys.exit(code)
        pixels = verify.load(None, manifest.read(place / "exported"), {"sketch": 8, "photo": 8})
        model = load_model(name)
        features, texts = verify.reference(model, pixels), verify.texts(model)
        data = {f"{m} pixels": pixels[m] for m in pixels} | {f"{m} features": features[m] for m in pixels}
        data |= {"texts": np.array(texts), "text features": model.encode_text(texts).numpy()}
        np.savez(place / "data.npz", **data)  # type: ignore[arg-type]

        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", ROOT], check=True, env=os.environ | {"SPLIP_CUDA": "off"})
        for what, packages in (
            ("pictures", ("numpy", "pillow", "onnxruntime", "openvino")),
            ("texts", ("ftfy", "regex", "tokenizers")),
        ):
            subprocess.run([*pip, *packages], check=True)
            subprocess.run([python, "-c", THERE, place, what], check=True, cwd=place)
        subprocess.run([*pip, "pyyaml", "rich", "tyro"], check=True)
        subprocess.run([python, "-c", COMMANDS], check=True, cwd=place)


if __name__ == "__main__":
    main()
