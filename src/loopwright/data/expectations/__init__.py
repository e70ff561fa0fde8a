"""Suites of Great Expectations, brought over into contracts and written from them."""
