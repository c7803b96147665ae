"""The leak hunt: what one user of a GPU finds of the last, with the driver alone and after our wipe."""
