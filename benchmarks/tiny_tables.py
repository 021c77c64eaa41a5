"""The figures of the runs of the tiny policy, as they stand in the documentation."""


def blocks() -> dict[str, dict[str, str]]:
    """Page -> mark -> what stands there."""
    return {}
