"""Counts of a worker, in a file that whoever exports metrics maps; and the distribution that training had."""
