"""What a wheel must do wherever it is put: its native core loads, has the right version, and finds what is nearest.

    pip install --no-deps splip-*.whl && python tools/check_wheel.py

Needs nothing but Python: no PyTorch, no numpy, no compiler.
"""

import ctypes
import importlib.metadata
import random

import splip
from splip import _C

N, D, K = 1000, 32, 5


def search(level: str) -> list[int]:
    """The places of the K photos nearest to the first, by the kernel of an instruction set."""
    numbers = random.Random(0)
    gallery = (ctypes.c_float * (N * D))(*(numbers.gauss(0, 1) for _ in range(N * D)))
    scores, places = (ctypes.c_float * K)(), (ctypes.c_int64 * K)()
    _C.set_isa(level)
    size = _C.cosine_topk_scratch(Q=1, N=N, D=D, K=K, device=-1, threads=2)
    scratch = ctypes.create_string_buffer(size + 64)
    begin = -(-ctypes.addressof(scratch) // 64) * 64
    at = {"queries": gallery, "gallery": gallery, "scores": scores, "indices": places}
    given = {name: ctypes.addressof(array) for name, array in at.items()}
    _C.cosine_topk(**given, scratch=begin, Q=1, N=N, D=D, K=K, dtype=0, device=-1, stream=0, threads=2)
    assert abs(scores[0] - 1) < 1e-5, (level, scores[0])  # that photo itself
    return list(places)


def main() -> None:
    assert importlib.metadata.version("splip") == splip.__version__ == _C.version
    found = {level: search(level) for level in _C.levels()}
    assert all(places == found["scalar"] and places[0] == 0 for places in found.values()), found
    print(f"splip {_C.version}: {', '.join(found)} agree")


if __name__ == "__main__":
    main()
