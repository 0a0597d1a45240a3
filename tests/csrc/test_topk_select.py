"""What CUDA's kernels decide, run on the host from the same headers: selection, passes, index arithmetic."""

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

F32, F64, I64, U8, U32, U64 = (np.dtype(t) for t in ("f4", "f8", "i8", "u1", "u4", "u8"))
LEVELS = 16


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    out = tmp_path_factory.mktemp("host") / "host_logic.so"
    source = Path(__file__).parent / "host_logic.cpp"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, source, "-o", out], check=True)
    library = ctypes.CDLL(str(out))
    library.make_key.argtypes, library.make_key.restype = [ctypes.c_float, ctypes.c_uint32], ctypes.c_uint64
    library.key_score.argtypes, library.key_score.restype = [ctypes.c_uint64], ctypes.c_float
    library.key_index.argtypes, library.key_index.restype = [ctypes.c_uint64], ctypes.c_uint32
    library.kth_largest.restype = ctypes.c_uint64
    library.score_error.argtypes, library.score_error.restype = [ctypes.c_int64, ctypes.c_int], ctypes.c_double
    library.sampled.argtypes, library.sampled.restype = [ctypes.c_int64, ctypes.c_uint64], ctypes.c_int64
    library.scan_splits.argtypes = [ctypes.c_int64, ctypes.c_int64]
    return library


def pointer(array):
    return None if array is None else array.ctypes.data_as(ctypes.c_void_p)


def plan(host, N, K, many=False, ratio=0, capacity=0, eight_bits=False):
    rows, step, room = np.zeros(LEVELS, I64), np.zeros(LEVELS, U64), ctypes.c_int64()
    c = [ctypes.c_int64(v) for v in (N, K)], [ctypes.c_int64(v) for v in (ratio, capacity)]
    levels = host.plan(*c[0], int(many), int(eight_bits), *c[1], pointer(rows), pointer(step), ctypes.byref(room))
    return rows[:levels].tolist(), step[:levels].tolist(), room.value


def search(host, approximate, exact, k, margin=0.0, allowed=None, many=False, capacity=0, ratio=0, seed=0, errors=None):
    """Scores, indices, and whether the exact scan was needed."""
    approximate, exact = np.ascontiguousarray(approximate, F32), np.ascontiguousarray(exact, F32)
    errors = None if errors is None else np.ascontiguousarray(errors, F32)
    mask = None if allowed is None else np.ascontiguousarray(allowed, U8)
    scores, indices = np.full(k, np.nan, F32), np.full(k, -7, I64)
    N = ctypes.c_int64(len(exact))
    sizes = [N, k, int(many), ctypes.c_int64(capacity), ctypes.c_int64(ratio), ctypes.c_float(margin)]
    again = host.search(pointer(approximate), pointer(exact), pointer(errors), pointer(mask), *sizes, seed, pointer(scores),
                        pointer(indices))  # fmt: skip
    return scores, indices, bool(again)


def brute_force(exact, k, allowed=None):
    """Score descending, then index ascending; -1 at -inf beyond the allowed rows."""
    exact = np.asarray(exact, F32) + F32.type(0)
    order = np.lexsort((np.arange(len(exact)), -exact))
    if allowed is not None:
        order = order[np.asarray(allowed, bool)[order]]
    order = order[:k]
    missing = k - len(order)
    return np.append(exact[order], np.full(missing, -np.inf, F32)), np.append(order, np.full(missing, -1))


def check(host, approximate, exact, k, **options):
    scores, indices, again = search(host, approximate, exact, k, **options)
    want_scores, want = brute_force(exact, k, options.get("allowed"))
    np.testing.assert_array_equal(indices, want)
    np.testing.assert_array_equal(scores, want_scores)
    return again


# ---- keys ----


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, 2**31)), min_size=2, max_size=50))
def test_keys_order_by_score_then_index(host, rows):
    keys = [host.make_key(score, index) for score, index in rows]
    assert sorted(rows, key=lambda r: (-r[0], r[1])) == [r for _, r in sorted(zip(keys, rows, strict=True),
                                                                             key=lambda p: -p[0])]  # fmt: skip
    for key, (score, index) in zip(keys, rows, strict=True):
        assert host.key_score(key) == score and host.key_index(key) == index and key > 0


def test_zero_and_infinity_have_keys(host):
    assert host.make_key(-0.0, 3) == host.make_key(0.0, 3)
    assert 0 < host.make_key(float("-inf"), 2**31) < host.make_key(-3e38, 2**31)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_kth_largest_and_sort(host, data):
    threads = data.draw(st.integers(1, 8))
    keys = np.array(data.draw(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=16 * threads)), U64)
    k = data.draw(st.integers(1, 16 * threads))
    real = np.sort(keys[keys > 0])[::-1]
    want = int(real[k - 1]) if k <= len(real) else 0
    assert host.kth_largest(pointer(keys), len(keys), k, threads) == want
    room = np.zeros(128, U64)
    room[: len(keys)] = keys
    host.sort_descending(pointer(room), len(keys))
    np.testing.assert_array_equal(room[: len(keys)], np.sort(keys)[::-1])


# ---- the plan ----

SIZES = [1, 2, 4095, 4096, 4097, 20_000, 100_000, 1_000_000, 10_000_000, 2**31 - 1]


@pytest.mark.parametrize("eight_bits", [False, True])
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("K", [1, 10, 32, 33, 64, 65, 128, 129, 512, 1024])
@pytest.mark.parametrize("N", SIZES)
def test_plan_samples_the_whole_gallery_and_fits(host, N, K, many, eight_bits):
    K = min(K, N)
    rows, steps, capacity = plan(host, N, K, many, eight_bits=eight_bits)
    assert rows[-1] == N and steps[-1] == 2**32
    assert rows[0] <= capacity and capacity in (4096, 8192, 16384) and capacity // 16 <= 1024
    for n, step in zip(rows, steps, strict=True):
        last = host.sampled(n - 1, step)
        assert last == ((n - 1) * step) >> 32 and last < N
        assert N - last <= 2 + step / 2**32  # even a sorted gallery is sampled from end to end
        assert n == N or 0.6 < step / 2**32 % 1 < 0.63  # and one whose rows take turns, evenly
    for few, more in itertools.pairwise(rows):
        assert few < more and K * (more / few) <= 0.6 * capacity, "what passes must fit with room to spare"
    assert rows[0] >= K and host.scan_splits(capacity, K) in range(1, capacity // K + 1)


def test_sampling_costs_little(host):
    for N, K, many, eight_bits, most in [
        (10**6, 10, False, False, 0.02), (10**7, 10, False, False, 0.005), (10**6, 10, True, False, 0.04),
        (10**7, 100, True, False, 0.04), (10**7, 1024, True, False, 0.15), (10**7, 10, False, True, 0.025),
        (10**6, 10, True, True, 0.06), (10**7, 1024, False, True, 0.34)]:  # fmt: skip
        rows, _, _ = plan(host, N, K, many, eight_bits=eight_bits)
        assert sum(rows[:-1]) / N < most


# ---- the search of one query ----


@st.composite
def cases(draw):
    """Small galleries with small capacities, so that every path is taken."""
    N = draw(st.integers(1, 300))
    k = draw(st.integers(1, min(N, 40)))
    capacity = draw(st.sampled_from([c for c in (16, 32, 64, 128, 256) if c >= k]))
    values = draw(st.sampled_from(["random", "few", "equal", "ascending", "descending", "clusters"]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    exact = {
        "random": lambda: rng.uniform(-1, 1, N),
        "few": lambda: rng.integers(-2, 3, N) / 4,
        "equal": lambda: np.full(N, 0.25),
        "ascending": lambda: np.linspace(-1, 1, N),
        "descending": lambda: np.linspace(1, -1, N),
        "clusters": lambda: rng.integers(0, 4, N) / 4 + rng.uniform(0, 1e-4, N),
    }[values]().astype(F32)
    error = draw(st.sampled_from([0.0, 1e-5, 0.05, 3.0]))
    errors = (rng.uniform(0, 0.1, N) + 1e-6).astype(F32) if draw(st.booleans()) else None  # of rows in 8 bits
    off = 0 if errors is None else 0.999 * errors * rng.uniform(-1, 1, N)
    approximate = (exact + off + rng.uniform(-error, error, N)).astype(F32)
    without = rng.random(N) < draw(st.sampled_from([0.0, 0.1, 0.9, 1.0]))
    exact[without], approximate[without] = -np.inf, np.nan
    share = draw(st.sampled_from([None, 1.0, 0.5, 0.05, 0.0]))
    allowed = None if share is None else rng.random(N) < share
    margin = float(np.float32(2 * error * 1.001 + 2e-6))
    ratio = draw(st.sampled_from([2, 3, 8, 64]))
    return (
        exact,
        approximate,
        k,
        dict(margin=margin, allowed=allowed, capacity=capacity, ratio=ratio, errors=errors, seed=seed % 1000),
    )


@settings(max_examples=400, deadline=None)
@given(cases())
def test_search_is_exact(host, case):
    exact, approximate, k, options = case
    check(host, approximate, exact, k, **options)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("k", [1, 10, 100, 1024])
@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_real_capacities_need_no_exact_scan(host, order, k, many):
    rng = np.random.default_rng(k)
    exact = rng.normal(0, 0.05, 60_000).astype(F32)
    if order != "random":
        exact = np.sort(exact)[:: 1 if order == "ascending" else -1]
    error = host.score_error(512, 1)
    approximate = exact + rng.uniform(-error, error, len(exact))
    assert not check(host, approximate, exact, k, margin=2.001 * error, many=many)


@pytest.mark.parametrize(("many", "margin"), [(False, 0.0001), (True, 0.015)], ids=["16-bit queries", "8-bit queries"])
@pytest.mark.parametrize("k", [1, 10, 100, 256, 1024])
def test_real_capacities_need_no_exact_scan_in_eight_bits(host, k, many, margin):
    """Scores as of rows of 512 dimensions, whose own error is 0.0075, in a gallery of some size."""
    if many and k > 256:
        pytest.skip("the stream is taken for so many results")
    rng = np.random.default_rng(k)
    for N in (20_000, 60_000, 300_000):
        exact = rng.normal(0, 0.044, N).astype(F32)
        errors = rng.uniform(0.006, 0.0085, N)
        approximate = exact + rng.normal(0, 0.0003, N)  # what 8 bits really change
        assert not check(host, approximate, exact, k, margin=margin, many=many, errors=errors)


def test_least_score_of_a_row(host):
    errors = np.array([0.25, 0.5, 0.0], F32)
    host.least.restype = ctypes.c_uint32
    for index, least in ((0, 0.5), (1, 0.0), (2, 1.0)):
        key = host.make_key(1.0, index)
        found = host.least(ctypes.c_uint64(key), pointer(errors))
        assert host.key_score(ctypes.c_uint64(found << 32)) == least
    assert host.least(ctypes.c_uint64(host.make_key(1.0, 1)), None) == host.make_key(1.0, 0) >> 32
    assert host.least(ctypes.c_uint64(0), pointer(errors)) == 0


def test_crowded_galleries(host):
    """All rows alike: more than fit are candidates, and the lowest indices win."""
    exact = np.full(30_000, 0.5, F32)
    assert check(host, exact, exact, 10, margin=1e-4, many=True)
    exact[::10] = 0.75  # 3,000 equal ones at the top: they fit
    assert not check(host, exact, exact, 10, margin=1e-4, many=True)


def test_few_allowed_rows(host):
    rng = np.random.default_rng(0)
    exact = rng.normal(0, 0.05, 50_000).astype(F32)
    for share in (0.5, 0.01, 0.0002):
        allowed = rng.random(len(exact)) < share
        again = check(host, exact, exact, 10, margin=1e-4, allowed=allowed, many=True)
        assert again == (allowed.sum() < 10)
    check(host, exact, exact, 10, margin=1e-4, allowed=np.zeros(len(exact), bool))


def test_no_row_has_a_score(host):
    nothing = np.full(9000, np.nan)
    assert check(host, nothing, np.full(9000, -np.inf), 5, margin=1e-4)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "tf32", "tf32, the rest dropped"])
def test_error_bound_covers_the_worst_rounding_known(host, kind):
    """Sums of 8 addends at a time, all cut at the last bit of the largest, factors rounded as the type does."""
    rng = np.random.default_rng(1)
    for D in (8, 64, 512, 768):
        a, b = rng.normal(size=(2, 200, D))
        b[:100] = a[:100]  # all terms positive: cutting never cancels
        a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
        bits = {"bfloat16": 8, "float16": 11}.get(kind, 24)
        a, b = round_to(a, bits), round_to(b, bits)
        cut = {"tf32": np.rint, "tf32, the rest dropped": np.trunc}.get(kind)
        factors = (a, b) if cut is None else (round_to(a, 11, cut), round_to(b, 11, cut))
        total = np.zeros(200)
        for first in range(0, D, 8):
            terms = np.concatenate(
                [total[:, None], factors[0][:, first : first + 8] * factors[1][:, first : first + 8]], 1
            )
            _, exponent = np.frexp(np.abs(terms).max(axis=1))
            last = np.ldexp(1.0, exponent - 24)[:, None]
            total = (np.trunc(terms / last) * last).sum(axis=1)
            total = round_to(total, 24, np.trunc)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        difference = np.abs(total - (a * b).sum(axis=1)) / lengths
        assert difference.max() < host.score_error(D, int("tf32" in kind))


def round_to(values, bits, how=np.rint):
    mantissa, exponent = np.frexp(values)
    return np.ldexp(how(np.ldexp(mantissa, bits)), exponent - bits)


# ---- the tensor cores' layout ----


def places(host, source, step):
    out = (ctypes.c_int * 2)()
    found = []
    for lane in range(32):
        source(lane, step, out)
        found.append(tuple(out))
    return found


def test_swizzle_is_a_bijection_without_bank_conflicts(host):
    for row in range(64):
        assert {host.swizzled(row, c) for c in range(8)} == set(range(8 * row, 8 * row + 8))
    for step in range(4):
        for source in (host.a_source, host.b_source):
            found = places(host, source, step)
            for first in range(0, 32, 8):  # a matrix of ldmatrix: 8 rows, 16 bytes of each
                banks = {host.swizzled(row, chunk) % 8 for row, chunk in found[first : first + 8]}
                assert len(banks) == 8


def fragments(words, kind):
    """mma.sync's definition: A [16, k] and B [k, 8] from the registers of 32 lanes, k = 32, 16 or 8."""
    a_words, b_words = words
    per = {"8 bit": 4, "16 bit": 2, "tf32": 1}[kind]
    A, B = np.zeros((16, 8 * per)), np.zeros((8 * per, 8))
    for lane in range(32):
        group, place = lane // 4, lane % 4
        for register in range(4):
            row, half = group + 8 * (register % 2), register // 2
            for j in range(per):
                A[row, (place + 4 * half) * per + j] = a_words[lane][register][j]
        for register in range(2):
            for j in range(per):
                B[(place + 4 * register) * per + j, group] = b_words[lane][register][j]
    return A, B


@pytest.mark.parametrize("kind", ["8 bit", "16 bit", "tf32"])
def test_tiles_multiply_as_matrices_do(host, kind):
    """Rows in swizzled shared memory, ldmatrix, mma, and where the product lies: one warp, 128 bytes of k."""
    per = {"8 bit": 16, "16 bit": 8, "tf32": 4}[kind]  # elements of a chunk
    rng = np.random.default_rng(0)
    queries, gallery = rng.integers(-9, 9, (2, 16, 8 * per)).astype(float)
    shared = {}
    for row, chunk in itertools.product(range(16), range(8)):
        for base, values in ((0, queries), (16, gallery)):
            shared[host.swizzled(base + row, chunk)] = values[row, chunk * per : (chunk + 1) * per]

    def load(source, base, step):
        """ldmatrix.x4: register r of a lane is word lane % 4 of row lane / 4 of matrix r."""
        found = places(host, source, step)
        words = []
        for lane in range(32):
            registers = []
            for r in range(4):
                row, chunk = found[8 * r + lane // 4]
                chunk = shared[host.swizzled(base + row, chunk)]
                registers.append(chunk.reshape(4, -1)[lane % 4])
            words.append(registers)
        return words

    product = np.zeros((16, 16))
    for step in range(4):
        a, b = load(host.a_source, 0, step), load(host.b_source, 16, step)
        for block in range(2):
            A, B = fragments((a, [w[2 * block : 2 * block + 2] for w in b]), kind)
            C = A @ B
            for lane, i in itertools.product(range(32), range(4)):
                row, column = host.c_row(lane, i), host.c_column(lane, i)
                product[row, 8 * block + column] += C[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]
    np.testing.assert_array_equal(product, queries @ gallery.T)


@pytest.mark.parametrize("kind", ["8 bit", "16 bit", "tf32"])
def test_rows_straight_from_memory_multiply_too(host, kind):
    per = {"8 bit": 16, "16 bit": 8, "tf32": 4}[kind]
    rng = np.random.default_rng(0)
    gallery, queries = rng.integers(-9, 9, (16, 4 * per)).astype(float), rng.integers(-9, 9, (8, 4 * per)).astype(float)

    def chunk(values, row, lane):
        first = host.direct_chunk(lane) * per
        return values[row, first : first + per].reshape(4, -1)

    product = np.zeros((16, 8))
    for half in range(2):
        a_words, b_words = [], []
        for lane in range(32):
            x = chunk(gallery, host.direct_row(lane), lane)
            y = chunk(gallery, host.direct_row(lane) + 8, lane)
            w = chunk(queries, host.direct_row(lane), lane)
            low, high = 2 * half, 2 * half + 1
            a_words.append([x[low], y[low], x[high], y[high]])
            b_words.append([w[low], w[high]])
        A, B = fragments((a_words, b_words), kind)
        product += A @ B
    np.testing.assert_array_equal(product, gallery @ queries.T)
    seen = {(host.c_row(lane, i), host.c_column(lane, i)) for lane in range(32) for i in range(4)}
    assert seen == set(itertools.product(range(16), range(8)))
    assert all(host.c_row(lane, i) == host.direct_row(lane) + i // 2 * 8 for lane in range(32) for i in range(4))


def operand(memory, descriptor, rows):
    """32 bytes of k of a wgmma factor, [rows, 32], as the manual's descriptor gives it: K-major, 128-byte swizzle."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    assert descriptor >> 62 == 1 and descriptor >> 49 & 7 == 0 and descriptor >> 46 & 7 == 0
    row, byte = np.arange(rows)[:, None], np.arange(32)
    address = start + row // 8 * stride + row % 8 * 128 + byte
    return memory[address ^ (address >> 7 & 7) << 4]


@pytest.mark.parametrize("base", [0, 1024, 5 * 1024, 200 * 1024])
def test_descriptors_find_what_was_swizzled(host, base):
    """128 bytes of k of 256 rows, written chunk by chunk where the copies put them."""
    host.descriptor.restype = ctypes.c_uint64
    rows = np.random.default_rng(0).integers(0, 256, (256, 128)).astype(U8)
    memory = np.zeros(256 * 1024, U8)
    for row, chunk in itertools.product(range(256), range(8)):
        at = base + 16 * host.swizzled(row, chunk)
        memory[at : at + 16] = rows[row, 16 * chunk : 16 * chunk + 16]
    for step in range(4):
        found = operand(memory, host.descriptor(base, step), 256)
        np.testing.assert_array_equal(found, rows[:, 32 * step : 32 * step + 32])
    for group in range(2):  # a warpgroup's 64 queries begin 8 KB on
        found = operand(memory, host.descriptor(base + group * 64 * 128, 1), 64)
        np.testing.assert_array_equal(found, rows[64 * group : 64 * group + 64, 32:64])


def test_a_warpgroup_holds_every_score_once(host):
    seen = [(host.group_row(t, i), host.group_column(t, i)) for t in range(128) for i in range(128)]
    assert sorted(seen) == list(itertools.product(range(64), range(256)))
    for t, i in itertools.product(range(128), range(128)):  # as the manual draws it: a warp has 16 rows
        assert host.group_row(t, i) == 16 * (t // 32) + (t % 32) // 4 + 8 * (i // 2 % 2)
        assert host.group_column(t, i) == 8 * (i // 4) + 2 * (t % 4) + i % 2


# ---- patchify ----


@pytest.mark.parametrize(("H", "W", "S", "grid"), [(224, 224, 32, 3), (32, 48, 16, 4), (24, 40, 8, 1), (16, 56, 8, 7)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_runs_of_pixels_come_from_where_the_reference_takes_them(host, H, W, S, grid, shuffle):
    import torch

    from splip.ops import reference

    B = 2
    permutation = torch.stack([torch.randperm(grid * grid) for _ in range(B)]) if shuffle else None
    image = torch.arange(B * H * W, dtype=torch.float64).view(B, 1, H, W)  # each pixel is its own place
    if shuffle:
        image = reference.shuffle_tiles(image, permutation, grid)
    want = image.reshape(B, H // S, S, W // S, S).permute(0, 1, 3, 2, 4).reshape(-1, S * S).long().numpy()
    runs = np.zeros((B * H * W // 8, 19), I64)
    host.runs_of_eight(
        ctypes.c_void_p(permutation.data_ptr()) if shuffle else None, B, H, W, S, grid if shuffle else 1, pointer(runs)
    )
    got = np.full_like(want, -1)
    for patch, offset, b, *pixels in runs.tolist():
        got[patch, offset : offset + 8] = [(b * H + y) * W + x for y, x in zip(pixels[::2], pixels[1::2], strict=True)]
    np.testing.assert_array_equal(got, want)


def test_bytes_are_loaded_whatever_their_alignment(host):
    memory = np.random.default_rng(0).integers(1, 256, 96).astype(U8)
    out = np.zeros(6, U32)
    for begin, end in ((0, 96), (3, 61), (8, 40)):
        for first in range(-8, 90):
            host.load_24_bytes(*(ctypes.c_void_p(memory.ctypes.data + at) for at in (first, begin, end)), pointer(out))
            want = [memory[i] if begin <= i < end else 0 for i in range(first, first + 24)]
            inside = [w for i, w in zip(range(first, first + 24), want, strict=True) if begin <= i < end]
            got = out.view(U8)
            assert [g for i, g in zip(range(first, first + 24), got, strict=True) if begin <= i < end] == inside
