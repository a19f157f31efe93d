"""The article's benchmarks: how good a model's answers are, and what that is worth in Llama 2's parameters.

Needs the extra `eval` (lm-evaluation-harness and matplotlib), which is imported only when something is measured.
"""
