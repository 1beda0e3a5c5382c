"""The risk that training minimised, and questions about where it ended."""
