"""Training of the models that ship, and of your own. Needs the extra ``train``."""
