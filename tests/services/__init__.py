"""The real services that tests and benchmarks run against, and the program itself as a process."""
