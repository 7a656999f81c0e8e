"""What `dsv4core demo` runs: three layers, two requests, every cache hashed and every output checked."""
