"""The GPU's rooms: the same launchers as the CPU's, for arrays that live on a GPU. Nothing here calls a driver at import."""
