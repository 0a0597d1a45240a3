"""Every kernel on little data with odd sizes and odd numbers, checked: python -m gpu.small_cases WAY|other

A process for each way to multiply: what destroys a CUDA context takes one of them with it. The sanitizer runs these
cases too.
"""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from splip import ops
from splip.ops import quantized, reference, topk

DEVICE = "cuda"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MEAN, STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)
OTHER = "other"  # the ops that are no search
EQUAL = "equal rows"


class Case(NamedTuple):
    name: str
    queries: Tensor
    gallery: Tensor
    k: int
    allowed: Tensor | None = None


def odd_queries(Q: int, D: int, dtype: torch.dtype) -> Tensor:
    """Ordinary ones, some in the middle and the last without a score. Those past the last tile's end copy the last."""
    queries = torch.randn(Q, D, device=DEVICE).to(dtype)
    queries[1], queries[2, 0], queries[3, D - 1] = 0, float("nan"), float("-inf")
    queries[4] = 1e20  # float16: infinite; the others': too long for float32
    queries[5] = 1e18 if dtype != torch.float16 else 6e4  # long, but with a score
    queries[-1] = float("inf")
    return queries


def search_cases(dtype: torch.dtype) -> Iterator[Case]:
    def rows(n: int, D: int) -> Tensor:
        return torch.randn(n, D, device=DEVICE).to(dtype)

    for Q, N, D, K in [(1, 1, 8, 1), (3, 700, 40, 10), (33, 5000, 512, 10), (130, 3000, 72, 100), (2, 333, 17, 333)]:
        yield Case(f"Q={Q} N={N} D={D} K={K}", rows(Q, D), rows(N, D), K)
    odd = rows(5000, 32)
    odd[::3, 5], odd[1::3, 7], odd[2] = float("nan"), float("inf"), 0
    yield Case("rows without a score", odd_queries(8, 32, dtype), odd, 20)
    # 70 queries: a tile and a part of one. The last query's products are infinite.
    queries, gallery = odd_queries(70, 64, dtype), rows(6000, 64)
    few = torch.zeros(6000, dtype=torch.bool, device=DEVICE)
    few[::900] = True
    yield Case("odd queries", queries, gallery, 10)
    yield Case("odd queries, a mask of few rows", queries, gallery, 10, few)
    yield Case("odd queries, a mask of no row", queries, gallery, 10, torch.zeros_like(few))
    yield Case("odd queries, negative cosines", queries.abs(), -gallery.abs(), 10)
    yield Case("odd queries, negative cosines, a mask", queries.abs(), -gallery.abs(), 10, few)
    yield Case("infinite queries only", torch.full_like(queries, float("inf")), gallery, 10)
    yield Case(EQUAL, rows(1, 16).repeat(4, 1), rows(1, 16).repeat(6000, 1), 4)


def expected(case: Case) -> tuple[Tensor, Tensor]:
    """On the CPU: another implementation, and under the sanitizer no kernels of cuBLAS."""
    allowed = None if case.allowed is None else case.allowed.cpu()
    scores, ids = reference.cosine_topk(case.queries.cpu(), case.gallery.cpu(), case.k, allowed)
    if case.name == EQUAL:  # which a product in blocks may round differently from row to row
        ids = torch.arange(case.k).expand(len(scores), -1)
    return scores, ids


def differs(case: Case, got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> str | None:
    """What is wrong with an answer: scores to 2e-6, ids by their own scores, and in order where there is no choice."""
    scores, ids = (t.cpu() for t in got)
    want_scores, want_ids = (t.cpu() for t in want)
    off = (scores - want_scores).abs().nan_to_num_(0)  # -inf less itself
    if not torch.equal(scores.isneginf(), want_scores.isneginf()) or float(off.max()) > 2e-6:
        return f"scores off by {float(off.max()):.3g}"
    there = ids >= 0
    if not torch.equal(there, want_ids >= 0) or int(ids.max()) >= len(case.gallery):
        return "ids that are none"
    if case.allowed is not None and not bool(case.allowed.cpu()[ids[there]].all()):
        return "rows that are not allowed"
    for line in ids:
        if len(line[line >= 0].unique()) != int((line >= 0).sum()):
            return "a row twice"
    trivial = want_scores.isneginf().all(1) | (want_scores == 0).all(1)
    if not torch.equal(ids[trivial], want_ids[trivial]):
        return "other ids where every score is the same"
    moved = (ids != want_ids) & there
    if float(moved.float().mean()) > 0.02:
        return f"{float(moved.float().mean()):.1%} other ids"
    return None


def searches(scan: str) -> list[str]:
    """What is wrong with a way to multiply."""
    wrong = []
    for dtype in FLOATS:
        torch.manual_seed(0)
        for case in search_cases(dtype):
            want = expected(case)
            eight_bits = ops.eight_bit_gallery(case.gallery)
            alone = eight_bits._replace(rows=None)
            forms: dict[str, tuple[Any, Any]] = {
                "": (case.gallery, want),
                ", prepared": (quantized.prepare_gallery(case.gallery), want),
                ", 8 bits": (eight_bits, want),
            }
            if case.name.startswith("Q="):
                on_cpu = ops.EightBitGallery(None, *(t.cpu() for t in eight_bits[1:] if t is not None))
                forms[", 8 bits alone"] = (alone, topk._approximate_topk(case.queries.cpu(), on_cpu, case.k, None))
            for form, (searched, right) in forms.items():
                name = f"{scan}, {str(dtype).removeprefix('torch.')}{form}: {case.name}"
                try:
                    got = topk._cuda_topk(case.queries, searched, case.k, case.allowed, scan)
                    torch.cuda.synchronize()
                except Exception:
                    print(f"   {name}: this call failed", flush=True)
                    raise
                if what := differs(case, got, right):
                    wrong.append(f"{name}: {what}")
    return wrong


def other_ops() -> list[str]:
    wrong = []
    torch.manual_seed(0)
    for dtype in FLOATS:
        tol = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}[dtype]
        for D, own in ((768, False), (17, True), (128, True)):
            x = torch.randn(5, 9, D, device=DEVICE).to(dtype).requires_grad_()
            prompts = torch.randn(*((5,) if own else ()), 3, D, device=DEVICE).to(dtype).requires_grad_()
            gamma, beta = (torch.randn(D, device=DEVICE).requires_grad_() for _ in range(2))
            leaves = [x, prompts, gamma, beta]
            got = ops.prompt_layernorm(x, prompts, gamma, beta, replace=2)
            want = reference.prompt_layernorm(x, prompts, gamma, beta, replace=2)
            ahead = [torch.randn_like(t) for t in got]
            pairs = [*zip(got, want, strict=True), *zip(*(torch.autograd.grad(o, leaves, ahead) for o in (got, want)),
                                                         strict=True)]  # fmt: skip
            for number, (g, w) in enumerate(pairs):
                if not torch.allclose(g, w, rtol=tol, atol=tol * float(w.detach().abs().max().clamp_min(1))):
                    wrong.append(f"prompt_layernorm {dtype} D={D}: output or gradient {number}")
        for S, side in ((16, 48), (14, 42), (5, 25)):
            images = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, device=DEVICE).permute(0, 3, 1, 2)
            tiles = torch.stack([torch.randperm(9) for _ in range(2)]).to(DEVICE)
            for pixels in (images, images.contiguous(), images / 255):
                patches = ops.patchify(pixels, S, MEAN, STD, tiles, dtype=dtype)
                if not torch.equal(patches, reference.patchify(pixels, S, MEAN, STD, tiles, dtype=dtype)):
                    wrong.append(f"patchify {dtype} S={S} side={side} {pixels.dtype}")
            pixels = (images / 255).requires_grad_()
            ops.patchify(pixels, S, MEAN, STD, tiles, dtype=dtype).sum().backward()
            if pixels.grad is None or not bool(pixels.grad.isfinite().all()):
                wrong.append(f"patchify {dtype} S={S}: gradient")
    torch.cuda.synchronize()
    return wrong


def main(name: str) -> int:
    torch.set_num_threads(2)  # of a process among several
    wrong = other_ops() if name == OTHER else searches(name)
    for line in wrong:
        print(f"   {line}")
    print(f"   small cases of {name}: {f'{len(wrong)} wrong' if wrong else 'all right'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
