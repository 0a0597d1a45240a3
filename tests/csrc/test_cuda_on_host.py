"""The CUDA kernels' own source, run on the host by an emulated block of threads, against the reference.

What a GPU adds and this cannot show: real concurrency, memory that is weakly ordered, and speed.
"""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from splip import ops
from splip.ops import quantized, reference
from splip.ops.topk import SCANS, _approximate_topk

pytestmark = pytest.mark.exhaustive  # compiling the kernels for the host takes most of it

ROOT = Path(__file__).resolve().parents[2]
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.uint8: 3}
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
SOURCES = [
    "prompt_layernorm.cu",
    "patchify.cu",
    "cosine_topk.cu",
    "cosine_topk_stream.cu",
    "cosine_topk_tiles_f32.cu",
    "cosine_topk_tiles_f16.cu",
    "cosine_topk_tiles_bf16.cu",
    "cosine_topk_tiles_i8.cu",
    "cosine_topk_wgmma.cu",
]


def as_host_code(source):
    """Kernel launches become calls, shared memory the block's own, launch bounds a check; everything else stays."""
    shared = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];")
    source = shared.sub(r"\1* \2 = static_cast<\1*>(on_host::shared_memory());", source)
    source = source.replace("__shared__", "static")
    launch = re.compile(r"(\w+_kernel(?:<[\w\s,:]+>)?)(\s*)<<<(.*?)>>>(\s*)\((.*?)\);", re.DOTALL)
    call = r'on_host::launch("\1", reinterpret_cast<const void*>(\1), on_host::config(\3),\2[&] { \1(\4\5); });'
    source = launch.sub(call, source)
    assert "<<<" not in source
    bounds = re.compile(r"__launch_bounds__(\((?:[^()]|\([^()]*\))*\))([^{;]*?\w+_kernel\([^{;]*\{)")
    checked = bounds.sub(r"\2 on_host::launch_bounds\1;", source)
    assert "__launch_bounds__" not in checked
    return checked


class Given(ctypes.Structure):
    """A keyword of an op, as on_host.cpp takes it."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("integer", ctypes.c_int64),
        ("real", ctypes.c_double),
    ]


def given(name, value):
    made = Given(name.encode(), None, 0, 0, 0.0)
    if isinstance(value, torch.Tensor):
        # From its first element to its last, whatever the strides; nothing else may be touched.
        last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
        if value.numel():
            made.data, made.bytes = value.data_ptr(), (last + 1) * value.element_size()
    elif isinstance(value, ctypes.Array):
        made.data, made.bytes = ctypes.addressof(value), ctypes.sizeof(value)
    elif isinstance(value, float):
        made.real = value
    elif value is not None:
        made.integer = value
    return made


class Emulator:
    """The ops of csrc/cuda by keyword, as splip._C has them, on tensors of the host."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.last_error.restype = ctypes.c_char_p
        self.library.cosine_topk_scratch.restype = self.library.prompt_layernorm_scratch.restype = ctypes.c_int64

    def __call__(self, op, **fields):
        arguments = (Given * len(fields))(*(given(name, value) for name, value in fields.items()))
        if self.library.call(op.encode(), arguments, len(fields)):
            raise RuntimeError(self.library.last_error().decode())

    def place(self, device=0, stream=None, capability=90):
        """Where launches have to go, and what that GPU is."""
        self.library.place(device, ctypes.c_void_p(stream), capability)

    def cosine_topk_scratch(self, Q, N, K, scan, pitch):
        sizes = (ctypes.c_int64(v) for v in (Q, N, K))
        return self.library.cosine_topk_scratch(*sizes, scan, ctypes.c_int64(pitch))

    def prompt_layernorm_scratch(self, **n):
        return self.library.prompt_layernorm_scratch(*(ctypes.c_int64(n[name]) for name in "BLPGDR"))


def source_of(name):
    return (ROOT / "csrc/cuda" / name).read_text()


class Build:
    """The kernels compiled for the host, and again with a defect planted in one of their files."""

    def __init__(self, folder, compiler, include):
        self.folder, self.compiler = folder, compiler
        emulator = ROOT / "tests/csrc/cuda_on_host"
        (folder / "csrc/cuda").mkdir(parents=True)
        for header in (ROOT / "csrc").glob("*.h"):
            shutil.copy(header, folder / "csrc")
        for header in (ROOT / "csrc/cuda").glob("*.cuh"):
            (folder / "csrc/cuda" / header.name).write_text(as_host_code(header.read_text()))
        shutil.copy(emulator / "ptx.cuh", folder / "csrc/cuda")
        shutil.copytree(emulator, folder / "tests/csrc/cuda_on_host")
        self.flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-DSPLIP_HAS_CUDA", "-DSPLIP_WGMMA", f"-I{emulator}"]
        self.flags += [f"-isystem{path}" for path in include]
        # What these find calls the emulator: on_host.cpp has its functions.
        self.checks = ["-fsanitize=alignment,bounds"]
        self.plants = 0
        jobs = [self.start(name, source_of(name)) for name in SOURCES]
        main = folder / "on_host.o"
        command = [compiler, *self.flags, "-c", folder / "tests/csrc/cuda_on_host/on_host.cpp", "-o", main]
        jobs.append((main, subprocess.Popen(command)))
        assert not any([job.wait() for _, job in jobs])
        self.objects = dict(zip([*SOURCES, "on_host"], [made for made, _ in jobs], strict=True))

    def start(self, name, source, suffix=""):
        path = self.folder / "csrc/cuda" / f"{Path(name).stem}{suffix}.cpp"
        path.write_text(as_host_code(source))
        made = path.with_suffix(".o")
        return made, subprocess.Popen([self.compiler, *self.flags, *self.checks, "-c", path, "-o", made])

    def link(self, name, objects):
        # Bsymbolic: its own cudaGetDevice and so on, not those of the libcudart that torch may have loaded.
        path = self.folder / f"{name}.so"
        subprocess.run([self.compiler, "-shared", "-Wl,-Bsymbolic", *objects.values(), "-o", path], check=True)
        return Emulator(path)

    def planted(self, name, pattern, replacement, unit=None):
        """The emulator with one file changed; `unit`: what includes it, of which the emulator gets a new one then."""
        source, count = re.subn(pattern, replacement, source_of(name))
        assert count, f"{pattern} is not in {name} any more"
        if unit is not None:
            header = f"planted_{name}"
            (self.folder / "csrc/cuda" / header).write_text(as_host_code(source))
            source, count = re.subn(f'"{name}"', f'"{header}"', source_of(unit))
            assert count, f"{unit} does not include {name} any more"
        unit = unit or name
        made, job = self.start(unit, source, "_planted")
        assert job.wait() == 0
        self.plants += 1  # a library of the same path would be the one that is loaded
        emulator = self.link(f"planted_{self.plants}", self.objects | {unit: made})
        emulator.place()
        return emulator


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    compiler, nvcc = shutil.which("c++") or shutil.which("g++"), shutil.which("nvcc")
    if compiler is None or nvcc is None:
        pytest.skip("no C++ compiler, or no CUDA toolkit for its headers")
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"], capture_output=True, text=True).stderr
    include = [Path(found) for found in re.findall(r'-I([^" ]+)', dry)]
    if not any((path / "cuda_fp16.h").is_file() for path in include):
        pytest.skip("no headers of the CUDA toolkit")
    return Build(tmp_path_factory.mktemp("cuda_on_host"), compiler, include)


@pytest.fixture(scope="module")
def kernels(build):
    return build.link("kernels", build.objects)


@pytest.fixture(autouse=True)
def on_the_first_device(kernels):
    kernels.place()


def floats(values):
    return (ctypes.c_float * len(values))(*values)


# ---- cosine_topk ----


def topk(kernels, queries, gallery, k, allowed=None, scan=0, seed=0):
    """gallery: a tensor, one with stored norms, or one in 8 bits."""
    kernels.library.seed(seed)
    (Q, D), N = queries.shape, gallery.shape[0]
    scores, indices = torch.empty(Q, k), torch.full((Q, k), -7)
    fields = {"gallery": gallery, "pitch": 0}
    if isinstance(gallery, ops.PreparedGallery):
        queries = torch.nn.functional.pad(queries, (0, gallery.rows.shape[1] - D))
        D = queries.shape[1]
        fields |= {"gallery": gallery.rows, "inverse": gallery.inverse}
    if isinstance(gallery, ops.EightBitGallery):
        fields = {"gallery": gallery.rows, "eight_bit_rows": gallery.bytes, "scale": gallery.scale,
                  "error": None if gallery.rows is None else gallery.error, "centre": gallery.centre,
                  "pitch": gallery.bytes.shape[1]}  # fmt: skip
    need = kernels.cosine_topk_scratch(Q, N, k, scan, fields["pitch"])
    scratch = torch.randint(0, 256, (need,), dtype=torch.uint8)  # whatever memory held before
    kernels("cosine_topk", queries=queries, allowed=allowed, scores=scores, indices=indices, scratch=scratch, Q=Q, N=N,
            D=D, K=k, dtype=KINDS[queries.dtype], scan=scan, **fields)  # fmt: skip
    return scores, indices


def exact(queries, gallery, k, allowed=None):
    """Sums in float64, rounded; ties by index; -1 beyond the allowed rows."""
    scores = (
        torch.nn.functional.normalize(queries.double(), dim=1, eps=1e-12)
        @ torch.nn.functional.normalize(gallery.double(), dim=1, eps=1e-12).T
    )
    scores = scores.float()
    for rows, axis in ((queries, 1), (gallery, 0)):
        squares = rows.double().square().sum(dim=1)
        wrong = ~(squares <= torch.finfo(torch.float32).max)
        scores = scores.masked_fill(wrong.unsqueeze(axis), float("-inf"))
    rows = torch.arange(len(gallery)) if allowed is None else allowed.nonzero()[:, 0]
    order = rows[scores[:, rows].argsort(dim=1, descending=True, stable=True)[:, :k]]
    missing = (0, k - order.shape[1])
    pad = torch.nn.functional.pad
    return pad(scores.gather(1, order), missing, value=float("-inf")), pad(order, missing, value=-1)


def check(kernels, queries, gallery, k, allowed=None, scan=0, seed=0):
    scores, indices = topk(kernels, queries, gallery, k, allowed, scan, seed)
    rows = gallery if isinstance(gallery, torch.Tensor) else gallery.rows[:, : queries.shape[1]]
    want_scores, want = exact(queries, rows, k, allowed)
    torch.testing.assert_close(scores, want_scores, rtol=0, atol=1e-7)
    moved = indices != want  # two sums in float64 that round to neighbours may change places
    torch.testing.assert_close(scores[moved], want_scores[moved], rtol=0, atol=1.2e-7)
    assert moved.float().mean() < 0.02
    assert all(len(set(row)) == len(row) for row in indices.tolist() if -1 not in row)


SCANS = {name: number for name, number in SCANS.items() if number}
# Q, N, D, K: one of each; odd sizes; two k-steps and a part; all of the gallery; two passes
SHAPES = [(1, 1, 1, 1), (3, 50, 17, 10), (5, 70, 72, 70), (9, 300, 136, 5), (2, 9001, 24, 100)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_topk(shape, scan, dtype, kernels):
    Q, N, D, K = shape
    check(kernels, torch.randn(Q, D).to(dtype), torch.randn(N, D).to(dtype), K, scan=SCANS[scan])


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 70, 75, 70), (2, 6001, 24, 100)], ids=str)
def test_topk_with_stored_norms(shape, dtype, scan, kernels):
    """Odd D: rows and queries are padded. Some rows have no score, in the second half not all are allowed."""
    Q, N, D, K = shape
    rows, allowed = torch.randn(N, D), (torch.rand(N) < 0.5) | (torch.arange(N) < N // 2)
    if N > 1:
        rows[N // 2], rows[N // 3, 0] = 0, float("nan")
    check(kernels, torch.randn(Q, D).to(dtype), quantized.prepare_gallery(rows.to(dtype)), K, allowed, SCANS[scan])


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_topk_in_eight_bits(shape, dtype, scan, kernels):
    Q, N, D, K = shape
    gallery = ops.eight_bit_gallery(torch.randn(N, D).to(dtype))
    check(kernels, torch.randn(Q, D).to(dtype), gallery, K, scan=SCANS[scan])


@pytest.mark.parametrize("scan", SCANS)
def test_topk_in_eight_bits_alone(scan, kernels):
    """Without the rows they were made of: exact in the rows as 8 bits remember them."""
    rows = torch.randn(700, 40)
    rows[3], rows[9, 0], rows[11] = 0, float("nan"), 1e20
    gallery, queries = ops.eight_bit_gallery(rows, keep_rows=False), torch.randn(3, 40)
    for k, allowed in ((60, torch.rand(700) < 0.1), (700, None), (9, None)):
        scores, indices = topk(kernels, queries, gallery, k, allowed, SCANS[scan])
        want_scores, want = _approximate_topk(queries, gallery, k, allowed)
        torch.testing.assert_close(scores, want_scores, rtol=0, atol=1e-6)
        assert (indices == want).float().mean() > 0.97
    truth = reference.cosine_topk(queries, rows, 9)[0]
    assert ((scores - truth).abs() < 0.01).all()


# D in 16 bits: one step, queries that stay in shared memory and all four stages; then three; queries that do not fit
@pytest.mark.parametrize("D", [24, 264, 440, 520])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
def test_wgmma_of_several_tiles_and_turns_of_its_stages(D, dtype, kernels):
    """More rows than a tile, more queries than a tile, more steps than stages, a mask, an order of threads by chance."""
    gallery, allowed = torch.randn(1100, D).bfloat16(), torch.rand(1100) < 0.8
    queries = torch.randn(130, D).bfloat16()
    searched = ops.eight_bit_gallery(gallery) if dtype == torch.int8 else gallery
    for seed in range(2):
        check(kernels, queries, searched, 5, allowed, SCANS["wgmma"], seed)


def test_wgmma_is_for_hopper_only(kernels):
    """On other GPUs the same call takes mma.sync."""
    queries, gallery = torch.randn(9, 64).half(), torch.randn(500, 64).half()
    kernels.place(capability=80)
    check(kernels, queries, gallery, 5, scan=SCANS["wgmma"])


@pytest.mark.parametrize("scan", SCANS)
def test_topk_takes_several_passes_and_turns(scan, kernels):
    """More rows than a pass keeps, more tiles than blocks, more queries than a tile or a group."""
    queries, gallery = torch.randn(70, 40).bfloat16(), torch.randn(5000, 40).bfloat16()
    if scan == "stream":
        gallery = torch.randn(20_000, 8).bfloat16()
        queries = torch.randn(3, 8).bfloat16()
    check(kernels, queries, gallery, 7, scan=SCANS[scan], seed=1)


def test_topk_of_a_sorted_gallery(kernels):
    direction, noise = torch.randn(1, 32), torch.randn(9000, 32)
    gallery = torch.nn.functional.normalize(noise, dim=1)
    gallery = gallery[(gallery @ direction.T)[:, 0].argsort()]
    check(kernels, direction.repeat(2, 1), gallery, 10, scan=3)


@pytest.mark.parametrize("scan", SCANS)
def test_topk_with_a_mask(scan, kernels):
    queries, gallery = torch.randn(3, 16), torch.randn(700, 16)
    for share in (0.5, 0.01, 0.0):
        allowed = torch.rand(700) < share
        check(kernels, queries, gallery, 20, allowed, SCANS[scan])


@pytest.mark.parametrize("scan", SCANS)
def test_topk_of_equal_rows_takes_the_exact_scan(scan, kernels):
    gallery = torch.randn(1, 16).repeat(17_000 if scan == "stream" else 6000, 1)
    scores, indices = topk(kernels, torch.randn(2, 16), gallery, 5, scan=SCANS[scan])
    assert indices.tolist() == [list(range(5))] * 2 and (scores.diff(dim=1) == 0).all()


@pytest.mark.parametrize("scan", SCANS)
def test_topk_of_rows_without_a_score(scan, kernels):
    gallery = torch.eye(6, 8)
    gallery[1], gallery[3, 0], gallery[4, 0] = 0, float("nan"), float("inf")
    queries = torch.tensor([[1.0, 0, 0, 0, 0, 0.5, 0, 0], [0] * 8, [float("nan")] * 8, [1e20] * 8, [1e18] * 8])
    for k in (2, 6):
        check(kernels, queries, gallery, k, scan=SCANS[scan])


@pytest.mark.parametrize("scan", SCANS)
def test_topk_of_misaligned_rows(scan, kernels):
    store = torch.randn(200 * 16 + 1).bfloat16()[1:]
    check(kernels, torch.randn(4, 16).bfloat16(), store.view(200, 16), 9, scan=SCANS[scan])


def test_topk_of_long_rows_fills_the_panel_again(kernels):
    check(kernels, torch.randn(9, 600), torch.randn(150, 600), 4, scan=1)
    check(kernels, torch.randn(1, 5000).bfloat16(), torch.randn(40, 5000).bfloat16(), 4, scan=1)


def test_topk_does_not_depend_on_the_order_of_threads(kernels):
    queries, gallery = torch.randn(3, 16), torch.randn(40, 16).repeat(120, 1)
    first = topk(kernels, queries, gallery, 130, scan=2, seed=1)
    for seed in (2, 3):
        again = topk(kernels, queries, gallery, 130, scan=2, seed=seed)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@pytest.mark.parametrize("scan", SCANS)
def test_topk_of_more_rows_than_a_queue_holds(scan, kernels):
    """Most rows of the second pass beat the first pass's cut: its sample holds the worst ones."""
    gallery = torch.nn.functional.normalize(torch.randn(17_000 if scan == "stream" else 4200, 16), dim=1)
    direction = torch.randn(1, 16)
    sample = (torch.arange(len(gallery)) * 1.618033988749895).long()
    gallery[sample[sample < len(gallery)]] -= direction
    queries = direction + 0.1 * torch.randn(5, 16)
    check(kernels, queries.half(), gallery.half(), 30, scan=SCANS[scan])


# ---- queries without an ordinary score ----


def unusual(dtype, negative):
    """70 queries of 6000 rows: infinity, NaN, zero and overflow among them. `negative`: no cosine is positive.

    The last one has products that are infinite, and rows of a tile past the last query copy it.
    """
    queries, gallery = torch.randn(70, 16), torch.randn(6000, 16)
    if negative:
        queries, gallery = queries.abs(), -gallery.abs()
    for place, value in ((7, float("nan")), (8, 0.0), (9, 1e20), (10, float("inf")), (11, -float("inf"))):
        queries[place] = value
    queries[-1, 0] = -float("inf") if negative else float("inf")
    return queries.to(dtype), gallery.to(dtype)


FEW = torch.arange(6000) % 500 == 3  # fewer than are asked for: no cut is ever known


@pytest.mark.parametrize("negative", [False, True], ids=["few rows allowed", "all cosines negative"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scan", SCANS)
def test_topk_of_queries_without_an_ordinary_score(scan, dtype, negative, kernels):
    queries, gallery = unusual(dtype, negative)
    check(kernels, queries, gallery, 20, None if negative else FEW, SCANS[scan])


@pytest.mark.parametrize("make", [ops.eight_bit_gallery, quantized.prepare_gallery])
@pytest.mark.parametrize("scan", SCANS)
def test_topk_in_galleries_made_ready_of_queries_without_an_ordinary_score(scan, make, kernels):
    queries, gallery = unusual(torch.float16, negative=True)
    check(kernels, queries, make(gallery), 20, FEW, SCANS[scan])


# ---- the guards: each is shown to see a defect ----


@pytest.mark.parametrize(
    "name, unit, scans",
    [
        ("cosine_topk_tiles.cuh", "cosine_topk_tiles_f16.cu", ["tiles64", "tiles128", "tiles256"]),
        ("cosine_topk_wgmma.cu", None, ["wgmma"]),
    ],
)
def test_guards_see_cuts_that_infinity_passes(name, unit, scans, build):
    """Rows past the last query once had an infinite cut, which their infinite products passed."""
    planted = build.planted(name, r"(< p\.Q \? p\.out\.cuts\[.*\] : )NAN", r"\1INFINITY", unit)
    for scan in scans:
        for negative in (True, False):
            queries, gallery = unusual(torch.float16, negative)
            queries[7:12] = 1  # the last one alone: its keys land gigabytes before the buffers
            with pytest.raises(RuntimeError, match=r"_kernel<.*> touched \d{7,} bytes before"):
                topk(planted, queries, gallery, 20, None if negative else FEW, SCANS[scan])


def picture_call(kernels, **changed):
    images, patches = torch.rand(1, 3, 16, 16), torch.empty(1, 4, 192)
    fields = {"images": images, "patches": patches, "mean": floats(MEAN[:3]), "std": floats(STD[:3]), "B": 1, "C": 3,
              "H": 16, "W": 16, "S": 8, "grid": 1, "permutation": None, "image_dtype": 0, "dtype": 0}  # fmt: skip
    kernels("patchify", **fields | strides(images) | changed)


def test_guards_see_an_overrun(build, kernels):
    planted = build.planted("patchify.cu", r"i < runs;", "i <= runs;")
    with pytest.raises(RuntimeError, match=r"run_kernel<.*>: __ldg of 16 bytes: 0 bytes past the end of images"):
        picture_call(planted)
    with pytest.raises(RuntimeError, match=r"run_kernel<.*> (wrote|touched) 0 bytes past the end of patches"):
        picture_call(kernels, patches=torch.empty(1, 4, 191))
    with pytest.raises(RuntimeError, match=r"__ldg of 16 bytes: \d+ bytes past the end of images"):
        picture_call(kernels, images=torch.rand(1, 3, 16, 15))


def test_guards_see_scratch_that_is_too_small(kernels):
    queries, gallery = torch.randn(3, 16), torch.randn(300, 16)
    need = kernels.cosine_topk_scratch(3, 300, 5, 1, 0)
    fields = {"queries": queries, "gallery": gallery, "scores": torch.empty(3, 5), "indices": torch.empty(3, 5).long(),
              "Q": 3, "N": 300, "D": 16, "K": 5, "dtype": 0, "scan": 1}  # fmt: skip
    kernels("cosine_topk", scratch=torch.empty(need, dtype=torch.uint8), **fields)
    with pytest.raises(RuntimeError, match=r"prepare_kernel<.*> wrote \d+ bytes past the end of scratch"):
        kernels("cosine_topk", scratch=torch.empty(need - 16, dtype=torch.uint8), **fields)


def test_guards_see_an_input_that_is_written(build):
    planted = build.planted("patchify.cu", r"const In\* image = images \+ run\.b \* s\.stride_b;",
                            r"\g<0> const_cast<In*>(image)[0] = 0;")  # fmt: skip
    with pytest.raises(RuntimeError, match="run_kernel<.*> touched byte 0 of images"):
        picture_call(planted)


def misaligned(*shape):
    """One element past a boundary of 16 bytes."""
    count = torch.Size(shape).numel()
    return torch.randn(count + 1)[1:].view(shape)


def layernorm_call(kernels, **changed):
    shapes = {"x": (2, 5, 16), "prompts": (1, 3, 16), "gamma": (16,), "beta": (16,), "tokens": (2, 8, 16),
              "normed": (2, 8, 16), "mean": (2, 8), "rstd": (2, 8)}  # fmt: skip
    fields = {name: torch.randn(shape) for name, shape in shapes.items()}
    fields |= {name: misaligned(*shapes[name]) for name in changed}
    kernels("prompt_layernorm", B=2, L=5, P=3, G=1, D=16, R=0, dtype=0, eps=1e-5, **fields)


def test_guards_see_misaligned_vectors_and_a_store_past_the_end(build):
    """Loads through load_stream and __ldg, and stores through uint4, which only the compiler sees."""
    planted = build.planted("prompt_layernorm.cu", r"aligned\(p, 16\)", "aligned(p, 4)")
    layernorm_call(planted)
    for name, message in (
        ("x", "load_stream of 16 bytes is misaligned: byte .* of x"),
        ("gamma", "__ldg of 16 bytes is misaligned: byte .* of gamma"),
        ("tokens", r"prompt_layernorm_planted.cpp:\d+: an access of .*uint4.* is misaligned: byte .* of tokens"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layernorm_call(planted, **{name: True})
    planted = build.planted("prompt_layernorm.cu", r"a\.mean\[row\] = mean;", "a.mean[row + 1] = mean;")
    with pytest.raises(RuntimeError, match=r"forward_kernel<.*> wrote 0 bytes past the end of mean"):
        layernorm_call(planted)


@pytest.mark.parametrize(
    "name, pattern, replacement, message",
    [
        ("cosine_topk_stream.cu", r"allow_shared\(stream_kernel", "(void)(stream_kernel", r"\d+ bytes of shared memory, asked for 49152"),
        ("cosine_topk_stream.cu", r"kWarp \* kWarps, shared, stream", "kWarp * kWarps * 8, shared, stream", "2048 threads"),
        ("cosine_topk_stream.cu", r"kWarp \* kWarps, shared, stream", "kWarp * kWarps * 2, shared, stream", "launch bounds of 256"),
        ("cosine_topk_stream.cu", r"kWarp \* kWarps, shared, stream", "kWarp * kWarps, shared - 16, stream", "of shared memory"),
        ("cosine_topk_stream.cu", r"dim3\(blocks, groups\)", "dim3(blocks, 1 << 16)", "a grid of .* x 65536 blocks"),
        ("cosine_topk_stream.cu", r"const int shared = ", r"\g<0> 200000 + ", "cudaErrorInvalidValue"),
    ],
)  # fmt: skip
def test_launches_that_a_gpu_refuses(name, pattern, replacement, message, build):
    planted = build.planted(name, pattern, replacement)
    with pytest.raises(RuntimeError, match=message):
        topk(planted, torch.randn(32, 600), torch.randn(40, 600), 3, scan=SCANS["stream"])


@pytest.mark.parametrize("capability, scan", [(86, "tiles256"), (86, "tiles128"), (120, "stream"), (80, "tiles256")])
def test_topk_on_gpus_with_less_shared_memory(capability, scan, kernels):
    kernels.place(capability=capability)
    check(kernels, torch.randn(9, 600).half(), torch.randn(500, 600).half(), 5, scan=SCANS[scan])


# ---- where the ops run ----


def strides(images):
    return {f"stride_{axis}": step for axis, step in zip("bcyx", images.stride(), strict=True)}


def calls(kernels):
    """Each op on small inputs, as a function without arguments that returns what it wrote."""
    x, prompts, gamma, beta = torch.randn(2, 5, 16), torch.randn(1, 3, 16), torch.randn(16), torch.randn(16)
    n = {"B": 2, "L": 5, "P": 3, "G": 1, "D": 16, "R": 0}
    tokens, normed, mean, rstd = torch.empty(2, 8, 16), torch.empty(2, 8, 16), torch.empty(2, 8), torch.empty(2, 8)

    def forward():
        kernels("prompt_layernorm", x=x, prompts=prompts, gamma=gamma, beta=beta, tokens=tokens, normed=normed,
                mean=mean, rstd=rstd, eps=1e-5, dtype=0, **n)  # fmt: skip
        return tokens, normed

    def backward():
        made = {"d_x": torch.empty_like(x), "d_prompts": torch.empty(1, 3, 16), "d_gamma": torch.empty(16),
                "d_beta": torch.empty(16)}  # fmt: skip
        scratch = torch.empty(kernels.prompt_layernorm_scratch(**n))
        kernels("prompt_layernorm_backward", d_tokens=normed, d_normed=tokens, tokens=tokens, gamma=gamma, mean=mean,
                rstd=rstd, scratch=scratch, dtype=0, **made, **n)  # fmt: skip
        return made.values()

    images, d_patches = torch.rand(1, 3, 16, 16), torch.rand(1, 4, 192)
    m = {"B": 1, "C": 3, "H": 16, "W": 16, "S": 8, "grid": 1, "permutation": None, "std": floats(STD[:3]), "dtype": 0}

    def cut():
        patches = torch.empty(1, 4, 192)
        kernels(
            "patchify", images=images, patches=patches, mean=floats(MEAN[:3]), image_dtype=0, **strides(images), **m
        )
        return (patches,)

    def uncut():
        d_images = torch.empty(1, 3, 16, 16)
        kernels("patchify_backward", d_patches=d_patches, d_images=d_images, **m)
        return (d_images,)

    queries, gallery = torch.randn(3, 16).half(), torch.randn(300, 16).half()
    made = {
        "prompt_layernorm": forward,
        "prompt_layernorm_backward": backward,
        "patchify": cut,
        "patchify_backward": uncut,
    }
    for scan, number in SCANS.items():
        made[f"cosine_topk {scan}"] = lambda number=number: topk(kernels, queries, gallery, 5, scan=number)
    made["cosine_topk in 8 bits"] = lambda: topk(kernels, queries, ops.eight_bit_gallery(gallery), 5)
    return made


def test_ops_run_on_the_device_and_the_stream_they_are_given(kernels):
    """The emulator refuses a launch on another of both; the device that was current is so again."""
    for name, call in calls(kernels).items():
        want = [t.clone() for t in call()]
        kernels.place(1, 0x5EED)
        got = call()
        kernels.place()
        assert kernels.library.current_device() == 0, name
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True)), name


def test_ops_make_no_context_on_a_device_that_is_not_used(kernels):
    """A thread that has chosen no device has the first one: going back to it would set up a context there."""
    for name, call in calls(kernels).items():
        call()
        kernels.library.begin(0)
        kernels.place(1)
        call()
        assert kernels.library.has_context(1) and not kernels.library.has_context(0), name
        kernels.place(0)
        call()  # there, all the same, and back
        assert kernels.library.has_context(0) and kernels.library.current_device() == 1, name
        kernels.library.begin(1)


def test_a_failed_launch_is_an_error_that_leaves_the_device_as_it_was(kernels):
    for name, call in calls(kernels).items():
        call()
        kernels.place(1)
        kernels.library.fail_next_launch()
        with pytest.raises(RuntimeError, match=r"\.cpp:\d+: cudaErrorInvalidConfiguration"):
            call()
        assert kernels.library.current_device() == 0, name
        kernels.place()


def test_what_cannot_be_is_refused(kernels):
    for Q, N, D, k, message in ((1, 5, 8, 6, "K must be at most N"), (1, 5, 8, 1025, "K must be"),
                                (1 << 15, 5, 8, 1, "Q must be"), (1, 5, 70_000, 1, "D must be")):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            kernels("cosine_topk", queries=None, gallery=None, scores=None, indices=None, scratch=None, Q=Q, N=N, D=D, K=k,
                    dtype=0)  # fmt: skip
    gallery = ops.eight_bit_gallery(torch.randn(20, 16))
    with pytest.raises(RuntimeError, match="aligned to 16 bytes"):
        topk(kernels, torch.randn(1, 16), gallery._replace(bytes=torch.zeros(20, 24, dtype=torch.int8)), 3)


# ---- prompt_layernorm ----

TOL = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# B, L, P, D, replace, own prompts: class token only, vectors of several widths, deep prompting, many rows, wide
ROWS = [(1, 1, 0, 8, 0, False), (2, 9, 4, 768, 0, False), (3, 5, 1, 1000, 0, True), (1, 5, 3, 8, 2, False),
        (4, 12, 6, 128, 6, True), (70, 9, 2, 64, 3, False), (2, 4, 1, 1536, 0, False)]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_layernorm(shape, dtype, kernels):
    B, L, P, D, R, own = shape
    G, T = B if own else 1, L - R + P
    x = torch.randn(B, L, D).mul(3).add(1).to(dtype)
    prompts, gamma, beta = torch.randn(G, P, D).to(dtype), torch.randn(D), torch.randn(D)
    tokens, normed = torch.empty(B, T, D, dtype=dtype), torch.empty(B, T, D, dtype=dtype)
    mean, rstd = torch.empty(B, T), torch.empty(B, T)
    n = {"B": B, "L": L, "P": P, "G": G, "D": D, "R": R, "dtype": KINDS[dtype]}
    forward = {"x": x, "prompts": prompts, "gamma": gamma, "beta": beta, "tokens": tokens, "normed": normed,
               "mean": mean, "rstd": rstd, "eps": 1e-5}  # fmt: skip
    if D * x.element_size() > 4096:
        with pytest.raises(RuntimeError, match="at most 1024 wide, got 1536"):
            kernels("prompt_layernorm", **forward, **n)
        return
    kernels("prompt_layernorm", **forward, **n)
    inputs = [t.requires_grad_() for t in (x, prompts, gamma, beta)]
    want = reference.prompt_layernorm(*inputs, replace=R)
    torch.testing.assert_close(tokens, want[0], rtol=0, atol=0)
    torch.testing.assert_close(normed, want[1], rtol=TOL[dtype], atol=TOL[dtype])
    grads = [torch.randn(B, T, D).to(dtype) for _ in range(2)]
    for given in (grads, [grads[0], None], [None, grads[1]]) if D <= 1024 else ():
        d_x, d_prompts = torch.full_like(x, float("nan")), torch.full((G, P, D), float("nan"))
        d_gamma, d_beta = torch.full((D,), float("nan")), torch.full((D,), float("nan"))
        scratch = torch.full((kernels.prompt_layernorm_scratch(**n),), float("nan"))
        kernels("prompt_layernorm_backward", d_tokens=given[0], d_normed=given[1], tokens=tokens, gamma=gamma, mean=mean,
                rstd=rstd, d_x=d_x, d_prompts=d_prompts, d_gamma=d_gamma, d_beta=d_beta, scratch=scratch,
                **n)  # fmt: skip
        outputs = [(o, g) for o, g in zip(want, given, strict=True) if g is not None]
        exact = torch.autograd.grad([o for o, _ in outputs], inputs, [g for _, g in outputs], retain_graph=True,
                                    allow_unused=True)  # fmt: skip
        for name, g, w in zip(["x", "prompts", "gamma", "beta"], (d_x, d_prompts, d_gamma, d_beta), exact, strict=True):
            w = torch.zeros_like(g) if w is None else w.to(g.dtype)
            tol = TOL[dtype] * max(1.0, float(w.abs().max()) if w.numel() else 1.0)
            torch.testing.assert_close(g, w, rtol=TOL[dtype], atol=tol, msg=lambda m: f"d_{name}: {m}")


@pytest.mark.parametrize("dtype, D", [(torch.float32, 18), (torch.float16, 20), (torch.bfloat16, 17)], ids=str)
def test_layernorm_refuses_rows_that_are_no_whole_vectors(dtype, D, kernels):
    """splip.ops sends them to PyTorch; a kernel that took them would be one more to look after."""
    x, prompts, wide = torch.randn(1, 2, D).to(dtype), torch.randn(1, 1, D).to(dtype), torch.randn(D)
    made, n = torch.empty(1, 3, D, dtype=dtype), {"B": 1, "L": 2, "P": 1, "G": 1, "D": D, "R": 0, "dtype": KINDS[dtype]}
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        kernels("prompt_layernorm", x=x, prompts=prompts, gamma=wide, beta=wide, tokens=made, normed=made,
                mean=torch.empty(3), rstd=torch.empty(3), eps=1e-5, **n)  # fmt: skip
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):
        kernels("prompt_layernorm_backward", d_tokens=made, d_normed=made, tokens=made, gamma=wide, mean=wide, rstd=wide,
                d_x=x, d_prompts=wide, d_gamma=wide, d_beta=wide, scratch=wide, **n)  # fmt: skip


# ---- patchify ----

MEAN, STD = (0.48, 0.46, 0.41, 0.5), (0.27, 0.26, 0.28, 0.3)
# B, C, H, W, S, grid: ViT-B/32 in small, tiles narrower than a run, patches of 14, odd, one pixel
PICTURES = [(2, 3, 96, 64, 32, 3), (2, 3, 32, 48, 16, 12), (1, 3, 28, 42, 14, 3), (2, 4, 15, 21, 3, 4),
            (1, 1, 1, 1, 1, 1), (2, 1, 24, 40, 8, 3)]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("layout", ["planar", "channels last", "strided", "shifted"])
@pytest.mark.parametrize("kind", ["uint8", "float"])
@pytest.mark.parametrize("shape", PICTURES, ids=str)
def test_patchify(shape, kind, layout, dtype, kernels):
    B, C, H, W, S, grid = shape
    pixels = torch.randint(0, 256, (B, H, W, C), dtype=torch.uint8)
    pixels = pixels if kind == "uint8" else pixels / 255
    if layout == "shifted":  # an address that is no multiple of four pixels
        store = torch.zeros(pixels.numel() + 1, dtype=pixels.dtype)
        store[1:] = pixels.flatten()
        pixels = store[1:].view(B, H, W, C)
    images = pixels.permute(0, 3, 1, 2)
    if layout == "planar":
        images = images.contiguous()
    elif layout == "strided":
        images = images.repeat_interleave(2, dim=3)[..., ::2]
    for permutation in (None, torch.stack([torch.randperm(grid * grid) for _ in range(B)])):
        patches = torch.full((B, H // S * (W // S), C * S * S), float("nan"), dtype=dtype)
        n = {"B": B, "C": C, "H": H, "W": W, "S": S, "grid": 1 if permutation is None else grid,
             "permutation": permutation, "std": floats(STD[:C]), "dtype": KINDS[dtype]}  # fmt: skip
        kernels("patchify", images=images, patches=patches, mean=floats(MEAN[:C]), image_dtype=KINDS[images.dtype],
                **strides(images), **n)  # fmt: skip
        source = images.detach().clone().requires_grad_(kind == "float")
        want = reference.patchify(source, S, MEAN[:C], STD[:C], permutation, grid, dtype)
        assert torch.equal(patches, want)
        if kind == "float" and layout == "planar":
            grad = torch.randn(want.shape).to(dtype)
            d_images = torch.full((B, C, H, W), float("nan"))
            kernels("patchify_backward", d_patches=grad, d_images=d_images, **n)
            (exact,) = torch.autograd.grad(want, source, grad)
            torch.testing.assert_close(d_images, exact, rtol=1e-6, atol=1e-6)
