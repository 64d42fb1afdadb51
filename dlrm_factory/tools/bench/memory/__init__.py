"""Memory of workers and time to load, measured on a real server, from /proc/PID/smaps."""
