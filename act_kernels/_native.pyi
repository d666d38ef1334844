"""Types of the C++ extension: addresses, sizes and strides in elements, as plain integers."""

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def column_moments(
    dtype: int,
    x: int,
    rows: int,
    columns: int,
    row_stride: int,
    mask: int,
    moments: int,
    moments_stride: int,
    threads: int,
) -> None: ...
def pair_moments(
    dtype: int,
    donor: int,
    target: int,
    rows: int,
    columns: int,
    donor_stride: int,
    target_stride: int,
    mask: int,
    moments: int,
    block_stride: int,
    moments_stride: int,
    threads: int,
) -> None: ...
def blend_rows(
    dtype: int,
    target: int,
    donor: int,
    rows: int,
    count: int,
    width: int,
    target_row_stride: int,
    target_column_stride: int,
    donor_row_stride: int,
    donor_column_stride: int,
    strength: float,
    threads: int,
) -> None: ...
