"""Models with samples removed, undone or amplified: predicted beside achieved."""
