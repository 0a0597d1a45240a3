"""Export of trained encoders to ONNX and TensorRT: nothing here yet."""
