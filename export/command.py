"""``splip export``, also ``splip-export``: write, verify, and only then move into place."""

import contextlib
import importlib.metadata
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from splip import disk
from splip.encoders import base, cuda, graph, manifest, tokenizer
from splip.encoders.encoder import Encoder
from splip.encoders.manifest import MODALITIES, Batch, Built, Manifest, Text
from splip.encoders.tensorrt_runtime import Metadata, Unavailable, sidecar
from splip.encoders.text import TextTower
from splip.errors import UserError
from splip.export import card, to_onnx, to_openvino, to_tensorrt, verify
from splip.export.config import ExportConfig
from splip.models.names import resolve
from splip.models.registry import load_model
from splip.models.retriever import Retriever

FAILED, NOT_HERE = 1, 3  # exit codes
NOT_RUN = "built, not run"
PACKAGES = (
    *("splip", "torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
    *("openvino", "nncf", "tensorrt", "tensorrt_rtx"),
)


def export(config: ExportConfig) -> int:
    """``splip export``: 0 if all that was asked for is there, 1 if something failed its verification, 3 without TensorRT.

    Raises:
        UserError: nothing was written.
    """
    batch, opset = Batch.parse(config.batch), to_onnx.check_opset(config.opset, config.precision)
    if not str(config.model).startswith("hf-hub:"):
        resolve(config.model)  # what is no model is said before what else it would take
    tensorrt_missing = _check(config)
    found = resolve(config.model)
    model = load_model(found)
    about = base.describe(found, model)
    about.fused, about.batch, about.precision = config.fuse_preprocess, list(batch), config.precision
    about.opset, about.versions = opset, versions()
    pixels = verify.load(config.images, about, verify.COUNTS)
    if config.text:
        model.backbone.byte_pairs()  # refuse now what cannot be written
    calibration = None
    if config.precision == "int8":
        calibration = verify.load(config.calibration, about, verify.CALIBRATION, part=1)
    precision = "fp32" if config.precision == "int8" else config.precision
    encoders = graph.encoders(model, precision, config.fuse_preprocess)

    out = config.out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        made, scratch = Path(temporary) / "export", Path(temporary) / "scratch"
        made.mkdir()
        scratch.mkdir()
        job = _Job(config, about, batch, made, scratch, pixels, calibration)
        job.wanted = verify.reference(model, pixels)
        about.verification = {
            "pictures": str(config.images or "sample"),
            "sketches": len(pixels["sketch"]),
            "photos": len(pixels["photo"]),
        }
        if config.onnx or config.trt or not config.openvino:
            job.onnx(encoders)
        if config.openvino:
            job.openvino(model)
        if config.trt and tensorrt_missing is None:
            job.tensorrt()
        if config.text:
            job.text(model)
        job.hash_files()
        card.write(made, about, found.name)
        about.save(made)
        out = _move(made, Path(temporary) / "old", out, job.failed)
    print(f"{out}: {', '.join(_files(about)) or 'no usable file'}")
    if job.failed:
        print(f"splip: export failed: {'; '.join(job.failed)}", file=sys.stderr)
        return FAILED
    if tensorrt_missing is not None:
        print(f"splip: no engine was built, the ONNX files are in {out}: {tensorrt_missing}", file=sys.stderr)
        return NOT_HERE
    return 0


def _check(config: ExportConfig) -> str | None:
    """Refuse what cannot end well before anything slow begins; returns why TensorRT cannot be used, if so."""
    out, int8 = config.out, config.precision == "int8"
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not manifest.is_export(out):
            raise UserError(f"{out}: exists already and is not an export")
        if not config.overwrite:
            raise UserError(f"{out}: exists already; add --overwrite to replace it")
    if int8 and config.calibration is None:
        raise UserError(
            "--precision int8 needs --calibration: a folder of pictures like those to be searched, or sample"
        )
    if config.calibration is not None and not int8:
        raise UserError("--calibration is for --precision int8")
    to_onnx.need()
    if config.onnx or config.trt or not config.openvino:
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            raise UserError("verifying ONNX files needs onnxruntime: pip install 'splip[onnx]'") from None
    if config.openvino:
        to_openvino.need(int8)
    if config.text:
        tokenizer.need()
    if not config.trt:
        for name in ("compute_capability", "version_compatible", "timing_cache"):
            if getattr(config, name):
                raise UserError(f"--{name.replace('_', '-')} needs --trt")
        if config.hardware_compatible != "none":
            raise UserError("--hardware-compatible needs --trt")
        return None
    try:
        to_tensorrt.need(config.compute_capability, config.version_compatible, config.timing_cache)
    except Unavailable as error:
        return str(error)
    return None


@dataclass
class _Job:
    """An export while it is being made."""

    config: ExportConfig
    about: Manifest
    batch: Batch
    made: Path
    scratch: Path
    pixels: verify.Pixels
    calibration: verify.Pixels | None
    wanted: verify.Pixels = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def _note(self) -> dict[str, str]:
        """Metadata of every ONNX file."""
        return {"splip": self.about.splip, "model": self.about.name, "identity": self.about.identity}

    def _as_input(self, modality: str) -> np.ndarray:
        """Calibration pictures as the files take them."""
        assert self.calibration is not None
        images = self.calibration[modality]
        return images if self.about.fused else base.normalise(images, self.about.mean, self.about.std)

    def onnx(self, encoders: dict[str, graph.ImageEncoder]) -> None:
        """Write and verify ``<modality>.onnx``."""
        files, int8 = {}, self.config.precision == "int8"
        for name in MODALITIES:
            path = self.made / f"{name}.onnx"
            if int8:
                source = self.scratch / f"{name}.onnx"
                to_onnx.write(encoders[name], source, self.batch, self.about.opset, self._note())
                to_onnx.quantise(source, path, self._as_input(name))
                files[name] = [path.name]
            else:
                files[name] = to_onnx.write(encoders[name], path, self.batch, self.about.opset, self._note())
        precision = self.config.precision
        self.about.engines["onnx"] = Built(files, [precision], "checked, not run")
        if precision != "bf16":
            self._verify("onnx", precision, "onnxruntime")
            return
        # onnxruntime has no bfloat16 products on a CPU. The graph can run in torch, and OpenVINO can tell whether the
        # file holds that graph; it rounds at other places, so that it says nothing of the ranking.
        got = verify.run_torch(encoders, self.pixels, self.about)
        self._judge("onnx", precision, verify.compare(self.wanted, got), "checked, not run", " (its graph in torch)")
        if "onnx" in self.about.engines and base.installed("openvino"):
            fidelity = self._measure("onnx", precision, "openvino")
            reason = fidelity.failure(precision, ranking=False)
            self._line(
                "onnx", f"{precision} (the file in OpenVINO)", fidelity, f"REJECTED: {reason}" if reason else "ok"
            )
            if reason is not None:
                self._reject("onnx", precision, reason)

    def openvino(self, model: Retriever) -> None:
        """Write and verify ``<modality>.xml`` and ``.bin``."""
        precision, files = self.config.precision, {}
        exact = graph.encoders(model, "fp32", self.config.fuse_preprocess, sum_head=True)
        for name in MODALITIES:
            source = self.scratch / f"{name}-fp32.onnx"
            to_onnx.write(exact[name], source, self.batch, to_onnx.OPSETS["fp32"], self._note())
            images = self._as_input(name) if precision == "int8" else None
            files[name] = to_openvino.write(source, self.made / name, precision == "fp16", images)
            for part in self.scratch.glob(f"{name}-fp32.onnx*"):
                part.unlink()
        must = [precision]
        if precision == "bf16":
            must = ["bf16", "fp32"] if to_openvino.has_bf16() else ["fp32"]
        built = self.about.engines["openvino"] = Built(files, list(must), "checked, not run")
        for each in must:
            if "openvino" in self.about.engines:
                self._verify("openvino", each)
        if "openvino" in self.about.engines and precision in ("fp32", "fp16") and to_openvino.has_bf16():
            # A gift where it is good enough: it is much faster on a CPU with AMX.
            fidelity = self._measure("openvino", "bf16", "openvino")
            reason = fidelity.failure("bf16")
            self._line("openvino", "bf16", fidelity, f"not used: {reason}" if reason else "ok")
            if reason is None:
                built.precisions.insert(0, "bf16")
                built.fidelity["bf16"] = fidelity.to_dict()

    def tensorrt(self) -> None:
        """Build ``<modality>.engine``; verify it if it can run here."""
        c, files, metadata = self.config, {}, None
        if "onnx" not in self.about.engines:
            self.failed.append("tensorrt: not built, the ONNX files failed their verification")
            return
        try:
            for name in MODALITIES:
                path = self.made / f"{name}.engine"
                files[name] = [path.name, sidecar(path).name]
                metadata = to_tensorrt.write(
                    self.made / f"{name}.onnx",
                    path,
                    self.about.image_shape(),
                    self.batch,
                    capabilities=c.compute_capability,
                    hardware=c.hardware_compatible,
                    version_compatible=c.version_compatible,
                    timing_cache=c.timing_cache,
                )
        except UserError as error:
            for path in self.made.glob("*.engine*"):
                path.unlink()
            self.failed.append(str(error))
            return
        assert metadata is not None
        details: dict[str, Any] = {"flavour": metadata.flavour, "version": metadata.version}
        details |= {"capabilities": metadata.capabilities, "hardware": metadata.hardware}
        self.about.engines["tensorrt"] = Built(files, [c.precision], NOT_RUN, details=details)
        if _runs_here(metadata):
            self._verify("tensorrt", c.precision)
        else:
            kinds = ", ".join(metadata.capabilities) or "its default list"
            what = f"{metadata.flavour} {metadata.version} for compute capability {kinds}"
            print(f"tensorrt {c.precision}: {NOT_RUN}: {what}; verify on such a GPU", flush=True)

    def text(self, model: Retriever) -> None:
        """Write and verify ``text.onnx`` and ``tokenizer.json``."""
        ranks, vocabulary, end = model.backbone.byte_pairs()
        tokenizer.write(ranks, vocabulary, self.made / tokenizer.FILE)
        encoder = graph.text_encoder(model)
        names = to_onnx.write(encoder, self.made / "text.onnx", self.batch, to_onnx.OPSETS["fp32"], self._note())
        text = self.about.text = Text([*names, tokenizer.FILE], encoder.length, end)
        self.hash_files()
        texts = verify.texts(model)
        text.texts, differences = len(texts), []
        wanted = [model.encode_text(texts, number).numpy() for number in range(len(MODALITIES))]
        for engine in filter(base.installed, ("onnxruntime", "openvino")):
            tower = TextTower(self.made, self.about, text, engine)
            found = [tower.encode_text(texts, name) for name in MODALITIES]
            differences.append(np.abs(np.stack(found) - np.stack(wanted)).max())
        difference = float(np.max(differences))  # not a number if one is not
        text.max_difference = difference if np.isfinite(difference) else None
        good = difference <= verify.MAX_DIFFERENCE
        reason = f"a feature of a text differs by {difference:.1e}, allowed {verify.MAX_DIFFERENCE:.0e}"
        print(f"text fp32: largest difference {difference:.1e}: {'ok' if good else f'REJECTED: {reason}'}", flush=True)
        if not good:
            self.about.text = None
            self._set_aside("text", "fp32", text.files, reason, {"fp32": {"max_difference": text.max_difference}})

    def hash_files(self) -> None:
        known = self.about.sha256  # files are written once
        self.about.sha256 = {n: known.get(n) or disk.file_hash(self.made / n) for n in _files(self.about)}

    def _measure(self, kind: str, precision: str, engine: str) -> verify.Fidelity:
        """The files as a user would load them, against the training code."""
        self.hash_files()
        self.about.save(self.made)
        device = "auto" if engine == "tensorrt" else "cpu"
        # OpenVINO's own files may run in several precisions.
        choice = precision if kind == "openvino" else None
        encoder = Encoder.load(self.made, engine, device=device, precision=choice)
        try:
            return verify.compare(self.wanted, verify.run(encoder.encode, self.pixels))
        finally:
            encoder.close()

    def _verify(self, kind: str, precision: str, engine: str = "", note: str = "") -> None:
        """Measure, and set the files aside if they are not good enough."""
        self._judge(kind, precision, self._measure(kind, precision, engine or kind), "verified", note)

    def _judge(self, kind: str, precision: str, fidelity: verify.Fidelity, status: str, note: str = "") -> None:
        built, reason = self.about.engines[kind], fidelity.failure(precision)
        built.fidelity[precision] = fidelity.to_dict()
        self._line(kind, precision + note, fidelity, f"REJECTED: {reason}" if reason else "ok")
        built.status = status
        if reason is not None:
            self._reject(kind, precision, reason)

    def _reject(self, kind: str, precision: str, reason: str) -> None:
        """Set the files aside under names that nothing loads."""
        built = self.about.engines.pop(kind)
        names = sorted({name for files in built.files.values() for name in files})
        self._set_aside(kind, precision, names, reason, built.fidelity)

    def _set_aside(self, kind: str, precision: str, names: list[str], reason: str, fidelity: dict[str, Any]) -> None:
        self.failed.append(f"{kind} in {precision}: {reason}")
        for name in names:
            os.replace(self.made / name, self.made / f"{name}.rejected")
        files = [f"{name}.rejected" for name in names]
        self.about.rejected[kind] = {"files": files, "reason": reason, "fidelity": fidelity}

    def _line(self, kind: str, precision: str, f: verify.Fidelity, verdict: str) -> None:
        print(
            f"{kind} {precision}: cosine min {f.min_cosine:.6f} mean {f.mean_cosine:.6f}, "
            f"largest difference {f.max_difference:.1e}, same first photo {f.top1:.1%}, same ten {f.top10:.1%}: {verdict}",
            flush=True,
        )


def _runs_here(metadata: Metadata) -> bool:
    found = cuda.gpus()[:1]
    return bool(found) and (
        not metadata.capabilities or f"{found[0].capability[0]}.{found[0].capability[1]}" in metadata.capabilities
    )


def _files(about: Manifest) -> list[str]:
    names = {name for built in about.engines.values() for files in built.files.values() for name in files}
    return sorted(names.union(about.text.files if about.text else ()))


def versions() -> dict[str, str]:
    """Of the packages that made the files."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _move(made: Path, old: Path, out: Path, failed: list[str]) -> Path:
    """Put the folder in its place; a failed export does not replace one that works."""
    if failed and manifest.is_export(out):
        out = out.with_name(f"{out.name}.rejected")
        if out.exists() and not manifest.is_export(out):
            raise UserError(f"{out}: exists already and is not an export; the rejected files belong there")
    disk.sync_tree(made)
    if out.exists():
        os.replace(out, old)
    os.replace(made, out)
    disk.sync_folder(out.parent)
    return out
