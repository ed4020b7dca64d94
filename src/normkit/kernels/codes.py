"""The numbers by which kernels know the activations."""

ACTIVATIONS = {
    None: 0, "relu": 1, "leaky_relu": 2, "silu": 3, "gelu": 4, "elu": 5, "sigmoid": 6, "tanh": 7,
    "relu6": 8, "hardswish": 9,
}  # fmt: skip
