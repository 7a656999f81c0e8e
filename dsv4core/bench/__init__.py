"""What `dsv4core bench` runs: a correctness gate per op and backend, then alternating timed runs."""
