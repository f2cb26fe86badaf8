"""The harness of the agent latency window: from a pinned kernel and a patch series to a verdict per test."""

__version__ = "0.1.0"
