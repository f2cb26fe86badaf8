"""The trace events of the series: from lines of text to the completion chain of each step, and out again."""
