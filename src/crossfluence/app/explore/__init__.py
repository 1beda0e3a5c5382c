"""A local web application on a finished result: any row as the question, and any rows removed."""
