"""One engine in a process of its own, for bench_encoder.py: reads commands as JSON lines, answers with JSON lines.

Imports only what its engine needs, so that start and memory are those of a program that uses it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[np.ndarray, str], np.ndarray]


def make(job: dict[str, Any]) -> Encode:
    """A function from uint8 ``[B, S, S, 3]`` and a modality to unit-length features ``[B, D]``."""
    if job["kind"] == "engine":
        from splip.encoders.encoder import Encoder

        return Encoder.load(
            job["path"], job["engine"], device="cpu", threads=job["threads"], precision=job["precision"]
        ).encode
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(job["threads"])
    if job["kind"] == "training code":
        from splip.models import load_model

        model = load_model(Path(job["path"]))

        def encode(images: np.ndarray, modality: str) -> np.ndarray:
            batch = torch.from_numpy(images).permute(0, 3, 1, 2)
            return model.encode_image(batch, ("sketch", "photo").index(modality)).numpy()

        return encode
    import open_clip

    from splip.config import CONFIGS

    open_clip.add_model_config(CONFIGS / "models")
    torch.manual_seed(0)
    clip = open_clip.create_model(job["backbone"]).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (clip.visual.image_mean, clip.visual.image_std))

    def encode_plainly(images: np.ndarray, _: str) -> np.ndarray:
        with torch.inference_mode():
            batch = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
            return F.normalize(clip.encode_image(batch), dim=-1).numpy()

    return encode_plainly


def memory(field: str) -> float:
    """In GB: VmRSS now, VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 2**20


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    job = json.loads(sys.stdin.readline())
    encode = make(job)
    side = job["side"]
    images = np.random.default_rng(0).integers(0, 256, (max(job["batches"]), side, side, 3), dtype=np.uint8)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    encode(images[:1], "sketch")
    answer(ready=True, rss_GB=memory("VmRSS"))
    for line in sys.stdin:
        command = json.loads(line)
        if "time" in command:
            batch, times = images[: command["time"]], []
            for _ in range(command["calls"]):
                began = time.perf_counter()
                encode(batch, "sketch")
                times.append((time.perf_counter() - began) * 1e3)
            answer(ms=times)
        elif "pictures" in command:
            with np.load(command["pictures"]) as pictures:
                found = {
                    name: np.concatenate(
                        [encode(pictures[name][i : i + 32], name) for i in range(0, len(pictures[name]), 32)]
                    )
                    for name in pictures.files
                }
            np.savez(command["out"], **found)
            answer(done=True)
        else:
            answer(rss_GB=memory("VmRSS"), peak_GB=memory("VmHWM"))


if __name__ == "__main__":
    main()
