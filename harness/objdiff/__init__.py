"""Two builds compared: object files, their code in a form that can be compared, and what may differ."""
