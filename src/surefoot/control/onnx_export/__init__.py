"""A trained policy as an ONNX file: the graph, its comparison with the policy, the file."""
