"""Building kernels and selftests."""
