"""What `python -m eval.bench` measures, a file for each."""
