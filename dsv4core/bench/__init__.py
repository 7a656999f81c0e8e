"""What `dsv4core bench` runs: cases, a check before every time, sides that take turns, floors."""
