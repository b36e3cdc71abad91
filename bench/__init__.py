"""Load generator, ceilings and micro-benchmarks. Speed is measured here and never in a timed test."""
