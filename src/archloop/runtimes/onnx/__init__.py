"""ONNX graphs of a stack, which ONNX Runtime and OpenVINO both run."""
