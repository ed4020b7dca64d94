"""The compiled kernels; __init__.py says what each argument is."""

from collections.abc import Sequence

from torch import Tensor

def channels_backward(
    stages: int,
    activation: int,
    eps: float,
    per_sample: bool,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    tail: Tensor | None,
    stats: Tensor | None,
    constant_statistics: bool,
    slopes: Tensor | None,
    dx: Tensor | None,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    sums: Tensor | None,
) -> None: ...
def channels_forward(
    stages: int,
    activation: int,
    eps: float,
    per_sample: bool,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    tail: Tensor | None,
    stats: Tensor | None,
) -> int: ...
def describe() -> dict[str, str]:
    """The compiler of this extension and the instruction set that it runs with."""

def ghosts_backward(
    together: int,
    activation: int,
    eps: float,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    stats: Tensor,
    dx: Tensor,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None: ...
def ghosts_forward(
    together: int,
    activation: int,
    eps: float,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    stats: Tensor,
) -> None: ...
def groups_backward(
    G: int,
    centred: bool,
    activation: int,
    eps: float,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    dx: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None: ...
def groups_forward(
    G: int,
    centred: bool,
    activation: int,
    eps: float,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
) -> None: ...
def blend_forward(
    activation: int,
    eps: float,
    per_sample: bool,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    known_mean: Tensor,
    known_var: Tensor,
    share: float,
    stats: Tensor,
) -> None: ...
def renorm_forward(
    activation: int,
    eps: float,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    known_mean: Tensor,
    known_var: Tensor,
    r_max: float,
    d_max: float,
    stats: Tensor,
) -> None: ...
def renorm_backward(
    activation: int,
    eps: float,
    x: Tensor,
    dy: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    stats: Tensor,
    dx: Tensor,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None: ...
def mixture_backward(
    kind: int,
    activation: int,
    eps: float,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    known: bool,
    first: Tensor,
    second: Tensor | None,
    statistics: Tensor,
    batch: Tensor,
    dx: Tensor | None,
    dresidual: Tensor | None,
    dweight: Tensor | None,
    dbias: Tensor | None,
    dfirst: Tensor,
    dsecond: Tensor | None,
) -> None: ...
def mixture_forward(
    kind: int,
    activation: int,
    eps: float,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    known_mean: Tensor | None,
    known_var: Tensor | None,
    first: Tensor,
    second: Tensor | None,
    statistics: Tensor,
    batch: Tensor,
) -> int: ...
def rows_backward(
    R: int,
    centred: bool,
    eps: float,
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    dx: Tensor,
    dweight: Tensor | None,
    dbias: Tensor | None,
) -> None: ...
def rows_forward(
    R: int,
    centred: bool,
    eps: float,
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
) -> None: ...
def threads() -> int:
    """The number of threads that a large call runs on."""

def merged_moments(counts: Sequence[float], rows: Tensor, stats: Tensor) -> None: ...
def statistic_gradients(
    sums: Tensor, var: Tensor, weight: Tensor | None, eps: float, gradients: Tensor
) -> None: ...
def slopes(gradients: Tensor, var: Tensor, eps: float, count: float, to: Tensor) -> None: ...
def update_running(
    count: int,
    counts: Tensor | None,
    momentum: float,
    cumulative: bool,
    stats: Tensor,
    mean: Tensor,
    var: Tensor,
    batches: Tensor | None,
    skipped: Tensor | None,
) -> None: ...
def plain_channels(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
) -> bool:
    """Whether batch norm of these can go to the kernels as it is, without a check or a copy."""

def plain_rows(
    x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> bool:
    """The same of layer and RMS norm."""

def pooled(shape: Sequence[int], strides: Sequence[int], dtype: int) -> object:
    """A DLPack capsule over uninitialized memory of the pool."""

def pooled_bytes() -> int:
    """Outputs of at least so many bytes come from the pool; 0: none does."""

def release_blocks() -> int:
    """Return the idle memory of the pool to the system; its bytes."""
