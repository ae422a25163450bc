"""Text for records: pure functions that lay out numbers and do not judge them."""
