"""What the benchmarks share: result files, timing in pairs, the plain loops' data, memory, local Ray clusters."""
