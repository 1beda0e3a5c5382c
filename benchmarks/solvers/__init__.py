"""Cost and accuracy of solvers and of what judges them."""
