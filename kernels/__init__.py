"""The lowest floor: fast functions on tensors, with no idea of streams, nets or strategies.

This is the place for operations that deserve a native implementation: bit-packed masks, exact
top-c thresholds, mask archives, fused optimizer steps. Each is a plain function, tensors in,
tensors out, checked against a slow and obvious reference that lives in `tests/kernels/`. Nothing
here may import Lightning, Avalanche or any other part of clearn.
"""
