"""The test servers keep their own promises."""
