"""Export: a trained network as ONNX files, held against torch."""
