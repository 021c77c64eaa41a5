"""The figures of the benchmarks that run on a CPU, as they stand in the documentation."""


def blocks() -> dict[str, dict[str, str]]:
    """Page -> mark -> what stands there."""
    return {}
