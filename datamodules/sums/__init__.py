"""Sums in column form: a task that tiny models learn in minutes, in a thinking mode and a fast one."""
