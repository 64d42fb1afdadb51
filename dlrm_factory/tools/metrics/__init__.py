"""Figures of predictions against labels."""
