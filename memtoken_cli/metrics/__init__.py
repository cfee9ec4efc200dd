"""Numbers that say how good answers are: thin, over scikit-learn."""
