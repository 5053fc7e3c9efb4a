"""Compiled code: the decorator of every kernel, and where machine code is kept between runs."""
