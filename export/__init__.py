"""Export of trained encoders to ONNX, OpenVINO and TensorRT, and what running them needs."""


def main() -> int:
    """The console script ``splip-export``: the same as ``splip export``."""
    import sys

    from splip.cli.main import main as splip

    return splip(["export", *sys.argv[1:]])
