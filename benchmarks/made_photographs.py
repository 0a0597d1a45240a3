"""Made-up photographs of 12 megapixels as cameras write them, and the stages through which indexing takes them."""

import datetime
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from splip import images
from splip.encoders.encoder import Encoder
from splip.gallery import ingest
from splip.gallery.gallery import Gallery
from splip.gallery.queries import reading
from splip.images import archive, decode

WIDTH, HEIGHT = 4000, 3000
BASES = 4  # pictures that all others are made of, by turning and shifting
OCTAVES = ((6, 1.0), (24, 0.6), (96, 0.4), (384, 0.3), (1500, 0.25))  # columns of noise, and their weight
GRAIN = 7.0
HEIC = {"quality": 55, "enc_params": {"preset": "ultrafast"}}


def base(seed: int) -> Image.Image:
    """Noise of all sizes, which compresses as photos do."""
    rng = np.random.default_rng(seed)
    made: Image.Image | None = None
    for columns, weight in OCTAVES:
        noise = rng.integers(0, 256, (max(2, columns * 3 // 4), columns, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        made = layer if made is None else Image.blend(made, layer, weight / (1 + weight))
    assert made is not None
    grain = Image.effect_noise((WIDTH, HEIGHT), GRAIN)
    return ImageChops.add(made, Image.merge("RGB", [grain] * 3), 1, -128)


def tags(number: int) -> Image.Exif:
    """What a camera writes."""
    taken = datetime.datetime(2015, 1, 1) + datetime.timedelta(hours=9 * number)
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Canon", "Canon EOS 80D", 6 if number % 4 == 3 else 1
    exif[0x0132] = exif.get_ifd(0x8769)[0x9003] = taken.strftime("%Y:%m:%d %H:%M:%S")
    return exif


def make(folder: Path, form: str, count: int) -> list[Path]:
    """JPEGs, or HEICs (which are slow to write: a few, and copies that differ in bytes that no reader looks at)."""
    decode.formats()  # for HEIF
    folder.mkdir(parents=True)
    bases = [base(seed) for seed in range(BASES if form == "JPEG" else 2)]
    paths = [folder / f"{n:04d}.{'jpg' if form == 'JPEG' else 'heic'}" for n in range(count)]
    whole: list[bytes] = []
    for n, path in enumerate(paths):
        if form == "JPEG":
            picture = ImageChops.offset(bases[n % BASES], 37 * n, 91 * n)
            picture.save(path, "JPEG", quality=90, exif=tags(n))
        elif n < len(bases):
            bases[n].save(path, "HEIF", exif=tags(n).tobytes(), **HEIC)
            whole.append(path.read_bytes())
        else:
            path.write_bytes(whole[n % len(whole)] + (12).to_bytes(4, "big") + b"free" + n.to_bytes(4, "big"))
    return paths


def cpu_ms(work: Callable[[int], object], count: int, threads: int) -> tuple[float, float]:
    """How many a second, and the processors' time for each in ms."""
    began, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(count)))
    return count / (time.perf_counter() - began), 1000 * (time.process_time() - used) / count


def measure(
    model: Path, engine: str, paths: Sequence[Path], batch: int, repeats: int, place: Path, threads: int
) -> dict[str, Any]:
    """Each stage alone and all together, turn by turn; medians."""
    encoder = Encoder.load(model, engine)
    how = reading(encoder, "photo", decode.DECODING)
    data = [path.read_bytes() for path in paths]

    def look(n: int) -> np.ndarray:
        return encoder.prepare(images.read(data[n], paths[n], *how), "photo")

    prepared = np.stack([look(n) for n in range(len(paths))])
    encoder.encode(prepared[:batch], "photo")
    found: dict[str, list[float]] = {}

    def note(**rates: float) -> None:
        for name, rate in rates.items():
            found.setdefault(name, []).append(rate)

    for _ in range(repeats):
        read, _ = cpu_ms(lambda n: archive.read(paths[n]), len(paths), threads)
        one, one_ms = cpu_ms(look, len(paths), 1)
        several, several_ms = cpu_ms(look, len(paths), threads)
        began, used = time.perf_counter(), time.process_time()
        for first in range(0, len(prepared), batch):
            encoder.encode(prepared[first : first + batch], "photo")
        encode = len(prepared) / (time.perf_counter() - began)
        encode_ms = 1000 * (time.process_time() - used) / len(prepared)
        shutil.rmtree(place / "photographs", ignore_errors=True)
        with Gallery.create(place / "photographs", model, encoder=encoder) as gallery, gallery.writing():
            used = time.process_time()
            done = ingest.add(gallery, paths, batch_size=batch, threads=threads)
            together_ms = 1000 * (time.process_time() - used) / len(paths)
        assert done.new == len(paths), done
        together = len(paths) / done.seconds
        note(read_per_s=read, decode_1_thread_per_s=one, decode_1_thread_cpu_ms=one_ms, decode_per_s=several)
        note(decode_cpu_ms=several_ms, encode_per_s=encode, encode_cpu_ms=encode_ms, together_per_s=together)
        # Where decoder and encoder have the same processors, their times add up: nothing can be quicker than this.
        note(together_cpu_ms=together_ms, share_of_slower=together / min(several, encode))
        note(share_of_sum=together * (1 / several + 1 / encode), cpu_share=(several_ms + encode_ms) / together_ms)
    return {
        "case": "photographs",
        "form": paths[0].suffix[1:],
        "model": encoder.name,
        "engine": encoder.engine,
        "precision": encoder.precision,
        "pictures": len(paths),
        "MB": sum(map(len, data)) / len(data) / 1e6,
        "megapixels": WIDTH * HEIGHT / 1e6,
        "threads": threads,
        "batch": batch,
        **{name: statistics.median(rates) for name, rates in found.items()},
        "runs": found,
    }


def told(row: dict[str, Any]) -> str:
    """A row as a line."""
    return (
        f"{row['model']}, {row['form']} of {row['MB']:.1f} MB: read {row['read_per_s']:.0f}/s, decode {row['decode_per_s']:.1f}/s "
        f"({row['decode_cpu_ms']:.0f} ms each, {row['decode_1_thread_cpu_ms']:.0f} ms in one thread), encode "
        f"{row['encode_per_s']:.1f}/s, together {row['together_per_s']:.1f}/s: {row['share_of_slower']:.0%} of the slower, "
        f"{row['share_of_sum']:.0%} of what one machine can do of both; {row['cpu_share']:.0%} of the processors' time is theirs"
    )
