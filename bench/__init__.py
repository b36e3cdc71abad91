"""Load generator, reference limits and micro-benchmarks. Tests do not assert on speed; it is measured here."""
