"""What workers cost in memory and time to load: measured on a real server, from /proc/PID/smaps."""
