"""Side-by-side measurements: `python -m benchmarks.run` prints them and writes RESULTS.md."""
