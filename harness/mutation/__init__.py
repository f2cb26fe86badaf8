"""Mutation testing of the series: break one thing at a time in the kernel and see that its test notices."""
