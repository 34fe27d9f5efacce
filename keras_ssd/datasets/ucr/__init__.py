"""The UCR time series classification archive of 2018."""
