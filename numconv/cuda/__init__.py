"""The GPU's rooms: the CPU's launchers again, for arrays that live on a GPU. Importing them calls no driver."""
