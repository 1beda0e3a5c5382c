"""From files of text to numbered words: readers of the usual formats, tokenisers, and the compact corpus."""
