# Types of the native module. Addresses, sizes and dtypes are checked in splip.ops.
version: str
has_cuda: bool
cuda_toolkit: str
cuda_archs: str
cuda_max_k: int
cuda_max_queries: int
cuda_max_width: int
cuda_stream_queries: int
cuda_narrow_queries: int
layernorm_chunks: int
max_channels: int

def cuda_devices() -> list[str]: ...
def cuda_has_wgmma(device: int, /) -> bool: ...
def instruction_sets() -> list[str]: ...
def levels() -> list[str]: ...
def isa() -> str: ...
def set_isa(level: str, /) -> None: ...
def prompt_layernorm(
    x: int,
    prompts: int,
    gamma: int,
    beta: int,
    tokens: int,
    normed: int,
    mean: int,
    rstd: int,
    B: int,
    L: int,
    P: int,
    G: int,
    D: int,
    R: int,
    eps: float,
    dtype: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> None: ...
def prompt_layernorm_scratch(B: int, L: int, P: int, G: int, D: int, R: int, device: int, /) -> int: ...
def prompt_layernorm_backward(
    d_tokens: int,
    d_normed: int,
    tokens: int,
    gamma: int,
    mean: int,
    rstd: int,
    d_x: int,
    d_prompts: int,
    d_gamma: int,
    d_beta: int,
    scratch: int,
    B: int,
    L: int,
    P: int,
    G: int,
    D: int,
    R: int,
    dtype: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> None: ...
def patchify(
    images: int,
    strides: tuple[int, ...],
    permutation: int,
    patches: int,
    B: int,
    C: int,
    H: int,
    W: int,
    S: int,
    grid: int,
    mean: list[float],
    std: list[float],
    image_dtype: int,
    dtype: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> None: ...
def patchify_backward(
    d_patches: int,
    permutation: int,
    d_images: int,
    B: int,
    C: int,
    H: int,
    W: int,
    S: int,
    grid: int,
    std: list[float],
    dtype: int,
    device: int,
    stream: int,
    threads: int,
    /,
) -> None: ...
def cosine_topk_scratch(
    Q: int, N: int, D: int, K: int, device: int, threads: int, scan: int = 0, pitch: int = 0, /
) -> int: ...
def cosine_topk(
    queries: int,
    gallery: int,
    scores: int,
    indices: int,
    scratch: int,
    Q: int,
    N: int,
    D: int,
    K: int,
    dtype: int,
    device: int,
    stream: int,
    threads: int,
    allowed: int = 0,
    scan: int = 0,
    eight_bit_rows: int = 0,
    scale: int = 0,
    error: int = 0,
    centre: int = 0,
    pitch: int = 0,
    /,
) -> None: ...
def packed_panel_bytes(N: int, D: int, /) -> int: ...
def pack_gallery_scratch(D: int, threads: int, /) -> int: ...
def pack_gallery(
    gallery: int,
    panels: int,
    scale: int,
    error: int,
    inverse: int,
    centre: int,
    scratch: int,
    N: int,
    D: int,
    threads: int,
    /,
) -> None: ...
def packed_topk_scratch(Q: int, D: int, K: int, threads: int, /) -> int: ...
def packed_topk(
    queries: int,
    gallery: int,
    panels: int,
    scale: int,
    error: int,
    inverse: int,
    centre: int,
    allowed: int,
    scores: int,
    indices: int,
    scratch: int,
    Q: int,
    N: int,
    D: int,
    K: int,
    threads: int,
    /,
) -> None: ...
