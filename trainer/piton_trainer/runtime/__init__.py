"""The process and its machine: ranks, devices, memory, cores, and processes that work beside a trainer."""
