"""Long fuzzing runs; the tests hold bounded ones."""
