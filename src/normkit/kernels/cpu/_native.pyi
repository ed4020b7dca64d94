"""The compiled kernels. Tensors pass as addresses, absent ones as 0; __init__.py says what each one is."""

from collections.abc import Sequence

def channels_backward(
    N: int,
    C: int,
    S: int,
    dtype: int,
    channels_last: bool,
    per_sample: bool,
    stages: int,
    activation: int,
    eps: float,
    x: int,
    dy: int,
    weight: int,
    bias: int,
    parameter_dtype: int,
    residual: int,
    mask: int,
    mean: int,
    var: int,
    tail: int,
    statistics_dtype: int,
    constant_statistics: bool,
    slopes: int,
    dx: int,
    dresidual: int,
    dweight: int,
    dbias: int,
    sums: int,
) -> None: ...
def channels_forward(
    N: int,
    C: int,
    S: int,
    dtype: int,
    channels_last: bool,
    per_sample: bool,
    stages: int,
    activation: int,
    eps: float,
    x: int,
    y: int,
    weight: int,
    bias: int,
    parameter_dtype: int,
    residual: int,
    mask: int,
    mean: int,
    var: int,
    tail: int,
    statistics_dtype: int,
    stats: int,
) -> int: ...
def describe() -> dict[str, str]:
    """The compiler of this extension and the instruction set that it runs with."""

def groups_backward(
    N: int,
    C: int,
    S: int,
    G: int,
    dtype: int,
    channels_last: bool,
    centred: bool,
    activation: int,
    eps: float,
    x: int,
    dy: int,
    weight: int,
    bias: int,
    parameter_dtype: int,
    stats: int,
    dx: int,
    dweight: int,
    dbias: int,
) -> None: ...
def groups_forward(
    N: int,
    C: int,
    S: int,
    G: int,
    dtype: int,
    channels_last: bool,
    centred: bool,
    activation: int,
    eps: float,
    x: int,
    y: int,
    weight: int,
    bias: int,
    parameter_dtype: int,
    stats: int,
) -> None: ...
def rows_backward(
    R: int,
    M: int,
    dtype: int,
    centred: bool,
    eps: float,
    x: int,
    dy: int,
    weight: int,
    parameter_dtype: int,
    stats: int,
    dx: int,
    dweight: int,
    dbias: int,
) -> None: ...
def rows_forward(
    R: int,
    M: int,
    dtype: int,
    centred: bool,
    eps: float,
    x: int,
    y: int,
    weight: int,
    bias: int,
    parameter_dtype: int,
    stats: int,
) -> None: ...
def threads() -> int:
    """The number of threads that a large call runs on."""

def update_running(
    C: int,
    sets: int,
    count: int,
    counts: int,
    momentum: float,
    cumulative: bool,
    stats: int,
    mean: int,
    var: int,
    dtype: int,
    batches: int,
    skipped: int,
) -> None: ...
def pooled(shape: Sequence[int], strides: Sequence[int], dtype: int) -> object:
    """A DLPack capsule over uninitialized memory of the pool."""

def pooled_bytes() -> int:
    """Outputs of at least so many bytes come from the pool; 0: none does."""

def release_blocks() -> int:
    """Return the idle memory of the pool to the system; its bytes."""
