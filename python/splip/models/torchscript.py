"""TorchScript archives, such as OpenAI's weights files: their tensors and their code as text. Nothing in them is run."""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST = 64 << 20  # bytes of the compressed files, which are code; tensors are not compressed
DTYPES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Float": torch.float32,
        "Double": torch.float64,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}


class Archive(NamedTuple):
    """What an archive holds."""

    state: dict[str, Tensor]
    code: str


def is_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any("/code/" in name for name in file.namelist())


def read_archive(path: Path) -> Archive:
    """The tensors of all modules by name, and the code.

    Raises:
        ValueError: not written as torch writes archives.
    """
    with zipfile.ZipFile(path) as file:
        if sum(entry.file_size for entry in file.infolist() if entry.compress_type != zipfile.ZIP_STORED) > LARGEST:
            raise ValueError("a TorchScript archive with more compressed than code needs")
        names = [name for name in file.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if not names:
            raise ValueError("a TorchScript archive without data.pkl")
        root = names[0].removesuffix("data.pkl")
        code = [name for name in file.namelist() if name.startswith(f"{root}code/") and name.endswith(".py")]
        text = "\n".join(file.read(name).decode("utf-8", "replace") for name in code)
        try:
            top = _Reader(file, root).load()
        except (pickle.UnpicklingError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, EOFError) as e:
            raise ValueError(f"a TorchScript archive that cannot be read ({type(e).__name__}: {e})") from None
    state: dict[str, Tensor] = {}
    _collect(top, "", state)
    return Archive(state, text)


class _Object:
    """A module of the archive: its attributes, no code."""


class _Reader(pickle.Unpickler):
    """Makes tensors, numbers and containers, and nothing else."""

    def __init__(self, file: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(file.read(f"{root}data.pkl")))
        self.file, self.root = file, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return type(name, (_Object,), {})
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle":
            return lambda values, *_: values
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            data = bytearray(self.file.read(f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    size, stride = tuple(size), tuple(stride)
    if math.prod(size) and offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) >= storage.numel():
        raise pickle.UnpicklingError("a tensor larger than its numbers")
    return storage.as_strided(size, stride, offset)


def _collect(value: Any, prefix: str, state: dict[str, Tensor]) -> None:
    for name, part in vars(value).items():
        if isinstance(part, Tensor):
            state[prefix + name] = part
        elif isinstance(part, _Object):
            _collect(part, f"{prefix}{name}.", state)
