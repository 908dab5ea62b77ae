//! What changed in a tree, as a hint; and whether a changed file is finished.
